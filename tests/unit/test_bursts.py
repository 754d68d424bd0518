"""Bursts: units that fire in them are told from others, and their small spikes from those of other neurons."""

import numpy as np
import pytest
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep.bursts import (
    MIN_FOLLOWING,
    MIN_SPIKES,
    find_bursting_units,
    fires_in_bursts,
    follow_others,
)

from .test_results import SAMPLING_FREQUENCY, make_sorting

DURATION_S = 300.0


def fire_in_bursts(seed, n_bursts=500, n_in_burst=2):
    """Times in s, ascending: bursts come at any time, the spikes of one 3 to 7 ms apart."""
    rng = np.random.default_rng(seed)
    intervals_s = rng.uniform(3e-3, 7e-3, (n_bursts, n_in_burst))
    return np.sort((rng.uniform(0, DURATION_S, (n_bursts, 1)) + np.cumsum(intervals_s, axis=1)).ravel())


def fire_at_any_time(seed, n_spikes=1000):
    return np.sort(np.random.default_rng(seed).uniform(0, DURATION_S, n_spikes))


def fire_together(seed, n_spikes=1000, jitter_s=20e-3):
    """As a network has it that wakes up now and then: as many spikes 2 to 10 ms apart as 10 to 60 ms."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(fire_at_any_time(seed, n_spikes // 5), n_spikes) + 5 * jitter_s * rng.random(n_spikes))


def make_spikes(times_s, unit=0, segment=0):
    spikes = np.zeros(len(times_s), dtype=minimum_spike_dtype)
    spikes["sample_index"] = np.round(np.asarray(times_s) * SAMPLING_FREQUENCY)
    spikes["unit_index"], spikes["segment_index"] = unit, segment
    return spikes


@pytest.mark.parametrize("seed", range(5))
def test_bursts_are_told_from_what_chance_and_networks_do(seed):
    assert fires_in_bursts(fire_in_bursts(seed))
    assert not fires_in_bursts(fire_at_any_time(seed))
    assert not fires_in_bursts(fire_together(seed))


def test_few_spikes_show_no_bursts():
    assert not fires_in_bursts(fire_in_bursts(0, n_bursts=2))
    assert not fires_in_bursts(np.zeros(0))


def test_units_that_burst_are_found_by_their_index():
    trains_s = fire_at_any_time(0), fire_in_bursts(1), fire_at_any_time(2), fire_in_bursts(3)
    samples = np.concatenate(trains_s) * SAMPLING_FREQUENCY
    sorting = make_sorting(samples.astype(int), np.repeat(np.arange(4), [len(train) for train in trains_s]))
    assert find_bursting_units(sorting).tolist() == [1, 3]


def test_small_spikes_follow_the_large_ones_and_each_other():
    large_s = 1.0 + np.arange(20.0)
    small_s = np.r_[large_s + 5e-3, large_s + 10e-3, large_s + 18e-3]
    assert follow_others(make_spikes(small_s), make_spikes(large_s), SAMPLING_FREQUENCY).all()


@pytest.mark.parametrize(("share", "wanted"), [(MIN_FOLLOWING + 0.05, True), (MIN_FOLLOWING - 0.05, False)])
def test_small_spikes_of_which_many_follow_nothing_are_of_another_neuron(share, wanted):
    large_s = 1.0 + np.arange(100.0)
    follows = np.arange(100) < 100 * share
    small_s = large_s + np.where(follows, 5e-3, 0.5)
    found = follow_others(make_spikes(small_s), make_spikes(large_s), SAMPLING_FREQUENCY)
    assert np.array_equal(found, follows & wanted)


@pytest.mark.parametrize(
    ("interval_ms", "wanted"), [(1.0, False), (3.0, True), (9.0, True), (12.0, False), (-5.0, False)]
)
def test_the_next_spike_of_a_burst_comes_within_milliseconds(interval_ms, wanted):
    large_s = 1.0 + np.arange(20.0)
    found = follow_others(make_spikes(large_s + 1e-3 * interval_ms), make_spikes(large_s), SAMPLING_FREQUENCY)
    assert np.all(found == wanted)


def test_small_spikes_follow_those_of_their_own_unit_and_segment():
    large_s = 1.0 + np.arange(MIN_SPIKES)
    large = make_spikes(large_s)
    assert follow_others(make_spikes(large_s + 5e-3), large, SAMPLING_FREQUENCY).all()
    assert not follow_others(make_spikes(large_s + 5e-3, unit=1), large, SAMPLING_FREQUENCY).any()
    assert not follow_others(make_spikes(large_s + 5e-3, segment=1), large, SAMPLING_FREQUENCY).any()


@pytest.mark.parametrize("n_spikes", [0, 1, MIN_SPIKES - 1])
def test_few_small_spikes_are_none(n_spikes):
    large = make_spikes(1.0 + np.arange(20.0))
    assert not follow_others(make_spikes(1.005 + np.arange(n_spikes)), large, SAMPLING_FREQUENCY).any()
