"""Missed neurons: found among what no template explains; noise and collisions are none."""

from dataclasses import replace

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording
from spikeinterface.core.base import base_peak_dtype

from spikeinterface_huidurep import missed
from spikeinterface_huidurep.changes import NO_CHANGES
from spikeinterface_huidurep.missed import (
    EXPLAINED_MS,
    EXPLAINED_PTP,
    LARGE_NORM,
    MIN_NORM,
    MIN_PART,
    MIN_SPIKES,
    MIN_SPIKES_OF_LARGE,
    find_explained,
    find_missed_units,
    keep_neurons,
    measure_norm,
    measure_spread_of_units,
    pool_channels,
)
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.refinement import RefinedUnits
from spikeinterface_huidurep.residuals import extract_residuals
from spikeinterface_huidurep.waveforms import Neighborhoods

from .test_refinement import make_residuals
from .test_results import JOB_KWARGS, SAMPLING_FREQUENCY, make_sorting, make_templates
from .test_splitting import N_SAMPLES


def make_peaks(samples, channels, segments=0):
    peaks = np.zeros(len(samples), dtype=base_peak_dtype)
    peaks["sample_index"], peaks["channel_index"], peaks["segment_index"] = samples, channels, segments
    return peaks


# --- explained peaks ---


@pytest.mark.parametrize("ptp, is_large", [(EXPLAINED_PTP + 0.1, True), (EXPLAINED_PTP - 0.1, False)])
def test_peaks_close_to_a_spike_are_explained_where_its_template_is_large(ptp, is_large):
    shapes = np.zeros((1, 60, 3))
    shapes[0, 20, 0], shapes[0, 20, 1] = -20, -ptp
    sorting = make_sorting([1000, 1000], [0, 0], [0, 1])
    far = round(EXPLAINED_MS * 1e-3 * SAMPLING_FREQUENCY) + 1
    samples = np.array([1000, 1000 + far - 1, 1000 - far, 1000, 1000, 1000 + far])
    channels = np.array([0, 0, 0, 1, 2, 0])
    found = find_explained(make_peaks(samples, channels, [0, 0, 0, 0, 0, 1]), sorting, make_templates(shapes))
    assert found.tolist() == [True, True, False, is_large, False, False]


# --- pooling ---


