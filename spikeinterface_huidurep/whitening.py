"""
Adaptive whitening in time and in space, as lazy SpikeInterface preprocessing.

The noise of a recording is coloured in time as well as in space. The filter here flattens it, but only where that
helps to tell a spike from noise: the square of its frequency response is the inverse of the noise power, weighted by
a number between 0 and 1 that falls off where spikes have no power above the noise. On noise that is white already
the filter is nearly flat over the band of the spikes.
"""

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.signal
from spikeinterface.core import get_channel_distances, get_random_data_chunks
from spikeinterface.preprocessing.basepreprocessor import BasePreprocessor, BasePreprocessorSegment
from spikeinterface.preprocessing.whiten import WhitenRecording

HALF_TAPS_MS = 2.0  # the impulse response of a spectrum without lines has died away by then
BLOCK_TO_TAPS = 16  # block length of the overlap-save filter, in multiples of the number of taps
SPECTRUM_WINDOW_MS = 4.2  # one window for noise and spikes alike, so that both spectra are smeared alike
QUIET_LEVEL = 4.5  # noise windows hold no sample beyond this many noise SD
MIN_QUIET_SHARE = 0.02  # so many windows count as noise, however restless the recording
SPIKE_LEVEL = 6.0  # the spectrum of spikes is measured on peaks beyond this many noise SD
MIN_SPIKES = 30  # fewer peaks than this tell nothing of the spectrum of spikes
HALF_WEIGHT = 0.02  # spike-to-noise ratio, relative to its maximum, at which a frequency gets half its weight
NOISE_FLOOR = 0.02  # power below this share of the maximum is not lifted: no spikes there, or hardly any power
FALLBACK_BAND_HZ = (300.0, 5000.0)  # the band of spikes where the recording has too few to measure
NORMAL_MAD = 0.6744897501960817  # median absolute deviation of the standard normal distribution
ESTIMATE_CHUNK_S = 0.5
ESTIMATE_MAX_CHUNKS = 40
ESTIMATE_MAX_VALUES = 40_000_000  # float32 values read to estimate filters: 160 MB


class TemporalWhitenRecording(BasePreprocessor):
    """
    Filter every channel with one symmetric (zero-phase) FIR filter that flattens the noise spectrum.

    The traces do not depend on how they are asked for: the convolution runs on blocks at fixed places of the segment,
    so that any chunking gives the same samples. Beyond the ends of a segment the signal is taken as zero.

    Parameters
    ----------
    recording : BaseRecording
        The recording, already band-pass filtered.
    taps : None | sequence of float, shape (2 * n_half + 1,), default: None
        The impulse response. None estimates it with `estimate_temporal_filter`; the result is stored with the
        recording, so that a reloaded recording is the same.
    dtype : dtype, default: "float32"
        Floating-point type of the traces.
    seed : int, default: 0
        Seed of the choice of chunks for the estimate. Not used when `taps` is given.

    Raises
    ------
    ValueError
        If `taps` is not a finite, odd-length, symmetric vector, or `dtype` not a floating-point type.
    """

    _precomputable_kwarg_names = ["taps"]

    def __init__(self, recording, taps=None, dtype="float32", seed=0):
        if np.dtype(dtype).kind != "f":
            raise ValueError(f"dtype must be a floating-point type such as 'float32', got {dtype!r}")
        taps = estimate_temporal_filter(recording, seed=seed) if taps is None else _checked_taps(taps)
        BasePreprocessor.__init__(self, recording, dtype=dtype)
        for parent_segment in recording.segments:
            self.add_recording_segment(_TemporalWhitenSegment(parent_segment, taps, self.get_dtype()))
        self._kwargs = dict(recording=recording, taps=taps.tolist(), dtype=np.dtype(dtype).name, seed=seed)


