"""Preprocessing: dead channels, wrong samples, and noise that comes out white with unit SD."""

import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep.glitches import silence_glitches
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.preprocessing import (
    MAX_SIZE,
    MIN_CHANNELS_FOR_REFERENCE,
    REFERENCED,
    STEPS_PER_SD,
    check_finite,
    choose_reference,
    filter_band,
    filter_without_artifacts,
    preprocess,
    remove_dead_channels,
    whiten,
)

SAMPLING_FREQUENCY = 30_000.0
PARAMS = SorterParams()
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


def filter_all(traces):
    return filter_without_artifacts(make_recording(traces.astype("float32")), PARAMS, JOB_KWARGS).get_traces()


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_spikes_on_all_channels_that_overlap_still_add_up(shared):
    """So they do without a reference, or with a mean, but not with the median of the channels."""
    rng = np.random.default_rng(0)
    n_channels = MIN_CHANNELS_FOR_REFERENCE
    noise = rng.normal(size=(30_000, n_channels)) + shared * rng.normal(size=(30_000, 1))
    pulses = [np.exp(-0.5 * ((np.arange(30_000) - at) / 4)[:, None] ** 2) for at in (15_000, 15_006)]
    profiles = [12 * np.exp(-np.abs(np.arange(n_channels) - centre) / 8) for centre in (12, 20)]  # no artifacts
    first, second = (-pulse * profile for pulse, profile in zip(pulses, profiles, strict=True))
    of_noise, of_first, of_second, of_both = (
        filter_all(noise + spikes) for spikes in (0, first, second, first + second)
    )
    assert np.abs(of_first - of_noise).max() > 3
    np.testing.assert_allclose(of_both - of_noise, of_first + of_second - 2 * of_noise, atol=0.01)


@pytest.mark.parametrize("share, is_referenced", [(0.0, False), (0.03, False), (0.1, True), (1.0, True)])
def test_only_noise_that_channels_share_takes_a_reference(share, is_referenced):
    """Their own comes and goes as well, and large spikes reach all."""
    rng = np.random.default_rng(0)
    is_restless = np.arange(150_000) % 30_000 < 3000
    noise = rng.normal(size=(150_000, MIN_CHANNELS_FOR_REFERENCE)) * np.where(is_restless, 5, 1)[:, None]
    noise[1000::1500] += 300
    noise[: round(share * 150_000)] += 3 * rng.normal(size=(round(share * 150_000), 1))
    filtered = silence_glitches(filter_band(make_recording(noise.astype("float32")), PARAMS), PARAMS.seed)
    assert choose_reference(filtered, PARAMS.seed) == (filtered.channel_ids.tolist() if is_referenced else [])


def test_noise_that_channels_share_now_and_then_is_no_artifact():
    rng = np.random.default_rng(0)
    traces = rng.normal(size=(150_000, MIN_CHANNELS_FOR_REFERENCE))
    traces[:10_000] += 20 * rng.normal(size=(10_000, 1))
    assert np.all(filter_all(traces).any(axis=1))


@pytest.mark.parametrize("noise, glitch", [(100.0, 0.0), (1.0, -10_000.0)])
def test_what_is_wrong_with_a_channel_does_not_spread_to_others(noise, glitch):
    rng = np.random.default_rng(0)
    traces = rng.normal(size=(30_000, MIN_CHANNELS_FOR_REFERENCE)) + 3 * rng.normal(size=(30_000, 1))
    wrong = traces.copy()
    wrong[:, 3] *= noise
    wrong[15_000, 3] += glitch
    others = np.arange(MIN_CHANNELS_FOR_REFERENCE) != 3
    before, after = (filter_all(values)[:, others] for values in (traces, wrong))
    assert np.abs(after - before).max() < before.std()


@pytest.mark.parametrize("shared, is_referenced", [(0.0, False), (3.0, True)])
def test_traces_say_whether_their_mean_is_taken_away(shared, is_referenced, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60_000, MIN_CHANNELS_FOR_REFERENCE)) + shared * rng.normal(size=(60_000, 1))
    traces, _ = preprocess(make_recording(noise.astype("float32")), PARAMS, tmp_path, JOB_KWARGS)
    assert (traces.get_annotation(REFERENCED) is True) == is_referenced


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