def test_peaks_of_neighbours_go_to_the_channel_with_most_of_them():
    locations_um = np.c_[np.zeros(12), 20.0 * np.arange(12)]
    few = MIN_SPIKES_OF_LARGE
    channels = np.repeat([1, 2, 3, 9, 11], [few // 2, few, 3, few - 2, 1])
    centres = pool_channels(channels, locations_um)
    assert centres[channels <= 3].tolist() == [2] * np.sum(channels <= 3)
    assert np.all(centres[channels >= 9] == -1)


@pytest.mark.parametrize("seed", range(5))
def test_every_peak_is_pooled_within_reach_or_left_with_few(seed):
    rng = np.random.default_rng(seed)
    locations_um = rng.uniform(0, 300, size=(30, 2))
    channels = rng.choice(30, size=rng.integers(1, 500), p=rng.dirichlet(np.ones(30)))
    centres = pool_channels(channels, locations_um)
    distances_um = np.linalg.norm(locations_um[channels] - locations_um[centres], axis=1)
    assert np.all(distances_um[centres >= 0] <= 60)
    left = np.bincount(channels[centres == -1], minlength=30)
    is_near = np.linalg.norm(locations_um[:, None] - locations_um[None], axis=2) <= 60
    assert np.max(is_near @ left) < MIN_SPIKES_OF_LARGE


# --- noise and collisions ---


@pytest.mark.parametrize("norm", [0.0, 5.0, 20.0])
def test_the_norm_of_a_mean_is_without_noise(norm):
    rng = np.random.default_rng(0)
    direction = rng.normal(size=400)
    found = [measure_norm(rng.normal(size=(30, 400)) + norm * direction / np.linalg.norm(direction)) for _ in range(20)]
    assert np.mean(found) == pytest.approx(norm, abs=1.0 if norm == 0 else 0.3)


@pytest.mark.parametrize(
    "norm, spread, is_kept",
    [
        (MIN_NORM + 2, 1.0, True),
        (MIN_NORM - 2, 1.0, False),
        (LARGE_NORM - 2, 1.2, False),
        (LARGE_NORM + 2, 1.2, True),
        (30.0, 1.0, True),
        (30.0, 1.5, False),
    ],
)
@pytest.mark.parametrize("level", [1.0, 1.5])
def test_a_cluster_must_be_larger_than_noise_and_as_alike(norm, spread, level, is_kept, monkeypatch):
    """Cluster 3 is tested, in noise that is louder than usual or not; 5 is a large one."""
    residuals, _ = make_residuals([np.zeros((2, 140))] * 2, [0, 1])
    monkeypatch.setattr(type(residuals.noise), "measure_levels", lambda self, samples, *_: 1 + (level - 1) * samples)
    rng = np.random.default_rng(1)
    shape = np.zeros((N_SAMPLES, 2))
    shape[10:40, 0] = 1
    vectors = rng.normal(size=(100, N_SAMPLES, 2)).astype("float32")
    vectors[:50] = level * (norm * shape / np.linalg.norm(shape) + np.sqrt(spread) * vectors[:50])
    vectors[50:] += 20 * shape
    labels = np.repeat([3, 5], 50)
    labels[[0, 99]] = -1
    is_loud = np.repeat([1, 0], 50)
    peaks = make_peaks(is_loud, np.zeros(100, int))
    found, is_large = keep_neurons(vectors, peaks, labels, residuals, spread_of_units=1.0)
    wanted = labels if is_kept else np.where(labels == 3, -1, labels)
    assert found.tolist() == wanted.tolist()
    assert is_large.tolist() == ((labels == 5) | ((labels == 3) & (norm > LARGE_NORM))).tolist()


@pytest.mark.parametrize("sizes, spread", [([100, 100, 100], 1.0), ([1, 1, 1], 0.0)])
def test_the_spread_of_units_is_that_of_the_noise_whatever_one_of_them_does(sizes, spread):
    residuals, members = make_residuals([np.zeros((2, 140))] * 3, [0, 1, 0])
    residuals.values[members[1]] *= 3
    rows = np.concatenate([of_unit[:size] for of_unit, size in zip(members, sizes, strict=True)])
    sorting = make_sorting(1000 + 10 * np.arange(len(rows)), rows // 100)
    measured = measure_spread_of_units(sorting, replace(residuals, values=residuals.values[rows]))
    assert measured == pytest.approx(spread, abs=0.1)


# --- missed units ---

PULSE = -np.exp(-0.5 * ((np.arange(121) - 50) / 5) ** 2) + 0.4 * np.exp(-0.5 * ((np.arange(121) - 64) / 8) ** 2)
KNOWN = np.outer(PULSE, [20.0, 12, 6, 0, 0, 0, 0, 0])
RARE = np.outer(PULSE, [0.0, 0, 0, 0, 0, 6, 7, 6])


def find_in_noise(n_rare, folder, n_known=300, duration=600_000, are_rare_found=False):
    """
    What is missed of rare spikes between many of a known neuron, and the times of the rare ones.

    `are_rare_found` as spikes of the known neuron.
    """
    rng = np.random.default_rng(0)
    times = np.sort(rng.choice(duration // 600 - 2, n_known + n_rare, replace=False)) * 600 + 600
    is_rare = np.isin(np.arange(len(times)), rng.choice(len(times), n_rare, replace=False))
    traces = rng.normal(size=(duration, 8)).astype("float32")
    for time, rare in zip(times, is_rare, strict=True):
        traces[time - 50 : time + 71] += RARE if rare else KNOWN
    templates = make_templates(KNOWN[None].astype("float32"), nbefore=50)
    recording = NumpyRecording([traces], SAMPLING_FREQUENCY, channel_ids=templates.channel_ids)
    recording.set_probe(templates.probe)
    matched = times if are_rare_found else times[~is_rare]
    sorting = make_sorting(matched, np.zeros(len(matched), int))
    neighborhoods = Neighborhoods(recording.get_channel_locations(), 100.0)
    residuals = extract_residuals(recording, sorting, templates, neighborhoods, "neg", folder / "found", JOB_KWARGS)
    found = find_missed_units(recording, sorting, templates, NO_CHANGES, residuals, SorterParams(), folder, JOB_KWARGS)
    return found, times[is_rare]


def test_a_rare_neuron_is_found(tmp_path):
    """60 spikes in 20 s, detected on three channels."""
    (peaks, labels, weights), times = find_in_noise(60, tmp_path)
    assert np.all(weights == 1) and np.unique(labels).size == 1
    nearest = np.abs(peaks["sample_index"][:, None] - times).min(axis=1)
    assert np.sum(nearest <= 15) >= 50 and np.mean(nearest <= 15) >= 0.9


def test_a_neuron_that_the_mixture_takes_apart_is_one(tmp_path, monkeypatch):
    """Each of its parts has too few spikes to be a neuron."""

    def divide(features, channels, *_, min_spikes, **__):
        labels = np.arange(len(features)) // min_spikes
        return np.where(labels < len(features) // min_spikes, labels, -1), np.ones(len(features))

    monkeypatch.setattr(missed, "cluster_spikes", divide)
    (_, labels, _), times = find_in_noise(60, tmp_path)
    assert MIN_PART < MIN_SPIKES and np.unique(labels).size == 1 and len(labels) > len(times) // 2


def test_a_large_neuron_needs_few_spikes(tmp_path):
    (peaks, labels, _), times = find_in_noise(MIN_SPIKES - 4, tmp_path)
    nearest = np.abs(peaks["sample_index"][:, None] - times).min(axis=1)
    assert np.sum(nearest <= 15) >= MIN_SPIKES_OF_LARGE and np.unique(labels).size == 1 and np.mean(nearest <= 15) > 0.8


def test_spikes_that_matching_took_for_those_of_another_neuron_are_missed(tmp_path):
    (peaks, labels, _), times = find_in_noise(30, tmp_path, are_rare_found=True)
    nearest = np.abs(peaks["sample_index"][:, None] - times).min(axis=1)
    assert np.sum(nearest <= 15) >= 25 and np.unique(labels).size == 1 and np.mean(nearest <= 15) > 0.9


def test_nothing_is_missed_in_noise(tmp_path):
    (peaks, labels, _), _ = find_in_noise(0, tmp_path)
    assert len(peaks) == len(labels) == 0


def test_too_few_spikes_are_no_neuron(tmp_path):
    (peaks, labels, _), _ = find_in_noise(MIN_SPIKES_OF_LARGE // 2, tmp_path)
    assert len(peaks) == len(labels) == 0


# --- as new units ---


def test_missed_units_get_ids_that_are_free():
    old = RefinedUnits(
        make_peaks([10, 20], 0),
        np.array([7, 8]),
        np.array([2, 2]),
        np.array([0, -1]),
        {7: 30.0, 8: 40.0},
        {7: 15.0, 8: 40.0},
        [2],
        free_id=9,
    )
    new = old.add(make_peaks([30, 40, 50], 1), np.array([5, 2, 5]), np.array([1.5, 2.0, 2.5]))
    assert new.labels.tolist() == [7, 8, 10, 9, 10] and new.free_id == 11
    assert new.n_spikes == {7: 30.0, 8: 40.0, 9: 2.0, 10: 4.0} and new.replaced == [2]
    assert new.made_of == {7: 15.0, 8: 40.0, 9: 2.0, 10: 4.0}
    assert new.peaks["sample_index"].tolist() == [10, 20, 30, 40, 50]
    assert new.origins.tolist() == [2, 2, -1, -1, -1] and new.lags.tolist() == [0, -1, 0, 0, 0]


def test_no_missed_units_change_nothing():
    counts = {7: 30.0}
    old = RefinedUnits(make_peaks([10], 0), np.array([7]), np.array([4]), np.array([0]), counts, counts, [], free_id=8)
    new = old.add(make_peaks([], 0), np.zeros(0, int), np.zeros(0))
    assert new.n_spikes == old.n_spikes and new.labels.tolist() == [7] and new.free_id == 8
