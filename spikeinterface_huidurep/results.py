"""Confidence of spikes, properties of units, and the files written beside the sorting."""

import json

import numpy as np
from spikeinterface.core import NumpySorting

from spikeinterface_huidurep.linking import locate_templates
from spikeinterface_huidurep.merging import find_lag, shift_waveforms
from spikeinterface_huidurep.waveforms import extract_waveforms, resample_templates

COMPETITOR_DISTANCE_UM = 100.0  # between the main channels of units that may be confused


def compute_posteriors(traces, sorting, templates, neurons, neighborhoods, params, folder, job_kwargs):
    """
    Probability that each spike belongs to its unit rather than to one of the units around it.

    In whitened traces the noise is white with unit SD, so that the log-likelihood of a unit is minus half the squared
    distance between the waveform and the unit's mean. Every unit counts as equally frequent.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of the units of the sorting.
    neurons : np.ndarray, int64, shape (n_units,)
        See `linking.link_fragments`; fragments of one neuron are no alternative to each other.
    neighborhoods : Neighborhoods
    params : SorterParams
    folder : Path
        For a temporary file.
    job_kwargs : dict

    Returns
    -------
    posteriors : np.ndarray, float32, shape (n_spikes,)
        In the order of `sorting.to_spike_vector()`.
    """
    spikes = sorting.to_spike_vector()
    main_channels = find_main_channels(templates, params.peak_sign)
    peaks = np.zeros(len(spikes), dtype=[("sample_index", "i8"), ("channel_index", "i8"), ("segment_index", "i8")])
    peaks["sample_index"], peaks["segment_index"] = spikes["sample_index"], spikes["segment_index"]
    peaks["channel_index"] = main_channels[spikes["unit_index"]]
    waveforms = extract_waveforms(traces, peaks, neighborhoods, params.peak_sign, folder, job_kwargs)
    resampled = resample_templates(templates)  # (u, c, t)
    locations_um = traces.get_channel_locations()
    posteriors = np.ones(len(spikes), dtype="float32")
    for unit_index, channel in enumerate(main_channels):
        members = np.flatnonzero(spikes["unit_index"] == unit_index)
        distances_um = np.linalg.norm(locations_um[main_channels] - locations_um[channel], axis=1)
        competitors = np.flatnonzero((distances_um <= COMPETITOR_DISTANCE_UM) & (neurons != neurons[unit_index]))
        if len(members) == 0 or len(competitors) == 0:
            continue
        rows = neighborhoods.channel_mask[channel]
        channels = neighborhoods.channel_indices[channel][rows]
        cut = waveforms[members].astype("float32")[:, rows]
        posteriors[members] = posterior_of_mean(cut, resampled[competitors][:, channels])
    return posteriors


def posterior_of_mean(waveforms, competitors):
    """
    Posterior probability of the mean of the waveforms against other means, under white noise of unit SD.

    Each waveform is part of the mean: its squared distance is too small by 1 / n_spikes, which is made good.

    Parameters
    ----------
    waveforms : np.ndarray, float32, shape (n_spikes, n_channels, n_samples)
    competitors : np.ndarray, float32, shape (n_others, n_channels, n_samples)
        Each is moved in time to be closest to the mean.

    Returns
    -------
    posteriors : np.ndarray, float32, shape (n_spikes,)
    """
    mean = waveforms.mean(axis=0)
    others = np.stack([shift_waveforms(other, find_lag(mean, other)[0]) for other in competitors])
    log_odds = np.tensordot(waveforms, others - mean, axes=([1, 2], [1, 2]))  # (n_spikes, n_others)
    log_odds -= 0.5 * (np.sum(others**2, axis=(1, 2)) - np.sum(mean**2))
    own_share = np.sum((waveforms - mean) ** 2, axis=(1, 2)) / max(len(waveforms) - 1, 1)
    log_odds += 0.5 * own_share[:, None]
    return (1 / (1 + np.exp(np.clip(log_odds, -50, 50)).sum(axis=1))).astype("float32")


def find_main_channels(templates, peak_sign):
    """Index of the channel with the largest extremum of each template, shape (n_units,)."""
    return templates.get_main_channels(peak_sign=peak_sign, outputs="index", with_dict=False)


def describe_units(sorting, templates, posteriors, peak_sign):
    """
    Set the properties of the units.

    `main_channel_id`, `x_um` and `y_um` (centre of mass of the squared peak-to-peak amplitude), `snr` (largest
    deflection of the template in noise SD of the whitened traces), `mean_posterior` and `n_spikes`.
    """
    waveforms = templates.get_dense_templates()  # (u, t, c)
    spikes = sorting.to_spike_vector()
    counts = np.bincount(spikes["unit_index"], minlength=len(sorting.unit_ids))
    totals = np.bincount(spikes["unit_index"], weights=posteriors, minlength=len(sorting.unit_ids))
    locations_um = locate_templates(templates)
    sorting.set_property("main_channel_id", templates.channel_ids[find_main_channels(templates, peak_sign)])
    sorting.set_property("x_um", locations_um[:, 0])
    sorting.set_property("y_um", locations_um[:, 1])
    sorting.set_property("snr", np.abs(waveforms).max(axis=(1, 2)))
    sorting.set_property("mean_posterior", totals / np.maximum(counts, 1))
    sorting.set_property("n_spikes", counts)


def join_groups(sortings, posteriors, sampling_frequency):
    """
    One sorting of the units of all channel groups, numbered from 0.

    Parameters
    ----------
    sortings : dict of group -> NumpySorting
    posteriors : dict of group -> np.ndarray, float32, shape (n_spikes of that group,)
    sampling_frequency : float

    Returns
    -------
    sorting : NumpySorting
        With the properties of the parts and `group`.
    posteriors : np.ndarray, float32, shape (n_spikes,)
        In the order of `sorting.to_spike_vector()`.
    """
    parts, n_units = [], 0
    for sorting in sortings.values():
        part = sorting.to_spike_vector().copy()
        part["unit_index"] += n_units
        parts.append(part)
        n_units += len(sorting.unit_ids)
    spikes = np.concatenate(parts)
    order = np.lexsort((spikes["unit_index"], spikes["sample_index"], spikes["segment_index"]))
    joined = NumpySorting(spikes[order], sampling_frequency, np.arange(n_units))
    found = {group: sorting for group, sorting in sortings.items() if len(sorting.unit_ids) > 0}
    if found:
        joined.set_property("group", np.concatenate([[group] * len(s.unit_ids) for group, s in found.items()]))
        for name in next(iter(found.values())).get_property_keys():
            joined.set_property(name, np.concatenate([sorting.get_property(name) for sorting in found.values()]))
    return joined, np.concatenate(list(posteriors.values()))[order]


def save_clustering(folder, peaks, labels, posteriors, features, params):
    """Write the spikes that were clustered, with their vectors, to `clustered_*.npy`."""
    np.save(folder / "clustered_peaks.npy", peaks)
    np.save(folder / "clustered_labels.npy", labels)
    np.save(folder / "clustered_posteriors.npy", posteriors)
    if params.save_embeddings:
        np.save(folder / "clustered_embeddings.npy", features)


def save_results(folder, sorting, posteriors, seconds):
    """Write `spike_posteriors.npy` and `summary.json` (units, spikes, seconds of each stage)."""
    np.save(folder / "spike_posteriors.npy", posteriors)
    summary = {"n_units": len(sorting.unit_ids), "n_spikes": len(posteriors), "seconds": seconds}
    (folder / "summary.json").write_text(json.dumps(summary, indent=4), encoding="utf8")
