"""Artifacts: found where they are, on any number of channels, and told from bursts of large spikes."""

import logging

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep.artifacts import (
    MANY_CHANNELS,
    MAX_MIN_SIZE,
    MIN_CHANNELS,
    MIN_HZ,
    MIN_MEAN_ON_FEW,
    MIN_RATIO,
    MIN_SIZE_ON_FEW,
    find_artifacts,
    find_cores,
    silence_artifacts,
    spread_channels,
)
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.preprocessing import whiten

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = dict(n_jobs=1, chunk_duration="1s", progress_bar=False)
START, STOP = 45_000, 45_300  # 10 ms, beginning with a bin
USUAL_SIZE = 0.83  # 90th percentile of the smoothed sizes of noise


def make_noise(n_channels, duration_s=3.0, seed=0):
    """White noise; the SD differs between channels."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((int(duration_s * SAMPLING_FREQUENCY), n_channels), dtype="float32")
    return noise * rng.uniform(5, 20, n_channels).astype("float32")


def add_artifact(traces, start, stop, size):
    """Noise of the mean absolute deflection `size`, in SD of the noise around it."""
    traces[start:stop] *= size / np.sqrt(2 / np.pi)


def find(*segments, **job_kwargs):
    recording = NumpyRecording(list(segments), SAMPLING_FREQUENCY)
    return find_artifacts(recording, recording, 0, JOB_KWARGS | job_kwargs)


def test_noise_has_none(caplog):
    recording = NumpyRecording([make_noise(16)], SAMPLING_FREQUENCY)
    artifacts = find_artifacts(recording, recording, 0, JOB_KWARGS)
    assert len(artifacts) == 0
    assert silence_artifacts(recording, artifacts) is recording and not caplog.messages


@pytest.mark.parametrize("n_channels", [MIN_CHANNELS, MANY_CHANNELS - 1, MANY_CHANNELS])
@pytest.mark.parametrize("excess", [0.8, 1.25])
def test_how_large_artifacts_are(n_channels, excess):
    traces = make_noise(n_channels)
    min_size = MIN_RATIO * USUAL_SIZE if n_channels == MANY_CHANNELS else MIN_SIZE_ON_FEW
    add_artifact(traces, START, STOP, excess * min_size)
    artifacts = find(traces)
    assert len(artifacts) == (excess > 1)
    for artifact in artifacts:  # and 3 ms around it
        assert START - 90 <= artifact["start_sample_index"] < START
        assert STOP < artifact["end_sample_index"] <= STOP + 90


def test_where_many_neurons_fire_artifacts_have_to_be_larger():
    sizes = np.repeat([1.0, 1.5], [850, 150])
    for excess in (0.99, 1.01):
        sizes[400:410] = excess * MIN_RATIO * 1.5
        assert find_cores(sizes, MANY_CHANNELS).any() == (excess > 1)
    sizes[850:] = 100.0  # artifacts for more than a tenth of the time
    for excess in (0.99, 1.01):
        sizes[400:410] = excess * MAX_MIN_SIZE
        assert find_cores(sizes, MANY_CHANNELS)[400:410].any() == (excess > 1)


def test_on_few_channels_the_largest_artifacts_may_be_short():
    sizes = np.full(1000, 0.8)
    for excess in (0.9, 1.1):
        sizes[400] = excess * 5 * MIN_MEAN_ON_FEW
        assert find_cores(sizes, MANY_CHANNELS - 1).any() == (excess > 1)


@pytest.mark.parametrize("n_channels", [4, MANY_CHANNELS])
@pytest.mark.parametrize(("frequency_hz", "is_silenced"), [(150.0, False), (200.0, False), (1.5 * MIN_HZ, True)])
def test_ripples_are_left(frequency_hz, is_silenced, n_channels, tmp_path, caplog):
    """200 uV of them, in noise of 10 uV: 20 noise SD on all channels for 60 ms."""
    traces = np.random.default_rng(0).normal(0, 10, (90_000, n_channels)).astype("float32")
    times_s = np.arange(1800) / SAMPLING_FREQUENCY
    ripple = 200 * np.hanning(1800) * np.sin(2 * np.pi * frequency_hz * times_s)
    traces[START : START + 1800] += ripple[:, None].astype("float32")
    recording = NumpyRecording([traces], SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(n_channels), 5.0 * np.arange(n_channels)])
    whiten(recording, SorterParams(), tmp_path, JOB_KWARGS)
    assert ("artifacts are silenced" in caplog.text) == is_silenced


def test_on_few_channels_there_may_be_units_as_large():
    traces = make_noise(MIN_CHANNELS - 1)
    add_artifact(traces, START, STOP, 100.0)
    assert len(find(traces)) == 0


def test_bursts_of_the_largest_spikes_on_a_tetrode_are_none():
    spike = -np.exp(-0.5 * ((np.arange(60) - 20) / 5) ** 2) + 0.4 * np.exp(-0.5 * ((np.arange(60) - 35) / 8) ** 2)
    traces = make_noise(4)
    levels = traces.std(axis=0)
    for start in range(3000, 87_000, 6000):
        for k in range(5):  # 3 ms apart, as large on all channels
            traces[start + 90 * k :][:60] += 50 * 0.9**k * spike[:, None] * levels
    assert len(find(traces)) == 0


def test_on_many_channels_half_of_them_have_to_see_it():
    traces = make_noise(MANY_CHANNELS)
    add_artifact(traces[:, : MANY_CHANNELS // 2 - 1], START, STOP, 50.0)
    assert len(find(traces)) == 0


def test_the_end_of_an_artifact_is_a_part_of_it():
    traces = make_noise(16)
    add_artifact(traces, START, STOP, 50.0)
    add_artifact(traces, STOP, STOP + 600, 2.0)
    assert find(traces)["end_sample_index"].tolist() == pytest.approx([STOP + 600], abs=90)


def test_artifacts_of_several_segments():
    silent, loud = make_noise(16, seed=1), make_noise(16, seed=2)
    for start in (0, START, len(loud) - 300):
        add_artifact(loud, start, start + 300, 30.0)
    artifacts = find(silent, loud)
    assert artifacts["segment_index"].tolist() == [1, 1, 1]
    assert artifacts["start_sample_index"][0] == 0 and artifacts["end_sample_index"][-1] == len(loud)


@pytest.mark.parametrize("chunk_duration", ["37ms", "10s"])
def test_chunks_do_not_matter(chunk_duration):
    traces = make_noise(16)
    for start in range(10_000, 80_000, 7777):
        add_artifact(traces, start, start + 400, 30.0)
    artifacts, wanted = find(traces, chunk_duration=chunk_duration), find(traces)
    for edge in ("start_sample_index", "end_sample_index"):
        np.testing.assert_allclose(artifacts[edge], wanted[edge], atol=30)  # a bin


def test_artifacts_are_silenced_and_nothing_else(caplog):
    traces = make_noise(16)
    add_artifact(traces, START, STOP, 30.0)
    recording = NumpyRecording([traces], SAMPLING_FREQUENCY)
    artifacts = find_artifacts(recording, recording, 0, JOB_KWARGS)
    with caplog.at_level(logging.WARNING):
        silenced = silence_artifacts(recording, artifacts).get_traces()
    inside = slice(artifacts["start_sample_index"][0], artifacts["end_sample_index"][0])
    assert np.all(silenced[inside] == 0)
    silenced[inside] = traces[inside]
    assert_array_equal(silenced, traces)
    assert "artifacts are silenced: 1 of 0.02 s in all, 0.5 % of the time" in caplog.messages


def test_channels_of_the_whole_probe_are_looked_at():
    for n_channels, n_chosen in ((1, 1), (4, 4), (17, MANY_CHANNELS), (384, MANY_CHANNELS)):
        recording = NumpyRecording([np.zeros((10, n_channels))], 1000.0)
        chosen = spread_channels(recording)
        assert len(np.unique(chosen)) == n_chosen
        assert {chosen[0], chosen[-1]} == {recording.channel_ids[0], recording.channel_ids[-1]}
