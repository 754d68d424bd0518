"""Templates of the units, and the spikes that match them."""

import numpy as np
from numpy.lib.recfunctions import rename_fields
from spikeinterface.core import NumpySorting, Templates, estimate_templates_with_accumulator, ms_to_samples
from spikeinterface.core.base import minimum_spike_dtype
from spikeinterface.sortingcomponents.matching import find_spikes_from_templates
from spikeinterface.sortingcomponents.tools import clean_templates, compute_sparsity_from_peaks_and_label

from spikeinterface_huidurep.collisions import find_single_spikes
from spikeinterface_huidurep.overlaps import find_mixtures, resolve_overlaps
from spikeinterface_huidurep.preprocessing import REFERENCED
from spikeinterface_huidurep.whitening import list_segment_sizes

TEMPLATE_RADIUS_UM = 200.0  # what a large spike leaves beyond is taken for small spikes
MIN_SPIKES_FAR = 100  # of templates that reach all channels of REFERENCED traces; fewer have noise of MIN_CHANNEL_PTP
MIN_CHANNEL_PTP = 1.0  # noise SD, peak to peak: channels below it do not belong to a template
MAX_INFLATION = 2.5  # times more spikes by matching than by detection: a weak template may have found noise
MIN_SIZE = 0.95  # mean size of its spikes in multiples of the template: noise is smaller than what it was picked by
MIN_SIZE_OF_ANY = 7.0  # noise SD; mean size of spikes that are no noise, however large the template
MIN_SIMILARITY = 0.9  # cosine between their mean and the template
MIN_CONFIRMED = 0.5  # of the spikes that the template was made of
MAX_COINCIDENCE = 0.5  # share of the spikes of a unit that may be at those of a stronger one
MAX_COINCIDENCE_MS = 0.5  # between two spikes that count as one
WEAK_NORM = 13.0  # noise SD; norm of a template below which that is possible


def estimate_templates(traces, peaks, labels, params, job_kwargs):
    """
    Mean waveforms of the clusters that can be units, large enough; spikes that collide with others are left out.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    peaks : np.ndarray, structured, shape (n_peaks,)
    labels : np.ndarray, int64, shape (n_peaks,)
        -1 where a peak has no cluster.
    params : SorterParams
    job_kwargs : dict

    Returns
    -------
    templates : None | spikeinterface.core.Templates
        Sparse, unit ids are the labels kept; None if no cluster can be a unit.
    """
    has_label = labels >= 0
    if not np.any(has_label):
        return None
    peaks, labels = peaks[has_label], labels[has_label]
    templates = keep_large_templates(average_peaks(traces, peaks, labels, params, job_kwargs), params)
    if templates is None:
        return None
    is_large = np.isin(labels, templates.unit_ids)
    peaks, labels = peaks[is_large], labels[is_large]
    sorting, order = make_sorting(peaks["sample_index"], labels, peaks["segment_index"], traces.sampling_frequency)
    kept = order[find_single_spikes(traces, sorting, templates, job_kwargs)]
    return keep_large_templates(average_peaks(traces, peaks[kept], labels[kept], params, job_kwargs), params)


def average_peaks(traces, peaks, labels, params, job_kwargs):
    """
    Mean waveforms on the channels around the peaks of each label; on all of them if the traces are REFERENCED.

    Parameters
    ----------
    traces : BaseRecording
    peaks : np.ndarray, structured, shape (n_peaks,)
        At least one.
    labels : np.ndarray, int64, shape (n_peaks,)
    params : SorterParams
    job_kwargs : dict

    Returns
    -------
    templates : spikeinterface.core.Templates
        Sparse, unit ids are the labels, ascending.
    """
    sorting, order = make_sorting(peaks["sample_index"], labels, peaks["segment_index"], traces.sampling_frequency)
    sparsity, _ = compute_sparsity_from_peaks_and_label(
        peaks[order], sorting.to_spike_vector()["unit_index"], sorting.unit_ids, traces, TEMPLATE_RADIUS_UM
    )
    mask = sparsity.mask
    if traces.get_annotation(REFERENCED, copy=False):
        mask = mask | (sorting.count_num_spikes_per_unit(outputs="array") >= MIN_SPIKES_FAR)[:, None]
    nbefore, nafter = (ms_to_samples(ms, traces.sampling_frequency) for ms in (params.ms_before, params.ms_after))
    return average_spikes(traces, sorting, nbefore, nafter, mask, job_kwargs)


