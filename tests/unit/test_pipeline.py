"""The glue: what the steps hand on, and how the units are looked at twice."""

from types import SimpleNamespace

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, NumpySorting
from spikeinterface.core.base import base_peak_dtype
from threadpoolctl import threadpool_info, threadpool_limits

from spikeinterface_huidurep import pipeline, tracking
from spikeinterface_huidurep.changes import NO_CHANGES
from spikeinterface_huidurep.linking import link_fragments
from spikeinterface_huidurep.matching import estimate_templates
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.pipeline import (
    Assignment,
    Clock,
    Clusters,
    find_neurons,
    find_units,
    link,
    match_units,
)
from spikeinterface_huidurep.waveforms import Neighborhoods

from .test_linking import DURATION_S, fire, fire_at_random, make_trains, make_units

SAMPLING_FREQUENCY = 30_000.0


def make_clusters(labels, samples, segments=None, weight=1.0):
    """Clusters whose posteriors are 0, 0.01, 0.02, ..."""
    n_peaks = len(labels)
    peaks = np.zeros(n_peaks, dtype=base_peak_dtype)
    peaks["sample_index"] = samples
    peaks["segment_index"] = np.zeros(n_peaks) if segments is None else segments
    return Clusters(
        peaks,
        waveforms=np.zeros((n_peaks, 1, 64), "float16"),
        features=np.zeros((n_peaks, 2), "float32"),
        labels=np.array(labels, dtype="int64"),
        posteriors=(np.arange(n_peaks) / 100).astype("float32"),
        neighborhoods=Neighborhoods(np.zeros((1, 2)), 100.0),
        weights=np.full(n_peaks, weight),
    )


@pytest.mark.parametrize("weight, wanted", [(1.0, {0: 1, 4: 3}), (4.0, {0: 4, 4: 12})])
def test_spikes_are_counted_as_if_all_were_clustered(weight, wanted):
    counts = make_clusters([4, -1, 4, 0, 4, -1], range(6), weight=weight).count_spikes()
    assert counts == wanted
    assert all(type(label) is int for label in counts)


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_without_clusters_there_is_nothing_to_count(labels):
    assert make_clusters(labels, range(len(labels))).count_spikes() == {}


def test_sorting_of_some_clusters_by_hand():
    clusters = make_clusters([4, 0, -1, 4, 2, 0], [30, 10, 12, 10, 11, 5], segments=[0, 0, 0, 0, 0, 1])
    sorting, posteriors = clusters.make_sorting([4, 0], SAMPLING_FREQUENCY)
    assert sorting.unit_ids.tolist() == [0, 4] and sorting.sampling_frequency == SAMPLING_FREQUENCY
    spikes = sorting.to_spike_vector()
    assert spikes["sample_index"].tolist() == [10, 10, 30, 5]
    assert spikes["unit_index"].tolist() == [0, 1, 1, 0]
    assert spikes["segment_index"].tolist() == [0, 0, 0, 1]
    assert posteriors.dtype == np.float32
    np.testing.assert_allclose(posteriors, [0.01, 0.03, 0.0, 0.05])


def test_linear_algebra_uses_one_thread(tmp_path, monkeypatch):
    found = []

    def look(*_):
        found.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        raise InterruptedError

    monkeypatch.setattr(pipeline, "remove_dead_channels", look)
    recording = NumpyRecording([np.zeros((100, 1), "float32")], SAMPLING_FREQUENCY)
    with threadpool_limits(2, user_api="blas"), pytest.raises(InterruptedError):
        pipeline.sort_recording(recording, SorterParams(), tmp_path)
    assert set(found) == {1}


# --- units ---

