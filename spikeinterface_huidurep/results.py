"""Confidence of spikes, properties of units, and the files written beside the sorting."""

import json
from functools import partial

import numpy as np
from scipy.stats import median_abs_deviation
from spikeinterface.core import NumpySorting

from spikeinterface_huidurep.leftovers import MAX_DELAY_OF_UNIT_MS, find_true_shares
from spikeinterface_huidurep.linking import locate_templates
from spikeinterface_huidurep.matching import measure_norms
from spikeinterface_huidurep.merging import find_lag, shift_waveforms
from spikeinterface_huidurep.residuals import multiply
from spikeinterface_huidurep.splitting import N_AROUND, remove_running_mean

COMPETITOR_DISTANCE_UM = 100.0  # between the main channels of units that may be confused
QUALITY_NORM = 8.0  # noise SD; norm of templates that are as easily made by noise as by a neuron
TEMPERATURE = 5.5  # divides the log-odds: neurons vary in more ways than the spread along one line shows
RIVAL_ODDS = 0.5  # of a unit that fires as often and fits as well: matching has chosen the other one
OTHER_ODDS = 0.01  # of a spike that is of none of the units, to one of its own
MAX_ODDS = 3.0  # against the unit that matching has chosen among all, however well others fit what is compared here


def compute_posteriors(sorting, residuals, neurons):
    """
    Probability that each spike belongs to its unit rather than to one of the units around it.

    What is left around a spike is compared with what would be left if the spike were of another unit; how much it
    varies from spike to spike along the difference of the two templates is measured, without what drift makes of it.

    Parameters
    ----------
    sorting : NumpySorting
    residuals : Residuals
        Of its spikes.
    neurons : np.ndarray, int64, shape (n_units,)
        See `linking.link_fragments`; fragments of one neuron are no alternative to each other.

    Returns
    -------
    posteriors : np.ndarray, float32, shape (n_spikes,)
        In the order of `sorting.to_spike_vector()`.
    """
    unit_indices = sorting.to_spike_vector()["unit_index"]
    locations_um = residuals.neighborhoods.locations_um[residuals.main_channels]
    counts = np.bincount(neurons[unit_indices], minlength=len(neurons))[neurons]
    posteriors = np.full(len(unit_indices), 1 / (1 + OTHER_ODDS), dtype="float32")
    for unit_index, location_um in enumerate(locations_um):
        members = np.flatnonzero(unit_indices == unit_index)
        distances_um = np.linalg.norm(locations_um - location_um, axis=1)
        competitors = np.flatnonzero((distances_um <= COMPETITOR_DISTANCE_UM) & (neurons != neurons[unit_index]))
        if len(members) == 0 or len(competitors) == 0:
            continue
        own, *others = (
            residuals.get_waveform(index, residuals.find_channels(unit_index)) for index in (unit_index, *competitors)
        )
        differences = np.stack([shift_waveforms(other, find_lag(own, other)[0]) - own for other in others])
        differences = differences[:, :, residuals.window]
        products = residuals.apply(partial(multiply, others=differences), members, unit_index)
        energies = np.sum(differences**2, axis=(1, 2))
        posteriors[members] = posterior_of_products(products, energies, counts[competitors] / counts[unit_index])
    return posteriors


def posterior_of_products(products, energies, frequencies):
    """
    Probability that spikes have the template that was taken away from them, and not another one.

    Parameters
    ----------
    products : np.ndarray, float, shape (n_spikes, n_others)
        Of what is left of the spikes, in the order of time, and the differences between each other template and theirs.
    energies : np.ndarray, float, shape (n_others,)
        Of these differences.
    frequencies : np.ndarray, float, shape (n_others,)
        How often the neurons of these templates fire, compared with theirs.

    Returns
    -------
    posteriors : np.ndarray, float32, shape (n_spikes,)
    """
    norms = np.sqrt(energies) + 1e-6
    along = products / norms
    if len(along) > N_AROUND:
        along = remove_running_mean(along, N_AROUND)
    spread = median_abs_deviation(along, axis=0, scale="normal")
    log_odds = (along * norms - 0.5 * norms**2) / np.maximum(spread, 1) / TEMPERATURE
    odds = RIVAL_ODDS * frequencies * np.exp(np.clip(log_odds, -50, 50))
    total = odds.sum(axis=1)
    return (1 / (1 + OTHER_ODDS + total / (1 + total / MAX_ODDS))).astype("float32")


def describe_units(sorting, templates, posteriors, main_channels):
    """
    Set the properties of the units.

    `main_channel_id`, `x_um` and `y_um` (centre of mass of the squared peak-to-peak amplitude), `snr` (largest
    deflection of the template in noise SD of the whitened traces), `mean_posterior`, `n_spikes` and `quality` (0 to 1:
    the mean posterior, less for templates that noise could have made and for units many of whose spikes come with those
    of a larger one).

    Parameters
    ----------
    sorting : NumpySorting
        Receives the properties.
    templates : spikeinterface.core.Templates
        Of its units, in noise SD.
    posteriors : np.ndarray, float32, shape (n_spikes,)
        In the order of `sorting.to_spike_vector()`.
    main_channels : np.ndarray, int64, shape (n_units,)
        Indices.
    """
    waveforms = templates.get_dense_templates()  # (u, t, c)
    spikes = sorting.to_spike_vector()
    counts = np.bincount(spikes["unit_index"], minlength=len(sorting.unit_ids))
    totals = np.bincount(spikes["unit_index"], weights=posteriors, minlength=len(sorting.unit_ids))
    locations_um = locate_templates(templates)
    sorting.set_property("main_channel_id", templates.channel_ids[main_channels])
    sorting.set_property("x_um", locations_um[:, 0])
    sorting.set_property("y_um", locations_um[:, 1])
    sorting.set_property("snr", np.abs(waveforms).max(axis=(1, 2)))
    mean_posteriors = totals / np.maximum(counts, 1)
    norms = measure_norms(templates, dict(zip(sorting.unit_ids.tolist(), counts.tolist(), strict=True)))
    sorting.set_property("mean_posterior", mean_posteriors)
    sorting.set_property("n_spikes", counts)
    (shares,) = find_true_shares(sorting, norms, np.arange(len(norms)), [MAX_DELAY_OF_UNIT_MS])
    independence = np.bincount(spikes["unit_index"], weights=shares, minlength=len(counts)) / np.maximum(counts, 1)
    is_no_noise = 1 - np.exp(-0.5 * (norms / QUALITY_NORM) ** 2)
    sorting.set_property("quality", mean_posteriors * independence * is_no_noise)


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
