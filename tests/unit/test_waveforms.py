"""Waveforms: the same spike gives the same numbers at any rate and between the samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording, Templates
from spikeinterface.core.base import base_peak_dtype

from spikeinterface_huidurep.waveforms import (
    MAX_CHANNELS,
    MAX_PITCH_UM,
    MODEL_HZ,
    N_BEFORE,
    N_SAMPLES,
    N_SHIFTS,
    Neighborhoods,
    extract_waveforms,
    reach_next_channel,
    refine_peaks,
    resample_templates,
    resampling_matrices,
)

WIDTH_MS = 0.25  # SD of the Gaussian pulse: no power beyond 2 kHz
MODEL_MS = (np.arange(N_SAMPLES) - N_BEFORE) / MODEL_HZ * 1000
JOB_KWARGS = {"n_jobs": 1, "chunk_duration": "50ms", "progress_bar": False}


def pulse(time_ms):
    """Band-limited pulse with its trough, of depth 1, at 0."""
    return -np.exp(-0.5 * (np.asarray(time_ms) / WIDTH_MS) ** 2)


def make_recording(traces, sampling_frequency=MODEL_HZ):
    traces = traces if isinstance(traces, list) else [traces]
    recording = NumpyRecording([segment.astype("float32") for segment in traces], sampling_frequency)
    n_channels = traces[0].shape[1]
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(n_channels), 20.0 * np.arange(n_channels)])
    return recording


def make_peaks(samples, channels, segments=0):
    peaks = np.zeros(len(samples), dtype=base_peak_dtype)
    peaks["sample_index"], peaks["channel_index"], peaks["segment_index"] = samples, channels, segments
    return peaks


def extract(recording, peaks, folder, radius_um=100.0, peak_sign="neg"):
    neighborhoods = Neighborhoods(recording.get_channel_locations(), radius_um)
    return extract_waveforms(recording, peaks, neighborhoods, peak_sign, folder / "waveforms", JOB_KWARGS)


# --- neighbourhoods ---


@pytest.mark.parametrize(
    "pitch_um, wanted_um", [(20.0, 50.0), (50.0, 75.0), (100.0, 150.0), (MAX_PITCH_UM, 300.0), (MAX_PITCH_UM + 1, 50.0)]
)
def test_a_radius_reaches_the_next_channel(pitch_um, wanted_um):
    locations_um = np.c_[np.zeros(6), pitch_um * np.arange(6)]
    assert reach_next_channel(50.0, locations_um) == pytest.approx(wanted_um)
    assert reach_next_channel(500.0, locations_um) == 500.0


def test_a_radius_is_as_wide_as_most_channels_need():
    locations_um = np.array([[0.0, 0.0], [0.0, 20.0], [0.0, 40.0], [0.0, 150.0]])
    assert reach_next_channel(10.0, locations_um) == pytest.approx(30.0)


def test_one_channel_has_no_next():
    assert reach_next_channel(50.0, np.zeros((1, 2))) == 50.0


def test_neighborhoods_of_a_line():
    found = Neighborhoods(np.array([[0.0, 0.0], [0.0, 20.0], [0.0, 50.0]]), radius_um=25.0)
    assert found.channel_indices.tolist() == [[0, 1], [1, 0], [2, 0]]  # 0 where there is none
    assert found.channel_mask.tolist() == [[True, True], [True, True], [True, False]]
    assert found.positions_um.tolist() == [[[0, 0], [0, 20]], [[0, 0], [0, -20]], [[0, 0], [0, 0]]]
    assert found.positions_um.dtype == np.float32


def test_radius_zero_and_one_channel():
    for locations in (np.zeros((1, 2)), np.array([[0.0, 0.0], [1.0, 0.0]])):
        found = Neighborhoods(locations, radius_um=0.0)
        assert found.channel_indices.tolist() == [[channel] for channel in range(len(locations))]
        assert found.channel_mask.all()


@settings(max_examples=50, deadline=None)
@given(n_channels=st.integers(1, 40), radius_um=st.floats(0, 200), seed=st.integers(0, 100))
def test_neighborhoods_against_a_slow_reference(n_channels, radius_um, seed):
    locations = np.random.default_rng(seed).uniform(0, 200, size=(n_channels, 2))
    found = Neighborhoods(locations, radius_um)
    counts = []
    for center in range(n_channels):
        distances = [float(np.linalg.norm(location - locations[center])) for location in locations]
        order = sorted(range(n_channels), key=lambda channel: distances[channel])  # noqa: B023
        wanted = [channel for channel in order if distances[channel] <= radius_um][:MAX_CHANNELS]
        mask = found.channel_mask[center]
        assert found.channel_indices[center][mask].tolist() == wanted
        assert mask[: len(wanted)].all() and found.channel_indices[center][0] == center
        np.testing.assert_allclose(
            found.positions_um[center][mask], locations[wanted] - locations[center], rtol=1e-5, atol=1e-4
        )
        counts.append(len(wanted))
    assert found.channel_indices.shape == (n_channels, max(counts))
    assert not found.channel_indices[~found.channel_mask].any() and not found.positions_um[~found.channel_mask].any()


# --- resampling ---


def test_resampling_at_the_rate_of_the_encoder_takes_the_samples():
    first, matrices = resampling_matrices(MODEL_HZ)
    assert matrices.shape[0] == N_SHIFTS + 1 and matrices.shape[2] == N_SAMPLES
    traces = np.random.default_rng(0).normal(size=matrices.shape[1]).astype("float32")
    start = -first - N_BEFORE
    np.testing.assert_allclose(traces @ matrices[N_SHIFTS // 2], traces[start : start + N_SAMPLES], atol=1e-6)


@pytest.mark.parametrize("sampling_frequency", [10_000, 20_000, 24_414.0625, 30_000, 40_000])
@pytest.mark.parametrize("shift", [0, 3, N_SHIFTS])
def test_resampling_a_band_limited_pulse_gives_the_closed_form(sampling_frequency, shift):
    first, matrices = resampling_matrices(sampling_frequency)
    peak = shift / N_SHIFTS - 0.5  # samples after the detected one
    window_ms = (first + np.arange(matrices.shape[1]) - peak) / sampling_frequency * 1000
    np.testing.assert_allclose(pulse(window_ms) @ matrices[shift], pulse(MODEL_MS), atol=3e-3)


# --- alignment ---


@pytest.mark.parametrize("wanted_sign, sign", [(-1, 1), (1, -1)])
@pytest.mark.parametrize("fraction", [-0.4, 0.0, 0.25])
@pytest.mark.parametrize("offset", [-4, 0, 5])
def test_refined_peaks_lie_at_the_known_extremum(wanted_sign, sign, fraction, offset):
    samples = np.arange(100)
    traces = np.zeros((100, 2))
    traces[:, 1] = sign * pulse((samples - 50 - fraction) / 30)
    found, fractions = refine_peaks(traces, np.array([50 + offset]), np.array([1]), wanted_sign, n_align=6)
    assert found.tolist() == [50]
    np.testing.assert_allclose(fractions, fraction, atol=0.01)


def test_only_the_wanted_sign_is_aligned_on():
    samples = np.arange(100)
    traces = (pulse((samples - 48) / 30) - 5 * pulse((samples - 78) / 30))[:, None]
    peaks = np.array([50]), np.array([0])
    assert refine_peaks(traces, *peaks, -1, n_align=6)[0].tolist() == [48]
    assert refine_peaks(traces, *peaks, 1, n_align=30)[0].tolist() == [78]


def test_flat_traces_have_no_fraction():
    found, fractions = refine_peaks(np.zeros((50, 1)), np.array([20]), np.array([0]), -1, n_align=6)
    assert np.abs(fractions).max() <= 0.5 and np.isfinite(fractions).all()
    assert 14 <= found[0] <= 26


# --- extraction ---


@pytest.mark.parametrize("sampling_frequency", [10_000, 20_000, 25_000, 30_000, 40_000])
@pytest.mark.parametrize("fraction", [-0.45, 0.0, 0.3])
def test_any_rate_and_sub_sample_shift_give_the_same_waveform(sampling_frequency, fraction, tmp_path):
    n_samples, peak = int(0.1 * sampling_frequency), int(0.05 * sampling_frequency)
    time_ms = (np.arange(n_samples) - peak - fraction) / sampling_frequency * 1000
    traces = np.stack([8 * pulse(time_ms), 20 * pulse(time_ms), 4 * pulse(time_ms)], axis=1)
    found = extract(make_recording(traces, sampling_frequency), make_peaks([peak + 1], [1]), tmp_path)
    assert found.dtype == np.float16 and found.shape == (1, 3, N_SAMPLES)
    scaled = found[0] / np.array([[20], [8], [4]])  # channels equally near keep their order
    # A peak is placed to 1/16 sample, and the steepest slope of the pulse is 2.4 a ms.
    tolerance = 0.01 + 2.4 * 1000 / sampling_frequency / 16
    np.testing.assert_allclose(scaled, np.tile(pulse(MODEL_MS), (3, 1)), atol=tolerance)


def test_an_integer_shift_at_30_khz_takes_the_samples_themselves(tmp_path):
    rng = np.random.default_rng(0)
    traces = np.round(rng.normal(size=(3000, 2)), 1)
    peaks = [500, 1499, 2200]  # one at the border of two chunks
    for peak in peaks:
        traces[peak - 1 : peak + 2, 0] = [-10, -20, -10]  # symmetric: the vertex is on the sample
    detected = make_peaks(np.array(peaks) + [2, -3, 0], [0] * 3)
    found = extract(make_recording(traces), detected, tmp_path, radius_um=5.0)
    assert found.shape == (3, 1, N_SAMPLES)
    for waveform, peak in zip(found, peaks, strict=True):
        wanted = traces[peak - N_BEFORE : peak - N_BEFORE + N_SAMPLES, 0]
        np.testing.assert_allclose(waveform[0], wanted, atol=0.01)


def test_missing_neighbours_are_zero_and_order_is_kept(tmp_path):
    traces = np.random.default_rng(0).normal(size=(2000, 4)) + np.arange(4) * 100
    recording = make_recording(traces)
    found = extract(recording, make_peaks([300, 700, 1500], [0, 1, 3]), tmp_path, radius_um=25.0)
    assert found.shape == (3, 3, N_SAMPLES)
    assert not found[0, 2].any() and not found[2, 2].any()
    levels = np.round(found.astype("float32").mean(axis=2) / 100).astype(int)
    assert levels.tolist() == [[0, 1, 0], [1, 0, 2], [3, 2, 0]]


def test_segments_and_their_ends(tmp_path):
    first, second = np.zeros((600, 1)), np.zeros((900, 1))
    first[3], second[899] = -10, -30
    found = extract(make_recording([first, second]), make_peaks([3, 899], [0, 0], [0, 1]), tmp_path)
    assert np.isfinite(found).all()
    assert found[0, 0].argmin() == found[1, 0].argmin() == N_BEFORE
    assert found[:, 0].min(axis=1).tolist() == [-10, -30]
    assert not found[0, 0, : N_BEFORE - 8].any() and not found[1, 0, N_BEFORE + 9 :].any()


def test_the_chunks_do_not_matter(tmp_path):
    traces = np.random.default_rng(0).normal(size=(6000, 2))
    peaks = make_peaks(np.arange(100, 5900, 50), np.arange(116) % 2)
    neighborhoods = Neighborhoods(np.array([[0.0, 0.0], [0.0, 20.0]]), 50.0)
    found = [
        extract_waveforms(
            make_recording(traces), peaks, neighborhoods, "neg", tmp_path / name, dict(JOB_KWARGS, chunk_duration=chunk)
        )
        for name, chunk in (("short", "20ms"), ("long", "1s"))
    ]
    assert np.array_equal(*found)


# --- templates ---


@pytest.mark.parametrize("sampling_frequency", [10_000, 25_000, 30_000])
@pytest.mark.parametrize("ms_before, ms_after", [(1.0, 2.0), (3.0, 5.0)])
def test_resampled_templates_are_the_closed_form(sampling_frequency, ms_before, ms_after):
    n_before = round(ms_before * sampling_frequency / 1000)
    n_samples = n_before + round(ms_after * sampling_frequency / 1000)
    waveform = pulse((np.arange(n_samples) - n_before) / sampling_frequency * 1000)
    array = np.stack([waveform[:, None] * [1.0, 0.5], waveform[:, None] * [-2.0, 0.0]])  # (u, t, c)
    templates = Templates(array, sampling_frequency, n_before, unit_ids=["a", "b"], channel_ids=["0", "1"])
    found = resample_templates(templates)
    wanted = np.array([[1.0, 0.5], [-2.0, 0.0]])[:, :, None] * pulse(MODEL_MS)
    assert found.shape == (2, 2, N_SAMPLES)
    np.testing.assert_allclose(found, wanted, atol=0.01)
