"""Whitening: the same samples however they are asked for, and spikes as far above the noise as can be."""

import pickle

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording, load
from spikeinterface.preprocessing import bandpass_filter

from spikeinterface_huidurep.whitening import (
    TemporalWhitenRecording,
    design_temporal_filter,
    estimate_temporal_filter,
    measure_spectra,
    noise_covariance,
    noise_levels,
    read_random_chunks,
    spatial_whiten,
    temporal_whiten,
    whitening_matrix,
)

SAMPLING_FREQUENCY = 30_000.0
BAND_HZ = (150.0, 7000.0)
MAX_LOSS = 0.03  # of d', against no filter on white noise and against the best filter on coloured noise
N_FFT = 2**15  # for closed forms: far longer than any template or filter


def make_recording(traces_list, sampling_frequency=SAMPLING_FREQUENCY, pitch_um=500.0):
    """Recording of one or more segments, channels in a line."""
    recording = NumpyRecording([traces.astype("float32") for traces in traces_list], sampling_frequency)
    n_channels = traces_list[0].shape[1]
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(n_channels), pitch_um * np.arange(n_channels)])
    return recording


def lowpass_taps(n_half):
    taps = np.hanning(2 * n_half + 3)[1:-1]
    return taps / taps.sum()


# --- the recording ---

N_SAMPLES = (5000, 1777)
N_HALF = 20


@pytest.fixture(scope="module")
def two_segments():
    """(recording, float64 traces a segment) of 5 channels, two segments, filter of 41 taps: several blocks."""
    rng = np.random.default_rng(0)
    traces = [rng.normal(size=(n, 5)).astype("float32") for n in N_SAMPLES]
    return temporal_whiten(make_recording(traces), taps=lowpass_taps(N_HALF)), traces


def test_it_is_the_convolution_of_each_segment(two_segments):
    recording, traces = two_segments
    for segment_index, segment in enumerate(traces):
        wanted = scipy.signal.convolve(segment.astype("float64"), lowpass_taps(N_HALF)[:, None], mode="same")
        found = recording.get_traces(segment_index)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_chunk_and_channels_give_the_same_samples(two_segments, data):
    recording, traces = two_segments
    segment_index = data.draw(st.integers(0, 1))
    start = data.draw(st.integers(0, N_SAMPLES[segment_index]))
    stop = data.draw(st.integers(start, N_SAMPLES[segment_index]))
    channels = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True))
    whole = recording.get_traces(segment_index)
    part = recording.get_traces(segment_index, start, stop, channel_ids=recording.channel_ids[channels])
    assert np.array_equal(part, whole[start:stop, channels])


@pytest.mark.parametrize("chunk_size", [1, 7, 615, 616, 656, 5000])
def test_any_chunking_joins_to_the_whole(two_segments, chunk_size):
    recording, _ = two_segments
    n_samples = 2000
    starts = range(0, n_samples, chunk_size)
    parts = [recording.get_traces(0, start, min(start + chunk_size, n_samples)) for start in starts]
    assert np.array_equal(np.concatenate(parts), recording.get_traces(0)[:n_samples])


def test_segments_do_not_leak(two_segments):
    recording, traces = two_segments
    for segment_index, segment in enumerate(traces):
        alone = temporal_whiten(make_recording([segment]), taps=lowpass_taps(N_HALF))
        assert np.array_equal(alone.get_traces(), recording.get_traces(segment_index))


@pytest.mark.parametrize("n_samples", [1, 5, 41, 700])
def test_segments_shorter_than_filter_or_block(n_samples):
    traces = np.random.default_rng(0).normal(size=(n_samples, 1))
    found = temporal_whiten(make_recording([traces]), taps=lowpass_taps(N_HALF)).get_traces()
    wanted = np.convolve(traces[:, 0].astype("float32"), lowpass_taps(N_HALF))[N_HALF : N_HALF + n_samples]
    np.testing.assert_allclose(found[:, 0], wanted, atol=2e-6)


