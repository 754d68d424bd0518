"""Spikes that overlap those of larger neurons are told from those that stand alone."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, Templates
from spikeinterface.core.sparsity import ChannelSparsity

from spikeinterface_huidurep.collisions import find_single_spikes, measure_misfits
from spikeinterface_huidurep.matching import estimate_templates, make_sorting
from spikeinterface_huidurep.params import SorterParams
from tests.unit.test_matching import peaks_of

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = dict(n_jobs=1, progress_bar=False)
N_BEFORE, N_SAMPLES, N_SPIKES, N_COLLISIONS = 20, 50, 60, 12
SHAPE = -np.exp(-0.5 * ((np.arange(N_SAMPLES) - N_BEFORE) / 4) ** 2)[:, None] * np.array([7.0, 4.0, 0.0])


@pytest.fixture(scope="module")
def weak_unit():
    """(recording of two segments, samples, segments, is_collision): a fifth of the spikes overlap far larger ones."""
    rng = np.random.default_rng(0)
    traces = [rng.normal(size=(60_000, 3)).astype("float32") for _ in range(2)]
    samples = np.tile(200 + 1_900 * np.arange(N_SPIKES // 2), 2)
    segments = np.repeat([0, 1], N_SPIKES // 2)
    is_collision = np.zeros(N_SPIKES, dtype=bool)
    is_collision[rng.choice(N_SPIKES, N_COLLISIONS, replace=False)] = True
    for sample, segment, collides in zip(samples, segments, is_collision, strict=True):
        window = slice(sample - N_BEFORE, sample - N_BEFORE + N_SAMPLES)
        traces[segment][window] += SHAPE
        if collides:
            traces[segment][window.start + 15 : window.stop + 15] += 20 * SHAPE[:, ::-1]
    recording = NumpyRecording(traces, SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(3), 20.0 * np.arange(3)])
    return recording, samples, segments, is_collision


def make_templates(recording, waveforms):
    return Templates(
        templates_array=np.asarray(waveforms, dtype="float32"),
        sampling_frequency=SAMPLING_FREQUENCY,
        nbefore=N_BEFORE,
        channel_ids=recording.channel_ids,
        unit_ids=np.arange(len(waveforms)),
        sparsity_mask=None,
        probe=recording.get_probe(),
        is_in_uV=False,
    ).to_sparse(ChannelSparsity(np.any(waveforms, axis=1), np.arange(len(waveforms)), recording.channel_ids))


def test_a_misfit_is_the_mean_square_of_what_the_template_leaves_on_its_channels(weak_unit):
    recording, samples, segments, _ = weak_unit
    waveforms = np.stack([SHAPE, 2 * SHAPE])
    sorting, _ = make_sorting(samples, np.arange(N_SPIKES) % 2, segments, SAMPLING_FREQUENCY)
    spikes = sorting.to_spike_vector()
    misfits = measure_misfits(recording, spikes, make_templates(recording, waveforms), JOB_KWARGS)
    for index in (0, 1, N_SPIKES - 1):
        start, unit_index = spikes["sample_index"][index] - N_BEFORE, spikes["unit_index"][index]
        cut = recording.get_traces(spikes["segment_index"][index], start, start + N_SAMPLES)
        assert misfits[index] == pytest.approx(np.mean((cut - waveforms[unit_index])[:, :2] ** 2), rel=1e-5)


def test_spikes_that_overlap_larger_ones_are_not_single(weak_unit):
    recording, samples, segments, is_collision = weak_unit
    sorting, order = make_sorting(samples, np.zeros(N_SPIKES, dtype=int), segments, SAMPLING_FREQUENCY)
    is_single = find_single_spikes(recording, sorting, make_templates(recording, SHAPE[None]), JOB_KWARGS)
    assert not is_single[is_collision[order]].any()
    assert is_single[~is_collision[order]].mean() > 0.9


def test_at_least_half_of_the_spikes_stay_whatever_they_are(weak_unit):
    recording, _, _, _ = weak_unit
    samples = np.random.default_rng(1).integers(100, 59_000, N_SPIKES)
    sorting, _ = make_sorting(samples, np.zeros(N_SPIKES, dtype=int), np.zeros(N_SPIKES, dtype=int), SAMPLING_FREQUENCY)
    is_single = find_single_spikes(recording, sorting, make_templates(recording, 50 * SHAPE[None]), JOB_KWARGS)
    assert is_single.sum() >= N_SPIKES / 2


def test_first_templates_hold_nothing_of_the_spikes_of_others(weak_unit):
    recording, samples, segments, is_collision = weak_unit
    peaks, labels = peaks_of([samples[segments == 0]], [0])
    templates = estimate_templates(recording, peaks, labels, SorterParams(), JOB_KWARGS)
    found = templates.get_dense_templates()[0]
    start = templates.nbefore - N_BEFORE
    wanted = np.zeros_like(found)
    wanted[start : start + N_SAMPLES] = SHAPE
    wanted[:, ~templates.sparsity_mask[0]] = 0
    n_alone = np.sum(~is_collision[segments == 0])
    assert np.abs(found - wanted).max() < 5 / np.sqrt(n_alone)
