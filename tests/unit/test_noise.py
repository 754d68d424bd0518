"""The covariance of noise in space and time, and vectors in which it is white."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep import noise as noise_module
from spikeinterface_huidurep.noise import FLOOR, Noise, measure_covariance

from .test_results import SAMPLING_FREQUENCY

N_SAMPLES = 40


def make_traces(n_samples=200_000, seed=0):
    """Smooth noise on three channels, of which the second has the first one's five samples later."""
    traces = gaussian_filter1d(np.random.default_rng(seed).normal(size=(n_samples, 3)), 1.5, axis=0)
    traces[5:, 1] += traces[:-5, 0]
    return (traces / traces.std()).astype("float32")


def cut_windows(traces, n_windows=4000, seed=1):
    """Vectors (n_windows, n_channels * n_samples) from random times."""
    starts = np.random.default_rng(seed).integers(len(traces) - N_SAMPLES, size=n_windows)
    return np.stack([traces[start : start + N_SAMPLES].T.reshape(-1) for start in starts])


def test_covariance_is_that_of_windows():
    traces = make_traces(600_000)
    blocks = traces[: 1000 * 500].reshape(1000, 500, 3)
    expected = np.cov(cut_windows(traces, 20_000).T)
    np.testing.assert_allclose(measure_covariance(blocks, N_SAMPLES), expected, atol=0.09)


def test_covariance_is_symmetric_and_positive():
    blocks = np.random.default_rng(0).normal(size=(3, 60, 2)).astype("float32")  # fewer values than dimensions
    covariance = measure_covariance(blocks, 50)
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-6)
    assert np.linalg.eigvalsh(covariance).min() > -1e-6


def test_a_few_spikes_left_do_not_count():
    traces = make_traces()
    blocks = traces[: 400 * 500].reshape(400, 500, 3)
    expected = measure_covariance(blocks, N_SAMPLES)
    with_spikes = blocks.copy()
    with_spikes[:20, 200:230] += 30
    np.testing.assert_allclose(measure_covariance(with_spikes, N_SAMPLES), expected, atol=0.05)


@pytest.mark.parametrize("channels", [[0, 1, 2], [2, 0], [1]])
def test_noise_becomes_white(channels):
    """But for directions with hardly any noise, which stay so."""
    traces = make_traces()
    noise = Noise(NumpyRecording([traces], SAMPLING_FREQUENCY))
    whitener = noise.make_whitener(np.array(channels), N_SAMPLES)
    windows = cut_windows(traces[:, channels], 20_000)
    values, directions = np.linalg.eigh(np.cov(windows.T))
    expected = values / (values + FLOOR * values.mean())
    found = np.linalg.eigvalsh(np.cov((windows @ whitener).T))
    np.testing.assert_allclose(found, np.sort(expected), atol=0.15)
    assert whitener.dtype == np.float32


def test_short_segments_are_enough():
    traces = make_traces(500)
    noise = Noise(NumpyRecording([traces[:200], traces[200:]], SAMPLING_FREQUENCY))
    assert np.all(np.isfinite(noise.make_whitener(np.arange(3), N_SAMPLES)))


def test_traces_are_read_once_and_only_when_needed(monkeypatch):
    recording = NumpyRecording([make_traces()], SAMPLING_FREQUENCY)
    reads = []
    read = recording.get_traces
    monkeypatch.setattr(recording, "get_traces", lambda *args, **kwargs: reads.append(1) or read(*args, **kwargs))
    noise = Noise(recording)
    assert not reads
    first = noise.make_whitener(np.arange(3), N_SAMPLES)
    n_reads = len(reads)
    assert n_reads > 0
    noise.make_whitener(np.arange(2), N_SAMPLES)
    assert noise.make_whitener(np.arange(3), N_SAMPLES) is first
    assert len(reads) == n_reads


def test_flat_traces_are_no_error():
    noise = Noise(NumpyRecording([np.zeros((30_000, 2), "float32")], SAMPLING_FREQUENCY))
    assert np.all(np.isfinite(noise.make_whitener(np.arange(2), N_SAMPLES)))


def test_the_level_of_noise_follows_time_and_place():
    """Channel 0 is twice as loud in the second segment, channel 1 is the same."""
    rng = np.random.default_rng(0)
    quiet, loud = (rng.normal(size=(size, 2)).astype("float32") for size in (290_000, 310_000))
    loud[:, 0] *= 2
    noise = Noise(NumpyRecording([quiet, loud], SAMPLING_FREQUENCY))
    samples, segments = np.array([0, 289_999, 0, 309_999]), np.array([0, 0, 1, 1])
    mean = np.sqrt((10 + 10 * 2**2) / 20)
    found = noise.measure_levels(samples, segments, np.array([0]))
    np.testing.assert_allclose(found, np.array([1, 1, 2, 2]) / mean, rtol=0.07)
    np.testing.assert_allclose(noise.measure_levels(samples, segments, np.array([1])), 1, rtol=0.07)


@pytest.mark.parametrize("n_samples", [10, 20_000, 50_000])
def test_the_level_of_short_or_silent_traces_is_one(n_samples):
    noise = Noise(NumpyRecording([np.zeros((n_samples, 2), "float32")], SAMPLING_FREQUENCY))
    levels = noise.measure_levels(np.array([0, n_samples - 1]), np.array([0, 0]), np.array([0, 1]))
    np.testing.assert_allclose(levels, 1)


def test_in_long_recordings_few_levels_are_measured(monkeypatch):
    monkeypatch.setattr(noise_module, "MAX_LEVEL_BINS", 4)
    traces = np.random.default_rng(0).normal(size=(300_000, 1)).astype("float32")
    traces[150_000:] *= 3
    noise = Noise(NumpyRecording([traces], SAMPLING_FREQUENCY))
    levels = noise.measure_levels(np.arange(0, 300_000, 1000), np.zeros(300, int), np.array([0]))
    assert len(np.unique(levels)) == 4
    assert levels[-1] / levels[0] == pytest.approx(3, rel=0.07)
