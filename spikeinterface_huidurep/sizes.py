"""
Tell two neurons with one waveform in two sizes apart.

Neurons at different distances may have waveforms that differ in nothing but size; on one channel many do. The spikes of
one neuron differ in size, too: in a burst each is smaller than the one before, so that `splitting.py` takes sizes for
what one neuron does. But two sizes with a gap between them are two neurons if these fire independently of each other.
In a burst small spikes follow others, those of another neuron no more often than large ones do. One neuron has a
refractory period, and one that drift moves to and fro fires in one size at one time and in the other at another.
"""

import numpy as np
from scipy.stats import poisson

from spikeinterface_huidurep.clustering import MIN_SPIKES
from spikeinterface_huidurep.merging import dip_score, separation
from spikeinterface_huidurep.splitting import (
    MAX_SEPARATION_OF_WEAK,
    MIN_SHARE,
    N_AROUND,
    find_likely_neurons,
    find_variation,
    remove_running_mean,
    remove_variation,
)
from spikeinterface_huidurep.trains import REFRACTORY_S, avoid_each_other, count_pairs, expect_pairs, measure_pauses

BURST_S = (0.02, 0.1)  # bounds of the pause, else the median one of the unit, after which a spike is in no burst
MIN_BEGINNINGS = 0.6  # share of small spikes that follow no other, times that of large ones; in bursts it is up to 0.3
MIN_PROBABILITY = 0.05  # that chance gave as few pairs within the refractory period


def split_sizes(residuals, waveform, whitener, times_s, all_times_s, threshold):
    """
    Tell two neurons in one unit apart that differ in size alone.

    Parameters
    ----------
    residuals, waveform, whitener, threshold
        As for `splitting.split_unit`.
    times_s : np.ndarray, float, shape (n_spikes,)
    all_times_s : np.ndarray, float, shape (n_all_spikes,)
        Of the unit, if the spikes are but some of it. Ascending.

    Returns
    -------
    parts : np.ndarray, int64, shape (n_spikes,)
        0 or 1; all 0 where there is one neuron.
    """
    n_spikes = len(residuals)
    one = np.zeros(n_spikes, dtype="int64")
    if n_spikes < 2 * MIN_SPIKES:
        return one
    values, direction = residuals.reshape(n_spikes, -1), waveform.reshape(-1) @ whitener
    sizes = values @ (whitener @ direction) / np.linalg.norm(direction)
    sizes = remove_running_mean(sizes[:, None], min(N_AROUND, n_spikes // 2))[:, 0].astype("float64")
    is_large = sizes > find_gap(sizes)
    if not have_gap(sizes[is_large], sizes[~is_large], threshold):
        return one
    parts = is_large.astype("int64")
    vectors = remove_variation(values @ whitener, find_variation(waveform) @ whitener)
    if len(find_likely_neurons(vectors, parts, np.bincount(parts))) < 2:  # collisions are larger or smaller, too
        return one
    return parts if fire_independently(times_s[is_large], times_s[~is_large], all_times_s) else one


def have_gap(large, small, threshold):
    """Whether two groups of sizes, float (n_large,) and (n_small,), are as far apart as those of two neurons."""
    is_far = separation(large, small) >= MAX_SEPARATION_OF_WEAK
    return is_far and dip_score(large, small, (len(large), len(small))) >= threshold


def find_gap(sizes):
    """
    The border between two groups of sizes: two Gaussians of one SD make these groups most probable.

    Parameters
    ----------
    sizes : np.ndarray, float64, shape (n_spikes,)

    Returns
    -------
    border : float
        Each group has MIN_SHARE of the sizes or more.
    """
    ordered = np.sort(sizes)
    n_spikes = len(ordered)
    n_small = np.arange(1, n_spikes)
    n_groups = np.stack([n_small, n_spikes - n_small])
    sums = np.cumsum(ordered)[:-1]
    sums = np.stack([sums, ordered.sum() - sums])
    variances = (np.sum(ordered**2) - np.sum(sums**2 / n_groups, axis=0)) / n_spikes
    likelihoods = np.sum(n_groups * np.log(n_groups), axis=0) - 0.5 * n_spikes * np.log(np.maximum(variances, 1e-12))
    likelihoods[n_groups.min(axis=0) < MIN_SHARE * n_spikes] = -np.inf
    last_small = likelihoods.argmax()
    return ordered[last_small : last_small + 2].mean()


def fire_independently(large_s, small_s, all_s):
    """
    Whether the large and the small spikes of a unit are of two neurons, by their times.

    Parameters
    ----------
    large_s, small_s : np.ndarray, float, shape (n_large,), (n_small,)
        Times in s, ascending.
    all_s : np.ndarray, float, shape (n_spikes,)
        Of these and maybe of more spikes, ascending.

    Returns
    -------
    fire_independently : bool
    """
    burst_s = np.clip(np.median(np.diff(all_s)), *BURST_S)
    shares = [np.mean(measure_pauses(times_s, all_s) > burst_s) for times_s in (small_s, large_s)]
    if shares[0] < MIN_BEGINNINGS * shares[1] or avoid_each_other(large_s, small_s):
        return False
    found = count_pairs(large_s, small_s, *REFRACTORY_S)
    chance = expect_pairs(large_s, small_s, REFRACTORY_S)
    return bool(poisson.cdf(found, chance) >= MIN_PROBABILITY)