class _TemporalWhitenSegment(BasePreprocessorSegment):
    def __init__(self, parent_recording_segment, taps, dtype):
        BasePreprocessorSegment.__init__(self, parent_recording_segment)
        self.dtype = dtype
        self.n_half = len(taps) // 2
        self.n_fft = scipy.fft.next_fast_len(BLOCK_TO_TAPS * len(taps), real=True)
        self.hop = self.n_fft - 2 * self.n_half
        self.response = scipy.fft.rfft(taps.astype("float32"), n=self.n_fft)[:, None]

    def get_traces(self, start_frame, end_frame, channel_indices):
        n_samples = self.get_num_samples()
        start_frame = 0 if start_frame is None else start_frame
        end_frame = n_samples if end_frame is None else end_frame
        first_block, last_block = start_frame // self.hop, -(-end_frame // self.hop)
        parent = self._parent_traces(first_block * self.hop, last_block * self.hop, channel_indices, n_samples)
        filtered = np.empty(((last_block - first_block) * self.hop, parent.shape[1]), dtype="float32")
        for start in range(0, len(filtered), self.hop):
            spectrum = scipy.fft.rfft(parent[start : start + self.n_fft], axis=0)
            spectrum *= self.response
            block = scipy.fft.irfft(spectrum, n=self.n_fft, axis=0)
            filtered[start : start + self.hop] = block[2 * self.n_half :]
        offset = start_frame - first_block * self.hop
        return filtered[offset : offset + end_frame - start_frame].astype(self.dtype, copy=False)

    def _parent_traces(self, start_frame, end_frame, channel_indices, n_samples):
        """Parent traces from `start_frame` to `end_frame` with the margin of the filter, zero outside the segment."""
        start, stop = start_frame - self.n_half, end_frame + self.n_half
        inside_start, inside_stop = max(start, 0), min(stop, n_samples)
        inside = self.parent_recording_segment.get_traces(inside_start, inside_stop, channel_indices)
        traces = np.zeros((stop - start, inside.shape[1]), dtype="float32")
        traces[inside_start - start : inside_stop - start] = inside
        return traces


def temporal_whiten(recording, taps=None, dtype="float32", seed=0):
    """Functional form of `TemporalWhitenRecording`, with the same parameters."""
    return TemporalWhitenRecording(recording, taps=taps, dtype=dtype, seed=seed)


def spatial_whiten(recording, radius_um=100.0, dtype="float32", seed=0):
    """
    Decorrelate neighbouring channels and scale each to unit noise SD.

    SpikeInterface's `WhitenRecording` with a matrix estimated here on the noise alone: samples around large
    deflections do not count, so that the spikes of a busy tetrode do not whiten themselves away.

    Parameters
    ----------
    recording : BaseRecording
        The recording, already band-pass filtered.
    radius_um : float, default: 100.0
        Channels farther apart than this are not mixed.
    dtype : dtype, default: "float32"
        Floating-point type of the traces.
    seed : int, default: 0
        Seed of the choice of chunks for the estimate.

    Returns
    -------
    whitened : spikeinterface.preprocessing.WhitenRecording
        Traces in multiples of the noise SD.
    """
    chunks = read_random_chunks(recording, seed)
    matrix = whitening_matrix(chunks, get_channel_distances(recording), radius_um, recording.sampling_frequency)
    return WhitenRecording(recording, dtype=dtype, mode="local", radius_um=radius_um, W=matrix)


def estimate_temporal_filter(recording, radius_um=100.0, seed=0):
    """
    Estimate the impulse response that flattens the noise of a recording within the band of its spikes.

    Parameters
    ----------
    recording : BaseRecording
        The recording, already band-pass filtered, with channel locations.
    radius_um : float, default: 100.0
        The spectra are measured after spatial whitening over this radius.
    seed : int, default: 0
        Seed of the choice of chunks.

    Returns
    -------
    taps : np.ndarray, float64, shape (2 * n_half + 1,)
        Symmetric impulse response with unit gain for the noise: filtered noise keeps its variance.
    """
    sampling_frequency = recording.sampling_frequency
    chunks = read_random_chunks(recording, seed)
    matrix = whitening_matrix(chunks, get_channel_distances(recording), radius_um, sampling_frequency)
    frequencies_hz, noise_power, spike_power = measure_spectra([chunk @ matrix for chunk in chunks], sampling_frequency)
    return design_temporal_filter(frequencies_hz, noise_power, spike_power, sampling_frequency)


