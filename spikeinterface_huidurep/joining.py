"""
Units that are one neuron: their templates are alike, and their spikes, freed from those that overlap them, show no gap.

There has to be none, either, when what drift and changes of amplitude and time do to the spikes is taken out, and the
colour of the noise, as in `splitting.py`: these may hide the gap between two neurons.

And units that are probably some of the spikes of another one: a rare unit of those that others overlap, or one of those
that the correction of drift left different, for which there is no gap at the times when both fire.
"""

import numpy as np

from spikeinterface_huidurep.linking import MAX_DIFFERENCE as MAX_DIFFERENCE_OF_FRAGMENTS
from spikeinterface_huidurep.linking import MAX_DIFFERENCE_OF_ONE
from spikeinterface_huidurep.matching import MIN_CHANNEL_PTP
from spikeinterface_huidurep.merging import (
    MAX_DISTANCE_UM,
    MAX_TESTED_SPIKES,
    find_lag,
    project_on_difference,
    separation,
    shift_waveforms,
    thin,
)
from spikeinterface_huidurep.splitting import (
    MIN_SEPARATION,
    N_AROUND,
    find_mixed,
    find_variation,
    measure_spread,
    remove_running_mean,
    remove_variation,
    score_pair,
)

MIN_SPIKES = 20  # of each of two units; fewer do not show what parts them
MAX_DIFFERENCE = 0.1  # of the energy of the larger template, without noise; beyond it two units are not compared
MIN_DISTANCE = 7.0  # noise SD; but templates that are closer always are
MIN_LARGE_PTP = 2 * MIN_CHANNEL_PTP  # noise SD; a channel on which a template is as large belongs to it for certain
MAX_SEPARATION_OF_ONE = 3.0  # SD; the halves of one Gaussian are 2.7 apart; what drift parts more is linked
MAX_SHARE_OF_RARE = 0.1  # times the spikes of a frequent unit
MAX_COMPARED_SPIKES = 3000  # of a frequent unit; more do not change the verdict
MIN_SPREAD_OF_COLLISIONS = 1.15  # times that of the spikes of their neuron; of neurons it is 0.95 to 1.1
MIN_SHARED_ENERGY = 0.2  # of both templates on the channels where their spikes are compared


def find_same_units(residuals, members, sizes, made_of, threshold):
    """
    Pairs of units that are one neuron: spikes alike in the mean, hardly apart and without a gap.

    Those of units farther apart may show no gap only because they are few. The templates of a weak neuron may differ
    more than the spikes that they find: a threshold takes those that noise made larger on one channel or on another.

    Parameters
    ----------
    residuals : Residuals
    members : list of np.ndarray, int64
        Indices of spikes of each unit.
    sizes : np.ndarray, int, shape (n_units,)
        Number of all spikes of each unit.
    made_of : np.ndarray, float, shape (n_units,)
        Number of detected spikes that each template was made of.
    threshold : float
        Dip score from which on there is a gap between two neurons.

    Returns
    -------
    pairs : list of (int, int, int)
        Indices of the larger and of the smaller unit, and the lag of the smaller; the lowest dip score first.
    """
    centres_um = residuals.locate_templates()
    left = [_average_residuals(residuals, rows, unit) for unit, rows in enumerate(members)]
    pairs = []
    for first in range(len(members)):
        distances_um = np.linalg.norm(centres_um - centres_um[first], axis=1)
        for second in np.flatnonzero(distances_um <= MAX_DISTANCE_UM):
            is_larger = (sizes[first], second) > (sizes[second], first)
            if is_larger and sizes[second] >= MIN_SPIKES:
                score, lag = _score_units(residuals, [first, second], members, left, sizes, made_of, threshold)
                if score < threshold:
                    pairs.append((score, first, int(second), lag))
    return [pair[1:] for pair in sorted(pairs)]