def count_reads(recording):
    """Replace the reader of the first segment by one that adds up the frames it is asked for."""
    counts = {"frames": 0}
    segment = recording.segments[0]
    read = segment.get_traces

    def counting(start_frame, end_frame, channel_indices):
        counts["frames"] += end_frame - start_frame
        return read(start_frame, end_frame, channel_indices)

    segment.get_traces = counting
    return counts


def test_lazy():
    parent = make_recording([np.random.default_rng(0).normal(size=(300_000, 2))])
    counts = count_reads(parent)
    recording = temporal_whiten(parent, taps=lowpass_taps(N_HALF))
    assert counts["frames"] == 0
    recording.get_traces(0, 100_000, 100_010)
    assert 0 < counts["frames"] < 2000


def test_pickle(two_segments):
    recording, _ = two_segments
    copy = pickle.loads(pickle.dumps(recording))
    for segment_index in range(2):
        assert np.array_equal(copy.get_traces(segment_index), recording.get_traces(segment_index))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_json_round_trip_stores_the_taps(tmp_path, dtype):
    rng = np.random.default_rng(0)
    parent = make_recording([rng.normal(size=(30_000, 2))]).save(folder=tmp_path / "parent", verbose=False)
    recording = temporal_whiten(parent, dtype=dtype, seed=3)
    taps = recording._kwargs["taps"]
    assert isinstance(taps, list) and np.allclose(taps, taps[::-1])
    recording.dump_to_json(tmp_path / "recording.json")
    for copy in (load(recording.to_dict()), load(tmp_path / "recording.json")):
        assert isinstance(copy, TemporalWhitenRecording) and copy.get_dtype() == dtype
        assert copy._kwargs["taps"] == taps
        assert np.array_equal(copy.get_traces(), recording.get_traces())


def test_the_class_and_the_function_are_the_same(two_segments):
    recording, traces = two_segments
    by_class = TemporalWhitenRecording(make_recording(traces), taps=lowpass_taps(N_HALF))
    assert np.array_equal(by_class.get_traces(1), recording.get_traces(1))


@pytest.mark.parametrize("taps", [[1.0, 2.0], [[1.0]], [1.0, 2.0, 3.0], [np.nan], [0.0, np.inf, 0.0], []])
def test_taps_are_checked(taps):
    with pytest.raises(ValueError, match="finite, symmetric vector of odd length"):
        temporal_whiten(make_recording([np.zeros((100, 1))]), taps=taps)


def test_dtype_is_checked():
    with pytest.raises(ValueError, match="floating-point type.*int16"):
        temporal_whiten(make_recording([np.zeros((100, 1))]), taps=[1.0], dtype="int16")


# --- the estimate ---