def read_random_chunks(recording, seed):
    """
    Read seeded random chunks, few enough to fit in memory whatever the number of channels and segments.

    Segments shorter than a chunk are left out, unless all are; of very many segments not all are read.

    Returns
    -------
    chunks : list of np.ndarray, float32, each of shape (n_samples, n_channels)
    """
    sizes = np.array(list_segment_sizes(recording))
    chunk_size = int(min(ESTIMATE_CHUNK_S * recording.sampling_frequency, sizes.max()))
    affordable = ESTIMATE_MAX_VALUES // (chunk_size * recording.get_num_channels())
    kept = np.flatnonzero(sizes >= chunk_size)
    if len(kept) > affordable:
        kept = kept[np.linspace(0, len(kept) - 1, max(affordable, 1)).astype("int64")]
    if len(kept) < len(sizes):
        recording = recording.select_segments(kept.tolist())
        sizes = sizes[kept]
    wanted = min(ESTIMATE_MAX_CHUNKS, int(np.ceil(sizes.max() / chunk_size)))  # no more than there is to read
    chunks = get_random_data_chunks(
        recording,
        concatenated=False,
        num_chunks_per_segment=int(np.clip(affordable // len(sizes), 1, wanted)),
        chunk_duration=None,
        chunk_size=chunk_size,
        seed=seed,
    )
    return [chunk.astype("float32", copy=False) for chunk in chunks]


def list_segment_sizes(recording):
    """Number of samples of every segment, list of int."""
    return [recording.get_num_samples(index) for index in range(recording.get_num_segments())]


def whitening_matrix(chunks, distances_um, radius_um, sampling_frequency):
    """
    Local ZCA whitening matrix of the noise, scaled to unit noise SD (median absolute deviation).

    Parameters
    ----------
    chunks : list of np.ndarray, float32, each of shape (n_samples, n_channels)
    distances_um : np.ndarray, float, shape (n_channels, n_channels)
    radius_um : float
    sampling_frequency : float

    Returns
    -------
    matrix : np.ndarray, float32, shape (n_channels, n_channels)
        `traces @ matrix` is white in space.
    """
    covariance = noise_covariance(chunks, sampling_frequency)
    matrix = np.zeros(covariance.shape, dtype="float32")
    for channel_index in range(len(covariance)):
        near = np.flatnonzero(distances_um[channel_index] <= radius_um)
        local = _inverse_square_root(covariance[np.ix_(near, near)])
        matrix[near, channel_index] = local[:, np.flatnonzero(near == channel_index)[0]]
    levels = noise_levels([chunk @ matrix for chunk in chunks])
    return matrix / levels


def noise_levels(chunks):
    """Noise SD of every channel from the median absolute deviation, shape (n_channels,)."""
    traces = np.concatenate(chunks[:: max(1, len(chunks) // 20)])
    channels = np.ascontiguousarray(traces.T)  # their medians take half the time
    deviations = np.abs(channels - np.median(channels, axis=1, keepdims=True))
    return np.median(deviations, axis=1) / NORMAL_MAD


def noise_covariance(chunks, sampling_frequency):
    """
    Covariance of the channels over the samples at which both of a pair are quiet.

    Returns
    -------
    covariance : np.ndarray, float64, shape (n_channels, n_channels)
    """
    levels = noise_levels(chunks)
    n_channels = len(levels)
    products, counts = np.zeros((n_channels, n_channels)), np.zeros((n_channels, n_channels))
    for chunk in chunks:
        quiet = _quiet_samples(chunk / levels, sampling_frequency).astype("float32")
        kept = chunk * quiet
        products += kept.T @ kept
        counts += quiet.T @ quiet
    return products / np.maximum(counts, 1)


def _quiet_samples(scaled, sampling_frequency):
    """True where no sample within 0.5 ms is beyond the quiet level; same shape as `scaled`, (n_samples, n_channels)."""
    half = max(1, int(0.5e-3 * sampling_frequency))
    return scipy.ndimage.maximum_filter1d(np.abs(scaled), 2 * half + 1, axis=0) < QUIET_LEVEL


def _inverse_square_root(covariance):
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 1e-3 * values.max())
    return (vectors / np.sqrt(values)) @ vectors.T


def measure_spectra(chunks, sampling_frequency):
    """
    Power spectra of the noise and of the spikes in spatially whitened traces.

    Parameters
    ----------
    chunks : list of np.ndarray, float32, each of shape (n_samples, n_channels)
        In multiples of the noise SD.
    sampling_frequency : float

    Returns
    -------
    frequencies_hz : np.ndarray, float64, shape (n_frequencies,)
    noise_power : np.ndarray, float64, shape (n_frequencies,)
        Mean periodogram of windows without spikes, all channels together.
    spike_power : None | np.ndarray, float64, shape (n_frequencies,)
        Mean spectrum of spikes scaled to the same peak, without the noise beneath them; None if there are too few.
    """
    n_window = 2 * int(SPECTRUM_WINDOW_MS * 1e-3 * sampling_frequency / 2)
    quiet = _quiet_windows(chunks, n_window)
    spikes = np.concatenate([_spike_windows(chunk, n_window) for chunk in chunks])
    frequencies_hz = scipy.fft.rfftfreq(n_window, 1 / sampling_frequency)
    noise_power = _mean_power(quiet)
    if len(spikes) < MIN_SPIKES:
        return frequencies_hz, noise_power, None
    peaks = np.abs(spikes[:, n_window // 2])[:, None]
    beneath = noise_power * np.mean(1 / peaks**2)
    spike_power = np.maximum(_mean_power(spikes / peaks) - beneath, 0)
    return frequencies_hz, noise_power, spike_power


def _quiet_windows(chunks, n_window):
    """
    Windows of single channels without spikes, shape (n_windows, n_window).

    Where spikes or heavy tails leave hardly any, the quietest windows.
    """
    windows, extremes = [], []
    for chunk in chunks:
        n_windows = len(chunk) // n_window
        windows.append(chunk[: n_windows * n_window].reshape(n_windows, n_window, -1).transpose(0, 2, 1))
        extremes.append(np.abs(windows[-1]).max(axis=2))  # (n_windows, n_channels)
    level = max(QUIET_LEVEL, np.quantile(np.concatenate(extremes), MIN_QUIET_SHARE))
    return np.concatenate([of_chunk[size <= level] for of_chunk, size in zip(windows, extremes, strict=True)])


def _spike_windows(chunk, n_spike):
    """Windows centred on the large peaks of single channels, shape (n_peaks, n_spike)."""
    half = n_spike // 2
    size = np.abs(chunk)
    is_peak = (size > SPIKE_LEVEL) & (size == scipy.ndimage.maximum_filter1d(size, n_spike, axis=0))
    is_peak[:half] = is_peak[len(chunk) - half - 1 :] = False
    samples, channels = np.nonzero(is_peak)
    return chunk[samples[:, None] + np.arange(-half, n_spike - half), channels[:, None]]


def _mean_power(windows):
    """Mean power spectrum of Hann-tapered windows, per unit of the energy of the taper."""
    taper = scipy.signal.windows.hann(windows.shape[1])
    power = np.abs(scipy.fft.rfft(windows * taper, axis=1)) ** 2
    return power.mean(axis=0) / np.sum(taper**2)


def design_temporal_filter(frequencies_hz, noise_power, spike_power, sampling_frequency):
    """
    Symmetric FIR filter with the squared response `weight / noise_power`.

    The weight of a frequency is r / (r + HALF_WEIGHT), with r the spike-to-noise power ratio relative to its maximum.

    Parameters
    ----------
    frequencies_hz, noise_power : np.ndarray, float64, shape (n_frequencies,)
    spike_power : None | np.ndarray, float64, shape (n_frequencies,)
        None weights the usual band of spikes, for lack of spikes to measure.
    sampling_frequency : float

    Returns
    -------
    taps : np.ndarray, float64, shape (2 * n_half + 1,)
    """
    lifted_power = noise_power + NOISE_FLOOR * noise_power.max()
    if spike_power is None:
        low, high = FALLBACK_BAND_HZ
        weight = ((frequencies_hz >= low) & (frequencies_hz <= high)).astype(float)
    else:
        ratio = spike_power / lifted_power
        weight = ratio / (ratio + HALF_WEIGHT * ratio.max())
    response = np.sqrt(weight / lifted_power)
    n_half = int(HALF_TAPS_MS * 1e-3 * sampling_frequency)
    n_fft = 8 * n_half
    fine_hz = scipy.fft.rfftfreq(n_fft, 1 / sampling_frequency)
    impulse = scipy.fft.irfft(np.interp(fine_hz, frequencies_hz, response))
    taps = np.r_[impulse[-n_half:], impulse[: n_half + 1]] * scipy.signal.windows.hann(2 * n_half + 3)[1:-1]
    gain = np.abs(scipy.fft.rfft(taps, n=n_fft)) ** 2
    fine_power = np.interp(fine_hz, frequencies_hz, noise_power)
    return taps * np.sqrt(fine_power.sum() / (gain * fine_power).sum())


def _checked_taps(taps):
    taps = np.asarray(taps, dtype="float64")
    if taps.ndim != 1 or len(taps) % 2 == 0 or not np.isfinite(taps).all() or not np.allclose(taps, taps[::-1]):
        raise ValueError(
            f"taps must be a finite, symmetric vector of odd length, got an array of shape {taps.shape}; "
            "`estimate_temporal_filter(recording)` gives one"
        )
    return taps
