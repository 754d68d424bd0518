"""Merging: the parts of one unit become one, two units stay two."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core.base import base_peak_dtype

from spikeinterface_huidurep.merging import (
    MAX_CORE_SCORE,
    MAX_LAG,
    MAX_VARIATION_SPIKES,
    _Clusters,
    correlate,
    dip_score,
    equalize_variation,
    find_lag,
    merge_clusters,
    project_on_difference,
    separation,
    shift_each,
    shift_waveforms,
    thin,
)
from spikeinterface_huidurep.waveforms import MODEL_HZ, N_BEFORE, N_SAMPLES, Neighborhoods

LOCATIONS_UM = np.c_[np.zeros(3), 20.0 * np.arange(3)]
NEIGHBORHOODS = Neighborhoods(LOCATIONS_UM, 100.0)
THRESHOLD = 2.5


def pulse(delay=0.0, width=5.0):
    """Trough of depth 1 and a slow rebound, shape (N_SAMPLES,)."""
    k = np.arange(N_SAMPLES) - N_BEFORE - delay
    return -np.exp(-0.5 * (k / width) ** 2) + 0.4 * np.exp(-0.5 * ((k - 14) / 8) ** 2)


def make_spikes(rng, mean, n_spikes, channel, jitter=0.0):
    """
    Waveforms of a unit with unit noise, seen from `channel`.

    `mean` has shape (n_channels, N_SAMPLES) in the order of the channels of the probe.
    """
    size = 1 + jitter * rng.normal(size=(n_spikes, 1, 1))
    waveforms = size * mean[None] + rng.normal(size=(n_spikes, *mean.shape))
    return waveforms[:, NEIGHBORHOODS.channel_indices[channel]], np.full(n_spikes, channel)


def merge(parts, labels, threshold=THRESHOLD, sampling_frequency=MODEL_HZ, seed=0):
    """Merge clusters given as a list of (waveforms, channels) and a label for each spike."""
    waveforms = np.concatenate([waveforms for waveforms, _ in parts]).astype("float16")
    peaks = np.zeros(len(waveforms), dtype=base_peak_dtype)
    peaks["channel_index"] = np.concatenate([channels for _, channels in parts])
    peaks["sample_index"] = 1000 + 300 * np.arange(len(waveforms))
    found, aligned = merge_clusters(
        waveforms, peaks, np.asarray(labels), NEIGHBORHOODS, threshold, sampling_frequency, seed
    )
    return found, aligned["sample_index"] - peaks["sample_index"]


def n_clusters(labels):
    return len(np.unique(labels[labels >= 0]))


SMALL, LARGE = np.array([[0.3], [1.0], [0.3]]), np.array([[1.0], [0.5], [0.1]])


@pytest.mark.parametrize("n_spikes", [100, 400, 2000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_halves_of_one_gaussian_merge(n_spikes, seed):
    rng = np.random.default_rng(seed)
    mean = 10 * SMALL * pulse()
    spikes = make_spikes(rng, mean, n_spikes, channel=1, jitter=0.1)
    sizes = np.sum(spikes[0] * mean[NEIGHBORHOODS.channel_indices[1]], axis=(1, 2))
    labels, moved = merge([spikes], sizes > np.median(sizes))
    assert n_clusters(labels) == 1 and not moved.any()


@pytest.mark.parametrize("n_first, n_second", [(400, 400), (60, 60), (1000, 60)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_units_do_not_merge(n_first, n_second, seed):
    rng = np.random.default_rng(seed)
    parts = [
        make_spikes(rng, 10 * SMALL * pulse(), n_first, channel=1),
        make_spikes(rng, 10 * SMALL * pulse(width=7.0), n_second, channel=1),
    ]
    truth = np.repeat([0, 1], [n_first, n_second])
    labels, moved = merge(parts, truth)
    assert np.array_equal(labels, truth) and not moved.any()


@pytest.mark.parametrize("sampling_frequency", [10_000.0, MODEL_HZ])
@pytest.mark.parametrize("lag", [-9, 0, 6])
@pytest.mark.parametrize("channels", [(1, 1), (1, 0)])
def test_one_unit_aligned_on_two_extrema_merges_with_its_lag(lag, channels, sampling_frequency):
    rng = np.random.default_rng(0)
    parts = [
        make_spikes(rng, 10 * LARGE * pulse(), 300, channels[0]),
        make_spikes(rng, 10 * LARGE * pulse(delay=lag), 150, channels[1]),
    ]
    truth = np.repeat([5, 2], [300, 150])
    labels, moved = merge(parts, truth, sampling_frequency=sampling_frequency)
    assert (labels == 5).all()  # the larger cluster keeps its name and its times
    assert not moved[truth == 5].any()
    assert (moved[truth == 2] == round(lag * sampling_frequency / MODEL_HZ)).all()


def test_lags_add_up_along_a_chain():
    rng = np.random.default_rng(0)
    delays, sizes = (0, 4, 8), (300, 200, 100)
    parts = [make_spikes(rng, 10 * SMALL * pulse(delay), size, 1) for delay, size in zip(delays, sizes, strict=True)]
    truth = np.repeat([0, 1, 2], sizes)
    labels, moved = merge(parts, truth)
    assert (labels == 0).all()
    assert moved.tolist() == np.repeat(delays, sizes).tolist()


def test_a_collision_cluster_does_not_join_two_units():
    rng = np.random.default_rng(0)
    first, second = 12 * SMALL * pulse(), 12 * SMALL * pulse(width=8.0)
    parts = [
        make_spikes(rng, first, 400, 1),
        make_spikes(rng, second, 400, 1),
        make_spikes(rng, 0.5 * (first + second), 60, 1, jitter=0.25),  # between the two
    ]
    truth = np.repeat([0, 1, 2], [400, 400, 60])
    for threshold in (THRESHOLD, 2 * THRESHOLD):
        labels, _ = merge(parts, truth, threshold=threshold)
        assert len(set(labels[truth < 2])) == 2


@pytest.mark.parametrize(
    "n_first, score, is_apart",
    [
        (100, MAX_CORE_SCORE * THRESHOLD, True),
        (100, MAX_CORE_SCORE * THRESHOLD - 0.1, False),
        (100, np.inf, False),  # not compared
        (19, 99.0, False),  # too small beside the other
    ],
)
def test_clusters_whose_cores_have_a_wide_gap_stay_apart(n_first, score, is_apart):
    """Also when each has taken up a smaller one."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [n_first, 100, 15, 15])
    waveforms, channels = make_spikes(rng, 10 * SMALL * pulse(), len(labels), channel=1)
    clusters = _Clusters(waveforms, channels, labels, NEIGHBORHOODS, THRESHOLD, 0)
    clusters.keep_apart({(0, 1): (score, 0), (2, 3): (1.0, 0)})
    clusters.merge(2, 0, 0)
    clusters.merge(1, 3, 0)
    found = {}
    clusters.score_neighbors(1, found)
    assert np.isinf(found[1, 2][0]) == is_apart


