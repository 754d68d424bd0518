"""Preprocessing: dead channels, wrong samples, and noise that comes out white with unit SD."""

import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording
from spikeinterface.core.motion import Motion

from spikeinterface_huidurep import preprocessing
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.preprocessing import (
    DISPLACEMENT,
    MAX_SIZE,
    MIN_CHANNELS_FOR_REFERENCE,
    MIN_DRIFT_UM,
    MIN_SHARE_MADE_ALIKE,
    MOTION_SMOOTHING,
    STEPS_PER_SD,
    can_show_motion,
    check_finite,
    choose_motion_kwargs,
    decide_motion,
    measure_drift,
    move_back,
    preprocess,
    remove_dead_channels,
    whiten,
)

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = {"n_jobs": 1, "chunk_duration": "500ms", "progress_bar": False}


def make_recording(*segments, sampling_frequency=SAMPLING_FREQUENCY):
    recording = NumpyRecording(
        list(segments), sampling_frequency, channel_ids=[f"c{i}" for i in range(segments[0].shape[1])]
    )
    n_channels = segments[0].shape[1]
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(n_channels), 20.0 * np.arange(n_channels)])
    return recording


def coloured_noise(rng, n_samples, n_channels):
    """Noise with more power at low frequencies, shared by neighbouring channels, on an offset."""
    white = rng.normal(size=(n_samples + 2, n_channels + 1))
    shared = white[:, 1:] + 0.6 * white[:, :-1]
    return (50 * (shared[2:] + shared[1:-1] + 0.5 * shared[:-2]) + 400).astype("float32")


# --- dead channels ---


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_flat_channels_are_left_out(dtype, caplog):
    traces = coloured_noise(np.random.default_rng(0), 30_000, 4) + 1000
    traces[:, 2] = 7
    with caplog.at_level(logging.WARNING):
        found = remove_dead_channels(make_recording(traces.astype(dtype)))
    assert found.channel_ids.tolist() == ["c0", "c1", "c3"]
    assert "c2" in caplog.text


def test_living_channels_are_left_alone(caplog):
    recording = make_recording(coloured_noise(np.random.default_rng(0), 30_000, 2) * [1, 50])
    assert remove_dead_channels(recording) is recording
    assert not caplog.records


def test_more_dead_channels_than_living_ones():
    traces = np.zeros((30_000, 5))
    traces[:, 3] = np.random.default_rng(0).normal(size=30_000)
    assert remove_dead_channels(make_recording(traces)).channel_ids.tolist() == ["c3"]


@pytest.mark.parametrize("value", [0, 5])
def test_silence_is_an_error(value):
    with pytest.raises(ValueError, match="all channels are flat"):
        remove_dead_channels(make_recording(np.full((30_000, 2), value, dtype="int16")))


@pytest.mark.parametrize("share, is_refused", [(0.05, False), (0.2, False), (0.5, True)])
def test_blanked_stretches_are_told_from_dead_channels(share, is_refused, caplog):
    traces = np.random.default_rng(0).normal(size=(300_000, 2)).astype("float32")
    traces.reshape(100, 3000, 2)[:, : round(3000 * share)] = 0
    recording = make_recording(traces)
    if is_refused:
        with pytest.raises(ValueError, match=r"about (49|50)% of the recording no channel changes.*frame_slice"):
            remove_dead_channels(recording)
    else:
        assert remove_dead_channels(recording) is recording
        assert bool(re.search("about (19|20)% of the recording", caplog.text)) == (share == 0.2)


def test_too_short():
    noise = np.random.default_rng(0).normal(size=(30_000, 1))
    with pytest.raises(ValueError, match=r"0\.050 s; at least 0\.1 s"):
        remove_dead_channels(make_recording(noise[:1500]))
    with pytest.raises(ValueError, match=r"segment 1 lasts 1\.00 ms.*select_segments"):
        remove_dead_channels(make_recording(noise, noise[:30]))
    remove_dead_channels(make_recording(noise, noise[:3000]))


# --- samples that are not finite ---


