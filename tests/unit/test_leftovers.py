"""Leftovers: spikes that come with a larger one far more often than chance go, all others stay."""

import numpy as np
import pytest

from spikeinterface_huidurep.leftovers import (
    MAX_DELAY_MS,
    MAX_DELAY_OF_UNIT_MS,
    MIN_ECHOES,
    MIN_TRUE,
    find_echoes,
    find_true_shares,
    find_true_spikes,
    measure_shares,
)
from spikeinterface_huidurep.matching import make_sorting

SAMPLING_FREQUENCY = 30_000.0
DURATION_S = 300.0


def draw_train(n_spikes, seed):
    n_samples = int(DURATION_S * SAMPLING_FREQUENCY)
    return np.sort(np.random.default_rng(seed).choice(n_samples - 1000, n_spikes, replace=False)) + 500


def make_pair(large, small):
    samples, labels = np.concatenate([large, small]), np.repeat([0, 1], [len(large), len(small)])
    return make_sorting(samples, labels, np.zeros(len(samples), int), SAMPLING_FREQUENCY)


def find_shares(large, small, norms=(50.0, 12.0), max_delay_ms=MAX_DELAY_MS):
    """Shares of the large and of the small spikes, each in the order given."""
    sorting, order = make_pair(large, small)
    shares = np.empty(len(order))
    shares[order] = find_true_shares(sorting, np.array(norms), np.arange(2), [max_delay_ms])[0]
    return np.split(shares, [len(large)])


@pytest.mark.parametrize("delay", [-15, 0, 4, 15])
def test_leftovers_at_one_delay_are_found_and_no_others(delay):
    large, small = draw_train(4000, 0), draw_train(2000, 1)
    of_large, of_small = find_shares(large, np.concatenate([small, large[::20] + delay]))
    assert (of_large == 1).all()
    assert (of_small[2000:] < 0.1).all()
    assert np.mean(of_small[:2000] < MIN_TRUE) < 0.01


@pytest.mark.parametrize("delay", [-16, 16, 40])
def test_spikes_at_longer_delays_stay(delay):
    large, small = draw_train(4000, 0), draw_train(2000, 1)
    _, of_small = find_shares(large, np.concatenate([small, large[::20] + delay]))
    assert np.mean(of_small < MIN_TRUE) < 0.01


def test_spikes_at_random_delays_stay():
    _, of_small = find_shares(draw_train(6000, 2), draw_train(6000, 3))
    assert np.mean(of_small < 1) < 0.01


def test_neurons_that_fire_together_for_milliseconds_stay():
    large = draw_train(4000, 4)
    jitter = np.random.default_rng(5).normal(0, 3e-3 * SAMPLING_FREQUENCY, 2000).astype(int)
    _, of_small = find_shares(large, np.sort(large[::2] + jitter))
    assert np.mean(of_small < MIN_TRUE) < 0.01


def test_only_larger_units_leave_something():
    large = draw_train(4000, 0)
    _, of_small = find_shares(large, large[::20], norms=(12.0, 50.0))
    assert (of_small == 1).all()


def test_shares_are_chance_over_found():
    delays = np.repeat([-2, 0, 1], [1, 60, 30])
    shares = measure_shares(delays, 3, per_delay=1.0)
    # counts 0 1 0 0 60 30 0 ..., three delays together: 1 1 1 61(60) ...
    np.testing.assert_allclose(shares, [1, 1, 3 / 61, 3 / 90, 3 / 90, 3 / 30, 1])


@pytest.mark.parametrize("delay", [-45, -16, 16, 45])
def test_a_longer_delay_may_be_asked_for(delay):
    large, small = draw_train(4000, 0), draw_train(2000, 1)
    _, of_small = find_shares(large, np.concatenate([small, large[::20] + delay]), max_delay_ms=MAX_DELAY_OF_UNIT_MS)
    assert (of_small[2000:] < 0.1).all()


def test_several_delays_at_once_are_those_one_by_one():
    large, small = draw_train(4000, 0), draw_train(2000, 1)
    sorting, _ = make_pair(large, np.concatenate([small, large[::20] + 5, large[1::20] + 30]))
    arguments = sorting, np.array([50.0, 12.0]), np.arange(2)
    together = find_true_shares(*arguments, [MAX_DELAY_MS, MAX_DELAY_OF_UNIT_MS])
    for shares, max_delay_ms in zip(together, (MAX_DELAY_MS, MAX_DELAY_OF_UNIT_MS), strict=True):
        assert np.array_equal(shares, find_true_shares(*arguments, [max_delay_ms])[0])
    assert (together[1] < 1).sum() > (together[0] < 1).sum() > 0


