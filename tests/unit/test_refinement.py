"""Refinement: two neurons in one unit are told apart, one neuron in two units is put together."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep import refinement
from spikeinterface_huidurep.clustering import MIN_SPIKES
from spikeinterface_huidurep.merging import MAX_LAG, project_on_difference, separation
from spikeinterface_huidurep.noise import Noise
from spikeinterface_huidurep.refinement import (
    MAX_DIFFERENCE,
    MAX_SAME_DIFFERENCE,
    MIN_DISTANCE,
    MIN_EXCESS,
    MIN_SEPARATION,
    MIN_SHARPENING,
    align_unit,
    find_compact_parts,
    find_larger_spikes,
    find_same_units,
    find_variation,
    join_parts,
    refine_units,
    remove_running_mean,
    remove_variation,
    sharpen_parts,
    split_unit,
)
from spikeinterface_huidurep.residuals import Residuals, extract_residuals
from spikeinterface_huidurep.waveforms import Neighborhoods

from .test_results import JOB_KWARGS, SAMPLING_FREQUENCY, make_sorting, make_templates

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


def split_white(residuals, waveform, threshold=THRESHOLD):
    """`split_unit` where the noise is white already."""
    return split_unit(residuals, waveform, np.eye(waveform.size, dtype="float32"), threshold, seed=0)


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
        (200, MIN_SPIKES - 5, 1),
        (200, MIN_SPIKES + 5, 2),
        (2000, MIN_SPIKES + 5, 2),
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
    parts = split_unit(residuals, waveform, whitener, THRESHOLD, seed=0)
    assert measure_purity(parts, truth.astype("int64")) > 0.97
    assert not split_white(residuals, waveform).any()


@pytest.mark.parametrize("difference, n_parts", [(0.15, 1), (1.0, 2)])
def test_a_high_threshold_splits_only_what_is_far_apart(difference, n_parts):
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 2
    assert split(mix(truth, difference), rng, threshold=1e6).max() + 1 == n_parts


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
    vectors, truth = make_two_parts(rng, 1000, MIN_SPIKES - 5)
    found_at_first = truth | (rng.random(1000) < 0.02)
    assert not sharpen_parts(vectors, found_at_first.astype("int64")).any()


@pytest.mark.parametrize("spread, is_compact", [(0.8, True), (1.0, True), (1.2, False)])
def test_parts_that_are_more_spread_than_the_largest_are_not_compact(spread, is_compact):
    rng = np.random.default_rng(0)
    parts = (np.arange(300) < 100).astype("int64")
    vectors = rng.normal(size=(300, 200)) * np.where(parts, spread, 1)[:, None] + 5 * parts[:, None]
    found = find_compact_parts(vectors.astype("float32"), parts, np.bincount(parts))
    assert found.tolist() == ([0, 1] if is_compact else [0])


def test_parts_without_enough_spikes_are_not_compact():
    vectors = np.random.default_rng(0).normal(size=(2 * MIN_SPIKES, 5)).astype("float32")
    parts = (np.arange(2 * MIN_SPIKES) < MIN_SPIKES - 1).astype("int64")
    assert find_compact_parts(vectors, parts, np.bincount(parts, minlength=4)).tolist() == [0]


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


# --- same units ---

PAD = MAX_LAG  # samples of the templates before and after the window


def make_residuals(waveforms, main_channels, n_spikes=100, radius_um=60.0, seed=0):
    """
    Residuals of white noise of units one after the other, and the indices of their spikes.

    Waveforms have shape (n_channels, PAD + N_SAMPLES + PAD), channels are 20 um apart.
    """
    neighborhoods = Neighborhoods(np.c_[np.zeros(len(waveforms[0])), 20.0 * np.arange(len(waveforms[0]))], radius_um)
    size = (n_spikes * len(waveforms), N_SAMPLES, neighborhoods.channel_mask.shape[1])
    values = np.random.default_rng(seed).normal(size=size).astype("float32")
    templates = np.stack(waveforms).transpose(0, 2, 1).astype("float32")
    window = slice(PAD, PAD + N_SAMPLES)
    noise = np.random.default_rng(seed).normal(size=(30_000, len(waveforms[0]))).astype("float32")
    noise = Noise(NumpyRecording([noise], SAMPLING_FREQUENCY))
    residuals = Residuals(values, templates, window, 0, np.array(main_channels), neighborhoods, noise)
    return residuals, list(np.arange(len(values)).reshape(len(waveforms), n_spikes))


@pytest.mark.parametrize("share_late", [0.0, 0.3])
def test_a_template_of_spikes_that_are_not_aligned_is_made_anew(share_late):
    """A third of the spikes lie two samples later than the others; the template is the mean of all."""
    late = np.arange(100) < 100 * share_late
    moved = np.where(late[:, None, None], SIZES * long_pulse(2), SIZES * long_pulse())
    residuals, (rows,) = make_residuals([moved.mean(axis=0)], [1])
    residuals.values[:] += (moved - moved.mean(axis=0))[:, :, residuals.window].transpose(0, 2, 1)
    lags, gain = align_unit(residuals, rows, 0, n_made_of=1000)
    assert (gain > MIN_SHARPENING) == (share_late > 0)
    if share_late > 0:
        assert np.mean(lags[late] - np.median(lags[~late]) == 2) > 0.95


@pytest.mark.parametrize("n_made_of", [100, 1000])
def test_a_template_that_is_noisy_as_chance_has_it_stays(n_made_of):
    noise = np.random.default_rng(1).normal(size=(N_SAMPLES + 2 * PAD,)) / np.sqrt(n_made_of)
    residuals, (rows,) = make_residuals([SIZES * long_pulse() + noise], [1])
    residuals.values[:] -= np.tile(noise[residuals.window][:, None], residuals.values.shape[2])
    assert align_unit(residuals, rows, 0, n_made_of)[1] < MIN_SHARPENING


def test_a_template_that_is_wrong_is_made_anew():
    residuals, (rows,) = make_residuals([0.6 * SHAPE], [1])
    residuals.values[:] += 0.4 * SHAPE[:, residuals.window].T
    lags, gain = align_unit(residuals, rows, 0, n_made_of=1000)
    assert gain == pytest.approx(0.5 * np.sum((0.4 * SHAPE) ** 2), rel=0.2)
    assert not lags.any()


def find_same(residuals, members, sizes=None, threshold=THRESHOLD):
    sizes = np.array([len(rows) for rows in members] if sizes is None else sizes)
    return find_same_units(residuals, members, sizes, threshold)


def long_pulse(delay=0):
    return pulse(delay, n_before=PAD + N_BEFORE, n_samples=N_SAMPLES + 2 * PAD)


SHAPE = SIZES * long_pulse()  # largest on channel 1


@pytest.mark.parametrize("sizes, pair", [([900, 500], (0, 1)), ([500, 900], (1, 0)), ([500, 500], (0, 1))])
def test_same_units_are_named_once_the_larger_first(sizes, pair):
    residuals, members = make_residuals([SHAPE, SHAPE], [1, 1])
    assert find_same(residuals, members, sizes) == [(*pair, 0)]


@pytest.mark.parametrize("lag", [-7, 4])
def test_what_is_left_moves_with_the_lag(lag):
    """The units are the same, but their templates are both wrong in the same way."""
    residuals, members = make_residuals([SHAPE, SIZES * long_pulse(lag)], [1, 1])
    residuals.values[members[0], 30, 1] += 20
    residuals.values[members[1], 30 + lag, 1] += 20
    assert find_same(residuals, members) == [(0, 1, lag)]
    residuals.values[members[1], 30 + lag, 1] -= 20
    assert find_same(residuals, members) == []


def test_spikes_are_compared_not_residuals():
    """What the templates differ by is in the residuals of one neuron, too."""
    wrong = SHAPE + 0.25 * SHAPE[[3, 2, 1, 0]]
    residuals, members = make_residuals([SHAPE, wrong], [1, 1])
    assert find_same(residuals, members) == []
    left = (SHAPE - wrong)[:, residuals.window]
    residuals.values[members[1]] += left.T
    assert find_same(residuals, members) == [(0, 1, 0)]


@pytest.mark.parametrize("share, n_pairs", [(0.95, 1), (1.05, 0)])
def test_unlike_templates_are_not_compared(share, n_pairs):
    smaller = (1 - np.sqrt(share * MAX_DIFFERENCE)) * SHAPE
    residuals, members = make_residuals([SHAPE, smaller], [1, 1])
    assert len(find_same(residuals, members, threshold=1e6)) == n_pairs


@pytest.mark.parametrize("distance, n_pairs", [(0.99 * MIN_DISTANCE, 1), (1.01 * MIN_DISTANCE, 0)])
def test_close_templates_are_compared_however_small(distance, n_pairs):
    small = 15 / np.linalg.norm(SHAPE) * SHAPE
    smaller = (1 - distance / 15) * small
    residuals, members = make_residuals([small, smaller], [1, 1])
    assert len(find_same(residuals, members, threshold=1e6)) == n_pairs


@pytest.mark.parametrize("n_values, n_pairs", [(0, 0), (5000, 1)])
def test_noise_of_the_templates_makes_no_difference(n_values, n_pairs):
    """100 spikes each add 2 / 100 of the variance of the noise to every value of the difference."""
    smaller = (1 - np.sqrt(1.1 * MAX_DIFFERENCE)) * SHAPE
    residuals, members = make_residuals([SHAPE, smaller], [1, 1])
    residuals.n_template_samples = n_values // len(SHAPE)
    assert len(find_same(residuals, members, threshold=1e6)) == n_pairs


@pytest.mark.parametrize("main_channels", [[1, 2], [0, 4]])
def test_the_same_template_is_compared_wherever_its_main_channel_is(main_channels):
    residuals, members = make_residuals([np.ones((5, 1)) * long_pulse()] * 2, main_channels, radius_um=200.0)
    assert find_same(residuals, members) == [(0, 1, 0)]


def test_units_far_apart_are_not_compared():
    shapes = [np.eye(5)[[channel]].T * long_pulse() for channel in (0, 4)]
    residuals, members = make_residuals(shapes, [0, 4], radius_um=200.0)
    assert find_same(residuals, members, threshold=1e6) == []


def test_only_the_channels_of_both_units_are_compared():
    """Channels 0, 1, 2 and 1, 2, 3, in this order."""
    shape = np.array([[1.0], [9.0], [10.0], [1.0], [0.0]]) * long_pulse()
    residuals, members = make_residuals([shape, shape], [1, 2], radius_um=20.0)
    residuals.values[members[0], :, 0] += 20  # channel 0
    residuals.values[members[1], :, 2] += 20  # channel 3
    assert find_same(residuals, members) == [(0, 1, 0)]


@pytest.mark.parametrize(
    "size, difference, n_pairs",
    [(9.0, 1.05 * MAX_SAME_DIFFERENCE, 0), (9.0, 0.95 * MAX_SAME_DIFFERENCE, 1), (11.0, 0.95 * MAX_DIFFERENCE, 1)],
)
def test_units_that_share_little_of_their_energy_are_one_only_if_alike(size, difference, n_pairs):
    """Channels 0, 1, 2 and 2, 3, 4 of one neuron: channel 2 has 0.17 or 0.23 of its energy."""
    shape = np.array([[10.0], [10.0], [size], [10.0], [10.0]]) * long_pulse()
    residuals, members = make_residuals([shape, (1 - np.sqrt(difference)) * shape], [1, 3], radius_um=20.0)
    assert len(find_same(residuals, members, threshold=1e6)) == n_pairs


def test_units_that_are_unlike_beyond_the_channels_compared_are_two():
    """Channels 0, 1, 2 are alike, channel 4 is not."""
    shapes = [np.array([[10.0], [10.0], [10.0], [0.0], [last]]) * long_pulse() for last in (0.0, 10.0)]
    residuals, members = make_residuals(shapes, [1, 1], radius_um=20.0)
    assert find_same(residuals, members, threshold=1e6) == []
    residuals, members = make_residuals(shapes[:1] * 2, [1, 1], radius_um=20.0)
    assert len(find_same(residuals, members, threshold=1e6)) == 1


def test_the_most_alike_come_first():
    residuals, members = make_residuals([SHAPE] * 3, [1, 1, 1], n_spikes=300)
    residuals.values[members[0], 50, 2] += 5
    pairs = find_same(residuals, members, threshold=1e6)
    assert [set(pair[:2]) for pair in pairs][0] == {1, 2} and len(pairs) == 3


# --- units ---

N_CHANNELS, LAG, SPACING = 10, 3, 150
MIXED, CLEAN, FIRST_HALF, SECOND_HALF = UNIT_IDS = [10, 20, 31, 42]


def place(sizes, channel, delay=0, width=5.0):
    """Waveform, shape (110, N_CHANNELS), of a neuron from this channel on."""
    shape = np.zeros((110, N_CHANNELS))
    shape[:, channel : channel + len(sizes)] = (sizes * pulse(delay, width, n_before=45, n_samples=110)).T
    return shape


NEURONS = np.stack(
    [place(SIZES, 0), place(OTHER_SIZES, 0, width=6.0), place(OTHER_SIZES, 3, width=8.0), place(1.3 * SIZES, 6)]
)
NEURON_COUNTS = [160, 140, 100, 300]


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    """
    (sorting, residuals, neurons): what matching found in two segments with a wrong idea of the units.

    Neurons 0 and 1 are in unit MIXED, neuron 2 is unit CLEAN, and of neuron 3 every third spike is in SECOND_HALF,
    whose template lies LAG samples earlier: its spikes are as many samples late.
    """
    rng = np.random.default_rng(0)
    neurons = rng.permutation(np.repeat(np.arange(4), NEURON_COUNTS))
    segments = np.repeat([0, 1], [400, 300])
    samples = 100 + SPACING * np.r_[np.arange(400), np.arange(300)]
    traces = [rng.normal(size=(SPACING * size + 200, N_CHANNELS)) for size in (400, 300)]
    for segment, sample, neuron in zip(segments, samples, neurons, strict=True):
        traces[segment][sample - 45 : sample + 65] += NEURONS[neuron]
    units = np.array([0, 0, 1, 2])[neurons]
    units[np.flatnonzero(units == 2)[::3]] = 3
    sorting = make_sorting(samples + np.where(units == 3, LAG, 0), units, segments, unit_ids=np.array(UNIT_IDS))
    shapes = np.stack([NEURONS[:2].mean(axis=0), NEURONS[2], NEURONS[3], place(1.3 * SIZES, 6, delay=-LAG)])
    templates = make_templates(shapes, nbefore=45, unit_ids=UNIT_IDS)
    traces = [segment.astype("float32") for segment in traces]
    recording = NumpyRecording(traces, SAMPLING_FREQUENCY, channel_ids=templates.channel_ids)
    recording.set_probe(templates.probe)
    neighborhoods = Neighborhoods(recording.get_channel_locations(), 60.0)
    folder = tmp_path_factory.mktemp("refinement") / "spikes"
    return sorting, extract_residuals(recording, sorting, templates, neighborhoods, "neg", folder, JOB_KWARGS), neurons


def refine(sorting, residuals, threshold=THRESHOLD, **made_of):
    """`refine_units` where templates were made of as many spikes as they found, unless `made_of` is a share of them."""
    found = sorting.count_num_spikes_per_unit(outputs="dict")
    n_spikes = {unit_id: count * made_of.get(f"unit_{unit_id}", 1.0) for unit_id, count in found.items()}
    return refine_units(sorting, residuals, n_spikes, threshold, seed=0)


def list_spikes(spikes):
    return list(zip(spikes["segment_index"].tolist(), spikes["sample_index"].tolist(), strict=True))


def test_units_are_split_and_joined(matched):
    sorting, residuals, neurons = matched
    refined = refine(sorting, residuals)
    assert refined.replaced == [MIXED, FIRST_HALF, SECOND_HALF]
    assert sorted(set(refined.labels)) == sorted(refined.n_spikes) == [43, 44, 45]
    # at 100, 250, 400, ... in each segment
    wanted = {neuron: [] for neuron in range(4)}
    for index, neuron in enumerate(neurons):
        segment = int(index >= 400)
        wanted[neuron].append((segment, 100 + SPACING * (index - 400 * segment)))
    found = {label: sorted(list_spikes(refined.peaks[refined.labels == label])) for label in (43, 44, 45)}
    assert found[45] == wanted[3]  # with the lag
    assert sorted([found[43], found[44]]) == sorted([wanted[0], wanted[1]])
    assert refined.n_spikes == {label: len(spikes) for label, spikes in found.items()}
    channels = {label: set(refined.peaks["channel_index"][refined.labels == label]) for label in (43, 44)}
    assert channels[43] == channels[44] == {residuals.main_channels[0]}
    assert set(refined.peaks["channel_index"][refined.labels == 45]) == {7}


def test_of_many_spikes_some_are_looked_at_and_all_are_counted(matched, monkeypatch):
    monkeypatch.setattr(refinement, "MAX_SPIKES", 100)
    sorting, residuals, _ = matched
    refined = refine(sorting, residuals)
    assert refined.replaced == [MIXED, FIRST_HALF, SECOND_HALF]
    n_looked_at = np.bincount(refined.labels)[43:]
    assert n_looked_at[0] + n_looked_at[1] == 100 and n_looked_at[2] == 200
    assert refined.n_spikes == pytest.approx({43: 3 * n_looked_at[0], 44: 3 * n_looked_at[1], 45: 300})
    assert len(set(list_spikes(refined.peaks))) == 300
    of_mixed = refined.peaks[refined.labels < 45]
    assert 30 < np.sum(of_mixed["segment_index"] == 1) < 55  # from the whole recording


def test_threshold_zero_joins_no_units_and_a_high_one_splits_what_is_far_apart(matched):
    sorting, residuals, _ = matched
    assert not {FIRST_HALF, SECOND_HALF} & set(refine(sorting, residuals, 0.0).replaced)
    assert refine(sorting, residuals, 1e6).replaced == [MIXED, FIRST_HALF, SECOND_HALF]


@pytest.mark.parametrize("n_rare, replaced", [(100, [MIXED, FIRST_HALF, SECOND_HALF]), (101, [MIXED])])
def test_rare_units_are_not_joined(matched, monkeypatch, n_rare, replaced):
    monkeypatch.setattr(refinement, "MIN_SPIKES", n_rare)  # SECOND_HALF has 100
    sorting, residuals, _ = matched
    assert refine(sorting, residuals, 1e6).replaced == replaced


def regroup(matched, units, templates_of):
    """Sorting and residuals with other units, -1 for spikes left out, that have the templates of these old ones."""
    sorting, residuals, _ = matched
    spikes, kept = sorting.to_spike_vector(), units >= 0
    found = make_sorting(spikes["sample_index"][kept], units[kept], spikes["segment_index"][kept])
    changed = {"waveforms": residuals.waveforms[templates_of], "main_channels": residuals.main_channels[templates_of]}
    return found, replace(residuals, values=residuals.values[kept], **changed)


def test_nothing_to_change(matched):
    """Units CLEAN and FIRST_HALF only."""
    units = np.array([-1, 0, 1, -1])[matched[0].to_spike_vector()["unit_index"]]
    refined = refine(*regroup(matched, units, [1, 2]))
    assert refined.replaced == [] and refined.n_spikes == {}
    assert len(refined.peaks) == len(refined.labels) == 0


def test_a_unit_changes_once(matched):
    """Three units of one neuron: two are joined, the third stays; two units of two neurons each: no half is joined."""
    old_units = matched[0].to_spike_vector()["unit_index"]
    thirds = np.where(old_units == 2, np.arange(len(old_units)) % 3, -1)
    refined = refine(*regroup(matched, thirds, [2, 2, 2]))
    assert len(refined.replaced) == 2 and list(refined.n_spikes) == [3]
    mixed = np.where(old_units == 0, np.arange(len(old_units)) % 2, -1)
    refined = refine(*regroup(matched, mixed, [0, 0]))
    assert refined.replaced == [0, 1] and list(refined.n_spikes) == [2, 3, 4, 5]
    assert len(set(list_spikes(refined.peaks))) == len(refined.peaks) == 300


def make_larger(matched, excess):
    """
    Residuals of `matched`, those of unit CLEAN with this much more along its template, (n,) or a number in noise SD.

    Returns
    -------
    residuals : Residuals
    own : np.ndarray, int64
        Indices of the spikes of CLEAN.
    """
    sorting, residuals, _ = matched
    channels = residuals.find_channels(1)
    waveform = residuals.get_waveform(1, channels)[:, residuals.window].T
    own = np.flatnonzero(sorting.to_spike_vector()["unit_index"] == 1)
    values = residuals.values.copy()
    steps = np.broadcast_to(excess, len(own))[:, None, None] * waveform / np.linalg.norm(waveform)
    values[own, :, : len(channels)] += steps
    return replace(residuals, values=values), own


@pytest.mark.parametrize("share, is_replaced", [(1 / 1.49, False), (1 / 1.51, True)])
def test_a_unit_that_found_many_more_and_larger_spikes_gets_a_new_template(matched, monkeypatch, share, is_replaced):
    """Unit CLEAN, unlike the others, neither holds two neurons nor is one with another."""
    monkeypatch.setattr(refinement, "MIN_SHARPENING", np.inf)
    sorting, residuals = matched[0], make_larger(matched, 10.0)[0]
    refined = refine(sorting, residuals, unit_20=share)
    assert (CLEAN in refined.replaced) == is_replaced
    assert sorted(refined.n_spikes) == [43, 44, 45, 46][: 3 + is_replaced]
    if is_replaced:
        assert refined.n_spikes[46] == 100
        wanted = sorting.to_spike_vector()[sorting.to_spike_vector()["unit_index"] == 1]
        assert list_spikes(refined.peaks[refined.labels == 46]) == list_spikes(wanted)


@pytest.mark.parametrize("excess, is_replaced", [(-3.0, False), (0.0, False), (4.0, True)])
def test_spikes_must_be_larger_than_the_template(matched, excess, is_replaced):
    """Noise alone makes half of them larger by 0.8 SD, which is below MIN_EXCESS."""
    residuals, _ = make_larger(matched, excess)
    assert 0.8 < MIN_EXCESS < 4.0
    assert (CLEAN in refine(matched[0], residuals, unit_20=0.1).replaced) == is_replaced


def test_small_spikes_among_the_larger_make_no_template(matched):
    """As where a blurred template of a neuron picks noise too."""
    residuals, own = make_larger(matched, np.where(np.arange(100) % 3, -6.0, 10.0))
    refined = refine(matched[0], residuals, unit_20=0.1)
    wanted = matched[0].to_spike_vector()[own[::3]]
    assert CLEAN in refined.replaced and refined.n_spikes[46] == len(wanted)
    assert list_spikes(refined.peaks[refined.labels == 46]) == list_spikes(wanted)
    assert find_larger_spikes(residuals, own, 1).tolist() == own[::3].tolist()


@pytest.mark.parametrize("is_weak, share, is_dropped", [(True, 0.1, True), (True, 0.5, False), (False, 0.1, False)])
def test_weak_units_of_many_kinds_are_left_out(matched, monkeypatch, is_weak, share, is_dropped):
    """Unit CLEAN found 10 or 2 times more spikes than it was made of, and no larger ones."""
    sorting, residuals, _ = matched
    norm = residuals.describe_templates()[0][1]
    monkeypatch.setattr(refinement, "WEAK_NORM", norm + (1 if is_weak else -1))
    refined = refine(sorting, residuals, unit_20=share)
    assert (CLEAN in refined.replaced) == is_dropped
    assert sorted(refined.n_spikes) == [43, 44, 45]


def test_too_few_larger_spikes_make_no_template(matched):
    few = MIN_SPIKES - 1
    residuals, _ = make_larger(matched, np.where(np.arange(100) < few, 10.0, -6.0))
    assert CLEAN not in refine(matched[0], residuals, unit_20=0.1).replaced


def test_a_unit_that_is_split_or_joined_is_not_taken_again(matched):
    sorting, residuals, _ = matched
    refined = refine(sorting, residuals, unit_10=0.1, unit_31=0.1, unit_42=0.1)
    assert refined.replaced == [MIXED, FIRST_HALF, SECOND_HALF] and len(refined.n_spikes) == 3