def make_many(seed):
    """Halves of three units and spikes without a label."""
    rng = np.random.default_rng(seed)
    shapes = [10 * SMALL * pulse(), 10 * SMALL[::-1] * pulse(width=8.0), 8 * LARGE * pulse(width=6.0)]
    parts = [
        make_spikes(rng, shape, 200, channel, jitter=0.1) for shape, channel in zip(shapes, (1, 1, 0), strict=True)
    ]
    return parts, np.where(np.arange(600) % 50 == 0, -1, np.arange(600) // 100)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_higher_threshold_never_gives_more_units(seed):
    parts, labels = make_many(seed)
    counts = [n_clusters(merge(parts, labels, threshold)[0]) for threshold in (0, 0.5, 1, 2, 4, 8, 100)]
    assert counts[0] == 6
    assert counts == sorted(counts, reverse=True)


def test_threshold_zero_merges_none():
    parts, labels = make_many(0)
    found, moved = merge(parts, labels, threshold=0.0)
    assert np.array_equal(found, labels) and not moved.any()


def test_three_split_units_are_mended_and_spikes_without_label_stay_so():
    parts, labels = make_many(0)
    found, _ = merge(parts, labels)
    assert np.array_equal(found == -1, labels == -1)
    assert [len(set(found[start : start + 200]) - {-1}) for start in (0, 200, 400)] == [1, 1, 1]
    assert n_clusters(found) == 3


def test_same_seed_same_result_and_arguments_are_not_changed():
    parts, labels = make_many(0)
    before = labels.copy()
    first, second = (merge(parts, labels) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert np.array_equal(labels, before)


def test_clusters_far_apart_are_not_compared():
    locations = np.c_[np.zeros(2), [0.0, 500.0]]
    neighborhoods = Neighborhoods(locations, 50.0)
    rng = np.random.default_rng(0)
    waveforms = (10 * pulse() + rng.normal(size=(200, 1, N_SAMPLES))).astype("float16")
    peaks = np.zeros(200, dtype=base_peak_dtype)
    peaks["channel_index"] = labels = np.repeat([0, 1], 100)
    found, _ = merge_clusters(waveforms, peaks, labels, neighborhoods, 100.0, MODEL_HZ, 0)
    assert np.array_equal(found, labels)


@pytest.mark.parametrize("labels", [np.full(40, -1), np.zeros(40, dtype=int)])
def test_nothing_to_merge(labels):
    parts = [make_spikes(np.random.default_rng(0), 10 * SMALL * pulse(), 40, 1)]
    found, moved = merge(parts, labels)
    assert np.array_equal(found, labels) and not moved.any()


# --- parts ---


def test_dip_score_is_low_without_a_gap_and_high_with_one():
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=800))
    assert dip_score(values[:400], values[400:], (400, 400)) < 1.5
    assert dip_score(values[:400] - 2, values[400:] + 2, (400, 400)) > 5