def test_same_seed_same_taps():
    recording = make_recording([np.random.default_rng(0).normal(size=(60_000, 2)).cumsum(axis=0)])
    recording = bandpass_filter(recording, *BAND_HZ, dtype="float32")
    first, again, other = (estimate_temporal_filter(recording, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(max_examples=5, deadline=None)
@given(gain=st.floats(1e-3, 1e3))
def test_the_gain_of_the_recording_does_not_change_the_taps(gain):
    traces = np.random.default_rng(0).normal(size=(15_000, 2))
    wanted = estimate_temporal_filter(make_recording([traces]))
    np.testing.assert_allclose(estimate_temporal_filter(make_recording([traces * gain])), wanted, atol=1e-4)


def test_few_chunks_are_read_from_a_wide_recording():
    recording = make_recording([np.zeros((60_000, 1000), dtype="float32")])
    chunks = read_random_chunks(recording, seed=0)
    assert len(chunks) == 2 and all(chunk.shape == (15_000, 1000) for chunk in chunks)


def test_few_segments_are_read_of_many():
    recording = make_recording([np.zeros((15_000, 500), dtype="float32")] * 12)
    chunks = read_random_chunks(recording, seed=0)
    assert len(chunks) == 5 and all(chunk.shape == (15_000, 500) for chunk in chunks)


def test_spectra_of_white_noise_without_spikes():
    chunks = [np.random.default_rng(0).normal(size=(30_000, 4))]
    frequencies_hz, noise_power, spike_power = measure_spectra(chunks, SAMPLING_FREQUENCY)
    assert spike_power is None
    assert frequencies_hz[0] == 0 and frequencies_hz[-1] == pytest.approx(SAMPLING_FREQUENCY / 2)
    np.testing.assert_allclose(noise_power[1:-1], 1, atol=0.15)  # a mean of 950 periodograms has an SD of 3 %


def test_spectra_of_spikes_are_free_of_the_noise_beneath():
    rng = np.random.default_rng(0)
    pulse = scipy.signal.windows.gaussian(61, 5)
    traces = rng.normal(size=(120_000, 2))
    for sample in range(500, 119_000, 500):
        traces[sample - 30 : sample + 31] -= 12 * pulse[:, None]
    frequencies_hz, noise_power, spike_power = measure_spectra([traces], SAMPLING_FREQUENCY)
    n_window = 2 * (len(frequencies_hz) - 1)
    taper = np.hanning(n_window + 1)[:-1]
    alone = np.zeros(n_window)
    alone[n_window // 2 - 30 : n_window // 2 + 31] = pulse
    wanted = np.abs(np.fft.rfft(alone * taper)) ** 2 / np.sum(taper**2)
    np.testing.assert_allclose(spike_power / spike_power.max(), wanted / wanted.max(), atol=0.03)
    assert spike_power[len(spike_power) // 2 :].max() < 0.4 / 12**2  # the spikes as they are hold 1 / 12**2 of noise
    np.testing.assert_allclose(noise_power[5:-1], 1, atol=0.2)


def test_filter_of_flat_spectra_passes_everything():
    frequencies_hz = np.linspace(0, 15_000, 64)
    taps = design_temporal_filter(frequencies_hz, np.ones(64), np.ones(64), SAMPLING_FREQUENCY)
    n_half = len(taps) // 2
    np.testing.assert_allclose(taps[n_half], 1, atol=1e-3)
    np.testing.assert_allclose(np.delete(taps, n_half), 0, atol=1e-3)


def test_filter_keeps_the_variance_of_the_noise_and_flattens_it():
    frequencies_hz = np.linspace(0, 15_000, 64)
    noise_power = 1 / (1 + (frequencies_hz / 2000) ** 2)
    taps = design_temporal_filter(frequencies_hz, noise_power, noise_power, SAMPLING_FREQUENCY)
    gain = np.abs(np.fft.rfft(taps, N_FFT)) ** 2
    fine_power = np.interp(np.fft.rfftfreq(N_FFT, 1 / SAMPLING_FREQUENCY), frequencies_hz, noise_power)
    assert np.sum(gain * fine_power) / np.sum(fine_power) == pytest.approx(1, abs=0.02)
    inside = slice(N_FFT // 100, N_FFT // 5)  # 300 to 6000 Hz
    flatness = [np.ptp(np.log(power[inside])) for power in (fine_power, gain * fine_power)]
    assert flatness[1] < 0.25 * flatness[0]


@pytest.mark.parametrize("noise_and_spikes", [True, False])
def test_filter_lets_no_noise_through_where_there_are_no_spikes(noise_and_spikes):
    frequencies_hz = np.linspace(0, 15_000, 64)
    noise_power = np.where(frequencies_hz < 8000, 1, 1e-6)
    spike_power = np.where(frequencies_hz < 4000, 1, 1e-6) if noise_and_spikes else None
    taps = design_temporal_filter(frequencies_hz, noise_power, spike_power, SAMPLING_FREQUENCY)
    gain = np.abs(np.fft.rfft(taps, N_FFT)) ** 2
    hz = np.fft.rfftfreq(N_FFT, 1 / SAMPLING_FREQUENCY)
    inside = gain[(hz > 1000) & (hz < 3500)]
    assert inside.min() > 0.7 * inside.max()
    beyond = hz > 5600
    assert gain[beyond].max() < inside.max()
    assert (gain * np.interp(hz, frequencies_hz, noise_power))[beyond].max() < 0.02 * inside.max()


def test_short_segments_are_left_out_of_the_estimate():
    rng = np.random.default_rng(0)
    traces = rng.normal(size=(60_000, 2))
    recording = make_recording([traces, rng.normal(size=(100, 2))])
    assert {len(chunk) for chunk in read_random_chunks(recording, seed=0)} == {15_000}
    wanted = estimate_temporal_filter(make_recording([traces]))
    np.testing.assert_allclose(estimate_temporal_filter(recording), wanted, atol=0.02)


@pytest.mark.parametrize("restless", ["fires all the time", "heavy tails"])
def test_recording_without_a_quiet_window(restless):
    rng = np.random.default_rng(0)
    if restless == "heavy tails":
        traces = rng.standard_cauchy(size=(60_000, 1))
    else:
        traces = rng.normal(size=(60_000, 1))
        traces[(np.arange(60_000) % 60) < 6] -= 20
    taps = estimate_temporal_filter(make_recording([traces]))
    assert np.isfinite(taps).all() and taps.max() > 0


# --- what it is for: discriminability ---


def noise_coefficients(name):
    """Filters (b, a) whose outputs on independent white noise add up to the noise."""
    return {
        "white": [([1.0], [1.0])],
        "autoregressive": [([1.0], [1.0, -0.9])],
        "resonance": [
            tuple(np.asarray(c) for c in scipy.signal.iirpeak(500.0, 1.0, fs=SAMPLING_FREQUENCY)),
            ([0.3], [1.0]),
        ],
    }[name]


def noise_spectrum(name, frequencies_hz):
    """Closed form of the power spectral density, per sample."""
    responses = [
        scipy.signal.freqz(b, a, worN=frequencies_hz, fs=SAMPLING_FREQUENCY)[1] for b, a in noise_coefficients(name)
    ]
    return sum(np.abs(response) ** 2 for response in responses)


def make_noise(name, n_samples, n_channels, rng):
    parts = [
        scipy.signal.lfilter(b, a, rng.normal(size=(n_samples + 2000, n_channels)), axis=0)
        for b, a in noise_coefficients(name)
    ]
    return sum(parts)[2000:]


def make_pulse(name):
    """Waveforms of 10 ms, of the three usual shapes."""
    t = np.arange(-150, 151) / 30  # ms
    first, (size, delay, width) = {
        "narrow": (0.12, (0.35, 0.35, 0.25)),
        "medium": (0.18, (0.4, 0.6, 0.4)),
        "triphasic": (0.13, (0.3, 0.45, 0.3)),
    }[name]
    before = 0.2 * np.exp(-(((t + 0.3) / 0.15) ** 2)) if name == "triphasic" else 0
    return before - np.exp(-((t / first) ** 2)) + size * np.exp(-(((t - delay) / width) ** 2))


def band_pass(recording):
    return bandpass_filter(recording, *BAND_HZ, ftype="bessel", filter_order=2, margin_ms=40.0, dtype="float32")


def matched_filter_d_prime(template, noise):
    """d' of the template as its own matched filter: its energy over the SD of its product with noise alone."""
    products = scipy.signal.fftconvolve(noise, template[::-1, None], mode="valid", axes=0)
    return np.sum(template**2) / products.std()


def measure_d_prime(noise_name, pulse_name, seed=0):
    """(without filter, with the filter estimated on a recording with spikes, best of all filters in BAND_HZ)."""
    rng = np.random.default_rng(seed)
    n_samples, n_channels, n_spikes = int(20 * SAMPLING_FREQUENCY), 4, 200
    noise = make_noise(noise_name, n_samples, n_channels, rng)
    pulse = make_pulse(pulse_name)
    alone = np.zeros((6000, 1))
    alone[3000 - 150 : 3000 + 151, 0] = pulse
    scale = (
        band_pass(make_recording([noise])).get_traces().std()
        / np.abs(band_pass(make_recording([alone])).get_traces()).max()
    )
    traces = noise.copy()
    for channel in range(n_channels):
        for sample in rng.integers(500, n_samples - 500, n_spikes):
            traces[sample - 150 : sample + 151, channel] += rng.uniform(7, 17) * scale * pulse
    taps = estimate_temporal_filter(band_pass(make_recording([traces])), seed=seed)

    results = []
    for filtered in (lambda recording: recording, lambda recording: temporal_whiten(recording, taps=taps)):
        template, noise_only = (
            filtered(band_pass(make_recording([part]))).get_traces()[margin:-margin]
            for part, margin in ((alone, 2000), (noise, 1000))
        )
        results.append(matched_filter_d_prime(template[:, 0].astype("float64"), noise_only.astype("float64")))
    frequencies_hz = np.arange(*BAND_HZ, 0.5)
    kernel = np.exp(-2j * np.pi * np.outer(frequencies_hz, np.arange(len(pulse))) / SAMPLING_FREQUENCY)
    density = np.abs(kernel @ pulse) ** 2 / noise_spectrum(noise_name, frequencies_hz)
    best = np.sqrt(2 * density.sum() * 0.5 / SAMPLING_FREQUENCY)  # both signs of the frequency
    return results[0], results[1], best


@pytest.mark.parametrize("pulse_name", ["narrow", "medium", "triphasic"])
def test_white_noise_loses_no_discriminability(pulse_name):
    without, with_filter, best = measure_d_prime("white", pulse_name)
    assert abs(with_filter / without - 1) < MAX_LOSS
    assert with_filter > (1 - MAX_LOSS) * best


@pytest.mark.parametrize(
    "noise_name, pulse_name",
    [
        ("autoregressive", "narrow"),
        ("autoregressive", "medium"),
        ("autoregressive", "triphasic"),
        ("resonance", "narrow"),
        ("resonance", "triphasic"),
    ],
)
def test_coloured_noise_comes_close_to_the_best_filter(noise_name, pulse_name):
    without, with_filter, best = measure_d_prime(noise_name, pulse_name)
    assert with_filter > (1 - MAX_LOSS) * best
    assert with_filter > 1.03 * without


# --- whitening in space ---


def mixed_noise(rng, n_samples=60_000):
    mixing = np.array([[1.0, 0.5, 0.2], [0.0, 1.0, 0.5], [0.0, 0.0, 2.0]])
    return rng.normal(size=(n_samples, 3)) @ mixing, mixing


def test_spatial_whitening_gives_uncorrelated_channels_of_unit_sd():
    traces, _ = mixed_noise(np.random.default_rng(0))
    found = spatial_whiten(make_recording([traces], pitch_um=20.0)).get_traces()
    np.testing.assert_allclose(np.cov(found.T), np.eye(3), atol=0.03)


def test_whitening_matrix_is_the_inverse_square_root():
    traces, mixing = mixed_noise(np.random.default_rng(0))
    matrix = whitening_matrix([traces.astype("float32")], np.zeros((3, 3)), 100.0, SAMPLING_FREQUENCY)
    values, vectors = np.linalg.eigh(mixing.T @ mixing)
    wanted = (vectors / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(matrix, wanted, atol=0.03)


def test_channels_beyond_the_radius_are_not_mixed():
    traces, _ = mixed_noise(np.random.default_rng(0), 5000)
    distances = np.abs(np.subtract.outer([0.0, 50.0, 150.0], [0.0, 50.0, 150.0]))
    matrix = whitening_matrix([traces.astype("float32")], distances, 100.0, SAMPLING_FREQUENCY)
    assert matrix[0, 2] == matrix[2, 0] == 0
    assert np.count_nonzero(matrix) == 7
    alone = whitening_matrix([traces.astype("float32")], distances, 10.0, SAMPLING_FREQUENCY)
    np.testing.assert_allclose(alone, np.diag(1 / noise_levels([traces])), rtol=1e-4)


def test_spikes_do_not_count_as_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60_000, 2))
    busy = noise.copy()
    for sample in range(100, 59_000, 300):
        busy[sample : sample + 10] -= 40
    found = noise_covariance([busy], SAMPLING_FREQUENCY)
    np.testing.assert_allclose(found, np.eye(2), atol=0.03)
    assert np.cov(busy.T)[0, 1] > 10  # what would have been whitened away


def test_noise_levels_are_median_absolute_deviations():
    traces = np.array([[-1.0, 0.0], [0.0, 10.0], [1.0, 20.0], [100.0, 30.0], [-100.0, 20.0]])
    np.testing.assert_allclose(noise_levels([traces]) * 0.6744897501960817, [1.0, 10.0])
