"""Glitches of single channels: silenced there and then, and told from spikes by the channels near them."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from spikeinterface.core import NumpyRecording, load

from spikeinterface_huidurep.glitches import (
    GLITCH_MS,
    MARGIN_MS,
    MAX_SHARE,
    MIN_GLITCH,
    NEAR_UM,
    SilenceGlitchesRecording,
    silence_glitches,
)

SAMPLING_FREQUENCY = 30_000.0
N_CHANNELS = 4
LEVELS = [1.0, 2.0, 3.0, 4.0]
MARGIN = round(MARGIN_MS * 1e-3 * SAMPLING_FREQUENCY)
GLITCH, CHANNEL = 5000, 2


def make_recording(traces, pitch_um=20.0):
    recording = NumpyRecording([traces], SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(N_CHANNELS), pitch_um * np.arange(N_CHANNELS)])
    return recording


def make_traces(size=2 * MIN_GLITCH, neighbor=0.0, delay=0):
    """Samples of +-1 noise SD; at GLITCH one of `size`, and `delay` later one of `neighbor` on the next channel."""
    rng = np.random.default_rng(0)
    traces = rng.choice([-1.0, 1.0], (10_000, N_CHANNELS)).astype("float32")
    traces[GLITCH, CHANNEL] = size
    traces[GLITCH + delay, CHANNEL + 1] = neighbor
    return traces * np.array(LEVELS, dtype="float32")


def silence(traces, pitch_um=20.0):
    return SilenceGlitchesRecording(make_recording(traces, pitch_um), LEVELS).get_traces()


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_glitch_is_silenced_and_nothing_else(sign):
    traces = make_traces(size=sign * 2 * MIN_GLITCH)
    wanted = traces.copy()
    wanted[GLITCH - MARGIN : GLITCH + MARGIN + 1, CHANNEL] = 0
    assert_array_equal(silence(traces), wanted)


@pytest.mark.parametrize(
    "spike",
    [
        dict(size=0.99 * MIN_GLITCH),
        dict(neighbor=-1.01 * MAX_SHARE * 2 * MIN_GLITCH),
        dict(neighbor=1.01 * MAX_SHARE * 2 * MIN_GLITCH, delay=int(GLITCH_MS / 2 * 1e-3 * SAMPLING_FREQUENCY)),
    ],
)
def test_spikes_are_left(spike):
    traces = make_traces(**spike)
    assert_array_equal(silence(traces), traces)


def test_without_channels_near_nothing_is_a_glitch():
    traces = make_traces()
    assert_array_equal(silence(traces, pitch_um=1.01 * NEAR_UM), traces)


def test_how_traces_are_asked_for_does_not_matter():
    traces = make_traces()
    traces[GLITCH + 100, CHANNEL] *= 50
    traces[3, 0] = traces[-4, 1] = 1000.0  # at the ends
    recording = SilenceGlitchesRecording(make_recording(traces), LEVELS)
    whole = recording.get_traces()
    edges = [0, 1, GLITCH - MARGIN - 1, GLITCH - 3, GLITCH + 1, GLITCH + MARGIN, 9999, 10_000]
    pieces = [recording.get_traces(start_frame=a, end_frame=b) for a, b in zip(edges, edges[1:], strict=False)]
    assert_array_equal(np.concatenate(pieces), whole)
    some = recording.get_traces(channel_ids=recording.channel_ids[[3, 1]])
    assert_array_equal(some, whole[:, [3, 1]])


def test_saved_and_loaded(tmp_path):
    traces = np.random.default_rng(0).normal(size=(10_000, N_CHANNELS)).astype("float32")
    traces[GLITCH, CHANNEL] = 2 * MIN_GLITCH
    recording = make_recording(traces).save(folder=tmp_path / "recording", verbose=False, progress_bar=False)
    silenced = silence_glitches(recording, seed=0)
    np.testing.assert_allclose(silenced._kwargs["levels"], 1.0, rtol=0.1)
    assert_array_equal(load(silenced.to_dict()).get_traces(), silenced.get_traces())
    assert np.all(silenced.get_traces()[GLITCH - MARGIN : GLITCH + MARGIN, CHANNEL] == 0)