def test_dip_score_sees_a_small_cluster_in_the_tail_of_a_large_one():
    rng = np.random.default_rng(0)
    large, small = rng.normal(size=500), 6 + 0.5 * rng.normal(size=60)
    assert dip_score(large, small, (20_000, 60)) > THRESHOLD


@settings(max_examples=50, deadline=None)
@given(lag=st.integers(-MAX_LAG, MAX_LAG), n_channels=st.integers(1, 4), seed=st.integers(0, 20))
def test_lag_is_recovered(lag, n_channels, seed):
    long = np.random.default_rng(seed).normal(size=(n_channels, N_SAMPLES + 2 * MAX_LAG))
    first = long[:, MAX_LAG : MAX_LAG + N_SAMPLES]
    second = long[:, MAX_LAG - lag : MAX_LAG - lag + N_SAMPLES]
    found, difference = find_lag(first, second)
    assert found == lag and difference == 0
    inner = slice(MAX_LAG, N_SAMPLES - MAX_LAG)
    np.testing.assert_array_equal(shift_waveforms(second, found)[:, inner], first[:, inner])


@pytest.mark.parametrize("lag, wanted", [(0, [1, 2, 3, 4]), (1, [2, 3, 4, 0]), (-2, [0, 0, 1, 2])])
def test_shift_by_hand(lag, wanted):
    waveforms = np.tile(np.arange(1, 5), (2, 3, 1))
    assert (shift_waveforms(waveforms, lag) == np.array(wanted)).all()


# --- variation ---


def test_noise_stays_as_it_is():
    for seed in range(5):
        first, second = np.random.default_rng(seed).normal(size=(2, 200, 100)).astype("float32")
        for vectors, found in zip((first, second), equalize_variation(first, second), strict=True):
            np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize("n_first, n_second", [(200, 200), (40, 300), (1000, 3 * MAX_VARIATION_SPIKES)])
def test_a_common_variation_becomes_as_small_as_noise(n_first, n_second):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n_first + n_second, 60))
    direction = np.linalg.qr(rng.normal(size=(60, 1)))[0]
    varied = (vectors + 10 * rng.normal(size=(len(vectors), 1)) * direction.T).astype("float32")
    parts = varied[:n_first], varied[n_first:]
    before = [part.copy() for part in parts]
    found = equalize_variation(*parts)
    for of_found, part, of_before in zip(found, parts, before, strict=True):
        assert of_found.shape == part.shape and of_found.dtype == np.float32
        assert np.array_equal(part, of_before)
    found = np.concatenate(found)
    assert np.var(varied @ direction) > 80
    assert np.var(found @ direction) == pytest.approx(1, abs=0.3)
    others = np.linalg.qr(np.c_[direction, rng.normal(size=(60, 59))])[0][:, 1:]
    assert np.corrcoef((found @ others).ravel(), (varied @ others).ravel())[0, 1] > 0.95
    assert np.var(found @ others) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("varying", [0, 1])
def test_a_variation_of_one_cluster_becomes_small(varying):
    parts = np.random.default_rng(0).normal(size=(2, 200, 60)).astype("float32")
    parts[varying, :, 7] *= 10
    variances = [found[:, 7].var() for found in equalize_variation(*parts)]
    assert np.mean(variances) == pytest.approx(1, abs=0.3)


