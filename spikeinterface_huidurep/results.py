"""Properties of units, and the files written beside the sorting."""

import json

import numpy as np
from spikeinterface.core import NumpySorting

from spikeinterface_huidurep.leftovers import MAX_DELAY_OF_UNIT_MS, find_true_shares
from spikeinterface_huidurep.linking import locate_templates
from spikeinterface_huidurep.matching import measure_norms

QUALITY_NORM = 8.0  # noise SD; norm of templates that are as easily made by noise as by a neuron
MIN_QUALITY = 0.18  # the least of 2036 true units found in the benchmark has 0.36


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


def keep_credible_units(sorting, posteriors):
    """
    Leave out units whose `quality` says that they are hardly neurons.

    Parameters
    ----------
    sorting : NumpySorting
        With the properties of `describe_units`.
    posteriors : np.ndarray, float32, shape (n_spikes,)
        In the order of `sorting.to_spike_vector()`.

    Returns
    -------
    sorting : BaseSorting
    posteriors : np.ndarray, float32, shape (n_spikes,)
    """
    is_credible = sorting.get_property("quality") >= MIN_QUALITY
    is_kept = is_credible[sorting.to_spike_vector()["unit_index"]]
    return sorting.select_units(sorting.unit_ids[is_credible]), posteriors[is_kept]


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
