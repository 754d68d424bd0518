"""
Templates that take the spikes of others.

Where two neurons fire together often, their collisions are alike enough to become a cluster. Its template would take
these spikes from both. It gives itself away: it is the sum of two templates, and it is as rare as the two coincide by
chance. And where the spikes of one neuron are now and then detected at another of its extrema, their cluster has the
template of the neuron, at another time: most often its largest extremum is not where the spikes were detected.
"""

import numpy as np

from spikeinterface_huidurep.linking import locate_templates
from spikeinterface_huidurep.merging import correlate, shift_waveforms

MAX_DISTANCE_UM = 250.0  # between the centre of a template and those that it is made of
MAX_SHIFT_MS = 1.5  # between the two spikes of a collision
COINCIDENCE_MS = 3.0  # spikes this close change each other's waveform, before and after together
MAX_RESIDUAL = 0.2  # of the energy, when the other templates are taken away
MAX_JITTER_MS = 0.4  # between the largest extremum and the detected sample; farther off there may be a by-product
MAX_RESIDUAL_OFF_CENTRE = 0.5  # of the energy of such a template: detected on the flank of a spike, its mean is smeared
MAX_RESIDUAL_OF_ONE = 0.6  # of what is left when only one of two is taken away
MIN_REPEAT_MS = 0.12  # the same template this much earlier or later is no other neuron
MAX_COUNT_RATIO = 2.0  # of two repeats with such numbers of spikes the smaller goes: it is smeared, or lacks channels
N_FIRST = 3  # templates tried as the first of the two


def remove_redundant_templates(templates, n_spikes, duration_s):
    """
    Leave out templates that are a better one at another time, or the sum of two and as rare as these coincide.

    Better is the one that is not off centre, then the one that is far more frequent, then the larger one.

    Parameters
    ----------
    templates : spikeinterface.core.Templates
    n_spikes : dict of unit id -> float
        Number of spikes in the recording.
    duration_s : float

    Returns
    -------
    templates : spikeinterface.core.Templates
    """
    counts = np.array([n_spikes[unit_id] for unit_id in templates.unit_ids.tolist()])
    return templates.select_units(templates.unit_ids[~find_redundant_templates(templates, counts, duration_s)])


def find_redundant_templates(templates, n_spikes, duration_s):
    """Which templates `remove_redundant_templates` leaves out: bool, shape (n_units,) as `n_spikes`."""
    waveforms = templates.get_dense_templates().astype("float32")  # (u, t, c)
    locations_um = locate_templates(templates)
    max_shift, min_repeat = (round(ms * 1e-3 * templates.sampling_frequency) for ms in (MAX_SHIFT_MS, MIN_REPEAT_MS))
    max_shift = min(max_shift, templates.num_samples - 1)
    is_off_centre = find_off_centre(waveforms, templates.nbefore, templates.sampling_frequency)
    energies = np.sum(waveforms**2, axis=(1, 2))
    is_redundant = np.zeros(len(waveforms), dtype=bool)
    for unit in np.lexsort((n_spikes, ~is_off_centre)):
        is_near = np.linalg.norm(locations_um - locations_um[unit], axis=1) <= MAX_DISTANCE_UM
        is_near[unit] = False
        others = np.flatnonzero(is_near & ~is_redundant)
        if len(others) == 0:
            continue
        left, shifts = subtract_best(waveforms[unit], waveforms[others], max_shift)
        is_frequent = n_spikes[others] >= n_spikes[unit]
        rarer, more_frequent = np.sort([n_spikes[others], np.full(len(others), n_spikes[unit])], axis=0)
        is_larger = energies[others] >= energies[unit]
        is_better = np.where(more_frequent <= MAX_COUNT_RATIO * rarer, is_larger, is_frequent)
        is_better = np.where(is_off_centre[others] == is_off_centre[unit], is_better, is_off_centre[unit])
        is_by_product = is_off_centre[unit] & ~is_off_centre[others]
        energy = np.where(is_by_product, energies[unit], np.maximum(energies[unit], energies[others]))
        is_alike = left <= np.where(is_by_product, MAX_RESIDUAL_OFF_CENTRE, MAX_RESIDUAL) * energy
        is_repeat = is_better & is_alike & (np.abs(shifts) >= min_repeat)
        coincidences = np.outer(n_spikes[others], n_spikes[others]) * (COINCIDENCE_MS * 1e-3 / duration_s)
        np.fill_diagonal(coincidences, 0)
        is_pair = (coincidences >= n_spikes[unit])[np.ix_(is_frequent, is_frequent)]
        is_redundant[unit] = is_repeat.any() or _is_sum(
            waveforms[unit], waveforms[others[is_frequent]], left[is_frequent], shifts[is_frequent], is_pair, max_shift
        )
    return is_redundant


def find_off_centre(waveforms, n_before, sampling_frequency):
    """Which waveforms (n_units, n_samples, n_channels) have their largest extremum far from `n_before`: bool."""
    extremum = np.abs(waveforms).max(axis=2).argmax(axis=1)
    return np.abs(extremum - n_before) > MAX_JITTER_MS * 1e-3 * sampling_frequency


def _is_sum(waveform, others, left, shifts, is_pair, max_shift):
    """Whether the waveform is the sum of two of the others, a pair; `left` and `shifts` are of `subtract_best`."""
    for first in np.argsort(left, kind="stable")[:N_FIRST]:
        residual = waveform - shift_samples(others[first], shifts[first])
        left_of_both, _ = subtract_best(residual, others[is_pair[first]], max_shift)
        left_of_one = np.minimum(left[first], left[is_pair[first]])
        if np.any(left_of_both <= np.minimum(MAX_RESIDUAL * np.sum(waveform**2), MAX_RESIDUAL_OF_ONE * left_of_one)):
            return True
    return False


def subtract_best(waveform, others, max_shift):
    """
    Energy that is left when each of the others is taken away at its best shift.

    Parameters
    ----------
    waveform : np.ndarray, float32, shape (n_samples, n_channels)
    others : np.ndarray, float32, shape (n_others, n_samples, n_channels)
    max_shift : int
        Samples, below `n_samples`.

    Returns
    -------
    left : np.ndarray, float, shape (n_others,)
    shifts : np.ndarray, int, shape (n_others,)
        `waveform[t]` is like `others[t - shift]`.
    """
    products = correlate(waveform, others)
    shifts = np.arange(-max_shift, max_shift + 1)
    best = products[:, shifts].argmax(axis=1)
    product = products[np.arange(len(others)), shifts[best]]
    return np.sum(waveform**2) + np.sum(others**2, axis=(1, 2)) - 2 * product, shifts[best]


def shift_samples(waveform, shift):
    """The waveform (n_samples, n_channels) `shift` samples later, 0 where it was not known."""
    return shift_waveforms(waveform.T, -shift).T
