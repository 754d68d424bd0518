"""
Faint spikes: those of weak units that are below the threshold of matching, and the small ones of bursts.

Matching asks every spike for the size of its template, so that it does not find what others leave, nor spikes of less
than half that size. Many spikes of a weak neuron are smaller, and so are the later ones of bursts. Once it is known
which units there are, they are looked for in what is left when all spikes found are taken away, but not beside these,
of which a part may be left.
"""

from dataclasses import replace

import numpy as np
from spikeinterface.sortingcomponents.matching import find_spikes_from_templates

from spikeinterface_huidurep.bursts import find_bursting_units, follow_others
from spikeinterface_huidurep.matching import concatenate_segments, find_coincidences, make_sorting
from spikeinterface_huidurep.overlaps import MIN_SCORE
from spikeinterface_huidurep.residuals import take_away

MAX_NORM = 10.0  # noise SD, of a weak template; of larger ones hardly a spike is missed but in bursts
THRESHOLD = 16.0  # square of the smallest size in noise SD; what is noise all the same is left out later
SIZE_IN_BURST = 0.5  # of the template; it finds spikes of 0.3 to 0.5 times its size
MIN_NORM_IN_BURST = 16.0  # noise SD; small spikes of weaker units are like noise
MS_BESIDE = 0.7  # of another spike of the same unit or of one nearby


def add_faint_spikes(traces, sorting, templates, changes, job_kwargs):
    """
    The sorting with the faint spikes of weak units, and the small ones of units that fire in bursts.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
        What matching found in them.
    templates : spikeinterface.core.Templates
        Of its units, in their order.
    changes : Changes
        That it was found with.
    job_kwargs : dict

    Returns
    -------
    sorting : NumpySorting
        Of the same units.
    """
    norms = np.linalg.norm(templates.get_dense_templates(), axis=(1, 2))
    bursting = find_bursting_units(sorting)
    bursting = bursting[norms[bursting] >= MIN_NORM_IN_BURST]
    small = find_alone(traces, sorting, templates, changes, bursting, SIZE_IN_BURST, MIN_SCORE, job_kwargs)
    is_of_burst = follow_others(small, sorting.to_spike_vector(), sorting.sampling_frequency)
    sorting = add_spikes(sorting, small[is_of_burst])
    weak = np.flatnonzero(norms < MAX_NORM)
    return add_spikes(sorting, find_alone(traces, sorting, templates, changes, weak, 1.0, THRESHOLD, job_kwargs))


def find_alone(traces, sorting, templates, changes, units, size, threshold, job_kwargs):
    """
    Spikes of some units in what is left when all that were found are taken away, but not beside these.

    Parameters
    ----------
    traces, sorting, templates, changes, job_kwargs
        As for `add_faint_spikes`.
    units : np.ndarray, int64, shape (n_units,)
        Indices.
    size : float
        Of the spikes, in multiples of the templates.
    threshold : float
        By how much a spike makes the squares of what is left smaller at least.

    Returns
    -------
    spikes : np.ndarray, structured (sample_index, unit_index, segment_index), shape (n_spikes,)
    """
    spikes = sorting.to_spike_vector()
    if len(units) == 0:
        return spikes[:0]
    whole = templates.select_units(templates.unit_ids[units])
    found = find_spikes_from_templates(
        take_away(traces, sorting, templates, changes),
        replace(whole, templates_array=np.float32(size) * whole.templates_array),
        method="wobble",
        method_kwargs=dict(parameters=dict(threshold=threshold)),
        job_kwargs=job_kwargs,
    )
    faint = np.zeros(len(found), dtype=spikes.dtype)
    faint["sample_index"], faint["segment_index"] = found["sample_index"], found["segment_index"]
    faint["unit_index"] = units[found["cluster_index"]]
    return faint[is_alone(faint, spikes, find_nearby(templates), sorting.sampling_frequency)]


def add_spikes(sorting, spikes):
    """The sorting with more spikes (sample_index, unit_index, segment_index) of its units."""
    if len(spikes) == 0:
        return sorting
    spikes = np.concatenate([sorting.to_spike_vector(), spikes])
    labels = sorting.unit_ids[spikes["unit_index"]]
    return make_sorting(spikes["sample_index"], labels, spikes["segment_index"], sorting.sampling_frequency)[0]


def find_nearby(templates):
    """Which templates share a channel with each, bool (n_units, n_units)."""
    is_on = templates.sparsity_mask.astype(int)
    return is_on @ is_on.T > 0


def is_alone(spikes, others, nearby, sampling_frequency):
    """
    Which spikes have none beside them of their own unit or of one nearby.

    Parameters
    ----------
    spikes, others : np.ndarray, structured, shape (n_spikes,), (n_others,)
    nearby : np.ndarray, bool, shape (n_units, n_units)
    sampling_frequency : float

    Returns
    -------
    is_alone : np.ndarray, bool, shape (n_spikes,)
    """
    tolerance = round(MS_BESIDE * 1e-3 * sampling_frequency)
    times = concatenate_segments(np.concatenate([spikes, others]), tolerance)
    times, times_of_others = np.split(times, [len(spikes)])
    alone = np.zeros(len(spikes), dtype=bool)
    for unit in np.unique(spikes["unit_index"]):
        rows = np.flatnonzero(spikes["unit_index"] == unit)
        beside = np.sort(times_of_others[nearby[unit][others["unit_index"]]])
        alone[rows] = ~find_coincidences(times[rows], beside, tolerance)
    return alone
