"""
Whether the correction of drift makes the spikes of different times more alike.

An estimate of drift looks at where on the probe spikes of which size are. That changes, too, where other neurons fire,
as in another context, and correcting a drift that was none moves neurons which had stayed where they were. Their spikes
tell: of the times at both ends of the drift, most spikes have one at the other end that is like them, after the
correction if there was drift, and before if there was none.
"""

from dataclasses import dataclass

import numpy as np
from spikeinterface.core import get_channel_distances, ms_to_samples

from spikeinterface_huidurep.merging import thin

SHARE_OF_END = 0.2  # of the time
WINDOW_S = 1.0
MAX_WINDOWS = 20  # at each end
MAX_SPIKES = 1500  # at each end
MIN_SPIKES = 100  # at each end; fewer tell nothing
RADIUS_UM = 75.0  # of the channels on which two spikes are compared
MS_BEFORE, MS_AFTER = 0.5, 0.8


@dataclass
class Ends:
    """Large spikes of the times at both ends of a drift."""

    windows: np.ndarray
    """int (n_spikes,): first sample of the stretch of time in which each is."""
    samples: np.ndarray
    """int (n_spikes,): in the recording."""
    channels: np.ndarray
    """int (n_spikes,)."""
    is_high: np.ndarray
    """bool (n_spikes,): at which end."""


def find_share_made_alike(recording, moved, motion, peaks):
    """
    Share of the large spikes at both ends of a drift that are more like one of the other end after its correction.

    Parameters
    ----------
    recording : BaseRecording
        One segment.
    moved : BaseRecording
        The same with the drift corrected.
    motion : spikeinterface.core.motion.Motion
        The drift.
    peaks : np.ndarray, structured, shape (n_peaks,)
        Found in the recording, in the order of time.

    Returns
    -------
    share : float
        1 where too few spikes tell.
    """
    ends = find_ends(recording, motion, peaks)
    if min(np.sum(ends.is_high), np.sum(~ends.is_high)) < MIN_SPIKES:
        return 1.0
    before, after = (compare_ends(traces, ends) for traces in (recording, moved))
    is_known = np.isfinite(before) & np.isfinite(after)
    return float(np.mean(after[is_known] < before[is_known])) if np.any(is_known) else 1.0


def find_ends(recording, motion, peaks):
    """
    The larger half of the spikes in stretches of time at which the displacement is least, and largest.

    Parameters are those of `find_share_made_alike`.

    Returns
    -------
    ends : Ends
    """
    size = int(WINDOW_S * recording.sampling_frequency)
    starts = np.arange(0, recording.get_num_samples() - size, size)
    times_s = (starts + size / 2) / recording.sampling_frequency
    where_largest = motion.displacement[0][:, np.argmax(measure_ranges(motion))]
    of_windows_um = np.interp(times_s, motion.temporal_bins_s[0], where_largest)
    order = np.argsort(of_windows_um, kind="stable")
    n_windows = max(1, int(SHARE_OF_END * len(starts)))
    n_before, n_after = _count_samples(recording)
    found = []
    for is_high, windows in enumerate((order[:n_windows], order[-n_windows:])):
        chosen = thin(np.sort(starts[windows]), MAX_WINDOWS)
        rows = [np.searchsorted(peaks["sample_index"], (start + n_before, start + size - n_after)) for start in chosen]
        rows = np.concatenate([np.arange(first, last) for first, last in rows])
        amplitudes = np.abs(peaks["amplitude"][rows])
        rows = thin(rows[amplitudes >= np.median(amplitudes)] if len(rows) else rows, MAX_SPIKES)
        samples = peaks["sample_index"][rows]
        windows_of_spikes = chosen[np.searchsorted(chosen, samples, "right") - 1]
        found.append((windows_of_spikes, samples, peaks["channel_index"][rows], np.full(len(rows), bool(is_high))))
    return Ends(*(np.concatenate(values) for values in zip(*found, strict=True)))


def measure_ranges(motion):
    """Range of the displacement at every depth, from its 5th to its 95th percentile, shape (n_depths,) in um."""
    return np.ptp(np.percentile(motion.displacement[0], [5, 95], axis=0), axis=0)


def compare_ends(traces, ends):
    """
    How far each spike is from the most similar one of the other end, as a multiple of that of its own.

    Spikes of the same second do not count: drift has not changed them.

    Parameters
    ----------
    traces : BaseRecording
        One segment.
    ends : Ends

    Returns
    -------
    ratios : np.ndarray, float, shape (n_spikes,)
        Of squared distances; about 1 for a neuron that both ends show alike. Not finite where there is no other spike.
    """
    is_near = get_channel_distances(traces) <= RADIUS_UM
    waveforms, centres = cut_waveforms(traces, ends, is_near)
    of_other, of_own = np.full((2, len(waveforms)), np.inf)
    for centre in np.unique(centres):
        spikes, others = np.flatnonzero(centres == centre), np.flatnonzero(is_near[centre][centres])
        values, other_values = (waveforms[rows][:, is_near[centre]].reshape(len(rows), -1) for rows in (spikes, others))
        distances = np.sum(values**2, axis=1)[:, None] + np.sum(other_values**2, axis=1) - 2 * values @ other_values.T
        distances[ends.windows[spikes][:, None] == ends.windows[others]] = np.inf
        is_same_end = ends.is_high[spikes][:, None] == ends.is_high[others]
        of_own[spikes] = np.min(distances, axis=1, where=is_same_end, initial=np.inf)
        of_other[spikes] = np.min(distances, axis=1, where=~is_same_end, initial=np.inf)
    return of_other / np.where(np.isfinite(of_own), of_own, np.nan)


def cut_waveforms(traces, ends, is_near):
    """
    Waveforms of spikes on all channels, and the channel on which each is largest.

    Parameters
    ----------
    traces : BaseRecording
        One segment.
    ends : Ends
    is_near : np.ndarray, bool, shape (n_channels, n_channels)
        Of the channel of a spike: those on which it may be largest.

    Returns
    -------
    waveforms : np.ndarray, float32, shape (n_spikes, n_channels, n_samples)
    centres : np.ndarray, int64, shape (n_spikes,)
    """
    n_before, n_after = _count_samples(traces)
    waveforms = np.empty((len(ends.samples), traces.get_num_channels(), n_before + n_after), dtype="float32")
    for start in np.unique(ends.windows):
        rows = np.flatnonzero(ends.windows == start)
        stop = int(start + WINDOW_S * traces.sampling_frequency)
        values = traces.get_traces(start_frame=start, end_frame=stop)
        times = (ends.samples[rows] - start)[:, None] + np.arange(-n_before, n_after)
        waveforms[rows] = values[times].transpose(0, 2, 1)
    sizes = np.where(is_near[ends.channels], np.abs(waveforms[:, :, n_before]), -1)
    return waveforms, sizes.argmax(axis=1)


def _count_samples(recording):
    return [ms_to_samples(ms, recording.sampling_frequency) for ms in (MS_BEFORE, MS_AFTER)]
