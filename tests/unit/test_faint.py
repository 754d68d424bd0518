"""Faint spikes: those of weak units that matching misses are found, and no part of others is taken for one."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, Templates
from spikeinterface.core.base import minimum_spike_dtype
from spikeinterface.core.generate import InjectTemplatesRecording

from spikeinterface_huidurep.changes import NO_CHANGES
from spikeinterface_huidurep.faint import MAX_NORM, MS_BESIDE, add_faint_spikes, find_nearby, is_alone
from spikeinterface_huidurep.matching import find_coincidences, make_sorting, match_templates
from spikeinterface_huidurep.params import SorterParams

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = {"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False}
N_SPIKES = 300
APART = 900  # samples
SAMPLES = APART * np.arange(1, N_SPIKES + 1)


def make_unit(norm, samples=SAMPLES, sizes=1.0):
    """Noise with spikes of one unit, by default far apart, its template, and their samples."""
    rng = np.random.default_rng(0)
    waveform = np.zeros((60, 4), dtype="float32")
    waveform[15:25] = -np.hanning(12)[1:-1, None] * [1.0, 0.8, 0.6, 0.3]
    waveform[25:45] = 0.4 * np.hanning(22)[1:-1, None] * [1.0, 0.8, 0.6, 0.3]
    noise = rng.standard_normal((APART * (N_SPIKES + 2), 4)).astype("float32")
    silence = NumpyRecording([noise], SAMPLING_FREQUENCY)
    silence.set_dummy_probe_from_locations(20.0 * np.arange(8.0).reshape(4, 2))
    templates = Templates(
        templates_array=(norm / np.linalg.norm(waveform) * waveform)[None],
        sampling_frequency=SAMPLING_FREQUENCY,
        nbefore=20,
        sparsity_mask=np.ones((1, 4), dtype=bool),
        channel_ids=silence.channel_ids,
        unit_ids=np.array([7]),
        probe=silence.get_probe(),
        is_in_uV=False,
    )
    truth, _ = make_sorting(samples, np.full(len(samples), 7), np.zeros(len(samples), int), SAMPLING_FREQUENCY)
    traces = InjectTemplatesRecording(truth, templates.templates_array, 20, sizes, parent_recording=silence)
    return traces, templates, samples


def count_found(sorting, samples):
    """Number of true spikes found, and of others."""
    found = find_coincidences(sorting.to_spike_vector()["sample_index"], samples, 3)
    return found.sum(), np.sum(~found)


def test_faint_spikes_of_a_weak_unit_are_found():
    traces, templates, samples = make_unit(7.0)
    matched = match_templates(traces, templates, SorterParams(), JOB_KWARGS)
    sorting = add_faint_spikes(traces, matched, templates, NO_CHANGES, JOB_KWARGS)
    (n_matched, _), (n_found, n_false) = (count_found(found, samples) for found in (matched, sorting))
    assert n_matched < 0.7 * N_SPIKES
    assert n_found > 0.9 * N_SPIKES
    assert n_false < 0.05 * N_SPIKES
    assert sorting.unit_ids.tolist() == [7]


def test_large_units_have_none():
    traces, templates, samples = make_unit(1.05 * MAX_NORM)
    half, _ = make_sorting(samples[::2], np.full(150, 7), np.zeros(150, int), SAMPLING_FREQUENCY)
    assert add_faint_spikes(traces, half, templates, NO_CHANGES, JOB_KWARGS) is half


def make_spikes(samples, units, segments=0):
    spikes = np.zeros(len(samples), dtype=minimum_spike_dtype)
    spikes["sample_index"], spikes["unit_index"], spikes["segment_index"] = samples, units, segments
    return spikes


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("unit, segment, is_near", [(0, 0, True), (1, 0, True), (2, 0, False), (1, 1, False)])
def test_spikes_beside_others_are_not_alone(unit, segment, is_near, far):
    nearby = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    tolerance = round(MS_BESIDE * 1e-3 * SAMPLING_FREQUENCY)
    others = make_spikes([1000 - tolerance - far], [unit], segment)
    spikes = make_spikes([1000, 5000], [0, 0])
    assert is_alone(spikes, others, nearby, SAMPLING_FREQUENCY).tolist() == [far or not is_near, True]


def test_templates_are_nearby_where_they_share_a_channel():
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    templates = Templates(
        templates_array=np.zeros((3, 10, 2), dtype="float32"),
        sampling_frequency=SAMPLING_FREQUENCY,
        nbefore=5,
        sparsity_mask=mask,
    )
    assert find_nearby(templates).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def make_bursts(sizes):
    """As `make_unit`, with bursts of spikes of these sizes 5 ms apart; and the spikes as large as the first."""
    samples = np.add.outer(4 * APART * np.arange(1, N_SPIKES // 4), 150 * np.arange(len(sizes))).ravel()
    all_sizes = np.tile(sizes, len(samples) // len(sizes))
    traces, templates, _ = make_unit(30.0, samples, all_sizes)
    return traces, templates, samples[all_sizes == 1], samples[all_sizes < 1]


def test_the_small_spikes_of_bursts_are_found():
    traces, templates, large, small = make_bursts([1.0, 1.0, 0.4, 0.4])
    matched = match_templates(traces, templates, SorterParams(), JOB_KWARGS)
    assert count_found(matched, large) == (len(large), 0)
    sorting = add_faint_spikes(traces, matched, templates, NO_CHANGES, JOB_KWARGS)
    assert count_found(sorting, np.sort(np.r_[large, small])) == (len(large) + len(small), 0)


def test_small_spikes_that_follow_no_others_are_of_another_neuron():
    traces, templates, large, small = make_bursts([1.0, 1.0, 0.0, 0.0, 0.0, 0.4])
    matched = match_templates(traces, templates, SorterParams(), JOB_KWARGS)
    sorting = add_faint_spikes(traces, matched, templates, NO_CHANGES, JOB_KWARGS)
    assert count_found(sorting, large) == (len(large), 0)


def test_small_spikes_of_a_unit_that_does_not_burst_are_of_another_neuron():
    traces, templates, large, small = make_bursts([1.0, 0.4])
    matched = match_templates(traces, templates, SorterParams(), JOB_KWARGS)
    assert add_faint_spikes(traces, matched, templates, NO_CHANGES, JOB_KWARGS) is matched
