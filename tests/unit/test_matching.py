"""Templates and matching: which clusters can be units, and how spikes become a sorting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording, Templates
from spikeinterface.core.base import base_peak_dtype
from spikeinterface.core.generate import InjectTemplatesRecording

from spikeinterface_huidurep.matching import (
    MAX_COINCIDENCE,
    MAX_COINCIDENCE_MS,
    MAX_INFLATION,
    MIN_CONFIRMED,
    MIN_SIMILARITY,
    MIN_SIZE,
    MIN_SIZE_OF_ANY,
    MIN_SPIKES_FAR,
    TEMPLATE_RADIUS_UM,
    WEAK_NORM,
    average_peaks,
    estimate_templates,
    find_coincidences,
    find_independent_units,
    find_lasting_units,
    keep_confirmed_units,
    keep_frequent_units,
    keep_large_clusters,
    keep_lasting_units,
    make_sorting,
    match_templates,
    measure_norms,
    move_inside,
)
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.preprocessing import REFERENCED

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = {"n_jobs": 1, "chunk_duration": "500ms", "progress_bar": False}
PARAMS = SorterParams()


# --- sortings ---


def test_sorting_by_hand():
    samples = np.array([50, 10, 10, 5, 10])
    labels = np.array([7, 9, 2, 9, 7])
    segments = np.array([0, 0, 0, 1, 0])
    sorting, order = make_sorting(samples, labels, segments, SAMPLING_FREQUENCY)
    assert sorting.unit_ids.tolist() == [2, 7, 9]
    assert sorting.sampling_frequency == SAMPLING_FREQUENCY
    assert order.tolist() == [2, 4, 1, 0, 3]
    spikes = sorting.to_spike_vector()
    assert spikes["sample_index"].tolist() == [10, 10, 10, 50, 5]
    assert spikes["unit_index"].tolist() == [0, 1, 2, 1, 2]
    assert spikes["segment_index"].tolist() == [0, 0, 0, 0, 1]


@settings(max_examples=50, deadline=None)
@given(
    spikes=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(0, 5)), max_size=40),
)
def test_sorting_is_sorted_and_order_leads_back(spikes):
    segments, samples, labels = (np.array([spike[i] for spike in spikes], dtype="int64") for i in range(3))
    sorting, order = make_sorting(samples, labels, segments, SAMPLING_FREQUENCY)
    vector = sorting.to_spike_vector()
    found = list(zip(vector["segment_index"], vector["sample_index"], vector["unit_index"], strict=True))
    assert found == sorted(found)
    assert np.array_equal(vector["segment_index"], segments[order])
    assert np.array_equal(vector["sample_index"], samples[order])
    assert np.array_equal(sorting.unit_ids[vector["unit_index"]], labels[order])


def test_samples_beyond_the_ends_are_moved_inside():
    recording = NumpyRecording([np.zeros((100, 1)), np.zeros((50, 1))], SAMPLING_FREQUENCY)
    peaks = np.zeros(6, dtype=base_peak_dtype)
    peaks["sample_index"], peaks["segment_index"] = [-3, 99, 104, -1, 20, 50], [0, 0, 0, 1, 1, 1]
    move_inside(peaks, recording)
    assert peaks["sample_index"].tolist() == [0, 99, 99, 0, 20, 49]


def test_sorting_without_spikes():
    empty = np.zeros(0, dtype="int64")
    sorting, order = make_sorting(empty, empty, empty, SAMPLING_FREQUENCY)
    assert len(sorting.unit_ids) == len(order) == 0


# --- frequent units ---


def test_rare_units_lose_their_label():
    labels = np.repeat([-1, 0, 1, 2], [3, 9, 10, 11])
    params = SorterParams(min_firing_rate=0.1)
    found = keep_frequent_units(labels, 100.0, params)
    assert found.tolist() == [-1] * 12 + [1] * 10 + [2] * 11
    assert labels[3] == 0


@pytest.mark.parametrize("weights, kept", [((2.0, 2.0), {-1, 1}), ((2.6, 1.0), {0, -1}), ((2.6, 2.0), {0, 1})])
def test_spikes_count_as_those_they_stand_for(weights, kept):
    labels = np.repeat([0, 1], [4, 6])
    params = SorterParams(min_firing_rate=0.1)
    assert set(keep_frequent_units(labels, 100.0, params, np.array(weights)[labels])) == kept


@pytest.mark.parametrize("labels", [np.zeros(0, dtype="int64"), np.full(5, -1)])
def test_no_unit_to_keep(labels):
    assert np.array_equal(keep_frequent_units(labels, 10.0, PARAMS), labels)


def test_rate_zero_keeps_all():
    labels = np.array([0, 1, 1, -1])
    assert np.array_equal(keep_frequent_units(labels, 1e6, SorterParams(min_firing_rate=0.0)), labels)


def test_small_clusters_by_hand():
    labels = np.repeat([-1, 3, 7], [50, 19, 20])
    assert keep_large_clusters(labels, 20).tolist() == [-1] * 69 + [7] * 20


# --- templates ---

N_CHANNELS = 4
PULSE = -np.exp(-0.5 * ((np.arange(61) - 30) / 4) ** 2) + 0.3 * np.exp(-0.5 * ((np.arange(61) - 45) / 6) ** 2)
SHAPES = np.array([[20.0, 8.0, 0.0, 0.0], [0.0, 0.0, 10.0, 15.0]])[:, None, :] * PULSE[None, :, None]  # (u, t, c)
SHAPES[1] = np.roll(SHAPES[1], 3, axis=0) + 0.3 * SHAPES[1]  # another form, too


@pytest.fixture(scope="module")
def two_units():
    """(recording, samples, units): unit noise, 2 units of 60 spikes that sometimes overlap."""
    rng = np.random.default_rng(0)
    n_samples = 10 * 30_000
    traces = rng.normal(size=(n_samples, N_CHANNELS)).astype("float32")
    samples = [np.sort(rng.choice(np.arange(200, n_samples - 200, 150), 60, replace=False)) for _ in range(2)]
    samples[1][:5] = samples[0][:5] + 12
    for unit, of_unit in enumerate(samples):
        for sample in of_unit:
            traces[sample - 30 : sample + 31] += SHAPES[unit]
    recording = NumpyRecording([traces], SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(N_CHANNELS), 20.0 * np.arange(N_CHANNELS)])
    return recording, samples


def peaks_of(samples, channels):
    peaks = np.zeros(sum(map(len, samples)), dtype=base_peak_dtype)
    peaks["sample_index"] = np.concatenate(samples)
    peaks["channel_index"] = np.repeat(channels, [len(of_unit) for of_unit in samples])
    order = np.argsort(peaks["sample_index"], kind="stable")
    return peaks[order], np.repeat(np.arange(len(samples)), [len(of_unit) for of_unit in samples])[order]


def test_templates_are_the_mean_waveforms(two_units):
    recording, samples = two_units
    peaks, labels = peaks_of(samples, [0, 3])
    templates = average_peaks(recording, peaks, labels + 4, PARAMS, JOB_KWARGS)
    assert templates.unit_ids.tolist() == [4, 5]
    assert (templates.nbefore, templates.num_samples) == (60, 150)
    for unit, found in enumerate(templates.get_dense_templates()):
        wanted = np.mean([recording.get_traces(0, s - 60, s + 90) for s in samples[unit]], axis=0)
        np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("is_referenced", [True, False])
def test_templates_of_many_spikes_reach_all_channels_where_a_reference_takes_them_there(is_referenced):
    recording = NumpyRecording([np.zeros((30_000, N_CHANNELS), dtype="float32")], SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(N_CHANNELS), TEMPLATE_RADIUS_UM * np.arange(N_CHANNELS)])
    recording.annotate(**{REFERENCED: is_referenced})
    samples = [np.linspace(200, 29_000, n_spikes).astype(int) for n_spikes in (MIN_SPIKES_FAR, MIN_SPIKES_FAR - 1)]
    templates = average_peaks(recording, *peaks_of(samples, [0, 0]), PARAMS, JOB_KWARGS)
    near = [True, True, False, False]
    assert templates.sparsity_mask.tolist() == [[True] * N_CHANNELS if is_referenced else near, near]


def test_first_templates_are_the_mean_waveforms_of_spikes_alone_on_the_channels_that_they_reach(two_units):
    recording, samples = two_units
    peaks, labels = peaks_of(samples, [0, 3])
    templates = estimate_templates(recording, peaks, labels + 4, PARAMS, JOB_KWARGS)
    assert templates.unit_ids.tolist() == [4, 5]
    for unit, found in enumerate(templates.get_dense_templates()):
        alone = samples[unit][5:]
        wanted = np.mean([recording.get_traces(0, s - 60, s + 90) for s in alone], axis=0)
        inside = templates.sparsity.mask[unit]
        assert np.abs(found - wanted)[:, inside].max() < 1 / np.sqrt(len(alone))  # a few others may be left out, too
    assert templates.sparsity.mask[0, :2].all() and templates.sparsity.mask[1, 2:].all()


def test_clusters_of_noise_are_no_units(two_units):
    recording, samples = two_units
    noise = np.arange(1000, 290_000, 5000)
    peaks, labels = peaks_of([samples[0], noise], [0, 1])
    templates = estimate_templates(recording, peaks, labels, PARAMS, JOB_KWARGS)
    assert templates.unit_ids.tolist() == [0]
    assert estimate_templates(recording, peaks[labels == 1], labels[labels == 1], PARAMS, JOB_KWARGS) is None
    assert estimate_templates(recording, peaks, np.full(len(labels), -1), PARAMS, JOB_KWARGS) is None


def test_matching_finds_the_spikes_of_both_units(two_units):
    recording, samples = two_units
    peaks, labels = peaks_of([of_unit[5:] for of_unit in samples], [0, 3])
    templates = estimate_templates(recording, peaks, labels, PARAMS, JOB_KWARGS)
    sorting = match_templates(recording, templates, PARAMS, JOB_KWARGS)
    for unit in range(2):
        found = sorting.get_unit_spike_train(unit, segment_index=0)
        assert len(found) == 60
        assert np.abs(found - np.sort(samples[unit])).max() <= 1


def test_matched_units_that_fire_rarely_are_dropped(two_units):
    recording, samples = two_units
    peaks, labels = peaks_of(samples, [0, 3])
    templates = estimate_templates(recording, peaks, labels, PARAMS, JOB_KWARGS)
    sorting = match_templates(recording, templates, SorterParams(min_firing_rate=6.5), JOB_KWARGS)
    assert len(sorting.unit_ids) == 0


# --- confirmed units ---


def make_sparse_templates(arrays, masks, unit_ids):
    """Templates of shape (n_samples, n_channels) each, of which only the channels of the mask are kept."""
    masks = np.array(masks)
    sparse = np.zeros((len(arrays), len(arrays[0]), masks.sum(axis=1).max()), dtype="float32")
    for array, mask, of_unit in zip(arrays, masks, sparse, strict=True):
        of_unit[:, : mask.sum()] = array[:, mask]
    return Templates(
        sparse,
        SAMPLING_FREQUENCY,
        nbefore=3,
        sparsity_mask=masks,
        channel_ids=np.arange(masks.shape[1]),
        unit_ids=np.array(unit_ids),
        is_in_uV=False,
    )


def test_norms_by_hand():
    arrays = [np.full((10, 2), 2.0), np.full((10, 2), 3.0), np.full((10, 2), 0.1)]
    templates = make_sparse_templates(arrays, [[True, True], [False, True], [True, False]], [7, 2, 5])
    # energies 80, 90 and 0.1; noise of 20, 10 and 10 values over the spikes
    found = measure_norms(templates, {2: 0, 5: 4.0, 7: 5.0, 9: 1.0})
    np.testing.assert_allclose(found, [np.sqrt(80 - 4), np.sqrt(90 - 10), 0], rtol=1e-6)


@pytest.mark.parametrize("n_spikes", [5, 50])
@pytest.mark.parametrize("norm", [0.0, 12.0])
def test_norm_is_that_of_the_neuron_however_few_the_spikes(n_spikes, norm):
    rng = np.random.default_rng(0)
    neuron = rng.normal(size=(150, 4))
    neuron *= norm / np.linalg.norm(neuron)
    means = [neuron + rng.normal(size=neuron.shape) / np.sqrt(n_spikes) for _ in range(200)]
    templates = make_sparse_templates(means, np.ones((200, 4), dtype=bool), np.arange(200))
    norms = measure_norms(templates, dict.fromkeys(range(200), n_spikes))
    assert np.median(norms) == pytest.approx(norm, abs=0.3 if norm else 3.0)
    assert np.mean(norms == 0) == pytest.approx(0 if norm else 0.5, abs=0.15)


APART = 1000  # samples between spikes that do not coincide


def inject_spikes(sorting, templates, sizes=None):
    """Traces with the template of every spike, `sizes` (by unit) times as large; silence for None."""
    n_samples = int(sorting.to_spike_vector()["sample_index"].max(initial=0)) + APART
    silence = NumpyRecording([np.zeros((n_samples, 4), "float32")], SAMPLING_FREQUENCY)
    silence.set_dummy_probe_from_locations(20.0 * np.arange(8.0).reshape(4, 2))
    if sizes is None:
        return silence
    return InjectTemplatesRecording(
        sorting,
        templates.get_dense_templates().astype("float32"),
        nbefore=templates.nbefore,
        amplitude_factor=np.asarray(sizes)[sorting.to_spike_vector()["unit_index"]],
        parent_recording=silence,
    )


def make_units(found, norms):
    """Sorting of units with `found` spikes far apart, and their templates; ids are 10, 20, ..."""
    unit_ids = 10 * np.arange(1, len(found) + 1)
    labels = np.repeat(unit_ids, found)
    samples = APART * np.arange(1, len(labels) + 1)
    sorting, _ = make_sorting(samples, labels, np.zeros(len(labels), int), SAMPLING_FREQUENCY)
    arrays = [np.full((25, 4), norm / 10) for norm in norms]  # 100 values
    return sorting, make_sparse_templates(arrays, np.ones((len(found), 4), dtype=bool), unit_ids)


def keep_confirmed(found, norms, n_spikes, sizes=None, made_of=None):
    """Ids of these units that last and are confirmed; their spikes have `sizes` times the template."""
    sorting, templates = make_units(found, norms)
    traces = inject_spikes(sorting, templates, sizes)
    n_spikes, made_of = (
        dict(zip(templates.unit_ids.tolist(), counts, strict=True)) for counts in (n_spikes, made_of or n_spikes)
    )
    lasting = keep_lasting_units(traces, sorting, templates, n_spikes, made_of, JOB_KWARGS)
    kept = keep_confirmed_units(lasting, templates, made_of)
    counts = kept.count_num_spikes_per_unit(outputs="array")
    assert counts.tolist() == [
        n for n, unit_id in zip(found, sorting.unit_ids, strict=True) if unit_id in kept.unit_ids
    ]
    return kept.unit_ids.tolist()


def test_weak_units_with_many_more_spikes_are_dropped():
    weak, strong = 0.8 * WEAK_NORM, 1.1 * WEAK_NORM
    few, many = int(MAX_INFLATION * 100), int(MAX_INFLATION * 100) + 1
    assert keep_confirmed([few, many, many, 90], [weak, weak, strong, weak], [100.0] * 4) == [10, 30, 40]


def test_weak_units_with_many_more_spikes_are_kept_where_these_are_large():
    sizes = [0.9 * MIN_SIZE, 1.1 * MIN_SIZE, 1.3 * MIN_SIZE]
    assert keep_confirmed([1000] * 3, [MIN_SIZE_OF_ANY] * 3, [100.0] * 3, sizes) == [20, 30]


@pytest.mark.parametrize("size, lasts", [(0.95 * MIN_SIZE, False), (1.05 * MIN_SIZE, True)])
def test_units_last_where_their_spikes_are_as_large(size, lasts):
    sorting, templates = make_units([20, 30], [10.0, MIN_SIZE_OF_ANY])
    traces = inject_spikes(sorting, templates, [1.5, size])
    assert find_lasting_units(traces, sorting, templates, JOB_KWARGS) == ([10, 20] if lasts else [10])
    assert find_lasting_units(traces, sorting.select_units([]), templates.select_units([]), JOB_KWARGS) == []


@pytest.mark.parametrize("size, lasts", [(0.95 * MIN_SIZE_OF_ANY, False), (1.05 * MIN_SIZE_OF_ANY, True)])
def test_units_last_where_their_spikes_are_larger_than_noise(size, lasts):
    sorting, templates = make_units([20], [12.0])
    traces = inject_spikes(sorting, templates, [size / 12.0])
    assert find_lasting_units(traces, sorting, templates, JOB_KWARGS) == ([10] if lasts else [])


@pytest.mark.parametrize("share, lasts", [(1.05 * MIN_SIMILARITY**2, True), (0.95 * MIN_SIMILARITY**2, False)])
def test_units_last_where_their_spikes_are_alike(share, lasts):
    sorting, templates = make_units([20], [10.0])
    array = templates.get_dense_templates().copy()
    array[:, round(share * array.shape[1]) :] = 0  # the cosine of it and the whole is the root of the share
    part = make_sparse_templates(array, np.ones((1, 4), dtype=bool), [10])
    traces = inject_spikes(sorting, templates, [3.0])
    assert find_lasting_units(traces, sorting, part, JOB_KWARGS) == ([10] if lasts else [])


@pytest.mark.parametrize("norm", [0.8 * WEAK_NORM, 3 * WEAK_NORM])
def test_units_with_far_fewer_spikes_are_dropped(norm):
    enough = int(MIN_CONFIRMED * 100)
    assert keep_confirmed([enough - 1, enough, 100], [norm] * 3, [100.0] * 3) == [20, 30]


def test_a_template_of_the_larger_spikes_needs_but_half_of_these():
    """The others may have gone to another unit."""
    enough = int(MIN_CONFIRMED * 40)
    assert keep_confirmed([enough - 1, enough, 100], [3 * WEAK_NORM] * 3, [100.0] * 3, made_of=[40.0] * 3) == [20, 30]


def test_it_is_not_inflated_by_the_others():
    weak, found = 0.8 * WEAK_NORM, int(MAX_INFLATION * 100)
    assert keep_confirmed([found, found], [weak, weak], [100.0, 60.0], made_of=[40.0, 40.0]) == [10]


def test_what_the_noise_adds_does_not_make_a_template_strong():
    norm = np.sqrt(WEAK_NORM**2 + 5)  # the mean of 10 spikes has 100 / 10 of noise
    assert keep_confirmed([1000, 1000], [norm, norm], [10.0, 100.0]) == [20]
    assert keep_confirmed([1000, 1000], [norm, norm], [100.0, 100.0], made_of=[10.0, 100.0]) == [20]


def test_no_unit_may_be_confirmed():
    assert keep_confirmed([100, 200], [1.0, 1.0], [10.0, 10.0]) == []


# --- independent units ---

TOLERANCE = round(MAX_COINCIDENCE_MS * 1e-3 * SAMPLING_FREQUENCY)
TRAIN = APART * np.arange(1, 101)


def shift_some(share, shift=0, train=TRAIN):
    """A train of which this share is `shift` samples off the spikes of `train`, the others far from them."""
    n_close = int(share * len(train))
    return train + np.repeat([shift, APART // 2], [n_close, len(train) - n_close])


def find_independent(trains, norms):
    """Ids that `find_independent_units` leaves of trains of samples, or of (segment, sample); ids are 10, 20, ..."""
    trains = [train if np.ndim(train) == 2 else np.c_[np.zeros(len(train), int), train] for train in trains]
    labels = np.repeat(10 * np.arange(1, len(trains) + 1), [len(train) for train in trains])
    segments, samples = np.concatenate(trains).astype("int64").T
    sorting, _ = make_sorting(samples, labels, segments, SAMPLING_FREQUENCY)
    return find_independent_units(sorting, dict(zip(sorting.unit_ids.tolist(), norms, strict=True)))


@pytest.mark.parametrize("norms, stronger", [([20.0, 10.0], 10), ([10.0, 20.0], 20)])
def test_of_two_units_that_fire_together_the_stronger_stays(norms, stronger):
    assert find_independent([TRAIN, TRAIN + 3], norms) == [stronger]


def test_share_of_the_weaker_unit_counts():
    assert find_independent([TRAIN, shift_some(MAX_COINCIDENCE)], [20.0, 10.0]) == [10, 20]
    assert find_independent([TRAIN, shift_some(MAX_COINCIDENCE + 0.01)], [20.0, 10.0]) == [10]
    assert find_independent([TRAIN[:40], TRAIN], [20.0, 10.0]) == [10, 20]
    assert find_independent([TRAIN, TRAIN[:40]], [20.0, 10.0]) == [10]


@pytest.mark.parametrize("sign", [-1, 1])
def test_coincidences_end_at_the_tolerance(sign):
    assert find_independent([TRAIN, TRAIN + sign * TOLERANCE], [20.0, 10.0]) == [10]
    assert find_independent([TRAIN, TRAIN + sign * (TOLERANCE + 1)], [20.0, 10.0]) == [10, 20]


def test_units_are_compared_with_one_stronger_unit_at_a_time():
    """Half of the spikes with one unit and half with another are overlaps of independent neurons."""
    other = TRAIN + APART // 2
    mixed = np.r_[TRAIN[:50], other[50:]]
    assert find_independent([TRAIN, other, mixed], [20.0, 19.0, 10.0]) == [10, 20, 30]


def test_a_unit_that_was_left_out_does_not_take_others_with_it():
    second = shift_some(0.8, shift=TOLERANCE)
    third = second + TOLERANCE  # with the second, but not with the first
    assert find_independent([TRAIN, second, third], [20.0, 15.0, 10.0]) == [10, 30]


@pytest.mark.parametrize("other_segment, wanted", [(0, [10]), (1, [10, 20])])
def test_spikes_of_different_segments_do_not_coincide(other_segment, wanted):
    trains = [np.c_[np.full(100, segment), TRAIN] for segment in (0, other_segment)]
    assert find_independent(trains, [20.0, 10.0]) == wanted


def test_the_end_of_a_segment_is_far_from_the_start_of_the_next():
    assert find_independent([[[0, 500]], [[1, 0]]], [20.0, 10.0]) == [10, 20]


def test_coincidences_in_every_segment_count():
    trains = [np.c_[[0] * 50 + [1] * 50, TRAIN], np.c_[[0] * 50 + [1] * 50, TRAIN + 5]]
    assert find_independent(trains, [20.0, 10.0]) == [10]
    trains[1][:49, 1] += APART // 2
    assert find_independent(trains, [20.0, 10.0]) == [10]
    trains[1][49, 1] += APART // 2
    assert find_independent(trains, [20.0, 10.0]) == [10, 20]


def test_ids_are_in_their_order_whatever_the_norms():
    trains = [TRAIN, TRAIN + APART // 3, TRAIN + 2 * APART // 3]
    assert find_independent(trains, [5.0, 20.0, 10.0]) == [10, 20, 30]


def test_units_that_fire_with_a_stronger_one_are_not_confirmed():
    sorting, _ = make_sorting(np.r_[TRAIN, TRAIN + 2], np.repeat([3, 8], 100), np.zeros(200, int), SAMPLING_FREQUENCY)
    arrays = [np.full((25, 4), norm / 10) for norm in (20.0, 30.0)]
    templates = make_sparse_templates(arrays, np.ones((2, 4), dtype=bool), [3, 8])
    assert keep_confirmed_units(sorting, templates, {3: 100.0, 8: 100.0}).unit_ids.tolist() == [8]


SAMPLES = st.lists(st.integers(0, 200), max_size=30).map(sorted)


@settings(max_examples=200, deadline=None)
@given(samples=SAMPLES, others=SAMPLES, tolerance=st.integers(0, 10))
def test_coincidences_against_a_slow_loop(samples, others, tolerance):
    wanted = [any(abs(sample - other) <= tolerance for other in others) for sample in samples]
    assert find_coincidences(np.array(samples, "int64"), np.array(others, "int64"), tolerance).tolist() == wanted
