"""Sizes: two neurons of one waveform are told apart, but not the spikes of bursts, of drift and of collisions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeinterface_huidurep.sizes import BURST_S, find_gap, fire_independently, split_sizes
from spikeinterface_huidurep.splitting import MAX_SEPARATION_OF_WEAK, MIN_SHARE

from .test_linking import fire_at_random
from .test_splitting import SIZES, THRESHOLD, measure_purity, pulse

DURATION_S = 120.0


def draw_train(rng, rate_hz, refractory_s=3e-3):
    """Times in s of a neuron that fires at random."""
    times_s = fire_at_random(rng, round(1.5 * rate_hz * DURATION_S), 1.5 * DURATION_S, refractory_s)
    return times_s[times_s < DURATION_S]


def draw_two_neurons(rng, gain=0.7):
    """Times in s and gains of the spikes of two neurons, and which of them is each."""
    trains = [draw_train(rng, rate_hz) for rate_hz in (3.0, 5.0)]
    neurons = np.repeat([0, 1], [len(train) for train in trains])
    order = np.argsort(np.concatenate(trains))
    neurons = neurons[order]
    return np.concatenate(trains)[order], np.array([1.0, gain])[neurons], neurons


def draw_bursts(rng, gain=0.7):
    """The same of one neuron that fires again, and less, within 10 ms of half of its spikes."""
    first_s = draw_train(rng, 4.0, refractory_s=20e-3)
    second_s = first_s[rng.random(len(first_s)) < 0.5] + rng.uniform(4e-3, 10e-3)
    times_s = np.concatenate([first_s, second_s])
    gains = np.repeat([1.0, gain], [len(first_s), len(second_s)])
    order = np.argsort(times_s)
    return times_s[order], gains[order], np.zeros(len(order), int)


def draw_steps(rng, gain=0.7):
    """The same of one neuron that something moves to and fro every ten seconds."""
    times_s = draw_train(rng, 8.0)
    return times_s, np.where(times_s % 20 < 10, 1.0, gain), np.zeros(len(times_s), int)


def draw_one_that_jitters(rng, gain=0.7):
    """The same of one neuron that is now larger, now smaller, in any order, but keeps its refractory period."""
    times_s = draw_train(rng, 20.0, refractory_s=5e-3)
    return times_s, np.where(rng.random(len(times_s)) < 0.5, 1.0, gain), np.zeros(len(times_s), int)


def split(times_s, gains, rng, overlapping=0.0, jitter=0.03):
    """Parts of the spikes of these times and gains in white noise, and in what overlaps them."""
    gains = gains * (1 + jitter * rng.normal(size=len(gains)))
    shape = SIZES * pulse()
    spikes = 1.5 * gains[:, None, None] * shape + rng.normal(size=(len(gains), *shape.shape)) + overlapping
    waveform = spikes.mean(axis=0)
    whitener = np.eye(waveform.size, dtype="float32")
    residuals = (spikes - waveform).astype("float32")
    parts = split_sizes(residuals, waveform.astype("float32"), whitener, times_s, times_s, THRESHOLD)
    assert parts.shape == (len(gains),) and parts.dtype == np.int64
    return parts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "draw, n_neurons", [(draw_two_neurons, 2), (draw_bursts, 1), (draw_steps, 1), (draw_one_that_jitters, 1)]
)
def test_two_sizes_are_two_neurons_if_they_fire_independently(draw, n_neurons, seed):
    rng = np.random.default_rng(seed)
    times_s, gains, neurons = draw(rng)
    parts = split(times_s, gains, rng)
    assert parts.max() + 1 == n_neurons
    assert measure_purity(parts, neurons) > 0.98


@pytest.mark.parametrize("gain", [1.0, 0.95])
def test_sizes_without_a_gap_are_one_neuron(gain):
    rng = np.random.default_rng(0)
    times_s, gains, _ = draw_two_neurons(rng, gain)
    assert split(times_s, gains, rng).max() == 0


def test_sizes_that_vary_evenly_are_one_neuron():
    rng = np.random.default_rng(0)
    times_s = draw_train(rng, 8.0)
    assert split(times_s, rng.uniform(0.5, 1, len(times_s)), rng).max() == 0


def test_collisions_are_no_neuron():
    """They are smaller, but less alike."""
    rng = np.random.default_rng(0)
    times_s, gains, _ = draw_two_neurons(rng, 0.6)
    delays = rng.uniform(-20, 20, len(gains))
    overlapping = np.where(gains < 1, 10.0, 0.0)[:, None, None] * pulse(delays, width=3.0)[:, None]
    assert split(times_s, gains, rng).max() == 1
    assert split(times_s, gains, rng, overlapping).max() == 0


@pytest.mark.parametrize("n_spikes", [1, 2, 59])
def test_few_spikes_are_one_neuron(n_spikes):
    rng = np.random.default_rng(0)
    gains = np.where(np.arange(n_spikes) % 2, 1.0, 0.3)
    assert split(np.arange(n_spikes) * 1.0, gains, rng).tolist() == [0] * n_spikes


def test_of_many_spikes_some_are_split_by_the_times_of_all():
    """Those left out are the first ones of bursts."""
    rng = np.random.default_rng(0)
    times_s, gains, _ = draw_bursts(rng)
    large_s, small_s = times_s[gains == 1], times_s[gains < 1]
    assert not fire_independently(large_s[::4], small_s, times_s)


def test_neurons_that_fire_fast_do_not_look_like_bursts():
    rng = np.random.default_rng(1)
    large_s, small_s = draw_train(rng, 60.0), draw_train(rng, 40.0)
    all_s = np.sort(np.r_[large_s, small_s])
    assert np.median(np.diff(all_s)) < BURST_S[0]
    assert fire_independently(large_s, small_s, all_s)


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 300), st.floats(0.15, 0.85), st.integers(0, 100))
def test_the_gap_is_between_two_groups(n_spikes, share, seed):
    rng = np.random.default_rng(seed)
    is_large = rng.permutation(n_spikes) < max(2, round(share * n_spikes))
    sizes = rng.normal(size=n_spikes).clip(-2, 2) + 8 * is_large
    border = find_gap(sizes)
    assert np.array_equal(sizes > border, is_large)


def test_each_group_has_a_share_of_the_sizes():
    sizes = np.r_[np.random.default_rng(0).normal(size=99), 100.0]
    share = np.mean(sizes > find_gap(sizes))
    assert MIN_SHARE <= share <= 1 - MIN_SHARE


def test_equal_sizes_have_no_gap():
    assert split(np.arange(100) * 0.5, np.ones(100), np.random.default_rng(0), jitter=0.0).max() == 0
    assert MAX_SEPARATION_OF_WEAK > 3.5  # of the halves of a uniform distribution
