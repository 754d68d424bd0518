"""
Neurons that fire rarely, hidden among the spikes of one that fires far more often.

Of a unit with very many spikes the second look (`splitting.py`) sees some, hardly any of which are of a rare neuron.
But these are the ones that the template fits worst, in the directions in which neurons differ: looked at together, they
show it. Whether it is a neuron all spikes of the unit decide, on the line that leads to it: among the worst alone, the
tail of the others looks like one. Left out are spikes close to those of other units: what a large template leaves at
one delay looks like a neuron, too.
"""

import numpy as np

from spikeinterface_huidurep.matching import concatenate_segments, find_coincidences
from spikeinterface_huidurep.merging import thin
from spikeinterface_huidurep.splitting import (
    N_AROUND,
    find_differences,
    find_parts,
    find_variation,
    join_parts,
    remove_running_mean,
    remove_variation,
    sharpen_parts,
)

MIN_SPIKES = 100  # of a hidden neuron
ALONE_MS = 2.0  # to the next spike of another unit
MIN_PTP = 2.0  # noise SD, of its template on the channels of the unit; what is smaller leaves nothing


def find_lonely_spikes(spikes, unit_index, residuals):
    """
    Spikes of a unit that have none of other units close to them.

    Parameters
    ----------
    spikes : np.ndarray, structured (sample_index, unit_index, segment_index), shape (n_spikes,)
        Of all units, in the order of time.
    unit_index : int
    residuals : Residuals
        Of them.

    Returns
    -------
    rows : np.ndarray, int64, shape (n_lonely,)
    """
    tolerance = round(ALONE_MS * 1e-3 * residuals.noise.traces.sampling_frequency)
    times = concatenate_segments(spikes, tolerance)
    reaches = np.ptp(residuals.waveforms[:, :, residuals.find_channels(unit_index)], axis=1).max(axis=1) >= MIN_PTP
    reaches[unit_index] = False
    rows = np.flatnonzero(spikes["unit_index"] == unit_index)
    return rows[~find_coincidences(times[rows], times[reaches[spikes["unit_index"]]], tolerance)]


def find_hidden_neuron(apply_to_residuals, waveform, whitener, shapes, n_looked_at, threshold, seed):
    """
    A neuron that few of the spikes of a unit are of.

    Parameters
    ----------
    apply_to_residuals : Callable
        Applies a function of residuals, see `splitting.split_unit`, to those of all spikes: `Residuals.apply`.
    waveform, whitener, shapes, threshold, seed
        As for `splitting.split_unit`.
    n_looked_at : int
        Spikes among which others would have been found; as many of those that fit worst are looked at.

    Returns
    -------
    is_hidden : np.ndarray, bool, shape (n_spikes,)
        All False if there is none.
    """
    projection = make_projection(waveform, whitener, shapes)
    vectors = apply_to_residuals(lambda residuals: residuals.reshape(len(residuals), -1) @ projection)
    return find_rare_part(remove_running_mean(vectors, N_AROUND), n_looked_at, threshold, seed)


def make_projection(waveform, whitener, shapes):
    """What takes residuals to the directions in which neurons differ, without what one neuron does: (n_values, n)."""
    directions = remove_variation(find_differences(shapes, whitener).T, find_variation(waveform) @ whitener)
    return (whitener @ directions.T).astype("float32")


def find_rare_part(vectors, n_looked_at, threshold, seed):
    """
    Vectors of a neuron, few beside those of another.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    n_looked_at, threshold, seed
        As for `find_hidden_neuron`.

    Returns
    -------
    is_part : np.ndarray, bool, shape (n_spikes,)
        All False if there is none.
    """
    rows = np.arange(len(vectors))
    usual = thin(rows, n_looked_at)
    worst = np.argpartition(np.sum(vectors**2, axis=1), -n_looked_at)[-n_looked_at:]
    looked_at = np.union1d(usual, worst)
    parts = find_parts(vectors[looked_at], seed).argmax(axis=1)
    counts, main = np.bincount(parts), np.bincount(parts[np.isin(looked_at, usual)]).argmax()
    frequent = np.flatnonzero((counts >= MIN_SPIKES) & (np.arange(len(counts)) != main))
    for part in frequent[np.argsort(-counts[frequent], kind="stable")]:
        candidate = np.isin(rows, looked_at[parts == part]).astype("int64")
        is_part = join_parts(vectors, sharpen_parts(vectors, candidate), threshold) == 1
        if MIN_SPIKES <= is_part.sum() <= len(rows) / 2:
            return is_part
    return np.zeros(len(rows), dtype=bool)