def test_many_variations_and_different_means():
    """Means stay apart where nothing varies, and the mean of a cluster is no variation."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 200, 60))
    for part in (first, second):
        part[:, :5] *= 8
    second[:, 30] += 50
    found = equalize_variation(first.astype("float32"), second.astype("float32"))
    for part in found:
        assert part.var(axis=0)[:5] == pytest.approx(np.ones(5), abs=0.4)
    assert found[1][:, 30].mean() - found[0][:, 30].mean() == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize("n_first, n_second", [(1, 1), (2, 2), (1, 5), (3, 30)])
def test_few_vectors_are_no_variation(n_first, n_second):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(size, 200)).astype("float32") for size in (n_first, n_second)]
    for part, found in zip(parts, equalize_variation(*parts), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, part)


def test_discriminant_separates_what_the_difference_of_the_means_does_not():
    """The means are as far apart in a direction that is of no use as in one that tells the clusters apart."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 400, 60)).astype("float32")
    for part in (first, second):
        part[:, 0] += 12 * rng.normal(size=400)
    second[:, :2] += [8, 7]
    along, discriminant = (
        project_on_difference(first, second),
        project_on_difference(*equalize_variation(first, second)),
    )
    assert dip_score(*along, (400, 400)) < THRESHOLD < 5 < dip_score(*discriminant, (400, 400))
    assert separation(*along) < 2.7 < 5 < separation(*discriminant)


def test_samples_in_the_wrong_order_are_not_apart():
    above, below = np.array([4.0, 6.0]), np.array([0.0, 2.0])
    assert separation(above, below) == pytest.approx(4)
    assert separation(below, above) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_units_whose_amplitudes_change_do_not_merge(seed):
    rng = np.random.default_rng(seed)
    parts = [
        make_spikes(rng, 20 * SMALL * pulse(), 400, channel=1, jitter=0.3),
        make_spikes(rng, 12 * SMALL * pulse(width=5.8), 400, channel=1, jitter=0.3),
    ]
    truth = np.repeat([0, 1], 400)
    labels, _ = merge(parts, truth)
    assert np.array_equal(labels, truth)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_units_with_collisions_do_not_merge(seed):
    """Other spikes on one in ten widen both clusters in the very direction in which they differ."""
    rng = np.random.default_rng(seed)
    first, second = 10 * SMALL * pulse(), 10 * SMALL * pulse(width=6.0)
    parts = [make_spikes(rng, mean, 400, channel=1) for mean in (first, second)]
    for waveforms, _ in parts:
        other = 8 * (second - first)[NEIGHBORHOODS.channel_indices[1]]
        waveforms += rng.choice([-1, 0, 1], size=(400, 1, 1), p=[0.05, 0.9, 0.05]) * other
    truth = np.repeat([0, 1], 400)
    labels, _ = merge(parts, truth)
    assert np.array_equal(labels, truth)


# --- thin ---


@given(n_values=st.integers(0, 200), n_max=st.integers(1, 50))
def test_thinned_values_are_evenly_spaced(n_values, n_max):
    found = thin(np.arange(n_values), n_max)
    assert len(found) == min(n_values, n_max)
    if n_values <= n_max:
        assert found.tolist() == list(range(n_values))
    elif n_max > 1:
        assert found[0] == 0 and found[-1] == n_values - 1
        assert np.ptp(np.diff(found)) <= 1


def test_thinned_rows_by_hand():
    vectors = np.arange(10).reshape(5, 2)
    assert thin(vectors, 3).tolist() == [[0, 1], [4, 5], [8, 9]]
    assert thin(vectors[:0], 3).shape == (0, 2)


def test_each_waveform_is_shifted_by_its_own_lag():
    waveforms, lags = np.random.default_rng(0).normal(size=(40, 3, 20)), np.random.default_rng(1).integers(-4, 5, 40)
    wanted = [shift_waveforms(waveform, lag) for waveform, lag in zip(waveforms, lags, strict=True)]
    np.testing.assert_array_equal(shift_each(waveforms, lags), wanted)


def test_products_at_every_shift():
    rng = np.random.default_rng(0)
    waveform, others = rng.normal(size=(12, 3)), rng.normal(size=(2, 12, 3))
    products = correlate(waveform, others)
    for shift in range(-11, 12):
        later = np.arange(max(0, shift), 12 + min(0, shift))
        expected = np.sum(waveform[later] * others[:, later - shift], axis=(1, 2))
        np.testing.assert_allclose(products[:, shift], expected, atol=1e-9)