PARAMS = SorterParams()
JOB_KWARGS = {"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False}
PULSE = -np.exp(-0.5 * ((np.arange(121) - 50) / 5) ** 2) + 0.4 * np.exp(-0.5 * ((np.arange(121) - 64) / 8) ** 2)
SIZES = np.array([[15.0, 12, 4, 0, 0, 0, 0, 0], [12.0, 15, 8, 0, 0, 0, 0, 0], [0.0, 0, 0, 0, 3, 12, 20, 10]])
MAIN_CHANNELS = np.array([0, 1, 6])


@pytest.fixture(scope="module")
def three_neurons():
    """(traces, peaks, neurons): unit noise on 8 channels in two segments; neurons 0 and 1 share a place."""
    rng = np.random.default_rng(0)
    neurons = rng.permutation(np.repeat([0, 1, 2], [100, 80, 60]))
    segments = np.repeat([0, 1], 120)
    peaks = np.zeros(240, dtype=base_peak_dtype)
    peaks["sample_index"] = 300 + np.tile(np.arange(120), 2) * 400 + rng.integers(0, 150, 240)
    peaks["segment_index"], peaks["channel_index"] = segments, MAIN_CHANNELS[neurons]
    arrays = [rng.normal(size=(50_000, 8)).astype("float32") for _ in range(2)]
    for peak, neuron in zip(peaks, neurons, strict=True):
        start = peak["sample_index"] - 50
        arrays[peak["segment_index"]][start : start + 121] += np.outer(PULSE, SIZES[neuron])
    traces = NumpyRecording(arrays, SAMPLING_FREQUENCY)
    traces.set_dummy_probe_from_locations(np.c_[np.zeros(8), 20.0 * np.arange(8)])
    return traces, peaks, neurons


@pytest.mark.parametrize(
    "unconfirmed, noise, wanted, kept",
    [
        ([1], [2], [[0, 1, 2], [0, 1]], [0, 1]),  # 2 took the spikes of 1
        ([], [2], [[0, 1, 2]], [0, 1]),
        ([1], [], [[0, 1, 2]], [0, 2]),
    ],
)
def test_units_that_lost_their_spikes_to_noise_are_matched_again_without(monkeypatch, unconfirmed, noise, wanted, kept):
    matched = []

    def match(traces, templates, *_):
        matched.append(templates.unit_ids.tolist())
        return make_trains(*[fire(50)] * len(templates.unit_ids), unit_ids=templates.unit_ids)

    def leave_out_noise(traces, sorting, *_):
        return sorting.select_units([unit_id for unit_id in sorting.unit_ids if unit_id not in noise])

    def confirm(sorting, *_):
        lost = unconfirmed if len(matched) == 1 else []
        return sorting.select_units([unit_id for unit_id in sorting.unit_ids if unit_id not in lost])

    monkeypatch.setattr(pipeline, "remove_redundant_templates", lambda templates, *_: templates)
    monkeypatch.setattr(pipeline, "match_templates", match)
    monkeypatch.setattr(pipeline, "keep_lasting_units", leave_out_noise)
    monkeypatch.setattr(pipeline, "keep_confirmed_units", confirm)
    templates = make_units((10, 3, 0), (10, 6, 0), (10, 9, 0))
    traces = NumpyRecording([np.zeros((30_000, 12), "float32")], SAMPLING_FREQUENCY)
    sorting, templates = match_units(traces, templates, NO_CHANGES, {}, {}, PARAMS, JOB_KWARGS)
    assert matched == wanted
    assert sorting.unit_ids.tolist() == templates.unit_ids.tolist() == kept


def find_units_of(three_neurons, labels, folder, weight=1.0, params=PARAMS):
    """What `find_units` makes of clusters with these labels."""
    traces, peaks, _ = three_neurons
    clusters = Clusters(
        peaks,
        waveforms=np.zeros((len(peaks), 1, 64), "float16"),
        features=np.zeros((len(peaks), 2), "float32"),
        labels=labels,
        posteriors=np.ones(len(peaks), "float32"),
        neighborhoods=Neighborhoods(traces.get_channel_locations(), 60.0),
        weights=np.full(len(peaks), weight),
    )
    templates = estimate_templates(traces, peaks, labels, params, JOB_KWARGS)
    return find_units(traces, clusters, templates, params, folder, JOB_KWARGS, Clock())[:3]


def count_lines(caplog, stage):
    return sum(record.getMessage().startswith(stage) for record in caplog.records)


def assert_units_are_neurons(sorting, peaks, neurons):
    """Every unit has the spikes of one neuron and no others, every neuron a unit."""
    spikes = sorting.to_spike_vector()
    trains = set()
    for index in range(len(sorting.unit_ids)):
        of_unit = spikes[spikes["unit_index"] == index]
        times = of_unit["sample_index"] + 100_000 * of_unit["segment_index"]
        wanted = peaks["sample_index"] + 100_000 * peaks["segment_index"]
        nearest = np.abs(wanted[:, None] - times).argmin(axis=0)
        assert np.abs(wanted[nearest] - times).max() <= 2
        trains.add(tuple(nearest))
    assert trains == {tuple(np.flatnonzero(neurons == neuron)) for neuron in np.unique(neurons)}


def assert_residuals_are_noise(residuals, sorting):
    unit_indices = sorting.to_spike_vector()["unit_index"]
    assert len(residuals.values) == len(unit_indices)
    for index in range(len(sorting.unit_ids)):
        left = residuals.read(np.flatnonzero(unit_indices == index), index)
        assert left.std() == pytest.approx(1, abs=0.02)


def test_right_units_stay_as_they_are(three_neurons, tmp_path, caplog):
    caplog.set_level("INFO")
    _, peaks, neurons = three_neurons
    sorting, templates, residuals = find_units_of(three_neurons, neurons + 3, tmp_path)
    assert_units_are_neurons(sorting, peaks, neurons)
    assert sorting.unit_ids.tolist() == templates.unit_ids.tolist() == [3, 4, 5]
    assert_residuals_are_noise(residuals, sorting)
    assert count_lines(caplog, "match") == count_lines(caplog, "refine") == 1


@pytest.fixture(scope="module")
def drifting_neurons():
    """As `three_neurons`, on a probe that moves by two channels: at the end each is where the next was before."""
    rng = np.random.default_rng(0)
    neurons = rng.permutation(np.repeat([0, 1, 2], 240))
    peaks = np.zeros(720, dtype=base_peak_dtype)
    peaks["sample_index"] = 300 + np.arange(720) * 400 + rng.integers(0, 150, 720)
    traces = rng.normal(size=(290_000, 8)).astype("float32")
    centres = 1 + 2 * neurons + 2 * (peaks["sample_index"] // DRIFT_BLOCK) / 3
    peaks["channel_index"] = np.rint(centres)
    for peak, centre in zip(peaks, centres, strict=True):
        start = peak["sample_index"] - 50
        traces[start : start + 121] += np.outer(PULSE, 25 * np.exp(-0.5 * ((np.arange(8) - centre) / 0.8) ** 2))
    traces = NumpyRecording([traces], SAMPLING_FREQUENCY)
    traces.set_dummy_probe_from_locations(np.c_[np.zeros(8), 20.0 * np.arange(8)])
    return traces, peaks, neurons


DRIFT_BLOCK = 72_500  # samples


def test_neurons_that_drift_are_matched_as_they_are_at_the_time(drifting_neurons, tmp_path, monkeypatch):
    blocks = [(0, start, start + DRIFT_BLOCK) for start in range(0, 4 * DRIFT_BLOCK, DRIFT_BLOCK)]
    for module in (pipeline, tracking):
        monkeypatch.setattr(module, "split_time", lambda _: blocks)
    _, peaks, neurons = drifting_neurons
    sorting, templates, _ = find_units_of(drifting_neurons, neurons, tmp_path)
    assert_units_are_neurons(sorting, peaks, neurons)
    assert sorting.unit_ids.tolist() == templates.unit_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels_of_neurons", [[0, 0, 2], [4, 4, 2]])
def test_two_neurons_in_one_cluster_become_two_units(three_neurons, tmp_path, caplog, labels_of_neurons):
    caplog.set_level("INFO")
    _, peaks, neurons = three_neurons
    labels = np.array(labels_of_neurons)[neurons]
    sorting, templates, residuals = find_units_of(three_neurons, labels, tmp_path)
    assert_units_are_neurons(sorting, peaks, neurons)
    first_new_id = labels.max() + 1
    assert sorting.unit_ids.tolist() == templates.unit_ids.tolist() == [2, first_new_id, first_new_id + 1]
    assert_residuals_are_noise(residuals, sorting)
    assert count_lines(caplog, "match") == count_lines(caplog, "refine") == 2


def test_one_neuron_in_two_clusters_becomes_one_unit(three_neurons, tmp_path):
    _, peaks, neurons = three_neurons
    labels = np.where((neurons == 0) & (np.arange(len(neurons)) % 2 == 0), 5, neurons)
    sorting, _, residuals = find_units_of(three_neurons, labels, tmp_path)
    assert_units_are_neurons(sorting, peaks, neurons)
    assert sorting.unit_ids.tolist() == [1, 2, 6]
    assert_residuals_are_noise(residuals, sorting)


@pytest.mark.parametrize("gain, n_changed", [(1.0, 0), (1.6, 1)])
def test_a_waveform_that_changes_is_followed(three_neurons, tmp_path, caplog, gain, n_changed):
    """In the second segment neuron 2 is larger on one channel."""
    caplog.set_level("INFO")
    traces, peaks, neurons = three_neurons
    arrays = [traces.get_traces(segment_index=index).copy() for index in range(2)]
    for peak in peaks[(neurons == 2) & (peaks["segment_index"] == 1)]:
        start = peak["sample_index"] - 50
        arrays[1][start : start + 121, 5] += (gain - 1) * SIZES[2, 5] * PULSE
    changed = NumpyRecording(arrays, SAMPLING_FREQUENCY)
    changed.set_probe(traces.get_probe())
    sorting, _, residuals = find_units_of((changed, peaks, neurons), neurons, tmp_path)
    assert_units_are_neurons(sorting, peaks, neurons)
    assert len(residuals.values) == len(peaks)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("follow")]
    assert f"{n_changed} units change, 0 faint spikes, 240 spikes" in line


def test_units_that_nothing_confirms(three_neurons, tmp_path):
    """Ten times more spikes were detected than match."""
    sorting, templates, residuals = find_units_of(three_neurons, three_neurons[2], tmp_path, weight=10.0)
    assert len(sorting.unit_ids) == len(templates.unit_ids) == 0
    assert residuals is None


def test_units_that_lose_all_spikes_when_they_are_followed(three_neurons, tmp_path, monkeypatch):
    nothing = NumpySorting.from_unit_dict([{}], SAMPLING_FREQUENCY)
    monkeypatch.setattr(pipeline, "find_changes", lambda *_: SimpleNamespace(find_units=lambda: [0]))
    monkeypatch.setattr(pipeline, "match_changing_templates", lambda *_: nothing)
    sorting, _, residuals = find_units_of(three_neurons, three_neurons[2], tmp_path)
    assert len(sorting.unit_ids) == 0 and residuals is None


@pytest.mark.parametrize(
    "leftovers, share, kept",
    [([], 1, [0, 1, 2, 5]), ([5], 1, [0, 1, 2]), ([5], 0.5, [0, 1, 2, 5]), ([0, 1, 2, 5], 1, [0, 1, 2, 5])],
)
def test_units_of_leftovers_give_back_what_is_none(three_neurons, tmp_path, monkeypatch, leftovers, share, kept):
    """Half of the spikes of neuron 0 went to unit 5, and come back when this is taken for leftovers."""
    _, peaks, neurons = three_neurons
    labels = np.where((neurons == 0) & (np.arange(len(neurons)) % 2 == 0), 5, neurons)
    unchanged = SimpleNamespace(replaced=[], n_spikes={}, add=lambda *_: unchanged)

    def take_for_leftovers(sorting, *_):
        is_taken = np.isin(sorting.unit_ids[sorting.to_spike_vector()["unit_index"]], leftovers)
        is_true = ~is_taken | (np.arange(len(is_taken)) >= share * len(is_taken))
        spikes = sorting.to_spike_vector().copy()
        spikes["unit_index"][np.argmax(~is_taken)] = np.argmax(np.isin(sorting.unit_ids, leftovers))  # it was given
        return Assignment(None, spikes, None, is_true, np.zeros(len(spikes), dtype=bool))

    monkeypatch.setattr(pipeline, "refine_units", lambda *_: unchanged)
    monkeypatch.setattr(pipeline, "assign_neurons", take_for_leftovers)
    sorting, templates, residuals = find_units_of(three_neurons, labels, tmp_path)
    assert sorting.unit_ids.tolist() == templates.unit_ids.tolist() == kept
    assert_residuals_are_noise(residuals, sorting)
    if 5 not in kept:
        assert_units_are_neurons(sorting, peaks, neurons)


def test_units_stay_where_their_parts_can_be_none(tmp_path):
    """Two clusters of the large spikes of one neuron are above `min_snr`, the mean of all its spikes is not."""
    rng = np.random.default_rng(0)
    peaks = np.zeros(240, dtype=base_peak_dtype)
    peaks["sample_index"] = 300 + 400 * np.arange(240)
    is_large = np.arange(240) % 2 == 1
    array = rng.normal(size=(100_000, 8)).astype("float32")
    for peak, gain in zip(peaks, np.where(is_large, 1.1, 0.9), strict=True):
        array[peak["sample_index"] - 50 : peak["sample_index"] + 71] += gain * np.outer(PULSE, SIZES[0])
    traces = NumpyRecording(array, SAMPLING_FREQUENCY)
    traces.set_dummy_probe_from_locations(np.c_[np.zeros(8), 20.0 * np.arange(8)])
    labels = np.where(is_large, np.arange(240) // 2 % 2, -1)
    params = SorterParams(min_snr=20.0)  # between peak to peak of all and of the large
    sorting, templates, residuals = find_units_of((traces, peaks, None), labels, tmp_path, params=params)
    assert sorting.unit_ids.tolist() == templates.unit_ids.tolist() == [0, 1]
    assert len(residuals.values) == len(sorting.to_spike_vector()) == 240


# --- neurons ---


def test_without_spikes_there_are_no_neurons():
    for of_nothing in find_neurons(NumpySorting.from_unit_dict([{}], SAMPLING_FREQUENCY), None, None, None):
        assert len(of_nothing) == 0


@pytest.mark.parametrize("displacement_um, n_neurons", [(None, 2), ([0.0, 10.0] * 150, 1)])
def test_neurons_are_linked_by_what_is_known_of_the_traces(displacement_um, n_neurons):
    """The probe moves to and fro each second, and the spikes from one template to the other."""
    times_s = np.random.default_rng(0).uniform(0, DURATION_S, 3000)
    is_first = times_s.astype(int) % 2 == 0
    sorting, templates = make_trains(times_s[is_first], times_s[~is_first]), make_units((10, 3, 0), (5.6, 3, 0))
    traces = NumpyRecording([np.zeros((int(DURATION_S * SAMPLING_FREQUENCY), 1), "float32")], SAMPLING_FREQUENCY)
    if displacement_um:
        traces.annotate(displacement_um=displacement_um)
    assert len(set(link(sorting, templates, traces).tolist())) == n_neurons


def test_durations_of_segments(monkeypatch):
    monkeypatch.setattr(pipeline, "link_fragments", lambda *arguments: arguments)
    segments = [np.zeros((n_samples, 1), "float32") for n_samples in (30_000, 1500)]
    assert link(None, None, NumpyRecording(segments, SAMPLING_FREQUENCY))[2] == [1.0, 0.05]


def test_the_second_segment_begins_where_the_first_ends():
    sorting = make_trains(fire(200, 0, 0.2), fire(800, 0, 0.8), segments=[0, 1])
    sizes = [int(share * DURATION_S * SAMPLING_FREQUENCY) for share in (0.2, 0.8)]
    traces = NumpyRecording([np.zeros((size, 1), "float32") for size in sizes], SAMPLING_FREQUENCY)
    assert link(sorting, make_units((10, 3, 0), (5.6, 3, 0)), traces).tolist() == [1, 1]


@pytest.mark.parametrize("doubtful, neurons", [(set(), [0, 1]), ({(0, 1)}, [0, 0])])
def test_doubtful_units_are_linked(monkeypatch, doubtful, neurons):
    monkeypatch.setattr(pipeline, "find_doubtful_units", lambda residuals, sorting, is_true: doubtful)
    train = fire_at_random(0, 5000, DURATION_S)
    sorting, templates = make_trains(np.delete(train, np.s_[::50]), train[::50]), make_units((10, 3, 0), (5.6, 3, 0))
    traces = NumpyRecording([np.zeros((int(DURATION_S * SAMPLING_FREQUENCY), 1), "float32")], SAMPLING_FREQUENCY)
    residuals = SimpleNamespace(measure_norms=lambda: np.array([40.0, 30.0]), locate_templates=lambda: np.zeros((2, 2)))
    assert find_neurons(sorting, templates, residuals, traces)[0].tolist() == neurons


def test_leftovers_do_not_hide_that_fragments_take_turns():
    """Units 0 and 1 are one neuron; unit 1 has also found what half of the spikes of unit 2, far larger, left over."""
    larger = np.sort(np.random.default_rng(0).uniform(0, DURATION_S, 700))
    leftovers = larger[::2] + 0.3e-3
    sorting = make_trains(fire(400, 0, 0.6), np.r_[fire(400, 0.4, 1), leftovers], larger)
    templates = make_units((10, 3, 0), (6.5, 3, 0), (40, 8, 0))
    traces = NumpyRecording([np.zeros((int(DURATION_S * SAMPLING_FREQUENCY), 1), "float32")], SAMPLING_FREQUENCY)
    assert link_fragments(sorting, templates, [DURATION_S]).tolist() == [0, 1, 2]
    norms, places_um = np.array([40.0, 30.0, 160.0]), np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 500.0]])
    residuals = SimpleNamespace(
        measure_norms=lambda: norms, locate_templates=lambda: places_um, is_drift_corrected=lambda: False
    )
    neurons, shares, is_true = find_neurons(sorting, templates, residuals, traces)
    assert neurons.tolist() in ([0, 0, 2], [1, 1, 2])
    assert np.sum(~is_true) == len(leftovers) and np.all(shares[~is_true] < 0.1)
