"""Likeness: correcting drift makes spikes of different times alike, correcting what is none makes them unlike."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording
from spikeinterface.core.base import base_peak_dtype
from spikeinterface.core.motion import Motion

from spikeinterface_huidurep.likeness import (
    MAX_SPIKES,
    MAX_WINDOWS,
    MIN_SPIKES,
    SHARE_OF_END,
    WINDOW_S,
    find_ends,
    find_share_made_alike,
)
from spikeinterface_huidurep.motion import MIN_SHARE_MADE_ALIKE, interpolate

SAMPLING_FREQUENCY = 10_000.0
DURATION_S, RATE_HZ, DRIFT_UM, PITCH_UM, N_CHANNELS = 60.0, 8.0, 30.0, 20.0, 16
PULSE = -np.exp(-0.5 * ((np.arange(21) - 8) / 1.5) ** 2) + 0.4 * np.exp(-0.5 * ((np.arange(21) - 13) / 3.0) ** 2)


def make_peaks(samples, channels, amplitudes=1.0):
    peaks = np.zeros(len(samples), dtype=base_peak_dtype)
    peaks["sample_index"], peaks["channel_index"], peaks["amplitude"] = samples, channels, amplitudes
    return peaks


def make_motion(displacement_um):
    """In the order of time, one value a second, the same at all depths."""
    times_s = np.arange(len(displacement_um)) + 0.5
    return Motion([np.array(displacement_um, float)[:, None]], [times_s], np.array([150.0]))


def simulate(displacement_um, n_units=8, seed=0, size=30.0):
    """
    Recording of unit noise, its peaks, and the times of the spikes of each unit.

    `displacement_um` takes times in s, and gives by how much the neurons are moved.
    """
    rng = np.random.default_rng(seed)
    traces = rng.normal(size=(int(DURATION_S * SAMPLING_FREQUENCY), N_CHANNELS)).astype("float32")
    depths_um, sizes = rng.uniform(60, 240, n_units), size * rng.uniform(0.7, 1.5, n_units)
    sites_um = PITCH_UM * np.arange(N_CHANNELS)
    samples = np.sort(rng.choice(len(traces) // 60, int(n_units * RATE_HZ * DURATION_S), replace=False)) * 60 + 10
    samples = samples[samples < len(traces) - 60]
    units = rng.integers(0, n_units, len(samples))
    channels = []
    for sample, unit in zip(samples, units, strict=True):
        depth_um = depths_um[unit] + displacement_um(sample / SAMPLING_FREQUENCY)
        footprint = np.exp(-0.5 * ((sites_um - depth_um) / 25) ** 2)
        traces[sample - 8 : sample + 13] += sizes[unit] * np.outer(PULSE, footprint)
        channels.append(footprint.argmax())
    recording = NumpyRecording(traces, SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(N_CHANNELS), sites_um])
    return recording, make_peaks(samples, channels, -sizes[units]), units


def ramp(time_s):
    return DRIFT_UM * (time_s / DURATION_S - 0.5)


MOTION = make_motion([ramp(second + 0.5) for second in range(int(DURATION_S))])


@pytest.mark.parametrize("seed", range(3))
def test_correcting_drift_makes_spikes_alike(seed):
    recording, peaks, _ = simulate(ramp, seed=seed)
    assert find_share_made_alike(recording, interpolate(recording, MOTION), MOTION, peaks) > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_correcting_what_is_no_drift_makes_them_unlike(seed):
    recording, peaks, _ = simulate(lambda _: 0.0, seed=seed)
    assert find_share_made_alike(recording, interpolate(recording, MOTION), MOTION, peaks) < 0.1


def test_neurons_that_fire_all_the_time_outweigh_those_of_one_end():
    """Three of four neurons fire in one half of the time only; they have no twin at the other end, corrected or not."""
    recording, peaks, units = simulate(lambda _: 0.0, n_units=12)
    is_late = peaks["sample_index"] > DURATION_S * SAMPLING_FREQUENCY / 2
    group = units % 4
    kept = (group == 3) | ((group < 2) & is_late) | ((group == 2) & ~is_late)
    share = find_share_made_alike(recording, interpolate(recording, MOTION), MOTION, peaks[kept])
    assert share < MIN_SHARE_MADE_ALIKE


def test_few_spikes_tell_nothing():
    recording, peaks, _ = simulate(lambda _: 0.0)
    few = peaks[:: len(peaks) // MIN_SPIKES]
    assert find_share_made_alike(recording, interpolate(recording, MOTION), MOTION, few) == 1.0
    assert find_share_made_alike(recording, recording, MOTION, peaks[:0]) == 1.0


def test_spikes_without_any_to_compare_tell_nothing():
    """All spikes of an end are in one second."""
    recording, _, _ = simulate(lambda _: 0.0)
    seconds = np.repeat([2.0, 55.0], 4 * MIN_SPIKES)
    samples = np.sort((seconds + np.tile(np.linspace(0.1, 0.9, 4 * MIN_SPIKES), 2)) * SAMPLING_FREQUENCY).astype(int)
    assert find_share_made_alike(recording, recording, MOTION, make_peaks(samples, 5)) == 1.0


def test_ends_are_the_larger_spikes_of_the_least_and_largest_displacement():
    recording, peaks, _ = simulate(ramp)
    ends = find_ends(recording, MOTION, peaks)
    times_s = ends.samples / SAMPLING_FREQUENCY
    assert np.all(times_s[~ends.is_high] < SHARE_OF_END * DURATION_S)
    assert np.all(times_s[ends.is_high] > (1 - SHARE_OF_END) * DURATION_S - WINDOW_S)
    rows = np.searchsorted(peaks["sample_index"], ends.samples)
    assert np.array_equal(peaks["sample_index"][rows], ends.samples)
    assert np.array_equal(peaks["channel_index"][rows], ends.channels)
    assert np.abs(peaks["amplitude"][rows]).min() > np.abs(peaks["amplitude"]).min()
    since = ends.samples - ends.windows
    assert since.min() > 0 and since.max() < WINDOW_S * SAMPLING_FREQUENCY
    for is_end in (ends.is_high, ~ends.is_high):
        assert len(np.unique(ends.windows[is_end])) <= MAX_WINDOWS and MIN_SPIKES < np.sum(is_end) <= MAX_SPIKES


def test_the_depth_that_moves_says_where_the_ends_are():
    recording, peaks, _ = simulate(lambda _: 0.0)
    times_s = np.arange(DURATION_S) + 0.5
    displacement_um = np.stack([np.zeros(len(times_s)), 40 * np.abs(times_s - 30) / 30], axis=1)
    motion = Motion([displacement_um], [times_s], np.array([0.0, 300.0]))
    ends = find_ends(recording, motion, peaks)
    from_middle_s = np.abs(ends.samples / SAMPLING_FREQUENCY - 30)
    assert from_middle_s[~ends.is_high].max() < 8 < 22 < from_middle_s[ends.is_high].min()
