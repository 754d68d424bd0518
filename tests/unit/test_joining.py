"""Joining: two units that are one neuron are found, and two neurons that are alike are not."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep import joining
from spikeinterface_huidurep.joining import (
    MAX_DIFFERENCE,
    MAX_DIFFERENCE_OF_FRAGMENTS,
    MAX_SEPARATION_OF_ONE,
    MIN_DISTANCE,
    MIN_LARGE_PTP,
    MIN_SPIKES,
    find_doubtful_units,
    find_same_units,
)
from spikeinterface_huidurep.linking import MAX_DIFFERENCE_OF_ONE
from spikeinterface_huidurep.merging import MAX_LAG, thin
from spikeinterface_huidurep.noise import Noise
from spikeinterface_huidurep.residuals import Residuals
from spikeinterface_huidurep.waveforms import Neighborhoods

from .test_linking import make_trains
from .test_results import SAMPLING_FREQUENCY
from .test_splitting import N_BEFORE, N_SAMPLES, SIZES, THRESHOLD, pulse

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


def long_pulse(delay=0):
    return pulse(delay, n_before=PAD + N_BEFORE, n_samples=N_SAMPLES + 2 * PAD)


SHAPE = SIZES * long_pulse()  # largest on channel 1


def find_same(residuals, members, sizes=None, made_of=None, compare_spikes=True):
    """Without comparing spikes all pairs are the same whose templates are alike enough for it."""
    sizes = np.array([len(rows) for rows in members] if sizes is None else sizes)
    made_of = np.array([len(rows) for rows in members] if made_of is None else made_of)
    with pytest.MonkeyPatch.context() as patch:
        if not compare_spikes:
            patch.setattr(joining, "MAX_SEPARATION_OF_ONE", np.inf)
        return find_same_units(residuals, members, sizes, made_of, THRESHOLD if compare_spikes else 1e6)


@pytest.mark.parametrize("sizes, pair", [([900, 500], (0, 1)), ([500, 900], (1, 0)), ([500, 500], (0, 1))])
def test_same_units_are_named_once_the_larger_first(sizes, pair):
    residuals, members = make_residuals([SHAPE, SHAPE], [1, 1])
    assert find_same(residuals, members, sizes) == [(*pair, 0)]


@pytest.mark.parametrize(
    "n_spikes, difference, n_pairs", [(MIN_SPIKES - 1, 0, 0), (MIN_SPIKES, 0, 1), (MIN_SPIKES, 8, 0)]
)
def test_units_of_few_spikes_are_joined_if_they_are_alike(n_spikes, difference, n_pairs):
    residuals, members = make_residuals([SHAPE, SHAPE], [1, 1], n_spikes=n_spikes)
    residuals.values[members[1], 30, 3] += difference
    assert len(find_same(residuals, members)) == n_pairs


@pytest.mark.parametrize("limit, n_pairs", [(MAX_SEPARATION_OF_ONE, 0), (4.0, 1)])
def test_units_that_are_apart_are_not_joined_for_lack_of_a_gap(limit, n_pairs, monkeypatch):
    """Two halves of what fills a line: 3.5 SD apart."""
    residuals, members = make_residuals([SHAPE, SHAPE], [1, 1], n_spikes=300)
    direction = (SHAPE / np.linalg.norm(SHAPE[:, residuals.window]))[:, residuals.window].T
    along = np.sort(np.random.default_rng(2).uniform(-20, 20, len(residuals.values)))
    residuals.values[:] += along[:, None, None] * direction
    monkeypatch.setattr(joining, "MAX_SEPARATION_OF_ONE", limit)
    assert len(find_same(residuals, members)) == n_pairs


@pytest.mark.parametrize("difference, n_pairs", [(0.0, 1), (6.0, 0)])
@pytest.mark.parametrize("hidden_by", ["drift", "amplitude"])
def test_what_widens_both_units_hides_no_gap(hidden_by, difference, n_pairs):
    """The units fire alternately; what tells them apart is along what changes, and on channel 3."""
    residuals, members = make_residuals([SHAPE, SHAPE], [1, 1], n_spikes=400)
    members = [np.arange(first, len(residuals.values), 2) for first in (0, 1)]
    shape = SHAPE[:, residuals.window].T / np.linalg.norm(SHAPE[:, residuals.window])
    on_channel = np.zeros_like(shape)
    on_channel[30, 3] = 1.0
    changes = {
        "drift": np.linspace(-20, 20, len(residuals.values))[:, None, None] * on_channel,
        "amplitude": np.random.default_rng(1).normal(0, 12, len(residuals.values))[:, None, None] * shape,
    }
    residuals.values[:] += changes[hidden_by]
    residuals.values[members[1]] += difference * (on_channel if hidden_by == "drift" else on_channel + shape)
    assert len(find_same(residuals, members)) == n_pairs


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
    assert len(find_same(residuals, members, compare_spikes=False)) == n_pairs


@pytest.mark.parametrize("distance, n_pairs", [(0.99 * MIN_DISTANCE, 1), (1.01 * MIN_DISTANCE, 0)])
def test_close_templates_are_compared_however_small(distance, n_pairs):
    small = 15 / np.linalg.norm(SHAPE) * SHAPE
    smaller = (1 - distance / 15) * small
    residuals, members = make_residuals([small, smaller], [1, 1])
    residuals.values *= 0.01
    assert len(find_same(residuals, members, compare_spikes=False)) == n_pairs


@pytest.mark.parametrize("share, n_pairs", [(0.0, 0), (1.0, 1)])
def test_a_neuron_whose_templates_are_unlike_is_one(share, n_pairs):
    """The spikes that each was made of were made larger by noise, on one channel or on another."""
    small = 15 / np.linalg.norm(SHAPE) * SHAPE
    wrong = [small + 6 * np.eye(4)[[channel]].T * long_pulse() / np.linalg.norm(long_pulse()) for channel in (0, 2)]
    residuals, members = make_residuals(wrong, [1, 1])
    for rows, template in zip(members, wrong, strict=True):
        residuals.values[rows] += share * (small - template)[:, residuals.window].T
    assert len(find_same(residuals, members)) == n_pairs


@pytest.mark.parametrize("n_values, n_spikes, n_pairs", [(0, 100, 0), (5000, 100, 1), (5000, 1000, 0)])
def test_noise_of_the_spikes_makes_no_difference(n_values, n_spikes, n_pairs):
    """100 spikes each add 2 / 100 of the variance of the noise to every value of the difference."""
    smaller = (1 - np.sqrt(1.1 * MAX_DIFFERENCE)) * SHAPE
    residuals, members = make_residuals([SHAPE, smaller], [1, 1], n_spikes)
    residuals.n_template_samples = n_values // len(SHAPE)
    assert len(find_same(residuals, members, compare_spikes=False)) == n_pairs


@pytest.mark.parametrize("made_of, n_pairs", [(100, 1), (10**6, 0)])
def test_where_spikes_were_not_looked_at_the_noise_is_that_of_the_template(made_of, n_pairs):
    """Channels 0, 1, 2 and 2, 3, 4; the templates differ by 0.14 of their energy, on 0 and 4."""
    shape = np.array([[10.0], [10.0], [11.0], [10.0], [10.0]]) * long_pulse()
    other = np.array([[0.4], [1.0], [1.0], [1.0], [0.4]]) * shape
    residuals, members = make_residuals([shape, other], [1, 3], radius_um=20.0)
    residuals.n_template_samples = int(np.sum((shape - other) ** 2) / (4 * 2 / 100))
    assert len(find_same(residuals, members, made_of=[made_of] * 2, compare_spikes=False)) == n_pairs


@pytest.mark.parametrize("size, n_pairs", [(0.9 * MIN_LARGE_PTP, 1), (1.1 * MIN_LARGE_PTP, 0)])
def test_a_channel_that_one_template_lacks_makes_a_difference_if_it_is_large(size, n_pairs):
    """20 channels beyond those on which the spikes are compared."""
    shape = np.r_[np.full(3, 10.0), np.full(20, size)][:, None] * long_pulse() / np.ptp(long_pulse())
    cut = np.r_[np.ones(3), np.zeros(20)][:, None] * shape
    assert np.sum((shape - cut) ** 2) > MAX_DIFFERENCE * np.sum(shape**2)
    residuals, members = make_residuals([shape, cut], [1, 1], radius_um=20.0)
    assert len(find_same(residuals, members, compare_spikes=False)) == n_pairs


@pytest.mark.parametrize("main_channels", [[1, 2], [0, 4]])
def test_the_same_template_is_compared_wherever_its_main_channel_is(main_channels):
    residuals, members = make_residuals([np.ones((5, 1)) * long_pulse()] * 2, main_channels, radius_um=200.0)
    assert find_same(residuals, members) == [(0, 1, 0)]


def test_units_far_apart_are_not_compared():
    shapes = [np.eye(5)[[channel]].T * long_pulse() for channel in (0, 4)]
    residuals, members = make_residuals(shapes, [0, 4], radius_um=200.0)
    assert find_same(residuals, members, compare_spikes=False) == []


def test_only_the_channels_of_both_units_are_compared():
    """Channels 0, 1, 2 and 1, 2, 3, in this order."""
    shape = np.array([[1.0], [9.0], [10.0], [1.0], [0.0]]) * long_pulse()
    residuals, members = make_residuals([shape, shape], [1, 2], radius_um=20.0)
    residuals.values[members[0], :, 0] += 20  # channel 0
    residuals.values[members[1], :, 2] += 20  # channel 3
    assert find_same(residuals, members) == [(0, 1, 0)]


@pytest.mark.parametrize(
    "size, difference, n_pairs",
    [(9.0, 1.05 * MAX_DIFFERENCE_OF_ONE, 0), (9.0, 0.95 * MAX_DIFFERENCE_OF_ONE, 1), (11.0, 0.95 * MAX_DIFFERENCE, 1)],
)
def test_units_that_share_little_of_their_energy_are_one_only_if_alike(size, difference, n_pairs):
    """Channels 0, 1, 2 and 2, 3, 4 of one neuron: channel 2 has 0.17 or 0.23 of its energy."""
    shape = np.array([[10.0], [10.0], [size], [10.0], [10.0]]) * long_pulse()
    residuals, members = make_residuals([shape, (1 - np.sqrt(difference)) * shape], [1, 3], radius_um=20.0)
    assert len(find_same(residuals, members, compare_spikes=False)) == n_pairs


def test_units_that_are_unlike_beyond_the_channels_compared_are_two():
    """Channels 0, 1, 2 are alike, channel 4 is not."""
    shapes = [np.array([[10.0], [10.0], [10.0], [0.0], [last]]) * long_pulse() for last in (0.0, 10.0)]
    residuals, members = make_residuals(shapes, [1, 1], radius_um=20.0)
    assert find_same(residuals, members, compare_spikes=False) == []
    residuals, members = make_residuals(shapes[:1] * 2, [1, 1], radius_um=20.0)
    assert len(find_same(residuals, members, compare_spikes=False)) == 1


def test_the_most_alike_come_first():
    residuals, members = make_residuals([SHAPE] * 3, [1, 1, 1], n_spikes=300)
    residuals.values[members[0], 50, 2] += 5
    pairs = find_same(residuals, members, compare_spikes=False)
    assert [set(pair[:2]) for pair in pairs][0] == {1, 2} and len(pairs) == 3


# --- units that are probably none ---

N_FREQUENT, N_RARE = 900, 60


def make_doubtful(shape=SHAPE):
    """Residuals of two units that fire in turn, the second of this shape, and the indices of their spikes."""
    residuals, _ = make_residuals([SHAPE, shape], [1, 1], n_spikes=N_FREQUENT)
    return residuals, [np.arange(first, 2 * N_FREQUENT, 2) for first in (0, 1)]


def find_doubtful(residuals, members, *counted):
    """Of each unit only some of the spikes count."""
    sorting = make_trains(*(rows + 0.5 for rows in members))
    return find_doubtful_units(residuals, sorting, np.isin(np.arange(2 * N_FREQUENT), np.concatenate(counted)))


def collide(residuals, rows, seed=1):
    """Add spikes of others at random places and times."""
    rng = np.random.default_rng(seed)
    delays, sizes = rng.integers(-20, 20, len(rows)), rng.uniform(0, 15, (len(rows), 1, len(SHAPE)))
    residuals.values[rows] += sizes * pulse(delays)[:, :, None]


@pytest.mark.parametrize("rare, frequent", [(0, 1), (1, 0)])
def test_a_rare_unit_of_collisions_is_doubtful_beside_its_neuron(rare, frequent):
    residuals, members = make_doubtful()
    collide(residuals, members[rare])
    assert find_doubtful(residuals, members, *members) == set()
    few = thin(members[rare], N_RARE)
    assert find_doubtful(residuals, members, few, members[frequent]) == {(0, 1)}
    assert find_doubtful(residuals, members, few, thin(members[frequent], N_RARE)) == set()


@pytest.mark.parametrize("share, wanted", [(0.9, {(0, 1)}), (1.1, set())])
def test_a_rare_unit_that_is_unlike_its_neighbours_is_not_doubtful(share, wanted):
    residuals, members = make_doubtful((1 - np.sqrt(share * MAX_DIFFERENCE_OF_FRAGMENTS)) * SHAPE)
    collide(residuals, members[1])
    assert find_doubtful(residuals, members, members[0], thin(members[1], N_RARE)) == wanted


@pytest.mark.parametrize("is_corrected, wanted", [(False, {(0, 1)}), (True, set())])
def test_what_is_left_of_drift_makes_no_unit_doubtful(is_corrected, wanted):
    residuals, members = make_doubtful(SHAPE * [[1.0], [1.0], [0.5], [1.0]])
    collide(residuals, members[1])
    if is_corrected:
        residuals.noise.traces.annotate(displacement_um=[0.0, 10.0])
    assert find_doubtful(residuals, members, members[0], thin(members[1], N_RARE)) == wanted


@pytest.mark.parametrize("distance, wanted", [(2.9, {(0, 1)}), (3.1, set())])
def test_a_rare_unit_is_doubtful_if_its_template_can_hardly_be_told_from_another(distance, wanted):
    residuals, members = make_doubtful((1 - distance / np.linalg.norm(SHAPE)) * SHAPE)
    assert find_doubtful(residuals, members, members[0], thin(members[1], N_RARE)) == wanted


def test_leftovers_make_no_unit_doubtful():
    residuals, members = make_doubtful(SHAPE * [[1.0], [1.0], [0.5], [1.0]])
    leftovers, own = thin(members[1], N_RARE), np.setdiff1d(members[1], thin(members[1], N_RARE))
    collide(residuals, leftovers)
    few = np.sort(np.r_[leftovers, thin(own, N_RARE // 2)])
    assert find_doubtful(residuals, members, members[0], few) == {(0, 1)}
    assert find_doubtful(residuals, members, members[0], np.setdiff1d(few, leftovers)) == set()


@pytest.mark.parametrize(
    "is_one, fire_together, is_corrected, wanted",
    [(True, True, True, {(0, 1)}), (False, True, True, set()), (True, False, True, set()), (True, True, False, set())],
)
def test_units_that_fill_what_is_between_them_are_doubtful(is_one, fire_together, is_corrected, wanted):
    """The halves of one Gaussian, or two neurons, of which one fires all the time and the other for a while."""
    difference = np.zeros_like(SHAPE)
    difference[3, PAD + 30] = 8.0
    residuals, _ = make_residuals([SHAPE, SHAPE + difference], [1, 1], n_spikes=N_FREQUENT)
    rows = np.arange(2 * N_FREQUENT)
    members = [rows[::2], rows[1::2]] if fire_together else np.array_split(rows, 2)
    if is_one:
        low, high = np.array_split(np.sort(np.random.default_rng(1).normal(4.0, 4.0, 2 * N_FREQUENT)), 2)
        for rows, values in zip(members, (low, high - 8.0), strict=True):
            residuals.values[rows, 30, 3] += np.random.default_rng(2).permutation(values)
    if is_corrected:
        residuals.noise.traces.annotate(displacement_um=[0.0, 10.0])
    assert find_doubtful(residuals, members, members[0], members[1][: N_FREQUENT // 2]) == wanted


def test_units_of_two_sizes_that_fire_together_are_not_doubtful():
    size = 1 - 8 / np.linalg.norm(SHAPE)
    residuals, members = make_doubtful(size * SHAPE)
    residuals.noise.traces.annotate(displacement_um=[0.0, 10.0])
    assert find_doubtful(residuals, members, members[0], members[1][: N_FREQUENT // 2]) == set()
