"""Tracking: waveforms that change slowly are followed, those that do not are left alone."""

from dataclasses import replace

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, Templates

from spikeinterface_huidurep import tracking
from spikeinterface_huidurep.changes import NO_CHANGES, Change, Changes, find_block, shrink_mean, shrink_median
from spikeinterface_huidurep.motion import DISPLACEMENT
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.residuals import change_templates, count_samples, extract_residuals
from spikeinterface_huidurep.tracking import (
    BLOCK_S,
    MAX_BLOCKS,
    MIN_CHANGE,
    MIN_CHANGE_OF_BLOCK,
    MIN_SPIKES,
    borrow_changes,
    find_changes,
    find_drift,
    match_changing_templates,
    measure_largest_change,
    split_time,
)
from spikeinterface_huidurep.waveforms import Neighborhoods

from .test_results import JOB_KWARGS, SAMPLING_FREQUENCY, make_sorting
from .test_splitting import pulse

N_CHANNELS, N_BEFORE, N_SAMPLES = 4, 45, 110
BLOCK_SIZE = 15_000  # samples
UNIT_IDS = [3, 8]


# --- blocks ---


@pytest.mark.parametrize(
    "durations_s, n_blocks",
    [([1.0], 1), ([2.4 * BLOCK_S], 2), ([2.6 * BLOCK_S, 0.2 * BLOCK_S], 4), ([2 * MAX_BLOCKS * BLOCK_S], MAX_BLOCKS)],
)
def test_blocks_are_the_recording(durations_s, n_blocks):
    traces = NumpyRecording([np.zeros((int(100 * duration_s), 1), "float32") for duration_s in durations_s], 100.0)
    blocks = split_time(traces)
    assert len(blocks) == n_blocks
    for segment in range(len(durations_s)):
        ends = [block[1:] for block in blocks if block[0] == segment]
        assert ends[0][0] == 0 and ends[-1][1] == traces.get_num_samples(segment)
        assert all(first[1] == second[0] for first, second in zip(ends[:-1], ends[1:], strict=True))


# --- changes ---


def test_shrunk_mean_by_hand():
    values = np.array([[3.0, 0.0], [5.0, 0.0], [4.0, 3.0], [4.0, -3.0]])
    # the mean is (4, 0) with energy 16; the squares around it sum to 20, by chance the mean has 20 / 3 / 4
    np.testing.assert_allclose(shrink_mean(values), [4 * (1 - 20 / 12 / 16), 0])
    values[:, 0] = [2.0, 1.0, 0.0, 1.0]  # a mean of (1, 0), by chance one of 20 / 3 / 4
    np.testing.assert_array_equal(shrink_mean(values), [0, 0])


def test_shrunk_median_is_that_of_most():
    rng = np.random.default_rng(0)
    values = rng.normal([3.0, 0.0, -2.0], 1.0, (200, 3))
    np.testing.assert_allclose(shrink_median(values), [3.0, 0.0, -2.0], atol=0.3)
    values[:40] = 500.0  # spikes of another neuron beside them
    np.testing.assert_allclose(shrink_median(values), [3.0, 0.0, -2.0], atol=0.8)
    assert not shrink_median(rng.normal(size=(200, 50))).any()


def test_the_mean_of_noise_shrinks_to_nothing():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 50, 600))
    assert not any(shrink_mean(values).any() for values in noise)
    signal = np.full(600, 0.5)
    followed = np.array([shrink_mean(values + signal) for values in noise[:20]])
    assert followed.any(axis=1).all()
    plain = noise[:20].mean(axis=1) + signal
    assert np.mean((followed - signal) ** 2) < np.mean((plain - signal) ** 2)


def place(sizes, width):
    """Waveform, shape (N_SAMPLES, N_CHANNELS)."""
    return (np.array(sizes)[:, None] * pulse(width=width, n_before=N_BEFORE, n_samples=N_SAMPLES)).T


