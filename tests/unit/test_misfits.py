"""Spikes that their template does not fit: those of another neuron, not those that vary as neurons do."""

import numpy as np
import pytest

from spikeinterface_huidurep.misfits import MIN_DEVIATION, MIN_EXCESS, are_far_above, find_misfits, measure_energies
from spikeinterface_huidurep.splitting import find_variation

from .test_refinement import make_residuals
from .test_results import make_sorting


def test_energies_are_without_changes_of_amplitude_and_time():
    rng = np.random.default_rng(0)
    waveform = rng.normal(size=(2, 40)).cumsum(axis=1)
    variation = find_variation(waveform)
    other = rng.normal(size=(2, 40))
    along = np.tensordot(rng.normal(size=(5, 3)), variation.reshape(3, 2, 40), 1)
    assert measure_energies(along, variation) == pytest.approx(0, abs=1e-2)
    assert measure_energies(along + other, variation) == pytest.approx(
        np.full(5, measure_energies(other[None], variation))
    )


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_energies_far_above_are_of_few_spikes(spread):
    rng = np.random.default_rng(1)
    energies = 800 + spread * rng.normal(size=500)
    limit = max(MIN_EXCESS, MIN_DEVIATION * spread)
    energies[:3] = 800 + np.array([0.8, 1.2, 10.0]) * limit
    assert np.flatnonzero(are_far_above(energies)).tolist() == [1, 2]


def test_one_spike_is_not_far_above_itself():
    assert are_far_above(np.array([1e6])).tolist() == [False]


def test_spikes_that_another_neuron_made_do_not_fit():
    """Of two units; a spike of the first is 1.5 times as large, five have another shape."""
    residuals, members = make_residuals([np.zeros((2, 140))] * 2, [0, 1])
    rng = np.random.default_rng(2)
    shape = rng.normal(size=residuals.values.shape[1:])
    others = members[0][10:15]
    residuals.values[others] += 30 * shape / np.linalg.norm(shape)
    residuals.values[members[0][20]] += 0.5 * residuals.waveforms[0][residuals.window]
    n_spikes = len(residuals.values)
    labels = np.zeros(n_spikes, dtype=int)
    labels[members[1]] = 1
    sorting = make_sorting(1000 + 100 * np.arange(n_spikes), labels)
    assert np.flatnonzero(find_misfits(sorting, residuals)).tolist() == others.tolist()
