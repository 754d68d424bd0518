"""Spikes that overlap are explained together, and the templates of collisions are told from those of neurons."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep.matching import find_coincidences, keep_units, make_sorting, match_templates
from spikeinterface_huidurep.overlaps import find_candidates, find_mixtures, resolve_overlaps
from spikeinterface_huidurep.params import SorterParams
from tests.unit.test_collisions import make_templates

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = dict(n_jobs=1, chunk_duration="1s", progress_bar=False)
N_BEFORE, N_SAMPLES, N_CHANNELS = 20, 50, 6
APART = 600  # samples
TIMES = np.arange(N_SAMPLES) - N_BEFORE
LAGS = np.tile([-5, -3, -1, 1, 3, 5], 10)  # of the second spike of a collision


def make_waveform(centre, size, width):
    """A trough with a slower peak after it, largest on one channel."""
    trough, peak = (
        np.exp(-0.5 * ((TIMES - at) / spread) ** 2) for at, spread in ((0, width), (4 * width, 2.5 * width))
    )
    return np.outer(0.5 * peak - trough, size * np.exp(-0.5 * ((np.arange(N_CHANNELS) - centre) / 1.2) ** 2))


FIRST, SECOND, SMALL = make_waveform(2.0, 40.0, 3.0), make_waveform(3.2, 35.0, 4.0), make_waveform(2.5, 6.0, 2.0)
MIXTURE = np.mean([FIRST + np.roll(SECOND, lag, axis=0) for lag in (-1, 0, 1)], axis=0)


def make_traces(samples, waveforms, n_samples, seed=0):
    """Noise with spikes, float32 (n_samples, N_CHANNELS)."""
    traces = np.random.default_rng(seed).normal(size=(n_samples, N_CHANNELS)).astype("float32")
    for sample, waveform in zip(samples, waveforms, strict=True):
        traces[sample - N_BEFORE : sample - N_BEFORE + N_SAMPLES] += waveform
    return traces


def make_recording(traces):
    recording = NumpyRecording(traces, SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(N_CHANNELS), 20.0 * np.arange(N_CHANNELS)])
    return recording


def make_spikes(samples, units, segments=None):
    order = np.argsort(samples, kind="stable") if segments is None else np.lexsort((samples, segments))
    spikes = np.zeros(
        len(samples), dtype=[("sample_index", "int64"), ("cluster_index", "int64"), ("segment_index", "int64")]
    )
    spikes["sample_index"], spikes["cluster_index"] = samples, units
    spikes["segment_index"] = 0 if segments is None else segments
    return spikes[order]


@pytest.fixture(scope="module")
def collisions():
    """(recording, samples, units): each spike of the first neuron overlaps one of the second."""
    first = APART * np.arange(1, len(LAGS) + 1)
    samples = np.r_[first, first + LAGS]
    units = np.repeat([0, 1], len(LAGS))
    traces = make_traces(samples, [(FIRST, SECOND)[unit] for unit in units], APART * (len(LAGS) + 2))
    return make_recording([traces]), samples, units


def list_trains(spikes):
    return [sorted(spikes["sample_index"][spikes["cluster_index"] == unit].tolist()) for unit in range(3)]


def test_overlapping_spikes_taken_for_others_are_found_out(collisions):
    recording, samples, units = collisions
    templates = make_templates(recording, [FIRST, SECOND, SMALL])
    wrong = np.r_[samples[units == 0] + 2, samples[units == 1] - 3, samples[units == 0] + 15]
    spikes = make_spikes(wrong, np.repeat([0, 1, 2], len(LAGS)))
    resolved = list_trains(resolve_overlaps(recording, spikes, templates, JOB_KWARGS))
    for unit in (0, 1):  # the first as much too late as the second is too early leaves hardly more than noise
        np.testing.assert_allclose(resolved[unit], np.sort(samples[units == unit]), atol=1)
    assert resolved[2] == []


def test_what_is_explained_stays_as_it_is(collisions):
    recording, samples, units = collisions
    templates = make_templates(recording, [FIRST, SECOND, SMALL])
    spikes = make_spikes(samples, units)
    assert list_trains(resolve_overlaps(recording, spikes, templates, JOB_KWARGS)) == list_trains(spikes)


def test_a_spike_between_two_samples_is_not_taken_for_another():
    samples = APART * np.arange(1, 31)
    halfway = 0.5 * (FIRST + np.roll(FIRST, 1, axis=0))
    recording = make_recording([make_traces(samples, [halfway] * len(samples), APART * 32)])
    templates = make_templates(recording, [FIRST, 0.97 * FIRST + 0.3 * SMALL])
    spikes = make_spikes(samples, np.zeros(len(samples), dtype=int))
    resolved = resolve_overlaps(recording, spikes, templates, JOB_KWARGS)
    assert resolved["cluster_index"].tolist() == [0] * len(samples)


def test_spikes_of_all_segments_and_at_their_ends_are_kept():
    samples, segments = np.array([3, 400, 1_995, 40, 1_000]), np.array([0, 0, 0, 1, 1])
    traces = []
    for segment in range(2):
        padded = make_traces(samples[segments == segment] + 100, [FIRST] * np.sum(segments == segment), 2_200, segment)
        traces.append(padded[100:2_100])
    recording = make_recording(traces)
    templates = make_templates(recording, [FIRST, SECOND])
    spikes = make_spikes(samples, np.zeros(len(samples), dtype=int), segments)
    resolved = resolve_overlaps(recording, spikes, templates, JOB_KWARGS)
    assert resolved["sample_index"].tolist() == samples.tolist()
    assert resolved["segment_index"].tolist() == segments.tolist()


def test_traces_of_one_channel_stay_as_they_are():
    """Chunks at the ends are padded and so copied anyway: the spike is in one between them."""
    waveform = FIRST[:, 2:3]
    noise = np.random.default_rng(0).normal(size=(90_000, 1)).astype("float32")
    noise[45_000 - N_BEFORE : 45_000 - N_BEFORE + N_SAMPLES] += waveform
    recording = NumpyRecording([noise.copy()], SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(np.zeros((1, 2)))
    spikes = make_spikes(np.array([45_002]), 0)
    resolved = resolve_overlaps(recording, spikes, make_templates(recording, [waveform]), JOB_KWARGS)
    assert resolved["sample_index"].tolist() == [45_000]
    assert np.array_equal(recording.get_traces(), noise)


def test_no_spikes_stay_none(collisions):
    recording, _, _ = collisions
    spikes = make_spikes(np.zeros(0, dtype=int), 0)
    assert len(resolve_overlaps(recording, spikes, make_templates(recording, [FIRST]), JOB_KWARGS)) == 0


def make_collided_recording():
    """Both neurons alone, many times, and now and then together; the unit 2 is made of the collisions."""
    times = APART * np.arange(1, 301)
    kinds = np.arange(300) % 10  # 0 is a collision
    lags = np.resize([-1, 0, 1], 300)
    samples = np.r_[times[kinds <= 5], times[(kinds == 0) | (kinds > 5)] + lags[(kinds == 0) | (kinds > 5)]]
    units = np.repeat([0, 1], [np.sum(kinds <= 5), np.sum((kinds == 0) | (kinds > 5))])
    traces = make_traces(samples, [(FIRST, SECOND)[unit] for unit in units], APART * 302)
    found_samples = np.r_[times[kinds == 0], times[(kinds > 0) & (kinds <= 5)], times[kinds > 5] + lags[kinds > 5]]
    found_units = np.repeat([2, 0, 1], [np.sum(kinds == 0), np.sum((kinds > 0) & (kinds <= 5)), np.sum(kinds > 5)])
    return make_recording([traces]), found_samples, found_units


def test_a_template_of_collisions_is_a_mixture_and_that_of_a_neuron_is_none():
    recording, samples, units = make_collided_recording()
    templates = make_templates(recording, [FIRST, SECOND, MIXTURE])
    assert find_mixtures(recording, make_spikes(samples, units), templates, JOB_KWARGS).tolist() == [2]


def test_the_spikes_of_a_mixture_are_given_to_those_that_collided():
    recording, samples, units = make_collided_recording()
    templates = make_templates(recording, [FIRST, SECOND, MIXTURE])
    resolved = list_trains(resolve_overlaps(recording, make_spikes(samples, units), templates, JOB_KWARGS, [2]))
    collisions = samples[units == 2]
    for unit, n_spikes in enumerate([180, 150]):
        assert find_coincidences(collisions, np.array(resolved[unit]), 2).all()
        assert len(resolved[unit]) == n_spikes
    assert resolved[2] == []


def test_a_rare_neuron_like_a_frequent_one_is_no_mixture():
    rare = FIRST + 1.5 * np.roll(SMALL, 3, axis=0)
    samples = APART * np.arange(1, 201)
    units = (np.arange(200) % 8 == 0).astype(int)
    recording = make_recording([make_traces(samples, [(FIRST, rare)[unit] for unit in units], APART * 202)])
    templates = make_templates(recording, [FIRST, rare])
    assert find_candidates(templates, np.bincount(units)).tolist() == [1]
    assert find_mixtures(recording, make_spikes(samples, units), templates, JOB_KWARGS).tolist() == []


def test_without_spikes_there_is_no_mixture(collisions):
    recording, _, _ = collisions
    spikes = make_spikes(np.zeros(0, dtype=int), 0)
    assert len(find_mixtures(recording, spikes, make_templates(recording, [FIRST, SECOND]), JOB_KWARGS)) == 0


def test_matching_finds_both_spikes_of_collisions(collisions):
    recording, samples, units = collisions
    templates = make_templates(recording, [FIRST, SECOND, SMALL])
    spikes = match_templates(recording, templates, SorterParams(min_firing_rate=0.0), JOB_KWARGS).to_spike_vector()
    for unit in (0, 1):
        found = np.sort(spikes["sample_index"][spikes["unit_index"] == unit])
        assert find_coincidences(samples[units == unit], found, 1).all()
    assert len(spikes) <= 1.1 * len(samples)


def test_units_left_out_give_back_all_but_leftovers():
    """The third unit has half of the spikes of the second, and what the first leaves over, which is like them."""
    first, second = APART * np.arange(1, 41), APART * np.arange(41, 81)
    leftovers = first + 100
    waveforms = [FIRST] * 40 + [SMALL] * 80
    recording = make_recording([make_traces(np.r_[first, second, leftovers], waveforms, APART * 82)])
    labels = np.repeat([0, 1, 2, 2], [40, 20, 20, 40])
    times = np.r_[first, second, leftovers]
    sorting, order = make_sorting(times, labels, np.zeros(len(times), dtype=int), SAMPLING_FREQUENCY)
    templates = make_templates(recording, [FIRST, SMALL, 0.95 * SMALL])
    is_leftover = np.isin(times, leftovers)[order]
    kept, templates = keep_units(recording, sorting, templates, np.array([0, 1]), is_leftover, JOB_KWARGS)
    assert kept.unit_ids.tolist() == templates.unit_ids.tolist() == [0, 1]
    for unit_id, train in enumerate([first, second]):
        np.testing.assert_allclose(kept.get_unit_spike_train(unit_id, segment_index=0), train, atol=1)


def test_what_is_left_of_a_large_spike_is_no_other_of_the_same_unit():
    """The second unit took what is more than the template of the first, and is left out."""
    samples = APART * np.arange(1, 41)
    recording = make_recording([make_traces(samples, [1.7 * FIRST] * len(samples), APART * 42)])
    templates = make_templates(recording, [FIRST, 0.7 * FIRST])
    spikes = make_spikes(np.repeat(samples, 2), np.tile([0, 1], len(samples)))
    resolved = resolve_overlaps(recording, spikes, templates, JOB_KWARGS, mixtures=[1])
    assert resolved["sample_index"].tolist() == samples.tolist()