def keep_large_templates(templates, params):
    """
    Templates that reach `min_snr` on a channel, on the channels where they are MIN_CHANNEL_PTP or larger.

    Parameters
    ----------
    templates : spikeinterface.core.Templates
        In multiples of the noise SD.
    params : SorterParams

    Returns
    -------
    templates : None | spikeinterface.core.Templates
        Sparse; None if none is as large.
    """
    templates = clean_templates(
        templates,
        sparsify_threshold=MIN_CHANNEL_PTP,
        noise_levels=np.ones(templates.num_channels),
        min_snr=params.min_snr,
    )
    return templates if len(templates.unit_ids) > 0 else None


def average_spikes(traces, sorting, nbefore, nafter, sparsity_mask, job_kwargs):
    """
    Mean waveforms of the units of a sorting.

    Parameters
    ----------
    traces : BaseRecording
    sorting : BaseSorting
    nbefore, nafter : int
        Samples before the spike, and from it on.
    sparsity_mask : np.ndarray, bool, shape (n_units, n_channels)
        The channels of each unit.
    job_kwargs : dict

    Returns
    -------
    templates : spikeinterface.core.Templates
        Sparse.
    """
    means = estimate_templates_with_accumulator(
        traces,
        sorting.to_spike_vector(),
        sorting.unit_ids,
        nbefore,
        nafter,
        return_in_uV=False,
        sparsity_mask=sparsity_mask,
        **job_kwargs,
    )
    return Templates(
        templates_array=means,
        sampling_frequency=traces.sampling_frequency,
        nbefore=nbefore,
        channel_ids=traces.channel_ids,
        unit_ids=sorting.unit_ids,
        sparsity_mask=sparsity_mask,
        probe=traces.get_probe(),
        is_in_uV=False,
    )


def move_inside(peaks, traces):
    """Put peaks that a lag moved beyond an end of their segment on its first or last sample, in place."""
    n_samples = np.array(list_segment_sizes(traces))
    peaks["sample_index"] = np.clip(peaks["sample_index"], 0, n_samples[peaks["segment_index"]] - 1)


def keep_frequent_units(labels, duration_s, params, weights=None):
    """
    Take the label from clusters that fire less than `min_firing_rate`.

    Parameters
    ----------
    labels : np.ndarray, int64, shape (n_peaks,)
        -1 for none.
    duration_s : float
    params : SorterParams
    weights : None | np.ndarray, float, shape (n_peaks,), default: None
        How many spikes each stands for; None if it is one.

    Returns
    -------
    labels : np.ndarray, int64, shape (n_peaks,)
    """
    return keep_large_clusters(labels, params.min_firing_rate * duration_s, weights)


def keep_large_clusters(labels, min_size, weights=None):
    """Take the label from clusters of fewer than `min_size` spikes; parameters as for `keep_frequent_units`."""
    sizes = np.bincount(labels + 1, weights=weights)[1:]
    return np.where(np.isin(labels, np.flatnonzero(sizes < min_size)), -1, labels)


def match_templates(traces, templates, params, job_kwargs):
    """
    Find the spikes of the templates, also where they overlap.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    templates : spikeinterface.core.Templates
        In the same unit.
    params : SorterParams
    job_kwargs : dict

    Returns
    -------
    sorting : NumpySorting
        Unit ids are those of the templates that fire at least at `min_firing_rate`, but for those of collisions.
    """
    spikes = find_spikes(traces, templates, job_kwargs)
    mixtures = find_mixtures(traces, spikes, templates, job_kwargs)
    if len(mixtures) > 0:
        spikes = resolve_overlaps(traces, spikes, templates, job_kwargs, mixtures)
    labels = keep_frequent_units(
        templates.unit_ids[spikes["cluster_index"]].astype("int64"), traces.get_total_duration(), params
    )
    found = labels >= 0
    sorting, _ = make_sorting(
        spikes["sample_index"][found], labels[found], spikes["segment_index"][found], traces.sampling_frequency
    )
    return sorting


