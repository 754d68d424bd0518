"""Stretches with larger noise: where they are, in which directions, and how much that is along a waveform."""

import logging

import numpy as np
import pytest
import spikeinterface.core as sc
from numpy.testing import assert_allclose, assert_array_equal

from spikeinterface_huidurep.restlessness import (
    ANNOTATION,
    CALM,
    MAX_DIRECTIONS,
    N_BESIDE,
    STRETCH_ON_FEW_S,
    describe_stretch,
    find_restless_stretches,
    is_of_restlessness,
    measure_level,
    measure_restlessness,
    spread_restlessness,
)

SAMPLING_FREQUENCY = 20000.0
DURATION_S = 20.0
N_CHANNELS = 4
LOUD_S = (8.0, 12.0)
LOUD = slice(*(int(time * SAMPLING_FREQUENCY) for time in LOUD_S))
SHARED = np.full(N_CHANNELS, 0.5)


def make_noise(gain=1.0, shared=0.0, seed=0, n_channels=N_CHANNELS):
    """White noise of unit SD; from 8 to 12 s times `gain`, and with noise of SD `shared` that all channels have."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((int(DURATION_S * SAMPLING_FREQUENCY), n_channels), dtype="float32")
    noise[LOUD] *= gain
    noise[LOUD] += shared * rng.standard_normal((LOUD.stop - LOUD.start, 1), dtype="float32")
    return noise


def make_recording(*segments):
    recording = sc.NumpyRecording(list(segments), SAMPLING_FREQUENCY)
    find_restless_stretches(recording)
    return recording


def measure(recording, times_s, segment_index=0, waveform=None):
    samples = (np.array(times_s) * SAMPLING_FREQUENCY).astype("int64")
    return measure_restlessness(recording, samples, np.full(len(samples), segment_index), waveform)


def test_even_noise_is_calm():
    recording = make_recording(make_noise())
    assert recording.get_annotation(ANNOTATION) is None
    assert_array_equal(measure(recording, [0.0, 10.0, 19.99]), 1.0)


def test_traces_without_the_last_segments():
    recording = make_recording(make_noise(gain=2), make_noise(gain=3))
    first = recording.select_segments([0])
    assert_array_equal(measure(first, [0.0, 10.0]), measure(recording, [0.0, 10.0]))


def test_many_spikes_are_no_noise():
    noise = make_noise()
    noise[LOUD][::200] += 30  # 100 spikes a second on all channels
    assert make_recording(noise).get_annotation(ANNOTATION) is None


@pytest.mark.parametrize("gain", [2.0, 5.0])
def test_larger_noise(gain, caplog):
    caplog.set_level(logging.INFO)
    recording = make_recording(make_noise(gain))
    near_s, far_s = (N_BESIDE - 0.2) * STRETCH_ON_FEW_S, (N_BESIDE + 0.2) * STRETCH_ON_FEW_S
    outside = [0.0, LOUD_S[0] - far_s, LOUD_S[1] + far_s, 19.99]
    assert_array_equal(measure(recording, outside), 1.0)
    assert_allclose(measure(recording, [8.0, 10.0, 11.99]), gain, rtol=0.1)
    beside = [LOUD_S[0] - near_s, LOUD_S[1] + near_s]
    assert_allclose(measure(recording, beside), gain, rtol=0.1)
    assert "noise is larger for 4.0 s" in caplog.text


def test_shared_noise_counts_along_what_channels_share():
    """In the mean of 4 channels: sqrt(4 * 9 + 1) SD instead of 1."""
    recording = make_recording(make_noise(shared=3.0))
    along, across = SHARED[:, None] * np.ones(5), np.array([1.0, -1.0, 0.0, 0.0])[:, None] * np.ones(5)
    assert_allclose(measure(recording, [10.0]), np.sqrt(10), rtol=0.1)
    assert_allclose(measure(recording, [10.0], waveform=along), np.sqrt(37), rtol=0.1)
    mixed = measure(recording, [10.0], waveform=along / np.linalg.norm(along) + across / np.linalg.norm(across))
    assert measure(recording, [10.0], waveform=across)[0] < mixed[0] < np.sqrt(37)


def test_each_segment_on_its_own():
    loud = 4 * make_noise(seed=1)[: int(3 * SAMPLING_FREQUENCY)]
    recording = make_recording(make_noise(), loud)
    assert_array_equal(measure(recording, [0.0, 1.0, 10.0]), 1.0)
    assert_allclose(measure(recording, [0.0, 1.0, 2.99], segment_index=1), 4.0, rtol=0.1)


def test_what_is_made_of_the_traces_is_as_restless():
    from spikeinterface.preprocessing import scale

    recording = make_recording(make_noise(3.0))
    assert_array_equal(measure(scale(recording, gain=2.0), [1.0, 10.0]), measure(recording, [1.0, 10.0]))


def test_spikes_do_not_count_as_noise():
    noise = make_noise()[: int(0.25 * SAMPLING_FREQUENCY)]
    noise[::200] += 100
    assert measure_level(noise) == pytest.approx(1.0, abs=0.1)
    assert describe_stretch(noise, 1.0, 1.0) == (1.0, [], [])


@pytest.mark.parametrize("n_channels", [1, 4])
def test_noise_of_independent_channels_has_no_direction(n_channels):
    noise = 3 * make_noise()[:5000, :n_channels]
    assert describe_stretch(noise, 3.0, 1.5) == (2.0, [], [])


def test_stretches_beside_restless_ones_are_restless():
    large, small = (3.0, [], []), (2.0, [], [])
    spread = spread_restlessness([CALM, CALM, CALM, large, small, CALM, CALM, small, CALM])
    assert spread == [CALM, large, large, large, large, large, small, small, small]


@pytest.mark.parametrize(("n_loud", "n_there"), [(2, 1), (20, 4), (100, 25)])
def test_units_of_restlessness(n_loud, n_there):
    noise = make_noise()
    noise[: int(n_loud * STRETCH_ON_FEW_S * SAMPLING_FREQUENCY)] *= 3  # of 200 stretches, and two more beside them
    recording = make_recording(noise)
    assert is_of_restlessness(recording, np.repeat([3.0, 1.0], [n_there + 1, 1]))
    assert not is_of_restlessness(recording, np.repeat([3.0, 1.0], [n_there, 5]))


def test_without_restlessness_no_unit_is_of_it():
    assert not is_of_restlessness(make_recording(make_noise()), np.ones(3))


def test_a_burst_of_one_neuron_is_not_restless():
    noise = make_noise(n_channels=1)
    spike = -20 * np.exp(-0.5 * (np.arange(-20, 20) / 6) ** 2)
    for start in range(LOUD.start, LOUD.start + 400, 60):  # 3 ms
        noise[start : start + len(spike), 0] += spike
    assert make_recording(noise).get_annotation(ANNOTATION) is None


def test_a_lick_is_restless():
    noise = make_noise(n_channels=16)
    lick = slice(LOUD.start, LOUD.start + int(0.02 * SAMPLING_FREQUENCY))
    noise[lick] += 5 * np.sin(np.linspace(0, 12 * np.pi, lick.stop - lick.start))[:, None]
    recording = make_recording(noise)
    assert measure(recording, [LOUD_S[0] + 0.01])[0] > 1.5
    assert_array_equal(measure(recording, [LOUD_S[0] - 0.07, LOUD_S[0] + 0.09]), 1.0)


def test_only_the_largest_directions_are_kept():
    noise = np.random.default_rng(0).standard_normal((100, 64))
    _, directions, ratios = describe_stretch(noise, 1.0, 1.0)
    assert len(directions) == len(ratios) == MAX_DIRECTIONS
