"""
What is left of the traces when all templates are taken away, and vectors in which it is white.

Whitened traces have unit variance, but neighbouring samples are alike, as the band-pass filter leaves no noise beyond
the band of the spikes: some directions of a waveform have ten times the noise of others. Two neurons often differ where
there is little.
"""

from functools import cached_property

import numpy as np
import scipy.fft
from scipy.linalg import cholesky, solve_triangular

from spikeinterface_huidurep.whitening import list_segment_sizes, read_random_chunks

BLOCK_SIZE = 512  # samples, far more than a waveform has
MAX_BLOCKS = 400
MAX_QUANTILE = 0.9  # of the energies of the blocks; larger ones hold spikes that no template explains
LEVEL_BIN_S, LEVEL_READ_S = 1.0, 0.1  # as often as drift is estimated, and how much of each bin is read
MAX_LEVEL_BINS = 600  # in a long recording they are longer
MIN_LEVEL = 1e-3
MIN_VARIANCE = 1e-6  # where traces are flat most of the time
FLOOR = 0.1  # of the mean variance, added to all: neurons do not differ where there is next to no noise


class Noise:
    """
    Traces in which noise is the same at all times, but for its level.

    Motion correction averages more channels at some displacements than at others, which takes up to half of the noise.

    Parameters
    ----------
    traces : BaseRecording
        Read at random times, when noise is first asked for.
    seed : int, default: 0
    """

    def __init__(self, traces, seed=0):
        self.traces, self.seed = traces, seed
        self._whiteners = {}

    def make_whitener(self, channels, n_samples):
        """
        Matrix that makes the noise of waveforms white.

        Parameters
        ----------
        channels : np.ndarray, int, shape (n_channels,)
        n_samples : int
            Of a waveform, at most BLOCK_SIZE.

        Returns
        -------
        whitener : np.ndarray, float32, shape (n_channels * n_samples, n_channels * n_samples)
            To be multiplied from the right to rows of n_channels times n_samples values.
        """
        key = (*channels.tolist(), n_samples)
        if key not in self._whiteners:
            covariance = measure_covariance(self._blocks[:, :, channels], n_samples)
            floor = max(FLOOR * np.trace(covariance) / len(covariance), MIN_VARIANCE)
            covariance += floor * np.eye(len(covariance))
            lower = cholesky(covariance, lower=True)
            self._whiteners[key] = solve_triangular(lower, np.eye(len(lower)), lower=True).T.astype("float32")
        return self._whiteners[key]

    def measure_levels(self, samples, segment_indices, channels):
        """
        SD of noise at some times, as a multiple of that of all times.

        Parameters
        ----------
        samples, segment_indices : np.ndarray, int64, shape (n_times,)
        channels : np.ndarray, int, shape (n_channels,)
            Of which the mean is taken.

        Returns
        -------
        levels : np.ndarray, float64, shape (n_times,)
        """
        bin_size, n_bins, sizes = self._levels
        before = np.cumsum(n_bins) - n_bins
        bins = before[segment_indices] + np.minimum(samples // bin_size, n_bins[segment_indices] - 1)
        levels = sizes[:, channels].mean(axis=1)
        return levels[bins] / np.sqrt(np.mean(levels**2))

    @cached_property
    def _levels(self):
        """Samples of a bin, bins of each segment, and median sizes of the traces in each bin (n_bins, n_channels)."""
        traces, rate = self.traces, self.traces.sampling_frequency
        n_samples = list_segment_sizes(traces)
        bin_size = int(max(LEVEL_BIN_S * rate, sum(n_samples) / MAX_LEVEL_BINS))
        starts = [range(0, max(stop - bin_size // 2, 1), bin_size) for stop in n_samples]
        # all channels by name: a segment that was selected once may not know how many there are
        chunks = [
            traces.get_traces(index, start, min(start + int(LEVEL_READ_S * rate), n_samples[index]), traces.channel_ids)
            for index, starts_of_segment in enumerate(starts)
            for start in starts_of_segment
        ]
        sizes = np.array([np.median(np.abs(chunk), axis=0) for chunk in chunks]) + MIN_LEVEL
        return bin_size, np.array([len(starts_of_segment) for starts_of_segment in starts]), sizes

    @cached_property
    def _blocks(self):
        """float32 (n_blocks, n_samples, n_channels)."""
        chunks = read_random_chunks(self.traces, self.seed)
        size = min(BLOCK_SIZE, *(len(chunk) for chunk in chunks))
        blocks = np.concatenate(
            [chunk[: len(chunk) // size * size].reshape(-1, size, chunk.shape[1]) for chunk in chunks]
        )
        return blocks[np.random.default_rng(self.seed).permutation(len(blocks))[:MAX_BLOCKS]]


def measure_covariance(blocks, n_samples):
    """
    Covariance of stationary noise, from its cross-correlations.

    Parameters
    ----------
    blocks : np.ndarray, float32, shape (n_blocks, block_size, n_channels)
        Those of the largest energies are left out.
    n_samples : int

    Returns
    -------
    covariance : np.ndarray, float64, shape (n_channels * n_samples, n_channels * n_samples)
        Positive semi-definite, since lags count by their share of the block.
    """
    energies = np.sum(blocks**2, axis=(1, 2))
    blocks = blocks[energies <= np.quantile(energies, MAX_QUANTILE)]
    n_blocks, block_size, n_channels = blocks.shape
    spectra = scipy.fft.rfft(blocks, 2 * block_size, axis=1).transpose(1, 2, 0)
    powers = spectra.conj() @ spectra.transpose(0, 2, 1) / (n_blocks * block_size)
    correlations = scipy.fft.irfft(powers, axis=0)
    lags = np.arange(n_samples) - np.arange(n_samples)[:, None]
    covariance = correlations[lags].transpose(2, 0, 3, 1)
    return covariance.reshape(n_channels * n_samples, -1).astype("float64")