def find_spikes(traces, templates, job_kwargs):
    """
    Spikes of the templates, also where they overlap.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    templates : spikeinterface.core.Templates
        In the same unit.
    job_kwargs : dict

    Returns
    -------
    spikes : np.ndarray, structured (sample_index, cluster_index, segment_index, ...), shape (n_spikes,)
        Clusters are indices of templates.
    """
    spikes = find_spikes_from_templates(traces, templates, method="wobble", job_kwargs=job_kwargs)
    return resolve_overlaps(traces, spikes, templates, job_kwargs)


def keep_units(traces, sorting, templates, unit_indices, is_leftover, job_kwargs):
    """
    Leave out all other units; of their spikes those that are no leftovers are given back to the units kept.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
        What matching found in them.
    templates : spikeinterface.core.Templates
        Of its units.
    unit_indices : np.ndarray, int64, shape (n_kept,)
        Of the units kept.
    is_leftover : np.ndarray, bool, shape (n_spikes,)
    job_kwargs : dict

    Returns
    -------
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of its units.
    """
    spikes = sorting.to_spike_vector()
    left_out = np.setdiff1d(np.arange(len(sorting.unit_ids)), unit_indices)
    spikes = spikes[~(is_leftover & np.isin(spikes["unit_index"], left_out))]
    spikes = rename_fields(spikes, {"unit_index": "cluster_index"})
    spikes = resolve_overlaps(traces, spikes, templates, job_kwargs, left_out)
    labels = templates.unit_ids[spikes["cluster_index"]]
    sorting, _ = make_sorting(spikes["sample_index"], labels, spikes["segment_index"], traces.sampling_frequency)
    return sorting, templates.select_units(sorting.unit_ids)


def keep_lasting_units(traces, sorting, templates, n_spikes, made_of, job_kwargs):
    """
    Leave out weak units that found noise, or things of many kinds.

    They found far more spikes than were known of them, unless these are like those of a neuron of which few were
    detected (`find_lasting_units`).

    Parameters
    ----------
    traces : BaseRecording
    sorting : NumpySorting
        What matching found in them.
    templates : spikeinterface.core.Templates
        Of all units of the sorting, and maybe of others.
    n_spikes, made_of : dict of unit id -> float
        Number of spikes of each unit as far as it was known, and number of those that the template was made of.
    job_kwargs : dict

    Returns
    -------
    sorting : BaseSorting
    """
    found = sorting.count_num_spikes_per_unit(outputs="dict")
    norms = _norms_of_units(templates, made_of)
    unit_ids = sorting.unit_ids.tolist()
    inflated = [id_ for id_ in unit_ids if found[id_] > MAX_INFLATION * n_spikes[id_] and norms[id_] < WEAK_NORM]
    lasting = find_lasting_units(traces, sorting.select_units(inflated), templates.select_units(inflated), job_kwargs)
    return sorting.select_units([id_ for id_ in unit_ids if id_ not in inflated or id_ in lasting])


def keep_confirmed_units(sorting, templates, made_of):
    """
    Leave out units that matching does not confirm.

    A template that found far fewer spikes than it was made of was made of those of others. And one that fires with a
    stronger unit takes what the template of that one leaves of its spikes.

    Parameters
    ----------
    sorting : BaseSorting
        What matching found.
    templates : spikeinterface.core.Templates
        Of all units of the sorting, and maybe of others.
    made_of : dict of unit id -> float
        Number of spikes that each template was made of.

    Returns
    -------
    sorting : BaseSorting
    """
    found = sorting.count_num_spikes_per_unit(outputs="dict")
    norms = _norms_of_units(templates, made_of)
    frequent = [id_ for id_ in sorting.unit_ids.tolist() if found[id_] >= MIN_CONFIRMED * made_of[id_]]
    return sorting.select_units(find_independent_units(sorting.select_units(frequent), norms))