def find_doubtful_units(residuals, sorting, is_true):
    """
    Pairs of units that are probably one neuron.

    One is rare beside the other: either their templates cannot be told apart, or they are alike, but the rare spikes
    are not: these are spikes of the frequent one that others overlap. Where matching does not resolve this, as with
    large neurons, they make a unit of their own. Where drift was corrected, what is left of it makes the spikes of
    neurons unlike, too. There units are looked at, rare or not, whose templates are alike: a neuron that this makes two
    units fills what is between them at the times when both fire.

    Parameters
    ----------
    residuals : Residuals
    sorting : NumpySorting
        Of the same spikes.
    is_true : np.ndarray, bool, shape (n_spikes,)
        False for those that do not count, as leftovers of other units.

    Returns
    -------
    pairs : set of (int, int)
        Indices of the two units in ascending order.
    """
    unit_indices = np.where(is_true, sorting.to_spike_vector()["unit_index"], -1)
    members = [np.flatnonzero(unit_indices == index) for index in range(len(sorting.unit_ids))]
    sizes = np.array([len(rows) for rows in members])
    members = [thin(rows, MAX_COMPARED_SPIKES) for rows in members]
    centres_um = residuals.locate_templates()
    pairs = set()
    for smaller in np.flatnonzero(sizes > 1).tolist():
        distances_um = np.linalg.norm(centres_um - centres_um[smaller], axis=1)
        is_larger = sizes > sizes[smaller]
        for larger in np.flatnonzero(is_larger & (distances_um <= MAX_DISTANCE_UM)).tolist():
            if _are_probably_one(residuals, [larger, smaller], members, sizes):
                pairs.add((min(larger, smaller), max(larger, smaller)))
    return pairs


def _are_probably_one(residuals, units, members, sizes):
    """See `find_doubtful_units`; the first of two units has more spikes."""
    larger, smaller = units
    is_corrected, is_rare = residuals.is_drift_corrected(), sizes[smaller] <= MAX_SHARE_OF_RARE * sizes[larger]
    if not is_corrected and not is_rare:
        return False
    lag, difference, energy = compare_templates(*_read_templates(residuals, units, sizes))
    if is_rare and difference <= MAX_SEPARATION_OF_ONE**2:
        return True
    pair = _Pair(residuals, units, members, lag)
    if difference > MAX_DIFFERENCE_OF_FRAGMENTS * energy or pair.shared_energy < MIN_SHARED_ENERGY:
        return False
    return _are_mixed(pair) if is_corrected else _are_collisions(pair)


def _are_collisions(pair):
    """Whether the spikes of the second unit are less alike than those of the first, as those of no neuron are."""
    first, second = pair.remove_drift(pair.remove_variation(pair.read()))
    return measure_spread(second) > MIN_SPREAD_OF_COLLISIONS * measure_spread(first)


def _are_mixed(pair):
    """Whether the spikes of two units are as close as the halves of one at the times when both fire."""
    both_fire = find_mixed(*pair.times)
    if min(len(rows) for rows in both_fire) < MIN_SPIKES:
        return False
    is_then = [np.isin(*times) for times in zip(pair.times, both_fire, strict=True)]
    spikes = pair.read()
    return all(
        separation(*project_on_difference(first[is_then[0]], second[is_then[1]])) < MIN_SEPARATION
        for first, second in (spikes, pair.remove_variation(spikes))
    )


def _score_units(residuals, units, members, left, sizes, made_of, threshold):
    """Dip score between two units and the lag of the second; infinite for spikes that are unlike in the mean."""
    lag, difference, energy = compare_templates(*_average_spikes(residuals, units, members, left, made_of))
    if difference > max(MAX_DIFFERENCE * energy, MIN_DISTANCE**2):
        return np.inf, 0
    pair = _Pair(residuals, units, members, lag)
    if pair.shared_energy < MIN_SHARED_ENERGY:
        is_one = difference <= max(MAX_DIFFERENCE_OF_ONE * energy, min(MAX_DIFFERENCE * energy, MIN_DISTANCE**2))
        return (0.0 if is_one else np.inf), lag
    spikes = pair.read()
    score = _score_spikes(spikes, sizes[units])
    if score < threshold:
        score = max(score, _score_spikes(pair.remove_drift(pair.remove_variation(spikes)), sizes[units]))
    return score, lag


def _average_residuals(residuals, rows, unit):
    """What is left of the spikes of a unit in the mean, shape (n_channels, n_samples); 0 where there are none."""
    return residuals.read(rows, unit).sum(axis=0) / max(len(rows), 1)


def _read_templates(residuals, units, made_of):
    """
    The templates of two units, as `compare_templates` takes them.

    Returns
    -------
    first, second : np.ndarray, float32, shape (n_channels, n_samples)
    noise_energies : np.ndarray, float, shape (n_channels,)
        That the noise of the spikes that they were made of gives to their difference on each channel.
    """
    first, second = residuals.waveforms[units].transpose(0, 2, 1)
    return first, second, np.full(len(first), residuals.n_template_samples * np.sum(1 / made_of[units]))


