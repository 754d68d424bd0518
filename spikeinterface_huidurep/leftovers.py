"""
Find the spikes that are what a larger spike left over.

A template fits the spikes of its neuron only so well: what is left of a large one, when it is taken away, may look like
a spike of a smaller unit, or once more like one of another fragment of the same neuron. Such spikes come at the same
few delays to the larger ones, far more often than chance has it.
Neurons that do fire together, do so over several milliseconds: chance is measured there.

They may be anywhere: beyond the reach of its template a large spike is left as it is, and a common reference takes it
to all channels.

What is left at the ends of a template comes later or earlier, at delays at which a neuron may also make another fire.
Some spikes at such delays are no leftovers, but a unit of which most are is none. Nor is an echo: a unit of which many
spikes come milliseconds after a larger one, to a tenth of a millisecond. No synapse is as exact. The others are noise,
or come after other neurons, as where waveforms that were injected all end in a step.
"""

import numpy as np
from scipy.stats import poisson

from spikeinterface_huidurep.detection import find_pairs
from spikeinterface_huidurep.matching import concatenate_segments

MAX_DELAY_MS = 0.5  # of a leftover to the larger spike
MAX_DELAY_OF_UNIT_MS = 2.5  # if most spikes of a unit are leftovers
CHANCE_DELAY_MS = (1.5, 5.0)  # at these delays chance is measured; few leftovers are as late
N_AROUND = 1  # samples to both sides of a delay that are counted with it
MAX_PROBABILITY = 1e-4  # that chance gave as many
MIN_TRUE = 0.2  # share of the spikes at a delay that chance gives; where it gives less all are left out
MIN_TRUE_OF_UNIT = 0.5  # share of the spikes of a unit that are no leftovers; with less the unit is none
MAX_DELAY_OF_ECHO_MS = 10.0  # from MAX_DELAY_OF_UNIT_MS on; what comes earlier is a leftover
JITTER_OF_ECHO_MS = 0.1  # to both sides of the delay
MAX_SIZE_OF_ECHO = 0.3  # times the larger neuron; two neurons that stimulation makes fire may be as exact
MIN_ECHOES, MIN_SHARE_OF_ECHOES = 5, 0.4  # spikes of a unit; neurons had a share of 0.02 at most, echoes of 0.49


def find_true_shares(sorting, norms, neurons, max_delays_ms):
    """
    Probability that each spike is one of its own, and not what a spike of a larger unit left over.

    Parameters
    ----------
    sorting : NumpySorting
    norms : np.ndarray, float, shape (n_units,)
        Of the templates.
    neurons : np.ndarray, int64, shape (n_units,)
        See `linking.link_fragments`; the larger fragments of one neuron are taken together.
    max_delays_ms : sequence of float
        To the larger spike.

    Returns
    -------
    shares : np.ndarray, float32, shape (n_max_delays, n_spikes)
        With each of the longest delays; spikes in the order of `sorting.to_spike_vector()`.
    """
    max_delays, chance_delays = (
        [round(ms * 1e-3 * sorting.sampling_frequency) for ms in delays_ms]
        for delays_ms in (max_delays_ms, CHANCE_DELAY_MS)
    )
    shares = np.ones((len(max_delays), len(sorting.to_spike_vector())), dtype="float32")
    for _, _, rows, delays in find_delays(sorting, norms, neurons, chance_delays[1]):
        n_by_chance = 1 + np.sum(np.abs(delays) >= chance_delays[0])  # not 0: a few spikes tell little of chance
        per_delay = n_by_chance / (2 * (chance_delays[1] - chance_delays[0] + 1))
        for shares_within, max_delay in zip(shares, max_delays, strict=True):
            is_close = np.abs(delays) <= max_delay
            share_at_delay = measure_shares(delays[is_close], max_delay, per_delay)
            np.minimum.at(shares_within, rows[is_close], share_at_delay[delays[is_close] + max_delay])
    return shares


