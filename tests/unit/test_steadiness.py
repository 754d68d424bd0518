"""Steadiness: drift changes the other units between the times of two, behaviour does not."""

from types import SimpleNamespace

import numpy as np
import pytest

from spikeinterface_huidurep.linking import MIN_CHANGE
from spikeinterface_huidurep.matching import make_sorting
from spikeinterface_huidurep.steadiness import (
    CHANCE,
    MAX_DISTANCE_UM,
    MAX_UNITS,
    MIN_SPIKES,
    Steadiness,
    find_own_stretches,
    measure_difference,
)

DURATION_S = 100.0
SHAPE = 2, 30  # channels, samples
DIFFERENCE = 0.3  # of the templates of the two units
NORM = 40.0


def make_steadiness(times_s, changes, locations_um=None, seed=0):
    """
    Steadiness of units of NORM, the residuals of which are noise and change * 2 / DURATION_S * time for each.

    `changes` is the share of the energy that a unit changes by between the two halves of the recording.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(times_s)), [len(times) for times in times_s])
    all_times_s = np.concatenate(times_s)
    sorting, order = make_sorting(np.round(all_times_s * 1000).astype(int), labels, np.zeros(len(labels), int), 1000.0)
    values = rng.normal(size=(len(labels), *SHAPE)).astype("float32")
    is_late = all_times_s[order] >= DURATION_S / 2
    values[:, 0, 0] += NORM * np.sqrt(changes)[labels[order]] * is_late
    residuals = SimpleNamespace(
        measure_norms=lambda: np.full(len(times_s), NORM),
        locate_templates=lambda: np.zeros((len(times_s), 2)) if locations_um is None else np.array(locations_um),
        read=lambda rows, unit: values[rows],
    )
    return Steadiness(sorting, residuals, times_s)


def fire(start_s, stop_s, n_spikes=300, seed=0):
    return np.sort(np.random.default_rng(seed).uniform(start_s, stop_s, n_spikes))


EARLY, LATE, ALWAYS = fire(0, 50), fire(50, DURATION_S, seed=1), fire(0, DURATION_S, seed=2)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_change_of_others_is_a_share_of_the_difference(share):
    steadiness = make_steadiness([EARLY, LATE, ALWAYS], np.array([0, 0, share * DIFFERENCE]))
    change = steadiness.measure_change(EARLY, LATE, np.array([0, 1]), DIFFERENCE)
    assert change == pytest.approx(share, abs=0.05) and change > MIN_CHANGE


def test_a_unit_that_changes_more_than_the_two_differ_counts_as_if_it_changed_as_much():
    steadiness = make_steadiness([EARLY, LATE, *[ALWAYS] * 5], np.r_[np.zeros(6), 10 * DIFFERENCE])
    assert steadiness.measure_change(EARLY, LATE, np.array([0, 1]), DIFFERENCE) == pytest.approx(1 / 5, abs=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_others_that_stay_as_they_are_change_less_than_drift_has_it(seed):
    steadiness = make_steadiness([EARLY, LATE, ALWAYS, ALWAYS], np.zeros(4), seed=seed)
    assert steadiness.measure_change(EARLY, LATE, np.array([0, 1]), DIFFERENCE) < MIN_CHANGE


@pytest.mark.parametrize("other", [EARLY, LATE, np.r_[EARLY, LATE[: MIN_SPIKES - 1]]])
def test_units_of_one_of_the_times_tell_nothing(other):
    steadiness = make_steadiness([EARLY, LATE, other], np.zeros(3))
    assert steadiness.measure_change(EARLY, LATE, np.array([0, 1]), DIFFERENCE) == np.inf


def test_two_alone_tell_nothing():
    steadiness = make_steadiness([EARLY, LATE], np.zeros(2))
    assert steadiness.measure_change(EARLY, LATE, np.array([0, 1]), DIFFERENCE) == np.inf


def test_units_whose_noise_hides_the_difference_tell_nothing():
    steadiness = make_steadiness([EARLY, LATE, ALWAYS], np.zeros(3))
    assert steadiness.measure_change(EARLY, LATE, np.array([0, 1]), 1e-4) == np.inf


def test_fragments_of_the_two_are_no_others():
    steadiness = make_steadiness([EARLY, LATE, ALWAYS, ALWAYS], np.array([0, 0, DIFFERENCE, 0]))
    assert steadiness.measure_change(EARLY, LATE, np.array([0, 1, 2]), DIFFERENCE) < MIN_CHANGE


def test_units_far_away_do_not_count():
    places_um = [[0, 0], [0, 10], [0, MAX_DISTANCE_UM + 1], [0, 50]]
    steadiness = make_steadiness([EARLY, LATE, ALWAYS, ALWAYS], np.array([0, 0, DIFFERENCE, 0]), places_um)
    assert steadiness.measure_change(EARLY, LATE, np.array([0, 1]), DIFFERENCE) < MIN_CHANGE


def test_no_more_units_than_needed_are_read():
    read = []
    steadiness = make_steadiness([EARLY, LATE, *[ALWAYS] * (MAX_UNITS + 5)], np.zeros(MAX_UNITS + 7))
    read_all = steadiness.residuals.read
    steadiness.residuals.read = lambda rows, unit: read.append(unit) or read_all(rows, unit)
    steadiness.measure_change(EARLY, LATE, np.array([0, 1]), DIFFERENCE)
    assert len(set(read)) == MAX_UNITS and not {0, 1} & set(read)


def test_large_units_of_one_of_the_times_are_not_in_the_way_of_others():
    steadiness = make_steadiness([EARLY, LATE, *[EARLY] * MAX_UNITS, ALWAYS], np.zeros(MAX_UNITS + 3))
    assert steadiness.measure_change(EARLY, LATE, np.array([0, 1]), DIFFERENCE) < MIN_CHANGE


def test_where_turns_are_short_long_stretches_tell():
    """Two take turns of 10 s with 5 s between, in which the third fires alone: only stretches of 10 s have both."""
    starts_s = np.arange(0, DURATION_S, 20.0)
    first, second, third = (
        np.concatenate([fire(start + offset, start + offset + 3, 40, seed) for seed, start in enumerate(starts_s)])
        for offset in (0.5, 10.5, 6.0)
    )
    third = np.sort(np.r_[third, third + 10])
    steadiness = make_steadiness([first, second, third[third < DURATION_S]], np.zeros(3))
    assert steadiness.measure_change(first, second, np.array([0, 1]), DIFFERENCE) < MIN_CHANGE


def test_stretches_of_one_train_by_hand():
    first, second = find_own_stretches(np.array([0.5, 1.5, 4.5]), np.array([4.6, 6.5]), 2.0)
    assert first.tolist() == [True, False, False, False, False, False]
    assert second.tolist() == [False, False, False, True, False, False]


def test_difference_of_means_by_hand():
    first, second = np.array([[1.0, 0], [3.0, 0]]), np.array([[6.0, 1], [6.0, 3]])
    # variances 2 and 2, of two spikes each: the means differ by chance by 1 + 1; they differ by 4 and 2
    assert measure_difference(first, second) == pytest.approx((4**2 + 2**2 - CHANCE * 2, 2))
