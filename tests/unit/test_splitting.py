"""Splitting: the neurons in one unit are told apart, whatever else its spikes do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep import splitting
from spikeinterface_huidurep.clustering import MIN_SPIKES
from spikeinterface_huidurep.merging import project_on_difference, separation
from spikeinterface_huidurep.noise import Noise
from spikeinterface_huidurep.splitting import (
    FAR_PARTS,
    MAX_NORM_OF_WEAK,
    MIN_MOVEMENT,
    MIN_SEPARATION,
    N_NEIGHBORS,
    RARE_NEURONS,
    RAREST_NEURON,
    find_differences,
    find_likely_neurons,
    find_mixed,
    find_variation,
    is_neuron,
    join_parts,
    remove_running_mean,
    remove_variation,
    sharpen_parts,
    split_unit,
)

from .test_results import SAMPLING_FREQUENCY

THRESHOLD = 2.5
N_BEFORE, N_SAMPLES = 24, 63
SIZES = 15 * np.array([[0.5], [1.0], [0.6], [0.2]])  # of a neuron on four channels, in noise SD
OTHER_SIZES = 15 * np.array([[0.2], [0.8], [0.9], [0.4]])


def pulse(delays=0.0, width=5.0, n_before=N_BEFORE, n_samples=N_SAMPLES):
    """Trough of depth 1 and a slow rebound, shape (..., n_samples) for delays of shape (...)."""
    k = np.arange(n_samples) - n_before - np.asarray(delays)[..., None]
    return -np.exp(-0.5 * (k / width) ** 2) + 0.4 * np.exp(-0.5 * ((k - 14) / 8) ** 2)


# --- split ---


def split(spikes, rng, threshold=THRESHOLD):
    """Parts of a unit with such waveforms in white noise, shape (n_spikes, n_channels, n_samples)."""
    noisy = spikes + rng.normal(size=spikes.shape)
    waveform = noisy.mean(axis=0)
    parts = split_white((noisy - waveform).astype("float32"), waveform.astype("float32"), threshold)
    assert parts.shape == (len(spikes),) and parts.dtype == np.int64
    assert set(parts) == set(range(parts.max() + 1))
    return parts


def split_white(residuals, waveform, threshold=THRESHOLD, shapes=None):
    """`split_unit` where the noise is white already."""
    return split_unit(residuals, waveform, np.eye(waveform.size, dtype="float32"), shapes, threshold, seed=0)


def measure_purity(parts, truth):
    """Share of spikes that are of the most frequent neuron of their part."""
    return sum(np.bincount(truth[parts == part]).max() for part in np.unique(parts)) / len(parts)


def vary_gain(rng, n_spikes):
    """Bursts: two in five spikes are much smaller."""
    gains = np.where(rng.random(n_spikes) < 0.4, 0.6, 1) + 0.05 * rng.normal(size=n_spikes)
    return gains[:, None, None] * SIZES * pulse()


def jitter(rng, n_spikes):
    return SIZES * pulse(rng.uniform(-0.5, 0.5, n_spikes))[:, None]


def jitter_to_both_sides(rng, n_spikes):
    delays = np.where(rng.random(n_spikes) < 0.4, -0.5, 0.5) + 0.1 * rng.normal(size=n_spikes)
    return SIZES * pulse(delays)[:, None]


def drift(rng, n_spikes):
    """From one waveform to another with time."""
    share = np.linspace(0, 1, n_spikes)[:, None, None]
    return (1 - share) * SIZES * pulse() + share * OTHER_SIZES * pulse(width=6.0)


def drift_and_rest(rng, n_spikes):
    """The same, but most of it halfway."""
    share = 1 / (1 + np.exp(-np.linspace(-6, 6, n_spikes)))[:, None, None]
    return (1 - share) * SIZES * pulse() + share * OTHER_SIZES * pulse(width=6.0)


@pytest.mark.parametrize("n_spikes", [100, 600])
@pytest.mark.parametrize("make_spikes", [vary_gain, jitter, jitter_to_both_sides, drift, drift_and_rest])
def test_one_neuron_stays_one(make_spikes, n_spikes):
    rng = np.random.default_rng(0)
    assert not split(make_spikes(rng, n_spikes), rng).any()


def test_a_neuron_that_jumps_there_and_back_stays_one():
    rng = np.random.default_rng(0)
    is_there = np.repeat([False, True, False], 200)[:, None, None]
    assert not split(np.where(is_there, OTHER_SIZES * pulse(width=6.0), SIZES * pulse()), rng).any()


@pytest.mark.parametrize("n_spikes", [100, 2000])
def test_noise_stays_one(n_spikes):
    rng = np.random.default_rng(0)
    assert not split(np.tile(SIZES * pulse(), (n_spikes, 1, 1)), rng).any()


def mix(truth, difference):
    """Spikes of two neurons, where `truth` is 0 and 1, on all channels."""
    return SIZES * pulse() + truth[:, None, None] * difference * (OTHER_SIZES - SIZES) * pulse()


@pytest.mark.parametrize("n_spikes, difference", [(200, 1.0), (200, 0.4), (1000, 0.4)])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_two_neurons_are_told_apart(n_spikes, difference, share):
    rng = np.random.default_rng(0)
    truth = (rng.random(n_spikes) < share).astype("int64")
    parts = split(mix(truth, difference), rng)
    assert parts.max() == 1
    assert measure_purity(parts, truth) > 0.97


@pytest.mark.parametrize("n_spikes", [300, 1000])
def test_two_neurons_that_drift_are_told_apart(n_spikes):
    """Either moves farther than they are apart, and their amplitudes change."""
    rng = np.random.default_rng(0)
    truth = (rng.random(n_spikes) < 0.4).astype("int64")
    gains = 1 + 0.1 * rng.normal(size=(n_spikes, 1, 1))
    moved = np.linspace(0, 1, n_spikes)[:, None, None] * (OTHER_SIZES - SIZES) * pulse(width=6.0)
    parts = split(gains * (mix(truth, 0.4) + moved), rng)
    assert parts.max() == 1
    assert measure_purity(parts, truth) > 0.97


@pytest.mark.parametrize("n_in_burst", [1, 5, 15])
def test_a_neuron_that_fires_in_bursts_is_told_apart(n_in_burst):
    """Its bursts are not taken for drift."""
    rng = np.random.default_rng(0)
    is_burst = np.arange(450 // n_in_burst) < 105 // n_in_burst
    truth = np.repeat(rng.permutation(is_burst), n_in_burst).astype("int64")
    parts = split(mix(truth, 0.4), rng)
    assert parts.max() == 1
    assert measure_purity(parts, truth) > 0.97


@pytest.mark.parametrize("difference", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("min_movement", [MIN_MOVEMENT, np.inf])
def test_a_neuron_that_looks_like_another_for_a_while_is_told_apart(monkeypatch, min_movement, difference):
    """As where drift takes it off the probe; the mean of both moves."""
    monkeypatch.setattr(splitting, "MIN_MOVEMENT", min_movement)
    rng = np.random.default_rng(0)
    truth = np.concatenate([np.zeros(100), rng.permutation(np.arange(188) < 122), np.zeros(100)]).astype("int64")
    parts = split(mix(truth, difference), rng)
    is_told_apart = parts.max() == 1 and measure_purity(parts, truth) > 0.97
    assert is_told_apart == np.isfinite(min_movement)


def test_three_neurons_are_told_apart():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 600)
    shapes = np.stack([SIZES * pulse(), OTHER_SIZES * pulse(), SIZES * pulse(width=8.0)])
    parts = split(shapes[truth], rng)
    assert parts.max() == 2
    assert measure_purity(parts, truth) > 0.97


@pytest.mark.parametrize("n_spikes, n_parts", [(0, 1), (1, 1), (2 * MIN_SPIKES - 1, 1), (2 * MIN_SPIKES, 2)])
def test_few_spikes_are_one_part(n_spikes, n_parts):
    truth = np.arange(n_spikes) % 2
    spikes, noise = mix(truth, 2.0), np.random.default_rng(0).normal(size=(n_spikes, 4, N_SAMPLES))
    parts = split_white((spikes + noise).astype("float32"), mix(np.full(1, 0.5), 2.0)[0].astype("float32"))
    assert parts.shape == (n_spikes,)
    assert len(set(parts)) == min(n_spikes, n_parts)


@pytest.mark.parametrize(
    "n_spikes, n_other, n_parts",
    [
        (200, RAREST_NEURON[0] - 1, 1),
        (200, RAREST_NEURON[0] + 5, 2),
        (2000, RAREST_NEURON[0] - 1, 1),
        (2000, RAREST_NEURON[0] + 5, 2),
    ],
)
def test_a_few_spikes_that_are_alike_are_a_neuron(n_spikes, n_other, n_parts):
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.arange(n_spikes) < n_other).astype("int64")
    assert split(mix(truth, 2.0), rng).max() + 1 == n_parts


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
def test_collisions_are_no_neuron(share):
    """A larger neuron that fires beside this one, at any delay."""
    rng = np.random.default_rng(0)
    collides = rng.random(1000) < share
    other = 3 * OTHER_SIZES * pulse(rng.uniform(-30, 30, 1000))[:, None]
    assert not split(SIZES * pulse() + collides[:, None, None] * other, rng).any()


def test_two_neurons_that_differ_where_there_is_little_noise_are_told_apart():
    """Noise is smooth, their difference is not: white noise of the same size hides it."""
    rng = np.random.default_rng(0)
    truth = np.arange(600) % 3 == 0
    ripple = 0.5 * SIZES / 15 * np.cos(np.pi / 4 * np.arange(N_SAMPLES))
    smooth = gaussian_filter1d(rng.normal(size=(60_000, 4)), 3.0, axis=0)
    smooth = (smooth / smooth.std() + 0.1 * rng.normal(size=smooth.shape)).astype("float32")
    whitener = Noise(NumpyRecording([smooth], SAMPLING_FREQUENCY)).make_whitener(np.arange(4), N_SAMPLES)
    starts = rng.integers(len(smooth) - N_SAMPLES, size=600)
    noise = np.stack([smooth[start : start + N_SAMPLES].T for start in starts])
    residuals = (noise + (truth - truth.mean())[:, None, None] * ripple).astype("float32")
    waveform = (SIZES * pulse()).astype("float32")
    parts = split_unit(residuals, waveform, whitener, None, THRESHOLD, seed=0)
    assert measure_purity(parts, truth.astype("int64")) > 0.97
    assert not split_white(residuals, waveform).any()


@pytest.mark.parametrize("difference, n_parts", [(0.15, 1), (1.0, 2)])
def test_a_high_threshold_splits_only_what_is_far_apart(difference, n_parts):
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 2
    assert split(mix(truth, difference), rng, threshold=1e6).max() + 1 == n_parts


# --- few spikes ---

SHAPES = np.linalg.svd([pulse(width=width) for width in (3.0, 5.0, 8.0)], full_matrices=False)[2].astype("float32")
N_WEAK_CHANNELS = 12


def make_unit(rng, truth, variation=0.0, norm=10, distance=4.6):
    """
    Two neurons, `distance` SD apart in 756 dimensions.

    `variation` moves each spike along their difference by up to as many SD.
    """
    sizes, other_sizes = (rng.uniform(0, 1, (N_WEAK_CHANNELS, 1)) for _ in range(2))
    waveform, other = sizes * pulse(), other_sizes * pulse(width=4.0)
    waveform = norm * waveform / np.linalg.norm(waveform)
    difference = other - waveform * np.sum(other * waveform) / np.sum(waveform**2)
    along = distance * (truth - truth.mean()) + variation * rng.uniform(-1, 1, len(truth))
    spikes = along[:, None, None] * difference / np.linalg.norm(difference)
    return (spikes + rng.normal(size=spikes.shape)).astype("float32"), waveform.astype("float32")


def draw_two(rng, n_spikes, n_second):
    return (rng.permutation(n_spikes) < n_second).astype("int64")


@pytest.mark.parametrize(
    ("n_spikes", "norm", "distance"), [(200, 10, 4.6), (150, 10, 4.9), (150, 2 * MAX_NORM_OF_WEAK, 4.9)]
)
@pytest.mark.parametrize("seed", range(3))
def test_rare_neurons_are_told_apart_by_the_shapes_that_neurons_have(seed, n_spikes, norm, distance):
    rng = np.random.default_rng(seed)
    truth = draw_two(rng, n_spikes, 60)
    residuals, waveform = make_unit(rng, truth, norm=norm, distance=distance)
    parts = split_white(residuals, waveform, shapes=SHAPES)
    assert parts.max() == 1 and measure_purity(parts, truth) > 0.95
    assert not split_white(residuals, waveform).any()  # there is more noise than difference in all dimensions


@pytest.mark.parametrize("norm", [10, 2 * MAX_NORM_OF_WEAK])
@pytest.mark.parametrize("variation", [0.0, 3.0, 6.0])
@pytest.mark.parametrize("n_spikes", [60, 200, 700])
def test_one_neuron_of_few_spikes_stays_one(n_spikes, variation, norm):
    residuals, waveform = make_unit(np.random.default_rng(0), np.zeros(n_spikes), variation, norm)
    assert not split_white(residuals, waveform, shapes=SHAPES).any()


@pytest.mark.parametrize(
    ("size", "n_channels", "distance"), [(1.01, N_WEAK_CHANNELS, 7.0), (0.5, 3, 4.6)], ids=["strong", "frequent"]
)
def test_what_shows_in_all_dimensions_is_not_looked_for_along_shapes(size, n_channels, distance, monkeypatch):
    monkeypatch.setattr(splitting, "find_differences", lambda *_: pytest.fail("looked at along shapes"))
    rng = np.random.default_rng(0)
    residuals, waveform = make_unit(rng, draw_two(rng, 200, 60), distance=distance)
    residuals, waveform = residuals[:, :n_channels], waveform[:n_channels]
    waveform = waveform * size * MAX_NORM_OF_WEAK / np.linalg.norm(waveform)
    with_shapes, without = (split_white(residuals, waveform, shapes=shapes) for shapes in (SHAPES, None))
    np.testing.assert_array_equal(with_shapes, without)


def test_differences_hold_the_shapes_on_every_channel_and_nothing_else():
    rng = np.random.default_rng(0)
    whitener = np.tril(rng.normal(size=(3 * N_SAMPLES, 3 * N_SAMPLES)) * 0.05 + np.eye(3 * N_SAMPLES)).astype("float32")
    directions = find_differences(SHAPES, whitener)
    assert directions.shape == (3 * N_SAMPLES, 3 * len(SHAPES))
    np.testing.assert_allclose(directions.T @ directions, np.eye(9), atol=1e-5)
    waveform = rng.normal(size=(3, len(SHAPES))) @ SHAPES
    whitened = waveform.reshape(-1) @ whitener
    np.testing.assert_allclose(directions @ (directions.T @ whitened), whitened, atol=1e-4)


# --- parts ---


def make_two_parts(rng, n_spikes, n_other, n_dims=100):
    """Vectors of two neurons that differ a little in each of many dimensions, and which are of the second."""
    truth = rng.permutation(np.arange(n_spikes) < n_other)
    return (rng.normal(size=(n_spikes, n_dims)) + 0.6 * truth[:, None]).astype("float32"), truth


@pytest.mark.parametrize("n_other", [50, 400])
def test_borders_are_drawn_where_the_parts_differ(n_other):
    rng = np.random.default_rng(0)
    vectors, truth = make_two_parts(rng, 1000, n_other)
    found_at_first = np.where(rng.random(1000) < 0.8, truth, rng.permutation(truth)).astype("int64")
    parts = sharpen_parts(vectors, found_at_first)
    assert np.mean(found_at_first == truth) < 0.99 < np.mean(parts == truth)


def test_other_parts_are_left_alone():
    rng = np.random.default_rng(0)
    vectors, truth = make_two_parts(rng, 600, 200)
    vectors = np.concatenate([vectors, vectors[:100] + 50])
    expected = np.r_[truth, np.full(100, 2)]
    np.testing.assert_array_equal(sharpen_parts(vectors, expected)[600:], 2)


def test_a_part_that_shrinks_below_a_neuron_goes_to_the_largest():
    rng = np.random.default_rng(0)
    vectors, truth = make_two_parts(rng, 1000, 15)
    found_at_first = truth | (rng.random(1000) < 0.02)
    assert not sharpen_parts(vectors, found_at_first.astype("int64")).any()


def judge_small_part(n_part, spread, distance, n_spikes=2000):
    """Of a part whose spikes are `spread` times as spread as the others, and `distance` SD from them."""
    rng = np.random.default_rng(0)
    is_part = rng.permutation(np.arange(n_spikes) < n_part)
    vectors = rng.normal(size=(n_spikes, 1000)) * np.where(is_part, np.sqrt(spread), 1)[:, None]
    vectors[:, 0] += distance * is_part
    return is_neuron(vectors.astype("float32"), is_part)


@pytest.mark.parametrize(("n_part", "spread", "distance"), RARE_NEURONS)
def test_a_small_part_has_to_show_that_it_is_a_neuron(n_part, spread, distance):
    enough = n_part + 1, 0.96 * spread, 1.4 * distance + 4.0  # the noise of the mean makes it seem less
    assert judge_small_part(*enough)
    assert not judge_small_part(RAREST_NEURON[0] - 1, *enough[1:])
    assert not judge_small_part(enough[0], max(1.12, spread + 0.05), enough[2])
    assert judge_small_part(*enough[:2], 0.0) == (distance == 0)


@pytest.mark.parametrize("n_part, expected", [(39, False), (40, True), (199, True)])
def test_a_small_part_needs_spikes(n_part, expected):
    assert judge_small_part(n_part, 1.0, 0.0) == expected


@pytest.mark.parametrize("spread, expected", [(0.9**2, True), (1.0, True), (1.04**2, False)])
def test_the_spikes_of_a_small_part_are_alike(spread, expected):
    assert judge_small_part(100, spread, 0.0) == expected


def test_the_farther_away_a_small_part_is_the_fewer_and_the_more_spread_its_spikes_may_be():
    assert [judge_small_part(n_part, 1.0, 2.0) for n_part in (30, 45)] == [False, True]
    assert [judge_small_part(n_part, 1.0, 9.0) for n_part in (19, 30)] == [False, True]
    assert [judge_small_part(60, 1.05, distance) for distance in (2.0, 9.0)] == [False, True]


def test_a_large_part_may_vary():
    assert judge_small_part(200, 1.2**2, 0.0, n_spikes=1000)


def find_part_beside_larger_one(n_part, spread, distance, n_others=200):
    """Whether it is found: n_part vectors, more spread than the others (a ratio of squares), `distance` SD away."""
    rng = np.random.default_rng(0)
    parts = (np.arange(n_part + n_others) < n_part).astype("int64")
    vectors = rng.normal(size=(len(parts), 200)) * np.where(parts, np.sqrt(spread), 1)[:, None]
    vectors[:, 0] += distance * parts
    found = find_likely_neurons(vectors.astype("float32"), parts, np.bincount(parts)).tolist()
    assert found in ([0], [0, 1])
    return found == [0, 1]


@pytest.mark.parametrize("spread, is_compact", [(0.8, True), (1.0, True), (1.2, False), (1.5, False)])
def test_parts_that_are_more_spread_than_the_largest_are_not_compact(spread, is_compact):
    assert find_part_beside_larger_one(100, spread, distance=0.0) == is_compact


@pytest.mark.parametrize("spread, distance, is_neuron", [(1.5, 8.0, True), (1.5, 2.0, False), (1.75, 8.0, False)])
def test_parts_far_from_the_largest_may_be_more_spread(spread, distance, is_neuron):
    assert find_part_beside_larger_one(100, spread, distance) == is_neuron


@pytest.mark.parametrize("n_part, n_others, distance", [(FAR_PARTS[0][0] - 1, 200, 5.5), (100, 1000, 8.0)])
def test_small_parts_far_from_the_largest_are_collisions_if_more_spread(n_part, n_others, distance):
    assert not find_part_beside_larger_one(n_part, 1.5, distance, n_others)
    assert find_part_beside_larger_one(n_part, 1.0, distance, n_others)


@pytest.mark.parametrize("n_spikes, min_distance", FAR_PARTS)
def test_the_fewer_spikes_a_part_has_the_farther_it_must_be(n_spikes, min_distance):
    assert find_part_beside_larger_one(n_spikes, 1.5, min_distance + 1.5)
    assert find_part_beside_larger_one(n_spikes, 1.0, distance=0.0)


def test_parts_without_enough_spikes_are_not_likely():
    vectors = np.random.default_rng(0).normal(size=(2 * MIN_SPIKES, 5)).astype("float32")
    parts = (np.arange(2 * MIN_SPIKES) < MIN_SPIKES - 1).astype("int64")
    assert find_likely_neurons(vectors, parts, np.bincount(parts, minlength=4)).tolist() == [0]


@pytest.mark.parametrize("n_spikes", [2 * MIN_SPIKES, 90])
def test_parts_may_all_be_too_small(n_spikes):
    parts = np.arange(n_spikes) % 4
    vectors = np.random.default_rng(0).normal(size=(n_spikes, 5)).astype("float32")
    assert len(find_likely_neurons(vectors, parts, np.bincount(parts))) == 0


# --- join ---


def make_groups(rng, means, n_spikes=200):
    """Vectors of 5 dimensions around means on the first axis, and their number."""
    groups = np.repeat(np.arange(len(means)), n_spikes)
    vectors = rng.normal(size=(len(groups), 5))
    vectors[:, 0] += np.repeat(means, n_spikes)
    return vectors.astype("float32"), groups


@pytest.mark.parametrize("labels", [[0, 1, 2], [9, 4, 7]])
def test_halves_are_joined_and_groups_are_not(labels):
    vectors, groups = make_groups(np.random.default_rng(0), [0, 8])
    is_second_half = (groups == 0) & (vectors[:, 1] > 0)
    parts = np.where(is_second_half, labels[2], np.array(labels)[groups])
    before = parts.copy()
    found = join_parts(vectors, parts, THRESHOLD)
    assert set(found) == {0, 1}
    assert len(set(zip(found, groups, strict=True))) == 2
    assert np.array_equal(parts, before)


@pytest.mark.parametrize("distance, n_parts", [(2.4, 1), (3.2, 2)])
def test_parts_as_close_as_the_halves_of_one_are_joined_whatever_the_threshold(distance, n_parts):
    vectors, groups = make_groups(np.random.default_rng(0), [0, distance])
    assert len(set(join_parts(vectors, groups, 1e-9))) == n_parts


def test_parts_without_a_gap_are_joined_however_far_apart():
    """The halves of a uniform distribution are 3.5 SD apart."""
    rng = np.random.default_rng(0)
    vectors, groups = make_groups(rng, [0], n_spikes=600)
    vectors[:, 0] += rng.uniform(-10, 10, 600)
    halves = (vectors[:, 0] > 0).astype("int64")
    assert separation(*project_on_difference(vectors[halves == 0], vectors[halves == 1])) > MIN_SEPARATION + 0.2
    assert not join_parts(vectors, halves, THRESHOLD).any()


def test_a_few_vectors_far_from_the_others_are_kept_apart():
    """Too few for the dip test."""
    vectors, groups = make_groups(np.random.default_rng(0), [0, 6])
    kept = np.r_[np.flatnonzero(groups == 0), np.flatnonzero(groups == 1)[:12]]
    assert join_parts(vectors[kept], groups[kept], 1e6).max() == 1


@pytest.mark.parametrize("closer, n_parts", [(np.inf, 2), (1.4, 1), (2.2, 1)])
def test_what_is_joined_is_no_closer_to_a_third_part(monkeypatch, closer, n_parts):
    """Parts of 10 and of 20 spikes are joined; beside the 30 of the third the gap of these 30 looks smaller."""
    scores = {(10, 20): 1.35, (10, 30): np.inf, (20, 30): closer, (30, 30): 2.0}
    monkeypatch.setattr(splitting, "score_pair", lambda first, second, *_: scores[len(first), len(second)])
    parts = np.repeat([0, 1, 2], [10, 20, 30])
    found = join_parts(np.zeros((60, 5), "float32"), parts, THRESHOLD)
    assert np.array_equal(found, np.repeat([0, n_parts - 1], 30))


@given(n_first=st.integers(1, 60), n_second=st.integers(1, 60), seed=st.integers(0, 99))
def test_mixed_spikes_against_a_slow_count(n_first, n_second, seed):
    is_second = np.random.default_rng(seed).permutation(n_first + n_second) < n_second
    rows = 3 * np.arange(len(is_second))
    size = min(N_NEIGHBORS, len(rows) - 1)
    mixed = []
    for index in range(size, len(rows) - size):
        n_second = [is_second[start : start + size].sum() for start in (index - size, index + 1)]
        if min(n_second) >= 0.2 * size and max(n_second) <= size - 0.2 * size:
            mixed.append(rows[index])
    found = find_mixed(rows[~is_second], rows[is_second])
    assert [part.tolist() for part in found] == [
        [row for row in mixed if row in rows[part]] for part in (~is_second, is_second)
    ]


def test_parts_that_follow_each_other_are_not_mixed():
    assert [len(part) for part in find_mixed(np.arange(50), np.arange(50, 90))] == [0, 0]


def test_threshold_zero_joins_none():
    vectors, groups = make_groups(np.random.default_rng(0), [0, 0, 8])
    assert np.array_equal(join_parts(vectors, groups, 0.0), groups)


def test_one_part_needs_no_partner():
    vectors, groups = make_groups(np.random.default_rng(0), [0])
    assert np.array_equal(join_parts(vectors, groups + 3, THRESHOLD), groups)


# --- variation ---


@settings(max_examples=50, deadline=None)
@given(n_spikes=st.integers(1, 5), n_channels=st.integers(1, 4), n_samples=st.integers(8, 40), seed=st.integers(0, 99))
def test_what_remains_is_orthogonal_to_the_waveform_and_its_derivatives(n_spikes, n_channels, n_samples, seed):
    rng = np.random.default_rng(seed)
    waveform = (10 * rng.normal(size=(n_channels, n_samples))).astype("float32")
    slope = np.gradient(waveform, axis=1)
    directions = np.stack([waveform, slope, np.gradient(slope, axis=1)]).reshape(3, -1).astype("float64")
    vectors = rng.normal(size=(n_spikes, waveform.size)).astype("float32")
    found = remove_variation(vectors, find_variation(waveform))
    assert found.shape == vectors.shape and found.dtype == np.float32
    coefficients = np.linalg.lstsq(directions.T, vectors.T, rcond=None)[0]
    np.testing.assert_allclose(found, vectors - coefficients.T @ directions, atol=1e-4)
    normed = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    np.testing.assert_allclose(normed @ found.T, 0, atol=1e-4)


def test_a_shift_and_a_gain_leave_little():
    waveform = SIZES * pulse()
    for changed in (1.2 * waveform, SIZES * pulse(np.array(0.4))):
        vectors = (changed - waveform).reshape(1, -1)
        left = remove_variation(vectors.astype("float32"), find_variation(waveform.astype("float32")))
        assert np.linalg.norm(left) < 0.02 * np.linalg.norm(vectors)


def slow_running_mean(vectors, n_around):
    """Of the n_around + 1 vectors around each, fewer before it than after at the start and the reverse at the end."""
    found = []
    for index, vector in enumerate(vectors):
        start = index - n_around // 2
        while start < 0:
            start += 1
        while start + n_around >= len(vectors):
            start -= 1
        others = [vectors[other] for other in range(start, start + n_around + 1) if other != index]
        found.append(vector - np.mean(others, axis=0))
    return np.array(found)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), n_spikes=st.integers(2, 30), n_dims=st.integers(1, 3), seed=st.integers(0, 99))
def test_running_mean_against_a_slow_loop(data, n_spikes, n_dims, seed):
    n_around = data.draw(st.integers(1, n_spikes - 1))
    vectors = (1 + np.random.default_rng(seed).normal(size=(n_spikes, n_dims))).astype("float32")
    found = remove_running_mean(vectors, n_around)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_running_mean(vectors, n_around), atol=1e-4)


def test_running_mean_does_not_lose_precision_in_long_sums():
    vectors = np.full((20_000, 1), 1000.1, dtype="float32")
    np.testing.assert_allclose(remove_running_mean(vectors, 30), 0, atol=1e-3)