STEADY = place([2.0, 9.0, 16.0, 8.0], 5.0)
EARLY, LATE = place([15.0, 10.0, 4.0, 1.0], 6.0), place([4.0, 12.0, 14.0, 5.0], 6.0)


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    """
    (traces, sorting, templates, residuals, blocks) of two neurons in two blocks.

    The second neuron has another waveform in the second block than in the first; its template is the mean of both.
    Every fifth of its late spikes is given to the first neuron, which does not change.
    """
    rng = np.random.default_rng(0)
    samples = 130 + 140 * np.arange(212)
    samples[106:] += BLOCK_SIZE + 100 - samples[106]
    units = rng.integers(0, 2, len(samples))
    is_late = samples >= BLOCK_SIZE
    noise = rng.normal(size=(2 * BLOCK_SIZE + 200, N_CHANNELS))
    for sample, unit, late in zip(samples, units, is_late, strict=True):
        waveform = (LATE if late else EARLY) if unit else STEADY
        noise[sample - N_BEFORE : sample - N_BEFORE + N_SAMPLES] += waveform
    traces = NumpyRecording([noise.astype("float32")], SAMPLING_FREQUENCY)
    traces.set_dummy_probe_from_locations(np.c_[np.zeros(N_CHANNELS), 20.0 * np.arange(N_CHANNELS)])
    found = units.copy()
    found[np.flatnonzero(is_late & (units == 1))[::5]] = 0
    sorting = make_sorting(samples, found, np.zeros(len(samples), int), unit_ids=np.array(UNIT_IDS))
    templates = Templates(
        np.stack([STEADY, 0.5 * EARLY + 0.5 * LATE]).astype("float32"),
        SAMPLING_FREQUENCY,
        N_BEFORE,
        sparsity_mask=np.ones((2, N_CHANNELS), dtype=bool),
        channel_ids=traces.channel_ids,
        unit_ids=np.array(UNIT_IDS),
        probe=traces.get_probe(),
        is_in_uV=False,
    )
    folder = tmp_path_factory.mktemp("tracking") / "spikes"
    neighborhoods = Neighborhoods(traces.get_channel_locations(), 100.0)
    residuals = extract_residuals(traces, sorting, templates, neighborhoods, "neg", folder, JOB_KWARGS)
    blocks = [(0, 0, BLOCK_SIZE), (0, BLOCK_SIZE, traces.get_num_samples())]
    return traces, sorting, templates, residuals, blocks, (samples, units)


def test_what_changes_is_found(drifting):
    _, sorting, _, residuals, blocks, _ = drifting
    changes = find_changes(sorting, residuals, blocks).of_block
    assert 8 in changes[0] and 8 in changes[1] and 3 not in changes[0]
    n_before, n_after = count_samples(SAMPLING_FREQUENCY)
    expected = 0.5 * (EARLY - LATE)[N_BEFORE - n_before : N_BEFORE + n_after].T
    for change, sign in ((changes[0][8], 1), (changes[1][8], -1)):
        assert change.channels.tolist() == list(range(N_CHANNELS))
        assert np.linalg.norm(change.waveform - sign * expected) < 0.3 * np.linalg.norm(expected)


@pytest.mark.parametrize("name, value", [("MIN_CHANGE", 1e3), ("MIN_SPIKES", 1000)])
def test_small_changes_and_few_spikes_say_nothing(drifting, monkeypatch, name, value):
    assert MIN_CHANGE < 1e3 and MIN_SPIKES < 1000
    monkeypatch.setattr(tracking, name, value)
    _, sorting, _, residuals, blocks, _ = drifting
    assert find_changes(sorting, residuals, blocks).of_block == [{}, {}]


def find_drift_of(drifting, folder, *, displacement_um=None, unit_ids=UNIT_IDS, size=1.0):
    """With templates that are `size` times as large as they should be."""
    traces, _, templates, residuals, _, (samples, units) = drifting
    templates = replace(templates, templates_array=np.float32(size) * templates.templates_array)
    annotated = traces.clone()
    annotated.annotate(**{DISPLACEMENT: displacement_um})
    sorting = make_sorting(samples, units, np.zeros(len(samples), int), unit_ids=np.array(UNIT_IDS))
    units, neighborhoods = sorting.select_units(unit_ids), residuals.neighborhoods
    return find_drift(annotated, units, templates, neighborhoods, "neg", folder / "drift", JOB_KWARGS)


@pytest.mark.parametrize("min_changing, drifts", [(0.5, True), (0.51, False)])
def test_a_probe_drifts_if_many_units_change(drifting, monkeypatch, tmp_path, min_changing, drifts):
    """One of two does, in both blocks."""
    *_, blocks, _ = drifting
    monkeypatch.setattr(tracking, "split_time", lambda _: blocks)
    monkeypatch.setattr(tracking, "MIN_CHANGING", min_changing)
    changes = find_drift_of(drifting, tmp_path)
    assert (changes is not NO_CHANGES) == drifts
    assert not list(tmp_path.iterdir())
    if drifts:
        assert [set(of_block) for of_block in changes.of_block] == [{8}, {8}]
        n_before, n_after = count_samples(SAMPLING_FREQUENCY)
        expected = 0.5 * (EARLY - LATE)[N_BEFORE - n_before : N_BEFORE + n_after].T
        for of_block, sign in zip(changes.of_block, (1, -1), strict=True):
            assert np.linalg.norm(of_block[8].waveform - sign * expected) < 0.4 * np.linalg.norm(expected)


