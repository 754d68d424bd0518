"""Renewal: new templates are means of the traces without the spikes of other units."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording
from spikeinterface.core.base import base_peak_dtype
from spikeinterface.core.sparsity import ChannelSparsity

from spikeinterface_huidurep.changes import NO_CHANGES
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.refinement import RefinedUnits
from spikeinterface_huidurep.renewal import average_own_templates, join_templates, renew_templates

from .test_results import JOB_KWARGS, make_sorting, make_templates

PARAMS = SorterParams()
N_BEFORE, N_SAMPLES, N_CHANNELS = 60, 150, 5
LARGE, WEAK, OTHER = 4, 7, 9  # old units
NEW = 12
TIMES = np.arange(N_SAMPLES) - N_BEFORE


def pulse(size, channel, delay=0):
    """Waveform of shape (N_SAMPLES, N_CHANNELS), half as large on the neighbours of its channel."""
    sizes = size * 0.5 ** np.abs(np.arange(N_CHANNELS) - channel)
    return (-np.exp(-0.5 * ((TIMES - delay) / 4) ** 2)[:, None] * np.where(sizes > size / 4, sizes, 0)).astype(
        "float32"
    )


def make_sparse(*waveforms, unit_ids):
    """Sparse templates, on the channels where the waveforms are not 0."""
    array = np.stack(waveforms)
    dense = make_templates(array, nbefore=N_BEFORE, unit_ids=unit_ids)
    return dense.to_sparse(ChannelSparsity(np.any(array != 0, axis=1), dense.unit_ids, dense.channel_ids))


def make_refined(samples, labels, origins, lags, replaced):
    peaks = np.zeros(len(samples), dtype=base_peak_dtype)
    peaks["sample_index"], peaks["channel_index"] = samples + lags, 1
    n_spikes = {label: float(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    return RefinedUnits(peaks, labels, origins, lags, n_spikes, n_spikes, replaced, free_id=NEW + 5)


def make_traces(samples, units, waveforms):
    """Noise of SD 1 with the waveform of its unit at each of the samples."""
    traces = np.random.default_rng(0).normal(size=(samples.max() + 300, N_CHANNELS)).astype("float32")
    for sample, unit in zip(samples, units, strict=True):
        traces[sample - N_BEFORE : sample - N_BEFORE + N_SAMPLES] += waveforms[unit]
    return traces


def on_probe(traces, templates):
    recording = NumpyRecording([traces], templates.sampling_frequency, channel_ids=templates.channel_ids)
    recording.set_probe(templates.probe)
    return recording


# --- templates from traces ---


@pytest.fixture
def overlapped():
    """
    (traces, sorting, templates, samples): 200 spikes of WEAK, all with one of LARGE 15 samples later.

    The old template of WEAK is half as large as its spikes and on one channel of three.
    """
    samples = 200 + 400 * np.arange(200)
    waveforms = [pulse(30.0, 2), pulse(8.0, 1)]
    all_samples, units = np.r_[samples, samples + 15], np.repeat([1, 0], 200)
    order = np.argsort(all_samples)
    traces = make_traces(all_samples, units, waveforms)
    templates = make_sparse(waveforms[0], 0.5 * waveforms[1] * (np.arange(N_CHANNELS) == 1), unit_ids=[LARGE, WEAK])
    sorting = make_sorting(all_samples[order], units[order], unit_ids=templates.unit_ids)
    return on_probe(traces, templates), sorting, templates, samples


def test_a_new_template_is_without_the_spikes_that_overlap_its_own(overlapped):
    traces, sorting, templates, samples = overlapped
    labels, origins, lags = (np.full(200, value) for value in (NEW, WEAK, 0))
    refined = make_refined(samples, labels, origins, lags, [WEAK])
    new = renew_templates(traces, sorting, templates, NO_CHANGES, refined, PARAMS, JOB_KWARGS)
    assert new.unit_ids.tolist() == [LARGE, NEW]
    dense = new.get_dense_templates()
    np.testing.assert_array_equal(dense[0], templates.get_dense_templates()[0])
    assert np.abs(dense[1] - pulse(8.0, 1)).max() < 5 / np.sqrt(200)  # 5 SD of the mean of the noise
    assert new.sparsity_mask[1].tolist() == [True, True, True, False, False]


def test_a_new_template_lies_where_the_spikes_were_moved_to(overlapped):
    traces, sorting, templates, samples = overlapped
    labels, origins, lags = (np.full(200, value) for value in (NEW, WEAK, 3))
    new = renew_templates(
        traces, sorting, templates, NO_CHANGES, make_refined(samples, labels, origins, lags, [WEAK]), PARAMS, JOB_KWARGS
    )
    assert np.abs(new.get_dense_templates()[1] - pulse(8.0, 1, delay=-3)).max() < 5 / np.sqrt(200)


def test_what_is_left_at_all_times_is_no_part_of_a_template(overlapped):
    traces, sorting, templates, samples = overlapped
    raised = on_probe(traces.get_traces() + 0.8, templates)
    labels, origins, lags = (np.full(200, value) for value in (NEW, WEAK, 0))
    refined = make_refined(samples, labels, origins, lags, [WEAK])
    new = renew_templates(raised, sorting, templates, NO_CHANGES, refined, PARAMS, JOB_KWARGS)
    assert np.abs(new.get_dense_templates()[1] - pulse(8.0, 1)).max() < 5 / np.sqrt(200)


def test_the_spikes_of_missed_units_had_no_template(overlapped):
    """WEAK was not found, so that its spikes are in the traces when LARGE is taken away."""
    traces, sorting, templates, samples = overlapped
    templates = templates.select_units([LARGE])
    refined = make_refined(samples, np.full(200, NEW), np.full(200, -1), np.zeros(200, int), [])
    new = renew_templates(traces, sorting.select_units([LARGE]), templates, NO_CHANGES, refined, PARAMS, JOB_KWARGS)
    assert new.unit_ids.tolist() == [LARGE, NEW]
    assert np.abs(new.get_dense_templates()[1] - pulse(8.0, 1)).max() < 5 / np.sqrt(200)


def test_units_without_new_spikes_are_left_out(overlapped):
    traces, sorting, templates, _ = overlapped
    nothing = [np.zeros(0, int)] * 4
    new = renew_templates(traces, sorting, templates, NO_CHANGES, make_refined(*nothing, [WEAK]), PARAMS, JOB_KWARGS)
    assert new.unit_ids.tolist() == [LARGE]
    none_left = make_refined(*nothing, [LARGE, WEAK])
    assert renew_templates(traces, sorting, templates, NO_CHANGES, none_left, PARAMS, JOB_KWARGS) is None


def test_a_new_template_that_is_too_small_is_none(overlapped):
    traces, sorting, templates, _ = overlapped
    between = 400 + 400 * np.arange(200)  # noise
    refined = make_refined(between, np.full(200, NEW), np.full(200, -1), np.zeros(200, int), [LARGE])
    new = renew_templates(traces, sorting, templates, NO_CHANGES, refined, PARAMS, JOB_KWARGS)
    assert new.unit_ids.tolist() == [WEAK]


# --- own templates ---


def test_own_templates_are_weighted_by_their_spikes():
    old = make_sparse(pulse(30.0, 2), pulse(8.0, 1), pulse(12.0, 3), unit_ids=[LARGE, WEAK, OTHER])
    labels = np.repeat([NEW + 1, NEW], [4, 2])
    origins, lags = np.array([WEAK, WEAK, OTHER, -1, LARGE, LARGE]), np.array([0, 2, 0, 0, -1, -1])
    refined = make_refined(np.arange(6), labels, origins, lags, [LARGE, WEAK, OTHER])
    found = average_own_templates(old, refined)
    np.testing.assert_allclose(found[0], pulse(30.0, 2, delay=1), atol=1e-5)
    wanted = (pulse(8.0, 1) + pulse(8.0, 1, delay=-2) + pulse(12.0, 3)) / 4
    np.testing.assert_allclose(found[1], wanted, atol=1e-5)


# --- joined templates ---


def test_joined_templates_are_those_of_both():
    first = make_sparse(pulse(30.0, 2), pulse(8.0, 0), unit_ids=[LARGE, WEAK])
    second = make_sparse(pulse(12.0, 3), unit_ids=[OTHER])
    joined = join_templates(first, second)
    assert joined.unit_ids.tolist() == [LARGE, WEAK, OTHER] and joined.nbefore == N_BEFORE
    np.testing.assert_array_equal(joined.get_dense_templates(), [pulse(30.0, 2), pulse(8.0, 0), pulse(12.0, 3)])
    np.testing.assert_array_equal(joined.sparsity_mask, np.concatenate([first.sparsity_mask, second.sparsity_mask]))


def test_nothing_is_joined_with_no_templates():
    one = make_sparse(pulse(30.0, 2), unit_ids=[LARGE])
    none = one.select_units([])
    assert join_templates(one, None) is one and join_templates(none, one) is one
    assert join_templates(none, None) is None


def test_spikes_as_they_are_known_by_hand():
    sorting = make_sorting(
        np.array([10, 20, 30, 40]), np.array([0, 1, 0, 1]), np.zeros(4, int), unit_ids=np.array([LARGE, WEAK])
    )
    labels, lags = np.array([NEW, NEW, NEW + 1]), np.array([1, 0, 0])
    refined = make_refined(np.array([20, 40, 60]), labels, np.array([WEAK, WEAK, -1]), lags, [WEAK])
    known = refined.make_sorting(sorting, np.array([LARGE, NEW]))  # the other new unit has no template
    assert known.unit_ids.tolist() == [LARGE, NEW]
    assert [known.get_unit_spike_train(unit, 0).tolist() for unit in (LARGE, NEW)] == [[10, 30], [21, 40]]
