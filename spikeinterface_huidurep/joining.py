"""
Units that are one neuron: their templates are alike, and their spikes, freed from those that overlap them, show no gap.

There has to be none, either, when what drift and changes of amplitude and time do to the spikes is taken out, and the
colour of the noise, as in `splitting.py`: these may hide the gap between two neurons.
"""

import numpy as np

from spikeinterface_huidurep.clustering import MIN_SPIKES
from spikeinterface_huidurep.linking import MAX_DIFFERENCE_OF_ONE
from spikeinterface_huidurep.matching import MIN_CHANNEL_PTP
from spikeinterface_huidurep.merging import MAX_DISTANCE_UM, MAX_TESTED_SPIKES, find_lag, shift_waveforms, thin
from spikeinterface_huidurep.splitting import (
    N_AROUND,
    find_variation,
    remove_running_mean,
    remove_variation,
    score_pair,
)

MAX_DIFFERENCE = 0.1  # of the energy of the larger template, without noise; beyond it two units are not compared
MIN_DISTANCE = 7.0  # noise SD; but templates that are closer always are
MIN_LARGE_PTP = 2 * MIN_CHANNEL_PTP  # noise SD; a channel on which a template is as large belongs to it for certain
MAX_SEPARATION_OF_ONE = 3.0  # SD; the halves of one Gaussian are 2.7 apart; what drift parts more is linked
MIN_SHARED_ENERGY = 0.2  # of both templates on the channels where their spikes are compared


def find_same_units(residuals, members, sizes, made_of, threshold):
    """
    Pairs of units that are one neuron: templates alike, and their spikes hardly apart and without a gap.

    Those of units farther apart may show no gap only because they are few.

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
    pairs = []
    for first in range(len(members)):
        distances_um = np.linalg.norm(centres_um - centres_um[first], axis=1)
        for second in np.flatnonzero(distances_um <= MAX_DISTANCE_UM):
            is_larger = (sizes[first], second) > (sizes[second], first)
            if is_larger and sizes[second] >= MIN_SPIKES:
                score, lag = _score_units(residuals, [first, second], members, sizes, made_of, threshold)
                if score < threshold:
                    pairs.append((score, first, int(second), lag))
    return [pair[1:] for pair in sorted(pairs)]


def _score_units(residuals, units, members, sizes, made_of, threshold):
    """Dip score between two units and the lag of the second; infinite for waveforms that are unlike."""
    templates = [residuals.waveforms[unit].T for unit in units]
    noise_of_means = residuals.n_template_samples * np.sum(1 / made_of[units])
    lag, difference, energy = compare_templates(*templates, noise_of_means)
    if difference > max(MAX_DIFFERENCE * energy, MIN_DISTANCE**2):
        return np.inf, 0
    channels, *rows = np.intersect1d(*(residuals.find_channels(unit) for unit in units), return_indices=True)
    waveforms = [template[channels] for template in templates]
    shares = [np.sum(part**2) / np.sum(template**2) for part, template in zip(waveforms, templates, strict=True)]
    if min(shares) < MIN_SHARED_ENERGY:
        return (0.0 if difference <= MAX_DIFFERENCE_OF_ONE * energy else np.inf), lag
    vectors = []
    for unit, waveform, own_rows, own_lag in zip(units, waveforms, rows, (0, lag), strict=True):
        left = residuals.read(members[unit], unit)[:, own_rows]
        spikes = shift_waveforms(left, own_lag) + shift_waveforms(waveform, own_lag)[:, residuals.window]
        vectors.append(spikes.reshape(len(spikes), -1))
    score = _score_spikes(vectors, sizes[units])
    if score < threshold:
        whitener = residuals.noise.make_whitener(channels, residuals.values.shape[1])
        times = (members[unit] for unit in units)
        freed = remove_changes(*vectors, *times, waveforms[0][:, residuals.window], whitener)
        score = max(score, _score_spikes(freed, sizes[units]))
    return score, lag


def _score_spikes(vectors, sizes):
    """Dip score of the vectors of two units, infinite if they are apart; `sizes` count all their spikes."""
    return score_pair(*(thin(of_unit, MAX_TESTED_SPIKES) for of_unit in vectors), sizes, MAX_SEPARATION_OF_ONE)


def remove_changes(first, second, times_of_first, times_of_second, waveform, whitener):
    """
    Take out of the spikes of two units what changes of amplitude and time and drift do to both.

    Parameters
    ----------
    first, second : np.ndarray, float32, shape (n_first, n_dims), (n_second, n_dims)
        Spikes on n_channels * n_samples = n_dims.
    times_of_first, times_of_second : np.ndarray, shape (n_first,), (n_second,)
        Anything that puts the spikes of both in order.
    waveform : np.ndarray, float32, shape (n_channels, n_samples)
        Template of either; they are alike.
    whitener : np.ndarray, float32, shape (n_dims, n_dims)
        See `noise.Noise.make_whitener`.

    Returns
    -------
    first, second : np.ndarray, float32, shape (n_first, n_dims), (n_second, n_dims)
        Whitened.
    """
    vectors = remove_variation(np.concatenate([first, second]) @ whitener, find_variation(waveform) @ whitener)
    order = np.argsort(np.r_[times_of_first, times_of_second])
    vectors[order] = remove_running_mean(vectors[order], min(N_AROUND, len(order) // 2))
    return vectors[: len(first)], vectors[len(first) :]


def compare_templates(first, second, noise_of_means):
    """
    How much two templates differ on the channels of both, and on those where one is large.

    A channel on which a template is small may belong to it or not by chance.

    Parameters
    ----------
    first, second : np.ndarray, float, shape (n_channels, n_samples)
        0 on channels that do not belong to them.
    noise_of_means : float
        Energy that the noise of their spikes adds to the difference on every channel.

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
    return lag, difference - noise_of_means * np.sum(chosen), energy