@settings(max_examples=20, deadline=None)
@given(
    segment=st.integers(0, 1),
    sample=st.integers(0, 2499),
    channel=st.integers(0, 2),
    value=st.sampled_from([np.nan, np.inf]),
)
def test_a_sample_that_is_not_finite_is_named(segment, sample, channel, value):
    traces = [np.zeros((2500, 3), "float32") for _ in range(2)]
    traces[segment][sample, channel] = value
    recording = make_recording(*traces, sampling_frequency=1000.0)
    with pytest.raises(ValueError, match=f"channel c{channel} is {value} at sample {sample} of segment {segment};"):
        check_finite(recording)


def test_finite_and_integer_samples_pass():
    check_finite(make_recording(np.zeros((100, 1))))
    check_finite(make_recording(np.zeros((100, 1), dtype="int16")))


# --- whitening ---


def autocorrelation(traces, lag):
    return np.mean(traces[lag:] * traces[:-lag]) / np.mean(traces**2)


@pytest.mark.parametrize("n_channels", [1, 4])
def test_noise_comes_out_white_with_unit_sd(n_channels, tmp_path):
    recording = make_recording(coloured_noise(np.random.default_rng(0), 150_000, n_channels))
    traces = whiten(recording, SorterParams(), tmp_path, JOB_KWARGS).get_traces()[1000:-1000]
    assert traces.dtype == np.float32
    np.testing.assert_allclose(np.cov(traces.T), np.eye(n_channels), atol=0.05)
    without = whiten(recording, SorterParams(temporal_whitening=False), tmp_path, JOB_KWARGS)
    without = without.get_traces()[1000:-1000]
    np.testing.assert_allclose(np.cov(without.T), np.eye(n_channels), atol=0.05)
    assert abs(autocorrelation(traces, 1)) < abs(autocorrelation(without, 1))


@settings(max_examples=5, deadline=None)
@given(gain=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
def test_gain_and_offset_do_not_matter(gain, offset, tmp_path_factory):
    traces = coloured_noise(np.random.default_rng(0), 15_000, 2)
    folder = tmp_path_factory.getbasetemp()
    wanted, found = (
        whiten(make_recording(part), SorterParams(), folder, JOB_KWARGS).get_traces()[2000:-2000]
        for part in (traces, traces * np.float32(gain) + np.float32(offset))
    )
    np.testing.assert_allclose(found, wanted, atol=0.02)


@pytest.mark.parametrize("sampling_frequency", [10_000.0, 40_000.0])
def test_other_sampling_rates(sampling_frequency, tmp_path):
    noise = np.random.default_rng(0).normal(size=(60_000, 2)).astype("float32")
    recording = make_recording(noise, sampling_frequency=sampling_frequency)
    traces = whiten(recording, SorterParams(), tmp_path, JOB_KWARGS).get_traces()[1000:-1000]
    np.testing.assert_allclose(traces.std(axis=0), 1, atol=0.05)


@pytest.mark.parametrize("n_channels", [MIN_CHANNELS_FOR_REFERENCE - 1, MIN_CHANNELS_FOR_REFERENCE])
def test_many_channels_lose_what_they_share(n_channels, tmp_path):
    rng = np.random.default_rng(0)
    shared = 100 * np.sin(2 * np.pi * 1000 * np.arange(15_000) / SAMPLING_FREQUENCY)
    recording = make_recording((rng.normal(size=(15_000, n_channels)) + shared[:, None]).astype("float32"))
    params = SorterParams(temporal_whitening=False, whitening_radius_um=10.0)
    traces = whiten(recording, params, tmp_path, JOB_KWARGS).get_traces()[1000:-1000]
    correlations = np.corrcoef(traces.T)[0, 1:]
    if n_channels < MIN_CHANNELS_FOR_REFERENCE:
        assert correlations.min() > 0.99
    else:
        assert np.abs(correlations).max() < 0.1


def test_a_filtered_recording_is_filtered_again_with_a_warning(caplog, tmp_path):
    recording = make_recording(coloured_noise(np.random.default_rng(0), 15_000, 1))
    recording.annotate(is_filtered=True)
    with caplog.at_level(logging.WARNING):
        whiten(recording, SorterParams(), tmp_path, JOB_KWARGS)
    assert "marked as filtered" in caplog.text


def test_same_seed_same_traces(tmp_path):
    recording = make_recording(coloured_noise(np.random.default_rng(0), 60_000, 2))
    first, again, other = (
        whiten(recording, SorterParams(seed=seed), tmp_path, JOB_KWARGS).get_traces(0, 1000, 2000) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


# --- motion ---


def make_motion(displacement_um):
    """Motion of shape (n_times, n_depths)."""
    n_times, n_depths = displacement_um.shape
    return Motion([displacement_um], [np.arange(n_times, dtype=float)], np.arange(n_depths, dtype=float))


def test_drift_by_hand():
    ramp = np.linspace(0, 100, 1001)[:, None]
    assert measure_drift(make_motion(np.full((20, 3), 7.0))) == 0
    assert measure_drift(make_motion(ramp)) == pytest.approx(90)
    assert measure_drift(make_motion(np.hstack([-0.5 * ramp, ramp, 1000 + 0.1 * ramp]))) == pytest.approx(90)


def test_a_short_excursion_is_no_drift():
    displacement = np.zeros((100, 1))
    displacement[[3, 50, 51]] = [[80.0], [-40.0], [60.0]]
    assert measure_drift(make_motion(displacement)) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100), gain=st.floats(-3, 3), offset=st.floats(-100, 100))