def test_steady_units_do_not_drift_nor_do_those_whose_drift_was_corrected(drifting, monkeypatch, tmp_path):
    *_, blocks, _ = drifting
    monkeypatch.setattr(tracking, "split_time", lambda _: blocks)
    assert find_drift_of(drifting, tmp_path, unit_ids=[3]) is NO_CHANGES
    assert find_drift_of(drifting, tmp_path, unit_ids=[8]) is not NO_CHANGES
    assert find_drift_of(drifting, tmp_path, unit_ids=[8], displacement_um=np.zeros(2)) is NO_CHANGES


def test_a_template_that_never_fits_does_not_drift(drifting, monkeypatch, tmp_path):
    *_, blocks, _ = drifting
    monkeypatch.setattr(tracking, "split_time", lambda _: blocks)
    assert find_drift_of(drifting, tmp_path, unit_ids=[3], size=0.7) is NO_CHANGES
    early, late = find_drift_of(drifting, tmp_path, unit_ids=[8], size=0.7).of_block
    assert early[8].waveform.min() < 0 and late[8].waveform.min() < 0  # what is to be matched is the whole spike
    monkeypatch.setattr(tracking, "measure_medians", lambda *_: np.zeros((1, 1, 1)))
    assert find_drift_of(drifting, tmp_path, unit_ids=[3], size=0.7) is not NO_CHANGES


def test_changes_are_borrowed_from_the_nearest_block():
    blocks = [(0, 0, 10), (0, 10, 20), (0, 20, 30), (1, 0, 10), (1, 10, 20)]
    measured = [{3: "a"}, {}, {3: "b", 8: "c"}, {}, {8: "d"}]
    borrowed = borrow_changes(measured, blocks)
    assert borrowed == [{3: "a", 8: "c"}, {3: "a", 8: "c"}, {3: "b", 8: "c"}, {8: "d"}, {8: "d"}]
    assert measured[1] == {}  # the argument is not changed


def test_a_unit_that_lost_its_spikes_is_as_in_the_nearest_block(drifting):
    _, sorting, _, residuals, blocks, _ = drifting
    spikes = sorting.to_spike_vector()
    n_late = np.sum((spikes["unit_index"] == 1) & (spikes["sample_index"] >= BLOCK_SIZE))
    empty = (0, blocks[1][2], blocks[1][2] + BLOCK_SIZE)
    *_, late, after = find_changes(sorting, residuals, [*blocks, empty]).of_block
    assert n_late >= MIN_SPIKES and after[8] is late[8]


# --- templates ---


@pytest.mark.parametrize("nbefore", [N_BEFORE, 10])
def test_changed_templates(nbefore):
    """Two units on channels 0, 2, 3 and 1, 2; the second changes on channels 2 and 3."""
    mask = np.array([[True, False, True, True], [False, True, True, False]])
    sparse = np.ones((2, N_SAMPLES, 3), dtype="float32")
    sparse[1, :, 2] = 0
    templates = Templates(
        sparse, SAMPLING_FREQUENCY, nbefore, sparsity_mask=mask, channel_ids=np.arange(4), unit_ids=np.array(UNIT_IDS)
    )
    n_before, n_after = count_samples(SAMPLING_FREQUENCY)
    change = np.random.default_rng(0).normal(size=(2, n_before + n_after)).astype("float32")
    changed = change_templates(templates, {8: Change(np.array([2, 3]), change)})
    expected = templates.get_dense_templates().copy()
    for index, sample in enumerate(range(nbefore - n_before, nbefore + n_after)):
        if 0 <= sample < N_SAMPLES:
            expected[1, sample, 2] += change[0, index]
    np.testing.assert_allclose(changed.get_dense_templates(), expected, atol=1e-6)
    assert np.all(templates.templates_array[1, :, :2] == 1)  # the argument is not changed


# --- matching ---


def score(sorting, samples, units):
    """Share of the true spikes that are found, within 3 samples, by their unit."""
    hits = 0
    for unit_index, unit_id in enumerate(UNIT_IDS):
        found = sorting.get_unit_spike_train(unit_id, segment_index=0)
        hits += sum(np.any(np.abs(found - sample) <= 3) for sample in samples[units == unit_index])
    return hits / len(samples)