def test_the_fragments_of_a_neuron_are_taken_together():
    """A few coincidences with each of many fragments may be chance, all of them together are not."""
    n_fragments = 8
    large, small = draw_train(4000, 0), draw_train(2000, 1)
    samples = np.concatenate([large, small, large[:16] + 5])
    labels = np.r_[np.arange(4000) % n_fragments, np.full(2016, n_fragments)]
    sorting, order = make_sorting(samples, labels, np.zeros(len(samples), int), SAMPLING_FREQUENCY)
    norms = np.r_[np.full(n_fragments, 50.0), 12.0]
    found = {}
    for name, neurons in (("apart", np.arange(9)), ("together", np.r_[np.zeros(n_fragments, int), n_fragments])):
        shares = np.empty(len(order))
        shares[order] = find_true_shares(sorting, norms, neurons, [MAX_DELAY_MS])[0]
        found[name] = shares[-16:]
    assert (found["apart"] == 1).all() and (found["together"] < 0.2).all()


def test_units_of_leftovers_go_as_a_whole():
    sorting, order = make_pair(np.arange(10) * 100, np.arange(10) * 100 + 50)
    shares = np.r_[np.full(4, 0.1), np.ones(6), np.full(6, 0.1), np.ones(4)][order]
    is_true = np.empty(20, dtype=bool)
    is_true[order] = find_true_spikes(sorting, shares, np.ones(20), np.zeros(2, bool))
    assert is_true.tolist() == [False] * 4 + [True] * 6 + [False] * 10


def test_leftovers_at_longer_delays_go_only_with_their_unit():
    sorting, order = make_pair(np.arange(10) * 100, np.arange(10) * 100 + 50)
    shares_of_unit = np.r_[np.full(4, 0.1), np.ones(6), np.full(6, 0.1), np.ones(4)][order]
    is_true = np.empty(20, dtype=bool)
    is_true[order] = find_true_spikes(sorting, np.ones(20), shares_of_unit, np.zeros(2, bool))
    assert is_true.tolist() == [True] * 10 + [False] * 10


def find_echoes_of_pair(large, small, norms=(50.0, 12.0), neurons=(0, 1)):
    sorting, _ = make_pair(large, small)
    return find_echoes(sorting, np.array(norms), np.array(neurons)).tolist()


def draw_delayed(large, delay_ms, jitter_ms, share=0.9):
    """Small spikes of which a share comes after large ones, the others at any time."""
    rng = np.random.default_rng(6)
    followed = large[: round(share * 1000)]
    delays = (delay_ms + jitter_ms * rng.normal(size=len(followed))) * 1e-3 * SAMPLING_FREQUENCY
    return np.sort(np.r_[followed + delays.astype(int), draw_train(1000 - len(followed), 7)])


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_an_echo_is_found(share):
    large = draw_train(1200, 0)
    assert find_echoes_of_pair(large, draw_delayed(large, 5.5, 0.04, share)) == [False, True]


@pytest.mark.parametrize(("jitter_ms", "share"), [(0.3, 1.0), (0.04, 0.3), (0.04, 0.0)])
def test_neurons_that_make_others_fire_have_no_echo(jitter_ms, share):
    large = draw_train(1200, 0)
    assert find_echoes_of_pair(large, draw_delayed(large, 5.5, jitter_ms, share)) == [False, False]


def test_an_echo_comes_after_a_far_larger_spike_of_another_neuron():
    large = draw_train(1200, 0)
    small = draw_delayed(large, 5.5, 0.04)
    assert find_echoes_of_pair(large, small, norms=(12.0, 50.0)) == [False, False]
    assert find_echoes_of_pair(large, small, norms=(30.0, 12.0)) == [False, False]
    assert find_echoes_of_pair(large, draw_delayed(large, -5.5, 0.04)) == [False, False]
    assert find_echoes_of_pair(large, small, neurons=(0, 0)) == [False, False]


def test_a_few_spikes_are_no_echo():
    large = draw_train(1200, 0)
    few = draw_delayed(large, 5.5, 0.04)[: MIN_ECHOES - 1]
    assert find_echoes_of_pair(large, few) == [False, False]


def test_what_comes_sooner_is_no_echo():
    """`find_true_shares` tells leftovers."""
    large = draw_train(1200, 0)
    assert find_echoes_of_pair(large, draw_delayed(large, 2.0, 0.04)) == [False, False]


def test_the_spikes_of_an_echo_go():
    sorting, order = make_pair(np.arange(10) * 100, np.arange(10) * 100 + 50)
    is_true = np.empty(20, dtype=bool)
    is_true[order] = find_true_spikes(sorting, np.ones(20), np.ones(20), np.array([False, True]))
    assert is_true.tolist() == [True] * 10 + [False] * 10
