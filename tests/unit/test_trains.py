"""Trains: refractory periods and pauses."""

import numpy as np
import pytest
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep.trains import find_times, follow_in_bursts, has_refractory_period, measure_pauses

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


def test_the_later_spikes_of_bursts_follow_the_first_ones():
    rng = np.random.default_rng(0)
    first = np.sort(rng.uniform(0, 150, 150))
    second = first[::4] + rng.uniform(2.5, 8.0, 38) * 1e-3
    with_others = np.sort(np.r_[second, rng.uniform(0, 150, 38)])  # half of them come on their own
    assert follow_in_bursts(first, second)
    assert follow_in_bursts(first, with_others)
    assert not follow_in_bursts(second, first)  # before, and few of them


def test_neurons_that_fire_together_do_not_follow_each_other():
    rng = np.random.default_rng(0)
    together = np.sort(rng.uniform(0, 150, 500))  # both of them in bursts of a network
    first, second = (np.sort(together + rng.uniform(0, 10e-3, 500)) for _ in range(2))
    assert not follow_in_bursts(first, second)
    assert not follow_in_bursts(second, first)


def test_a_neuron_that_another_one_makes_fire_now_and_then_does_not_follow_it():
    rng = np.random.default_rng(0)
    first, second = (np.sort(rng.uniform(0, 150, 1000)) for _ in range(2))
    driven = np.sort(np.r_[second, first[::5] + 3e-3])  # a sixth of its spikes
    assert not follow_in_bursts(first, driven)


@pytest.mark.parametrize("n_spikes", [0, 1, 10])
def test_few_spikes_follow_nothing(n_spikes):
    first = np.arange(100.0)
    assert not follow_in_bursts(first, first[:n_spikes] + 3e-3)
    assert not follow_in_bursts(first[:n_spikes], first)