def _average_spikes(residuals, units, members, left, made_of):
    """`_read_templates` with what is left of the spikes in the mean where those of both were looked at."""
    channels, *rows = _find_common_channels(residuals, units)
    *means, noise_energies = _read_templates(residuals, units, made_of)
    for mean, unit, of_unit in zip(means, units, rows, strict=True):
        mean[channels, residuals.window] += left[unit][of_unit]
        n_samples = min(left[unit].shape[1], residuals.n_template_samples)
        noise_energies[channels] += n_samples * (1 / len(members[unit]) - 1 / made_of[unit])
    return *means, noise_energies


def _score_spikes(vectors, sizes):
    """Dip score of the vectors of two units, infinite if they are apart; `sizes` count all their spikes."""
    return score_pair(*(thin(of_unit, MAX_TESTED_SPIKES) for of_unit in vectors), sizes, MAX_SEPARATION_OF_ONE)


def _find_common_channels(residuals, units):
    """Channels of the residuals of two units, and their places among those of each; int64 (n_channels,)."""
    return np.intersect1d(*(residuals.find_channels(unit) for unit in units), return_indices=True)


class _Pair:
    """
    Two units on the channels of both, the second moved by a lag.

    Attributes
    ----------
    shared_energy : float
        Least share of the energy of a template that is on these channels.
    """

    def __init__(self, residuals, units, members, lag):
        self.residuals, self.units, self.lags = residuals, units, (0, lag)
        self.times = [members[unit] for unit in units]  # anything that puts the spikes of both in order
        self.channels, *self.rows = _find_common_channels(residuals, units)
        templates = [residuals.waveforms[unit].T for unit in units]
        self.waveforms = [template[self.channels] for template in templates]
        self.shared_energy = min(
            np.sum(part**2) / np.sum(template**2) for part, template in zip(self.waveforms, templates, strict=True)
        )

    def read(self):
        """Spikes of each unit, freed from those that overlap them: float32, shape (n_spikes, n_dims)."""
        return [self._read_unit(index) for index in range(len(self.units))]

    def _read_unit(self, index):
        left = self.residuals.read(self.times[index], self.units[index])[:, self.rows[index]]
        waveform = shift_waveforms(self.waveforms[index], self.lags[index])[:, self.residuals.window]
        return (shift_waveforms(left, self.lags[index]) + waveform).reshape(len(left), -1)

    def remove_variation(self, spikes):
        """The spikes of `read`, whitened and without what changes of amplitude and time do to both."""
        whitener = self.residuals.noise.make_whitener(self.channels, self.residuals.values.shape[1])
        variation = find_variation(self.waveforms[0][:, self.residuals.window])
        vectors = remove_variation(np.concatenate(spikes) @ whitener, variation @ whitener)
        return vectors[: len(spikes[0])], vectors[len(spikes[0]) :]

    def remove_drift(self, vectors):
        """Those of `remove_variation` without what drift does to both."""
        n_first, order = len(vectors[0]), np.argsort(np.concatenate(self.times))
        vectors = np.concatenate(vectors)
        vectors[order] = remove_running_mean(vectors[order], min(N_AROUND, len(order) // 2))
        return vectors[:n_first], vectors[n_first:]


def compare_templates(first, second, noise_energies):
    """
    How much two templates differ on the channels of both, and on those where one is large.

    A channel on which a template is small may belong to it or not by chance.

    Parameters
    ----------
    first, second : np.ndarray, float, shape (n_channels, n_samples)
        0 on channels that do not belong to them.
    noise_energies : np.ndarray, float, shape (n_channels,)
        Energy that the noise of their spikes adds to the difference on each channel.

    Returns
    -------
    lag : int
        Of the second, see `merging.find_lag`.
    difference : float
        Energy of the difference, without noise.
    energy : float
        Of the larger template on these channels.
    """
    sizes = np.stack([np.ptp(first, axis=1), np.ptp(second, axis=1)])
    chosen = np.all(sizes > 0, axis=0) | np.any(sizes >= MIN_LARGE_PTP, axis=0)
    lag, difference = find_lag(first[chosen], second[chosen])
    energy = max(np.sum(template[chosen] ** 2) for template in (first, second))
    return lag, difference - np.sum(noise_energies[chosen]), energy
