"""
Faint spikes: those of weak units that are below the threshold of matching.

Matching asks every spike for the same size, so that it does not find what others leave. Many spikes of a weak neuron
are smaller. Once it is known which units there are, they are looked for in what is left when all spikes found are taken
away, but not beside these, of which a part may be left.
"""

import numpy as np
from spikeinterface.sortingcomponents.matching import find_spikes_from_templates

from spikeinterface_huidurep.matching import concatenate_segments, find_coincidences, make_sorting
from spikeinterface_huidurep.residuals import take_away

MAX_NORM = 10.0  # noise SD, of a weak template; of larger ones hardly a spike is missed
THRESHOLD = 16.0  # square of the smallest size in noise SD; what is noise all the same is left out later
MS_BESIDE = 0.7  # of another spike of the same unit or of one nearby


def add_faint_spikes(traces, sorting, templates, job_kwargs):
    """
    The sorting with the faint spikes of weak units.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
        What matching found in them.
    templates : spikeinterface.core.Templates
        Of its units, in their order.
    job_kwargs : dict

    Returns
    -------
    sorting : NumpySorting
        Of the same units.
    """
    norms = np.linalg.norm(templates.get_dense_templates(), axis=(1, 2))
    weak = np.flatnonzero(norms < MAX_NORM)
    if len(weak) == 0:
        return sorting
    found = find_spikes_from_templates(
        take_away(traces, sorting, templates),
        templates.select_units(templates.unit_ids[weak]),
        method="wobble",
        method_kwargs=dict(parameters=dict(threshold=THRESHOLD)),
        job_kwargs=job_kwargs,
    )
    spikes = sorting.to_spike_vector()
    faint = np.zeros(len(found), dtype=spikes.dtype)
    faint["sample_index"], faint["segment_index"] = found["sample_index"], found["segment_index"]
    faint["unit_index"] = weak[found["cluster_index"]]
    faint = faint[is_alone(faint, spikes, find_nearby(templates), sorting.sampling_frequency)]
    spikes = np.concatenate([spikes, faint])
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