def test_spikes_go_back_to_their_neuron(drifting):
    traces, sorting, templates, residuals, blocks, truth = drifting
    assert score(sorting, *truth) < 0.95
    changes = find_changes(sorting, residuals, blocks)
    followed = match_changing_templates(traces, sorting, templates, changes, NO_CHANGES, SorterParams(), JOB_KWARGS)
    assert followed.unit_ids.tolist() == UNIT_IDS
    assert score(followed, *truth) > 0.99
    assert len(followed.to_spike_vector()) == pytest.approx(len(sorting.to_spike_vector()), abs=3)


def test_blocks_are_not_matched_again_with_what_they_were_matched_with(drifting):
    traces, sorting, templates, residuals, blocks, _ = drifting
    changes = find_changes(sorting, residuals, blocks)
    followed = match_changing_templates(traces, sorting, templates, changes, changes, SorterParams(), JOB_KWARGS)
    assert followed is sorting
    early_only = Changes(blocks, [changes.of_block[0], {}])
    followed = match_changing_templates(traces, sorting, templates, changes, early_only, SorterParams(), JOB_KWARGS)
    before, after = (item.to_spike_vector() for item in (sorting, followed))
    assert np.array_equal(before[find_block(before, blocks[0])], after[find_block(after, blocks[0])])
    assert not np.array_equal(before, after)


def test_blocks_without_a_change_are_kept(drifting):
    traces, sorting, templates, residuals, blocks, _ = drifting
    late_only = Changes(blocks, [{}, find_changes(sorting, residuals, blocks).of_block[1]])
    followed = match_changing_templates(traces, sorting, templates, late_only, NO_CHANGES, SorterParams(), JOB_KWARGS)
    before, after = (item.to_spike_vector() for item in (sorting, followed))
    assert np.array_equal(before[find_block(before, blocks[0])], after[find_block(after, blocks[0])])
    none = Changes(blocks, [{}, {}])
    kept = match_changing_templates(traces, sorting, templates, none, NO_CHANGES, SorterParams(), JOB_KWARGS)
    assert np.array_equal(kept.to_spike_vector(), before)


def test_the_largest_change_is_that_on_the_channels_of_the_template():
    sparse = np.ones((2, N_SAMPLES, 3), dtype="float32")
    sparse[1, :, 2] = 0
    templates = Templates(
        sparse,
        SAMPLING_FREQUENCY,
        N_BEFORE,
        sparsity_mask=np.array([[True, False, True, True], [False, True, True, False]]),
        channel_ids=np.arange(4),
        unit_ids=np.array(UNIT_IDS),
    )
    changes = {
        3: Change(np.array([1, 2]), np.array([[9.0], [-2.0]])),
        8: Change(np.array([0, 3]), np.full((2, 1), 9.0)),
    }
    assert measure_largest_change(templates, change_templates(templates, changes)) == 2.0
    assert measure_largest_change(templates, change_templates(templates, {})) == 0.0


@pytest.mark.parametrize("factor, is_kept", [(0.99, True), (1.01, False)])
def test_a_block_is_matched_anew_if_a_template_changes_enough(drifting, factor, is_kept):
    traces, sorting, templates, residuals, blocks, _ = drifting
    early, _ = find_changes(sorting, residuals, blocks).of_block
    factor *= MIN_CHANGE_OF_BLOCK / measure_largest_change(templates, change_templates(templates, early))
    small = {unit: Change(change.channels, factor * change.waveform) for unit, change in early.items()}
    changes = Changes(blocks, [small, {}])
    found = match_changing_templates(traces, sorting, templates, changes, NO_CHANGES, SorterParams(), JOB_KWARGS)
    assert (found is sorting) == is_kept


@pytest.mark.parametrize("shift", range(-60, 61, 20))
def test_spikes_at_the_edge_of_blocks_are_found_once(drifting, shift):
    traces, sorting, templates, residuals, blocks, (samples, units) = drifting
    early, _ = find_changes(sorting, residuals, blocks).of_block
    edge = int(samples[40] + shift)
    changes = Changes([(0, 0, edge), (0, edge, traces.get_num_samples())], [early, early])
    followed = match_changing_templates(traces, sorting, templates, changes, NO_CHANGES, SorterParams(), JOB_KWARGS)
    near = followed.to_spike_vector()
    near = near[np.abs(near["sample_index"] - samples[40]) <= 3]
    assert len(near) == 1 and near["unit_index"][0] == units[40]