def test_drift_grows_with_the_motion_wherever_it_starts(seed, gain, offset):
    displacement = np.random.default_rng(seed).normal(size=(40, 3)).cumsum(axis=0)
    wanted = abs(gain) * measure_drift(make_motion(displacement))
    assert measure_drift(make_motion(gain * displacement + offset)) == pytest.approx(wanted, abs=1e-9)


def make_silence(n_channels=16, depth_um=300.0, duration_s=30.0, n_segments=1):
    """Recording of 0 at 100 Hz: enough to ask for its size."""
    traces = [np.zeros((round(100 * duration_s / n_segments), n_channels), "float32") for _ in range(n_segments)]
    recording = NumpyRecording(traces, 100.0)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(n_channels), np.linspace(0, depth_um, n_channels)])
    return recording


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ({}, True),
        ({"n_channels": 15}, False),
        ({"n_channels": 384, "depth_um": 3840.0}, True),
        ({"depth_um": 100.0}, True),
        ({"depth_um": 99.0}, False),
        ({"duration_s": 29.9}, False),
        ({"duration_s": 30.0, "n_segments": 2}, True),
        ({"duration_s": 29.9, "n_segments": 2}, False),
    ],
)
def test_where_motion_can_be_estimated(size, wanted):
    assert can_show_motion(make_silence(**size)) == wanted


def test_depth_is_along_the_probe_not_across():
    recording = make_silence()
    recording.set_dummy_probe_from_locations(recording.get_channel_locations()[:, ::-1])
    assert not can_show_motion(recording)


@pytest.fixture
def estimates(monkeypatch):
    """List of what the estimate of motion returns or raises, one a call; empty when all was asked for."""
    results = []

    def estimate_motion(*_):
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(preprocessing, "estimate_motion", estimate_motion)
    return results


@pytest.mark.parametrize(
    "preset, depth_um, rigid",
    [
        ("dredge_fast", 300.0, True),
        ("dredge_fast", 500.0, False),
        ("dredge", 500.0, False),
        ("rigid_fast", 500.0, True),
    ],
)
def test_drift_is_estimated_from_smooth_histograms(preset, depth_um, rigid):
    """The windows of the first two presets are 400 um apart."""
    recording = make_silence(depth_um=depth_um)
    assert choose_motion_kwargs(recording, preset) == dict(MOTION_SMOOTHING, rigid=rigid)


def test_other_methods_estimate_drift_as_their_preset_says():
    assert choose_motion_kwargs(make_silence(), "nonrigid_accurate") == {}


def ramp_motion(drift_um):
    return make_motion(np.linspace(0, drift_um / 0.9, 1001)[:, None])


@pytest.fixture
def share_made_alike(monkeypatch):
    """List of the shares of spikes that corrections make alike, one a call; empty when all was asked for."""
    shares = []
    monkeypatch.setattr(preprocessing, "load_motion_info", lambda folder: {"peaks": None})
    monkeypatch.setattr(preprocessing, "find_share_made_alike", lambda *_: shares.pop(0))
    return shares