def find_delays(sorting, norms, neurons, max_delay):
    """
    Delays of the spikes of every unit to those of every neuron with a larger template.

    Parameters
    ----------
    sorting, norms, neurons
        As for `find_true_shares`.
    max_delay : int
        Samples.

    Yields
    ------
    unit, neuron : int
        Index of the unit, and the larger neuron.
    rows : np.ndarray, int64, shape (n_pairs,)
        Its spikes.
    delays : np.ndarray, int64, shape (n_pairs,)
        To the spikes of the fragments of the neuron that are larger.
    """
    spikes = sorting.to_spike_vector()
    times, unit_indices = concatenate_segments(spikes, max_delay), spikes["unit_index"]
    rows = [np.flatnonzero(unit_indices == unit) for unit in range(len(norms))]
    for unit in range(len(norms)):
        is_larger = norms > norms[unit]
        for neuron in np.unique(neurons[is_larger]):
            larger = np.flatnonzero(is_larger & (neurons == neuron))
            others = np.sort(np.concatenate([times[rows[fragment]] for fragment in larger]))
            indices, partners = find_pairs(times[rows[unit]], others, max_delay)
            yield unit, neuron, rows[unit][indices], times[rows[unit][indices]] - others[partners]


def measure_shares(delays, max_delay, per_delay):
    """
    What chance would give at each delay, as a share of what was found; 1 where that is not clearly more.

    Parameters
    ----------
    delays : np.ndarray, int64, shape (n_pairs,)
        From -max_delay to max_delay.
    max_delay : int
    per_delay : float
        Pairs at every delay by chance.

    Returns
    -------
    shares : np.ndarray, float, shape (2 * max_delay + 1,)
    """
    window = np.ones(2 * N_AROUND + 1)
    found = np.convolve(np.bincount(delays + max_delay, minlength=2 * max_delay + 1), window, "same")
    chance = np.convolve(np.full(2 * max_delay + 1, per_delay), window, "same")
    is_excess = poisson.sf(found - 1, chance) < MAX_PROBABILITY
    return np.where(is_excess, chance / np.maximum(found, 1), 1.0)


def find_echoes(sorting, norms, neurons):
    """
    Units of which many spikes come at one delay after those of a far larger neuron.

    Parameters are those of `find_true_shares`.

    Returns
    -------
    is_echo : np.ndarray, bool, shape (n_units,)
    """
    min_delay, max_delay, jitter = (
        round(ms * 1e-3 * sorting.sampling_frequency)
        for ms in (MAX_DELAY_OF_UNIT_MS, MAX_DELAY_OF_ECHO_MS, JITTER_OF_ECHO_MS)
    )
    n_spikes = np.bincount(sorting.to_spike_vector()["unit_index"], minlength=len(norms))
    is_echo = np.zeros(len(norms), dtype=bool)
    for unit, neuron, _, delays in find_delays(sorting, norms, neurons, max_delay):
        if norms[unit] <= MAX_SIZE_OF_ECHO * norms[neurons == neuron].max() and neuron != neurons[unit]:
            at_delay = np.convolve(np.bincount(delays[delays > min_delay], minlength=1), np.ones(2 * jitter + 1))
            is_echo[unit] |= at_delay.max() >= max(MIN_ECHOES, MIN_SHARE_OF_ECHOES * n_spikes[unit])
    return is_echo


def is_leftover(shares):
    """Which spikes are leftovers, by the `shares` (n_spikes,) of `find_true_shares`."""
    return shares < MIN_TRUE


def find_true_spikes(sorting, shares, shares_of_unit, is_echo):
    """
    Which spikes are neither leftovers nor of a unit that is mostly made of them, or an echo.

    Parameters
    ----------
    sorting : NumpySorting
    shares : np.ndarray, float32, shape (n_spikes,)
        Of `find_true_shares`.
    shares_of_unit : np.ndarray, float32, shape (n_spikes,)
        With delays up to MAX_DELAY_OF_UNIT_MS.
    is_echo : np.ndarray, bool, shape (n_units,)
        Of `find_echoes`.

    Returns
    -------
    is_true : np.ndarray, bool, shape (n_spikes,)
    """
    unit_indices = sorting.to_spike_vector()["unit_index"]
    is_true = ~is_leftover(shares)
    n_true = np.bincount(unit_indices, weights=is_true * shares_of_unit, minlength=len(is_echo))
    is_unit = (n_true >= MIN_TRUE_OF_UNIT * np.bincount(unit_indices, minlength=len(is_echo))) & ~is_echo
    return is_true & is_unit[unit_indices]
