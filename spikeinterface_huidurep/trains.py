"""
How spike trains fire: what tells one neuron from two, and from noise.

A neuron does not fire within its refractory period. Two neurons do, as often as chance has it, and so does noise.
"""

import numpy as np
from scipy.stats import binom, poisson

from spikeinterface_huidurep.matching import concatenate_segments

BETWEEN_SEGMENTS_S = 1.0  # spikes of different segments have nothing to do with each other
REFRACTORY_S = (0.7e-3, 2e-3)  # closer spikes of one template are one spike that was found twice
SHORT_REFRACTORY_S = (0.7e-3, 1.5e-3)  # of the neurons that fire fastest
AROUND_S = (10e-3, 60e-3)  # how often two units fire this far apart is what chance would give
BURST_S = (2e-3, 10e-3)  # or this far, if they do so more often: the later spikes of a burst are smaller
MIN_IN_BURSTS = 0.3  # of the spikes of a unit; few neurons make another fire as often
MAX_REFRACTORY = 0.3  # share of what chance would give
MIN_TOGETHER = 0.5  # of what chance would give; units that fire less together hardly can within a refractory period
MAX_PROBABILITY = 1e-4  # that chance gave as few


def find_times(spikes, sampling_frequency):
    """Times of spikes in s, the segments one after the other and farther apart than trains remember: (n_spikes,)."""
    return concatenate_segments(spikes, BETWEEN_SEGMENTS_S * sampling_frequency) / sampling_frequency


def list_trains(sorting):
    """Times of the spikes of each unit in s, ascending; see `find_times`."""
    spikes = sorting.to_spike_vector()
    times_s = find_times(spikes, sorting.sampling_frequency)
    return [times_s[spikes["unit_index"] == index] for index in range(len(sorting.unit_ids))]


def have_between(times_s, others_s, start_s, stop_s):
    """Which times have one of the others, ascending, from `start_s` to `stop_s` after them: bool (n_times,)."""
    return np.searchsorted(others_s, times_s + stop_s) > np.searchsorted(others_s, times_s + start_s)


def count_pairs(first_s, second_s, nearest_s, farthest_s):
    """Number of pairs, one time of each ascending array, whose distance is between `nearest_s` and `farthest_s`."""
    within = [
        np.searchsorted(second_s, first_s + distance, "right") - np.searchsorted(second_s, first_s - distance)
        for distance in (farthest_s, nearest_s)
    ]
    return int(np.sum(within[0] - within[1]))


def expect_pairs(first_s, second_s, window_s, others_s=(AROUND_S,)):
    """
    Number of pairs in a window of distances that chance would give.

    Parameters
    ----------
    first_s, second_s : np.ndarray, float, shape (n_first,), (n_second,)
        Times in s, ascending.
    window_s : (float, float)
        Nearest and farthest distance in s.
    others_s : sequence of (float, float), default: AROUND_S alone
        Windows that show how often the two fire; the one in which they do most counts.

    Returns
    -------
    n_pairs : float
    """
    rates = [count_pairs(first_s, second_s, *other_s) / np.ptp(other_s) for other_s in others_s]
    return max(rates) * np.ptp(window_s)


def avoid_each_other(first_s, second_s):
    """Whether two trains, ascending, fire within AROUND_S of each other less than MIN_TOGETHER of what chance gives."""
    n_pairs = len(first_s) * len(second_s)
    if n_pairs == 0:
        return False
    duration_s = max(first_s[-1], second_s[-1]) - min(first_s[0], second_s[0])
    by_chance = n_pairs * 2 * np.ptp(AROUND_S) / max(duration_s, AROUND_S[1])
    found = count_pairs(first_s, second_s, *AROUND_S)
    return found < MIN_TOGETHER * by_chance and poisson.cdf(found, by_chance) < MAX_PROBABILITY


def follow_in_bursts(first_s, second_s):
    """Whether the spikes of the second train, both ascending, come within a burst after those of the first."""
    n_after = np.sum(have_between(second_s, first_s, -BURST_S[1], -BURST_S[0]))
    n_before = np.sum(have_between(second_s, first_s, *BURST_S))
    is_frequent = n_after >= max(1, MIN_IN_BURSTS * len(second_s))
    return bool(is_frequent and binom.sf(n_after - 1, n_after + n_before, 0.5) < MAX_PROBABILITY)


def has_refractory_period(times_s):
    """Whether a train, ascending, hardly ever fires within a refractory period, where chance would have it fire."""
    found = count_pairs(times_s, times_s, *SHORT_REFRACTORY_S) / 2  # each pair is counted from both of its spikes
    chance = expect_pairs(times_s, times_s, SHORT_REFRACTORY_S) / 2
    return bool(found <= MAX_REFRACTORY * chance and poisson.cdf(found, chance) < MAX_PROBABILITY)


def measure_pauses(times_s, all_s):
    """Time since the spike before, of some of the spikes, ascending; infinite for the first: float, (n_times,)."""
    before = np.searchsorted(all_s, times_s) - 1
    return np.where(before >= 0, times_s - all_s[np.maximum(before, 0)], np.inf)
