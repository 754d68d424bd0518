"""
Bursts: the spikes of a neuron that follow each other within milliseconds, each smaller than the one before.

Small spikes that are found beside a unit are its own if they follow its others: if most do not, they are of another
neuron.
"""

import numpy as np
from scipy.stats import poisson

from spikeinterface_huidurep.trains import (
    BURST_S,
    MAX_PROBABILITY,
    count_pairs,
    expect_pairs,
    find_times,
    have_between,
    list_trains,
)

MIN_EXCESS = 1.5  # times as many pairs of spikes within a burst as chance would give
MIN_SPIKES = 10
MIN_FOLLOWING = 0.5  # of the small spikes; of those of other neurons it is 0.3 at most


def find_bursting_units(sorting):
    """
    Units that fire within a burst of their own spikes far more often than chance has it.

    Parameters
    ----------
    sorting : NumpySorting

    Returns
    -------
    units : np.ndarray, int64, shape (n_bursting,)
        Indices.
    """
    return np.flatnonzero([fires_in_bursts(train_s) for train_s in list_trains(sorting)])


def fires_in_bursts(times_s):
    """Whether a train, ascending, has far more pairs of spikes within a burst than chance would give."""
    found = count_pairs(times_s, times_s, *BURST_S) / 2  # each pair is counted from both of its spikes
    chance = max(1.0, expect_pairs(times_s, times_s, BURST_S) / 2)  # not 0: a few spikes tell little of chance
    return bool(found >= MIN_EXCESS * chance and poisson.sf(found - 1, chance) < MAX_PROBABILITY)


def follow_others(small, spikes, sampling_frequency):
    """
    Which small spikes follow another one of their unit, large or small, as the next of a burst.

    Parameters
    ----------
    small, spikes : np.ndarray, structured (sample_index, unit_index, segment_index), shape (n_small,), (n_spikes,)
    sampling_frequency : float

    Returns
    -------
    follow : np.ndarray, bool, shape (n_small,)
        False for all of a unit of which few do, or a small share.
    """
    together = np.concatenate([small, spikes])
    times_s = find_times(together, sampling_frequency)
    follow = np.zeros(len(small), dtype=bool)
    for unit in np.unique(small["unit_index"]):
        rows, all_s = np.flatnonzero(small["unit_index"] == unit), np.sort(times_s[together["unit_index"] == unit])
        follows = have_between(times_s[rows], all_s, -BURST_S[1], -BURST_S[0])
        if follows.sum() >= max(MIN_SPIKES, MIN_FOLLOWING * len(rows)):
            follow[rows] = follows
    return follow
