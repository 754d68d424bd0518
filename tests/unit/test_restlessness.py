"""Stretches with larger noise are scaled down to the noise of the others; without any the traces stay as they are."""

import logging

import numpy as np
import pytest
import spikeinterface.core as sc
from numpy.testing import assert_allclose, assert_array_equal

from spikeinterface_huidurep.restlessness import EvenNoiseRecording, describe_stretch, even_noise, measure_level
from spikeinterface_huidurep.whitening import noise_levels

SAMPLING_FREQUENCY = 20000.0
DURATION_S = 20.0
N_CHANNELS = 4
LOUD_S = slice(int(8 * SAMPLING_FREQUENCY), int(12 * SAMPLING_FREQUENCY))


def make_noise(gain=1.0, common_gain=0.0, seed=0):
    """White noise of unit SD; from 8 to 12 s times `gain`, and with noise that all channels have in common."""
    rng = np.random.default_rng(seed)
    n_samples = int(DURATION_S * SAMPLING_FREQUENCY)
    noise = rng.standard_normal((n_samples, N_CHANNELS), dtype="float32")
    noise[LOUD_S] *= gain
    noise[LOUD_S] += common_gain * rng.standard_normal((LOUD_S.stop - LOUD_S.start, 1), dtype="float32")
    return noise


def make_recording(*segments):
    return sc.NumpyRecording(list(segments), SAMPLING_FREQUENCY)


def test_even_noise_is_left_as_it_is():
    recording = make_recording(make_noise())
    assert even_noise(recording) is recording


def test_many_spikes_are_no_noise():
    noise = make_noise()
    noise[LOUD_S][::200] += 30  # 100 spikes a second on all channels
    recording = make_recording(noise)
    assert even_noise(recording) is recording


@pytest.mark.parametrize("gain", [2.0, 5.0])
def test_larger_noise_is_scaled_down(gain, caplog):
    caplog.set_level(logging.INFO)
    noise = make_noise(gain)
    traces = even_noise(make_recording(noise)).get_traces()
    half = int(0.25 * SAMPLING_FREQUENCY)
    inside = slice(LOUD_S.start + half, LOUD_S.stop - half)
    assert_allclose(noise_levels([traces[inside]]), 1.0, atol=0.1)
    for calm in (slice(0, LOUD_S.start - half), slice(LOUD_S.stop + half, None)):
        assert_array_equal(traces[calm], noise[calm])
    assert "times larger for 4.0 s" in caplog.text


def test_noise_that_all_channels_share_counts_in_full():
    noise = make_noise(gain=1.0, common_gain=2.0)  # in the mean of 4 channels: sqrt(4 * 4 + 1) SD instead of 1
    traces = even_noise(make_recording(noise)).get_traces()
    inside = slice(LOUD_S.start + 5000, LOUD_S.stop - 5000)
    shared = traces[inside].sum(axis=1, keepdims=True) / np.sqrt(N_CHANNELS)
    assert_allclose(noise_levels([shared]), 1.0, atol=0.1)


def test_the_other_directions_are_left_as_they_are():
    """What the channels have in common is large, but differences between them are not."""
    noise = make_noise(gain=1.8, common_gain=4.0)
    traces = even_noise(make_recording(noise)).get_traces()
    inside = slice(LOUD_S.start + 5000, LOUD_S.stop - 5000)
    difference = np.array([[1.0], [-1.0], [0.0], [0.0]], dtype="float32") / np.sqrt(2)
    level = measure_level(noise[inside])
    assert_allclose(traces[inside] @ difference, noise[inside] @ difference / level, atol=0.4)


def test_spikes_do_not_count_as_noise():
    noise = make_noise()[: int(0.25 * SAMPLING_FREQUENCY)]
    noise[::200] += 100
    assert measure_level(noise) == pytest.approx(1.0, abs=0.1)
    assert describe_stretch(noise, 1.0) == (1.0, (), ())


@pytest.mark.parametrize("n_channels", [1, 4])
def test_noise_of_independent_channels_has_no_direction(n_channels):
    noise = 3 * make_noise()[:5000, :n_channels]
    assert describe_stretch(noise, 3.0) == (3.0, (), ())


STRETCHES = [[(1.0, (), ())] * 80, [(1.0, (), ()), (2.0, ((0.6, 0.0, 0.8, 0.0),), (4.0,)), (1.0, (), ())]]


def test_any_part_of_the_traces_is_the_same():
    recording = EvenNoiseRecording(make_recording(make_noise(), make_noise(seed=1)), STRETCHES)
    for segment_index in range(2):
        whole = recording.get_traces(segment_index)
        part = recording.get_traces(segment_index, 12345, 212345, channel_ids=recording.channel_ids[1:3])
        assert_allclose(part, whole[12345:212345, 1:3], atol=1e-5)
    assert_array_equal(recording.get_traces(0), make_noise())


def test_one_direction_is_divided_by_more():
    noise = make_noise(seed=1)
    traces = EvenNoiseRecording(make_recording(noise), STRETCHES[1:]).get_traces()
    middle = slice(len(noise) // 2, len(noise) // 2 + 1)
    direction = np.array([0.6, 0.0, 0.8, 0.0])
    along = noise[middle] @ direction
    wanted = (noise[middle] - along[:, None] * direction) / 2 + along[:, None] * direction / 4
    assert_allclose(traces[middle], wanted, rtol=1e-3)


def test_can_be_sent_to_workers():
    recording = EvenNoiseRecording(make_recording(make_noise()), STRETCHES[1:])
    again = sc.load(recording.to_dict())
    assert_array_equal(again.get_traces(), recording.get_traces())


def test_each_segment_on_its_own():
    loud = 4 * make_noise(seed=1)[: int(3 * SAMPLING_FREQUENCY)]
    recording = even_noise(make_recording(make_noise(), loud))
    assert_array_equal(recording.get_traces(0), make_noise())
    assert_allclose(noise_levels([recording.get_traces(1)]), 1.0, atol=0.1)