def find_lasting_units(traces, sorting, templates, job_kwargs):
    """
    Units whose spikes have a mean that is like their template, and as large, or larger than noise is.

    Where only the largest spikes of a neuron were detected, its template is larger than most of its spikes.

    Parameters
    ----------
    traces : BaseRecording
    sorting : BaseSorting
    templates : spikeinterface.core.Templates
        Of the units of the sorting, in their order.
    job_kwargs : dict

    Returns
    -------
    unit_ids : list of int
    """
    if len(sorting.unit_ids) == 0:
        return []
    means = average_spikes(traces, sorting, templates.nbefore, templates.nafter, templates.sparsity_mask, job_kwargs)
    found, expected = (
        waveforms.get_dense_templates().reshape(len(sorting.unit_ids), -1) for waveforms in (means, templates)
    )
    norms_found, norms_expected = (np.linalg.norm(values, axis=1) for values in (found, expected))
    along = np.sum(found * expected, axis=1) / norms_expected
    is_large = along >= np.minimum(MIN_SIZE * norms_expected, MIN_SIZE_OF_ANY)
    lasts = is_large & (along >= MIN_SIMILARITY * norms_found)
    return sorting.unit_ids[lasts].tolist()


def find_independent_units(sorting, norms):
    """
    Units of which most spikes are not within MAX_COINCIDENCE_MS of those of one stronger unit.

    Parameters
    ----------
    sorting : BaseSorting
    norms : dict of unit id -> float
        Norm of the templates.

    Returns
    -------
    unit_ids : list of int
    """
    tolerance = round(MAX_COINCIDENCE_MS * 1e-3 * sorting.sampling_frequency)
    spikes = sorting.to_spike_vector()
    times, unit_indices = concatenate_segments(spikes, tolerance), spikes["unit_index"]
    trains = {id_: times[unit_indices == index] for index, id_ in enumerate(sorting.unit_ids.tolist())}
    independent = []
    for unit_id in sorted(trains, key=norms.get, reverse=True):
        shares = [find_coincidences(trains[unit_id], trains[other], tolerance).sum() for other in independent]
        if max(shares, default=0) <= MAX_COINCIDENCE * len(trains[unit_id]):
            independent.append(unit_id)
    return sorted(independent)


def concatenate_segments(spikes, gap):
    """Samples of all spikes, the segments one after the other and farther apart than `gap`; shape (n_spikes,)."""
    return spikes["sample_index"] + spikes["segment_index"] * (spikes["sample_index"].max(initial=0) + gap + 1)


def find_coincidences(samples, others, tolerance):
    """
    Which samples have another within the tolerance.

    Parameters
    ----------
    samples, others : np.ndarray, int64, shape (n_samples,), (n_others,)
        `others` ascending.
    tolerance : int

    Returns
    -------
    is_coincident : np.ndarray, bool, shape (n_samples,)
    """
    if len(others) == 0:
        return np.zeros(len(samples), dtype=bool)
    after = np.searchsorted(others, samples)
    distance_after = np.abs(others[np.minimum(after, len(others) - 1)] - samples)
    distance_before = np.abs(samples - others[np.maximum(after - 1, 0)])
    return np.minimum(distance_after, distance_before) <= tolerance


def measure_norms(templates, made_of):
    """Norm of every template in noise SD, without what the noise of its spikes adds; shape (n_units,)."""
    waveforms = templates.get_dense_templates()
    energies = np.sum(waveforms**2, axis=(1, 2))
    n_values = templates.num_samples * np.any(waveforms != 0, axis=1).sum(axis=1)
    counts = np.array([made_of[unit_id] for unit_id in templates.unit_ids.tolist()])
    return np.sqrt(np.maximum(energies - n_values / np.maximum(counts, 1), 0))


def _norms_of_units(templates, made_of):
    """The same as dict of unit id -> norm."""
    return dict(zip(templates.unit_ids.tolist(), measure_norms(templates, made_of).tolist(), strict=True))


def make_sorting(samples, labels, segments, sampling_frequency):
    """
    Sorting of labelled spikes.

    Parameters
    ----------
    samples, labels, segments : np.ndarray, int64, shape (n_spikes,)
    sampling_frequency : float

    Returns
    -------
    sorting : NumpySorting
        Unit ids are the labels.
    order : np.ndarray, int64, shape (n_spikes,)
        The spike vector holds the spikes in this order.
    """
    unit_ids, unit_indices = np.unique(labels, return_inverse=True)
    order = np.lexsort((unit_indices, samples, segments))
    spikes = np.zeros(len(samples), dtype=minimum_spike_dtype)
    spikes["sample_index"] = samples
    spikes["unit_index"], spikes["segment_index"] = unit_indices, segments
    return NumpySorting(spikes[order], sampling_frequency, unit_ids.astype("int64")), order
