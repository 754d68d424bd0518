"""
Spikes that their template does not fit.

Matching explains the spikes of a neuron of which it has no template, too: by those of others, two or three of them
together where it is large. What these leave shows it, far more than the other spikes of the same units leave.
"""

from functools import partial

import numpy as np
from scipy.stats import median_abs_deviation

from spikeinterface_huidurep.splitting import find_variation, remove_variation

MIN_EXCESS = 200.0  # noise variances, beyond what most spikes of the unit leave
MIN_DEVIATION = 8.0  # SD over the spikes of the unit


def find_misfits(sorting, residuals):
    """
    Which spikes leave far more than the others of their unit.

    What changes of amplitude and time leave does not count: it is of no other neuron.

    Parameters
    ----------
    sorting : NumpySorting
    residuals : Residuals
        Of its spikes.

    Returns
    -------
    is_misfit : np.ndarray, bool, shape (n_spikes,)
    """
    spikes = sorting.to_spike_vector()
    is_misfit = np.zeros(len(spikes), dtype=bool)
    for unit_index in np.unique(spikes["unit_index"]).tolist():
        rows = np.flatnonzero(spikes["unit_index"] == unit_index)
        variation = find_variation(residuals.get_template(unit_index))
        measure = partial(measure_energies, variation=variation)
        energies = residuals.apply(measure, rows, unit_index, has_followed=True)
        times = spikes["sample_index"][rows], spikes["segment_index"][rows]
        levels = residuals.noise.measure_levels(*times, residuals.find_channels(unit_index))
        is_misfit[rows] = are_far_above(energies / levels**2)
    return is_misfit


def measure_energies(waveforms, variation):
    """Energies of waveforms (n, n_channels, n_samples) but for directions (3, n_channels * n_samples): (n,)."""
    return np.sum(remove_variation(waveforms.reshape(len(waveforms), -1), variation) ** 2, axis=1)


def are_far_above(energies):
    """Which energies, shape (n,), are far above most of them."""
    excess = energies - np.median(energies)
    return excess > np.maximum(MIN_EXCESS, MIN_DEVIATION * median_abs_deviation(energies, scale="normal"))