def decide(recording, tmp_path, **params):
    return decide_motion(recording, SorterParams(**params), tmp_path, JOB_KWARGS)


@pytest.mark.parametrize("drift_um", [0.0, 0.99 * MIN_DRIFT_UM, 1.01 * MIN_DRIFT_UM, 40.0])
def test_drift_is_corrected_where_there_is_any(drift_um, estimates, share_made_alike, tmp_path, caplog):
    motion = ramp_motion(drift_um)
    estimates.append(motion)
    share_made_alike.append(0.98)
    with caplog.at_level(logging.INFO):
        found = decide(make_silence(), tmp_path)
    assert found is (motion if drift_um > MIN_DRIFT_UM else None)
    verdict = ", makes 98 % of the spikes more alike: corrected" if drift_um > MIN_DRIFT_UM else ": not corrected"
    assert f"drift of {drift_um:.1f} um{verdict}" in caplog.messages


@pytest.mark.parametrize("share", [0.0, 0.99 * MIN_SHARE_MADE_ALIKE, MIN_SHARE_MADE_ALIKE, 1.0])
def test_drift_is_none_where_its_correction_makes_spikes_unlike(share, estimates, share_made_alike, tmp_path, caplog):
    motion = ramp_motion(40.0)
    estimates.append(motion)
    share_made_alike.append(share)
    with caplog.at_level(logging.INFO):
        found = decide(make_silence(), tmp_path)
    assert found is (motion if share >= MIN_SHARE_MADE_ALIKE else None)
    assert f"makes {100 * share:.0f} % of the spikes more alike: " in caplog.text and not share_made_alike


