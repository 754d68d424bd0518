"""Confidence of spikes, properties of units, and the files written beside the sorting."""

import json

import numpy as np
from scipy.stats import median_abs_deviation
from spikeinterface.core import NumpySorting, ms_to_samples
from spikeinterface.core.base import base_peak_dtype
from spikeinterface.core.generate import InjectTemplatesRecording
from spikeinterface.core.node_pipeline import ExtractSparseWaveforms, PeakRetriever

from spikeinterface_huidurep.linking import locate_templates
from spikeinterface_huidurep.merging import MAX_LAG, find_lag, shift_waveforms
from spikeinterface_huidurep.waveforms import run_into_file

COMPETITOR_DISTANCE_UM = 100.0  # between the main channels of units that may be confused
POSTERIOR_MS_BEFORE, POSTERIOR_MS_AFTER = 0.8, 1.3
TEMPERATURE = 8.0  # divides the log-odds: neurons vary in more ways than the spread along one line shows


def compute_posteriors(traces, sorting, templates, neurons, neighborhoods, params, folder, job_kwargs):
    """
    Probability that each spike belongs to its unit rather than to one of the units around it.

    The templates of all spikes are taken away from the traces. What is left around a spike is compared with what
    would be left if the spike were of another unit; how much it varies from spike to spike along the difference of the
    two templates is measured. Every unit counts as equally frequent.

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
    dense, window = pad_templates(templates)
    residuals = extract_residuals(traces, sorting, templates, main_channels, neighborhoods, folder, job_kwargs)
    locations_um = traces.get_channel_locations()
    posteriors = np.ones(len(spikes), dtype="float32")
    for unit_index, channel in enumerate(main_channels):
        members = np.flatnonzero(spikes["unit_index"] == unit_index)
        distances_um = np.linalg.norm(locations_um[main_channels] - locations_um[channel], axis=1)
        competitors = np.flatnonzero((distances_um <= COMPETITOR_DISTANCE_UM) & (neurons != neurons[unit_index]))
        if len(members) == 0 or len(competitors) == 0:
            continue
        channels = neighborhoods.find_neighbors(channel)
        own, others = dense[unit_index][:, channels].T, dense[competitors][:, :, channels].transpose(0, 2, 1)
        differences = np.stack([shift_waveforms(other, find_lag(own, other)[0]) - own for other in others])
        left = residuals[members][:, :, : len(channels)].transpose(0, 2, 1)
        posteriors[members] = posterior_of_residuals(left, differences[:, :, window])
    return posteriors


def pad_templates(templates):
    """
    Dense templates long enough for the window of the posteriors and any lag.

    Returns
    -------
    waveforms : np.ndarray, float32, shape (n_units, n_samples, n_channels)
        0 beyond the ends of the templates.
    window : slice
        The samples of the window.
    """
    n_before, n_after = _count_samples(templates.sampling_frequency)
    pad_before = max(0, n_before + MAX_LAG - templates.nbefore)
    pad_after = max(0, n_after + MAX_LAG - templates.nafter)
    dense = templates.get_dense_templates().astype("float32")
    peak = pad_before + templates.nbefore
    return np.pad(dense, ((0, 0), (pad_before, pad_after), (0, 0))), slice(peak - n_before, peak + n_after)


def _count_samples(sampling_frequency):
    """Samples of the window of the posteriors before and after the peak."""
    return tuple(ms_to_samples(ms, sampling_frequency) for ms in (POSTERIOR_MS_BEFORE, POSTERIOR_MS_AFTER))


def extract_residuals(traces, sorting, templates, main_channels, neighborhoods, folder, job_kwargs):
    """
    What is left of every spike on the neighbours of its unit's main channel when all templates are taken away.

    Returns
    -------
    residuals : np.ndarray, float32, shape (n_spikes, n_samples, n_neighbors)
        Memory-mapped; channels in the order of their index, 0 where there are fewer.
    """
    explained = InjectTemplatesRecording(
        sorting,
        templates.get_dense_templates().astype("float32"),
        nbefore=templates.nbefore,
        amplitude_factor=-1.0,
        parent_recording=traces.select_segments(range(sorting.get_num_segments())),  # later ones have no spike
    )
    spikes = sorting.to_spike_vector()
    peaks = np.zeros(len(spikes), dtype=base_peak_dtype)
    peaks["sample_index"], peaks["segment_index"] = spikes["sample_index"], spikes["segment_index"]
    peaks["channel_index"] = main_channels[spikes["unit_index"]]
    retriever = PeakRetriever(explained, peaks)
    n_before, n_after = _count_samples(traces.sampling_frequency)
    node = ExtractSparseWaveforms(
        explained,
        nbefore=n_before,
        nafter=n_after,
        parents=[retriever],
        return_output=True,
        sparsity_mask=neighborhoods.make_sparsity_mask(),
    )
    return run_into_file(explained, [retriever, node], "residuals", folder, job_kwargs)


def posterior_of_residuals(residuals, differences):
    """
    Probability that spikes have the template that was taken away from them, and not another one.

    Parameters
    ----------
    residuals : np.ndarray, float32, shape (n_spikes, n_channels, n_samples)
    differences : np.ndarray, float32, shape (n_others, n_channels, n_samples)
        The other templates minus that one.

    Returns
    -------
    posteriors : np.ndarray, float32, shape (n_spikes,)
    """
    norms = np.sqrt(np.sum(differences**2, axis=(1, 2))) + 1e-6
    along = np.tensordot(residuals, differences, axes=([1, 2], [1, 2])) / norms  # (n_spikes, n_others)
    spread = median_abs_deviation(along, axis=0, scale="normal")
    log_odds = (along * norms - 0.5 * norms**2) / np.maximum(spread, 1) ** 2 / TEMPERATURE
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
