"""Trains: refractory periods and pauses."""

import numpy as np
import pytest
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep.trains import find_times, has_refractory_period, measure_pauses

from .test_sizes import draw_train


@pytest.mark.parametrize("refractory_s, has_period", [(0.0, False), (1.6e-3, True), (3e-3, True)])
def test_neurons_have_a_refractory_period_and_noise_has_none(refractory_s, has_period):
    times_s = draw_train(np.random.default_rng(0), 40.0, refractory_s=refractory_s)
    assert has_refractory_period(times_s) == has_period


def test_noise_in_part_of_a_train_fills_its_refractory_period():
    rng = np.random.default_rng(0)
    times_s = np.sort(np.r_[draw_train(rng, 40.0), draw_train(rng, 30.0, refractory_s=0.0)])
    assert not has_refractory_period(times_s)


@pytest.mark.parametrize("n_spikes", [0, 1, 100])
def test_few_spikes_show_no_refractory_period(n_spikes):
    assert not has_refractory_period(np.arange(n_spikes) * 1.0)


def test_segments_are_apart():
    spikes = np.zeros(4, dtype=minimum_spike_dtype)
    spikes["sample_index"], spikes["segment_index"] = [10, 100, 0, 50], [0, 0, 1, 1]
    times_s = find_times(spikes, 100.0)
    assert times_s[:2].tolist() == [0.1, 1.0]
    assert np.diff(times_s).min() > 0 and times_s[2] - times_s[1] >= 1.0
    assert times_s[3] - times_s[2] == pytest.approx(0.5)


def test_pauses():
    all_s = np.array([1.0, 1.5, 4.0])
    assert measure_pauses(all_s, all_s).tolist() == [np.inf, 0.5, 2.5]
    assert measure_pauses(all_s[1:2], all_s).tolist() == [0.5]