def test_motion_is_not_estimated_where_it_does_not_show(estimates, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert decide(make_silence(n_channels=4), tmp_path) is None
    assert "drift is not estimated" in caplog.text


def test_motion_that_cannot_be_estimated_is_left(estimates, tmp_path, caplog):
    estimates.append(ValueError("too few spikes"))
    with caplog.at_level(logging.WARNING):
        assert decide(make_silence(), tmp_path) is None
    assert "drift is not corrected: too few spikes" in caplog.messages


def test_the_user_decides_first(estimates, tmp_path):
    assert decide(make_silence(), tmp_path, apply_motion_correction=False) is None  # without an estimate
    motion = ramp_motion(0.0)
    estimates.append(motion)
    assert decide(make_silence(n_channels=4), tmp_path, apply_motion_correction=True) is motion
    estimates.append(ValueError("too few spikes"))
    with pytest.raises(ValueError, match="too few spikes"):
        decide(make_silence(), tmp_path, apply_motion_correction=True)


def test_traces_are_moved_back_only_by_a_motion(estimates, tmp_path):
    recording = make_recording(coloured_noise(np.random.default_rng(0), 15_000, 4))
    still = whiten(recording, SorterParams(), tmp_path, JOB_KWARGS)
    estimates.append(make_motion(np.full((2, 1), 20.0)))  # one channel
    moved = whiten(recording, SorterParams(apply_motion_correction=True), tmp_path, JOB_KWARGS)
    assert DISPLACEMENT in moved.get_annotation_keys() and DISPLACEMENT not in still.get_annotation_keys()
    inside = slice(1000, -1000)
    similar = np.corrcoef(moved.get_traces()[inside].T, still.get_traces()[inside].T)[:4, 4:]
    assert np.argmax(similar[:3], axis=1).tolist() == [1, 2, 3]  # where the tissue is that the channel saw


def test_segments_are_moved_back_as_one_piece_whatever_their_times():
    traces = np.random.default_rng(0).normal(size=(3000, 4)).astype("float32")
    motion = make_motion(np.linspace(0, 60, 4)[:, None])  # 20 um/s
    whole = move_back(make_recording(traces, sampling_frequency=1000.0), motion)
    cut = make_recording(traces[:700], traces[700:], sampling_frequency=1000.0)
    cut.shift_times(1234.5)
    moved = move_back(cut, motion)
    assert [moved.get_num_samples(segment_index) for segment_index in range(2)] == [700, 2300]
    pieces = [moved.get_traces(segment_index=segment_index) for segment_index in range(2)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole.get_traces())
    assert moved.get_annotation(DISPLACEMENT) == whole.get_annotation(DISPLACEMENT) == [10.0, 30.0, 50.0]


@pytest.mark.parametrize("mode", ["no-cache", "memory", "folder"])
def test_where_the_traces_have_been_moved_from_is_noted(mode, estimates, tmp_path):
    displacement_um = np.array([[0.0, 10.0], [20.0, 30.0]])  # of two depths at the first and at the last second
    estimates.append(Motion([displacement_um], [np.array([0.5, 2.5])], np.array([0.0, 60.0])))
    params = SorterParams(apply_motion_correction=True, cache_preprocessing_mode=mode)
    recording = make_recording(coloured_noise(np.random.default_rng(0), 90_000, 4))
    traces, _ = preprocess(recording, params, tmp_path, JOB_KWARGS)
    assert traces.get_annotation(DISPLACEMENT) == [5.0, 15.0, 25.0]


def test_displacement_is_that_of_stretches_of_the_same_length():
    motion = Motion([np.array([[0.0], [30.0]])], [np.array([0.0, 3.0])], np.array([0.0]))
    for n_samples, wanted_um in ((9000, [1.5]), (78_000, [13 / 3, 13.0, 65 / 3])):
        moved = move_back(make_recording(np.zeros((n_samples, 1), "float32")), motion)
        np.testing.assert_allclose(moved.get_annotation(DISPLACEMENT), wanted_um)


# --- the whole step ---


@pytest.mark.parametrize("mode", ["no-cache", "memory", "folder"])
def test_cached_or_not_the_traces_are_the_same(mode, tmp_path):
    recording = make_recording(coloured_noise(np.random.default_rng(0), 30_000, 2))
    wanted = whiten(recording, SorterParams(), tmp_path, JOB_KWARGS).get_traces()
    traces, _ = preprocess(recording, SorterParams(cache_preprocessing_mode=mode), tmp_path, JOB_KWARGS)
    assert traces.get_dtype() == "float32"
    np.testing.assert_allclose(traces.get_traces(), wanted, atol=0.51 / STEPS_PER_SD)


@pytest.mark.parametrize("mode", ["no-cache", "memory"])
def test_traces_too_large_to_be_kept_are_clipped(mode, tmp_path):
    traces = np.random.default_rng(0).normal(size=(30_000, 2)).astype("float32")
    traces[1000], traces[2000] = 1e4, -1e4
    params = SorterParams(apply_preprocessing=False, cache_preprocessing_mode=mode)
    found = preprocess(make_recording(traces), params, tmp_path, JOB_KWARGS)[0].get_traces()
    np.testing.assert_allclose(found[[1000, 2000]], [[MAX_SIZE] * 2, [-MAX_SIZE] * 2])
    assert np.abs(np.delete(found, [1000, 2000], axis=0)).max() < 10


def test_the_cache_takes_two_bytes_a_sample(tmp_path):
    recording = make_recording(coloured_noise(np.random.default_rng(0), 30_000, 2))
    preprocess(recording, SorterParams(cache_preprocessing_mode="folder"), tmp_path, JOB_KWARGS)
    (file,) = (tmp_path / "cache_preprocessing").glob("*.raw")
    assert file.stat().st_size == 2 * 30_000 * 2


def test_without_preprocessing_the_channels_are_only_scaled(tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.normal(size=(60_000, 3)) * [1, 10, 100]).astype("float32")
    params = SorterParams(apply_preprocessing=False, cache_preprocessing_mode="no-cache")
    traces, _ = preprocess(make_recording(noise), params, tmp_path, JOB_KWARGS)
    found = traces.get_traces()
    np.testing.assert_allclose(found.std(axis=0), 1, atol=0.05)
    gains = np.sum(found * noise, axis=0) / np.sum(noise**2, axis=0)
    np.testing.assert_allclose(found, noise * gains, atol=0.51 / STEPS_PER_SD)
