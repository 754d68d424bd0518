"""Motion: where drift is estimated, in what windows, when it is corrected, and how traces are moved back."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording
from spikeinterface.core.motion import Motion

from spikeinterface_huidurep import motion as motion_module
from spikeinterface_huidurep.motion import (
    DISPLACEMENT,
    LARGE_WINDOW_UM,
    MAX_DISPLACEMENT_UM,
    MIN_DRIFT_UM,
    MIN_PEAKS_PER_S,
    MIN_SHARE_MADE_ALIKE,
    MOTION_SMOOTHING,
    SMALL_WINDOW_UM,
    can_show_motion,
    choose_motion_kwargs,
    choose_window,
    decide_motion,
    estimate_motion,
    measure_drift,
    move_back,
)
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.preprocessing import preprocess, whiten

from .test_preprocessing import JOB_KWARGS, coloured_noise, make_recording


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

    monkeypatch.setattr(motion_module, "estimate_motion", estimate_motion)
    return results


WINDOWS = dict(win_step_um=LARGE_WINDOW_UM, win_scale_um=LARGE_WINDOW_UM, max_disp_um=MAX_DISPLACEMENT_UM)


@pytest.mark.parametrize(
    "preset, depth_um, windows",
    [
        ("dredge_fast", LARGE_WINDOW_UM - 1, dict(rigid=True)),
        ("dredge_fast", LARGE_WINDOW_UM, dict(WINDOWS, rigid=False)),
        ("dredge", 500.0, dict(WINDOWS, rigid=False)),
        ("rigid_fast", 500.0, dict(rigid=True)),
    ],
)
def test_drift_is_estimated_from_smooth_histograms(preset, depth_um, windows):
    recording = make_silence(depth_um=depth_um)
    assert choose_motion_kwargs(recording, preset) == MOTION_SMOOTHING | windows


def test_windows_are_as_large_as_the_presets_have_them():
    for preset in ("dredge", "dredge_fast"):
        kwargs = motion_module.motion_options_preset[preset]["estimate_motion_kwargs"]
        assert kwargs["win_step_um"] == kwargs["win_scale_um"] == LARGE_WINDOW_UM


def test_a_window_is_so_small_that_it_has_enough_peaks():
    recording = make_silence(depth_um=1000.0, duration_s=100.0)
    n_peaks = MIN_PEAKS_PER_S * 100 * 1000 / np.array([200.0, 300.0, 0.5 * SMALL_WINDOW_UM, 2 * LARGE_WINDOW_UM])
    windows_um = [choose_window(recording, n) for n in n_peaks]
    np.testing.assert_allclose(windows_um, [200.0, 300.0, SMALL_WINDOW_UM, LARGE_WINDOW_UM])
    assert choose_window(recording, 0) == LARGE_WINDOW_UM


@pytest.mark.parametrize("depth_um, window_um", [(900.0, SMALL_WINDOW_UM), (2700.0, 300.0), (3840.0, LARGE_WINDOW_UM)])
def test_long_probes_have_larger_windows(depth_um, window_um):
    assert choose_window(make_silence(depth_um=depth_um), 10**9) == pytest.approx(window_um)


@pytest.mark.parametrize(
    "preset, peaks_per_s, window_um",
    [
        ("dredge_fast", 4 * MIN_PEAKS_PER_S, 250.0),
        ("dredge_fast", 0.1, None),
        ("rigid_fast", 1000, None),
        ("nonrigid_accurate", 1000, None),
    ],
)
def test_drift_is_estimated_again_where_windows_may_be_smaller(preset, peaks_per_s, window_um, monkeypatch, tmp_path):
    first, second = make_motion(np.zeros((2, 1))), make_motion(np.ones((2, 1)))
    peaks, saved, given_kwargs = np.zeros(round(30 * peaks_per_s)), [], []
    info = dict(parameters=dict(estimate_motion_kwargs={}), peaks=peaks, peak_locations=peaks, motion=first)
    monkeypatch.setattr(motion_module, "get_noise_levels", lambda *_, **__: None)
    monkeypatch.setattr(motion_module, "compute_motion", lambda *_, **__: (first, info))
    monkeypatch.setattr(motion_module, "save_motion_info", lambda info, folder: saved.append((info["motion"], folder)))
    monkeypatch.setattr(
        motion_module, "estimate_from_peaks", lambda *_, **kwargs: given_kwargs.append(kwargs) or second
    )
    params = SorterParams(motion_correction_preset=preset)
    found = estimate_motion(make_silence(depth_um=1000.0), params, tmp_path, JOB_KWARGS)
    assert saved == [(found, tmp_path)]
    if window_um is None:
        assert found is first and not given_kwargs
    else:
        assert found is second and given_kwargs[0]["win_step_um"] == given_kwargs[0]["win_scale_um"] == window_um


def test_other_methods_estimate_drift_as_their_preset_says():
    assert choose_motion_kwargs(make_silence(), "nonrigid_accurate") == {}


def ramp_motion(drift_um):
    return make_motion(np.linspace(0, drift_um / 0.9, 1001)[:, None])


@pytest.fixture
def share_made_alike(monkeypatch):
    """List of the shares of spikes that corrections make alike, one a call; empty when all was asked for."""
    shares = []
    monkeypatch.setattr(motion_module, "load_motion_info", lambda folder: {"peaks": None})
    monkeypatch.setattr(motion_module, "find_share_made_alike", lambda *_: shares.pop(0))
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
