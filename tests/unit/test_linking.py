"""Linking: fragments of a neuron that moved become one, two neurons stay two."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import ChannelSparsity
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep.changes import MIN_SPIKES, NO_CHANGES, Change, Changes
from spikeinterface_huidurep.linking import (
    MAX_BINS,
    MAX_COINCIDENCE,
    MAX_COINCIDENCE_OF_APART,
    MAX_COINCIDENCE_OF_SAME,
    MAX_DIFFERENCE,
    MAX_DIFFERENCE_OF_APART,
    MAX_DIFFERENCE_OF_LIKE,
    MIN_BIN_S,
    MIN_BINS,
    MIN_CHANCE_COINCIDENCES,
    MIN_CHANGE,
    MIN_CHANGE_IN_TURN,
    MIN_OTHERS,
    coincidence,
    count_pairs,
    find_alike_templates,
    fire_in_turn,
    join_fragments,
    leave_out_silence,
    limit_coincidence,
    link_fragments,
    locate_templates,
    respect_refractory_period,
    share_displacement,
)
from spikeinterface_huidurep.matching import make_sorting
from spikeinterface_huidurep.residuals import count_samples

from .test_results import SAMPLING_FREQUENCY, make_templates

DURATION_S = 300.0
UNLIKE = 0.2  # templates that are one neuron only if something speaks for it


# --- coincidence ---


@pytest.mark.parametrize(
    ("first_s", "second_s", "wanted"),
    [
        (np.full(60, 5.0), np.full(30, 55.0), 0.0),
        (np.full(60, 5.0), np.full(30, 9.9), 6.0),  # of 6 stretches of 10 s only one
        (np.arange(0.5, 60.0, 1), np.arange(0.5, 60.0, 2), 1.0),
        (np.arange(0.0, 30.0, 1), np.arange(0.5, 60.0, 1), 1.0),  # all of the first in the half of the second
        (np.r_[np.full(54, 5.0), np.full(6, 55.0)], np.full(30, 55.0), 0.6),
    ],
)
def test_coincidence_by_hand(first_s, second_s, wanted):
    assert coincidence(first_s, second_s, 60.0) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("n_first", "n_second", "duration_s"), [(0, 2000, 300.0), (1, 1799, 300.0), (42, 42, 300.0), (100, 100, 59.9)]
)
def test_little_is_known_from_few_spikes_or_a_short_time(n_first, n_second, duration_s):
    assert coincidence(np.full(n_first, 1.0), np.full(n_second, 50.0), duration_s) == 1.0


def slow_coincidence(first_s, second_s, duration_s):
    """Pairs of spikes in the same stretch, one pair at a time, over the pairs that chance gives."""
    n_pairs = len(first_s) * len(second_s)
    n_bins = 0
    while (
        n_bins < MAX_BINS
        and (n_bins + 1) * MIN_BIN_S <= duration_s
        and (n_bins + 1) * MIN_CHANCE_COINCIDENCES <= n_pairs
    ):
        n_bins += 1
    if n_bins < MIN_BINS:
        return 1.0
    stretches = [[int(time * n_bins / duration_s) for time in times] for times in (first_s, second_s)]
    return sum(a == b for a in stretches[0] for b in stretches[1]) / (n_pairs / n_bins)


@settings(max_examples=50, deadline=None)
@given(
    n_first=st.integers(0, 150), n_second=st.integers(0, 150), duration_s=st.floats(20, 500), seed=st.integers(0, 1000)
)
def test_coincidence_against_pairs_one_by_one(n_first, n_second, duration_s, seed):
    rng = np.random.default_rng(seed)
    first_s, second_s = duration_s * rng.random(n_first), duration_s * rng.random(n_second) ** 2
    wanted = slow_coincidence(first_s, second_s, duration_s)
    assert coincidence(first_s, second_s, duration_s) == pytest.approx(wanted)
    assert coincidence(second_s, first_s, duration_s) == pytest.approx(wanted)


@pytest.mark.parametrize("n_first, n_second", [(43, 43), (30, 600), (300, 300), (3000, 3000)])
def test_independent_neurons_coincide_as_chance_has_it(n_first, n_second):
    rng = np.random.default_rng(0)
    found = [coincidence(DURATION_S * rng.random(n_first), DURATION_S * rng.random(n_second), 300.0) for _ in range(50)]
    assert np.mean(found) == pytest.approx(1, abs=0.05)
    assert min(found) > limit_coincidence(0.05)


@pytest.mark.parametrize(
    "difference, limit",
    [
        (0.0, MAX_COINCIDENCE_OF_SAME),
        (MAX_DIFFERENCE_OF_LIKE / 2, (MAX_COINCIDENCE_OF_SAME + MAX_COINCIDENCE) / 2),
        (MAX_DIFFERENCE_OF_LIKE, MAX_COINCIDENCE),
        (MAX_DIFFERENCE, MAX_COINCIDENCE),
        (MAX_DIFFERENCE_OF_APART, MAX_COINCIDENCE_OF_APART),
    ],
)
def test_the_closer_two_templates_the_more_they_may_overlap(difference, limit):
    assert limit_coincidence(difference) == pytest.approx(limit)


def draw_turns(turn_s, n_spikes=600, seed=0):
    """Times of one neuron, and which of them are in every other turn."""
    times_s = np.sort(DURATION_S * np.random.default_rng(seed).random(n_spikes))
    return times_s, (times_s / turn_s).astype(int) % 2 == 0


def test_turns_of_seconds_are_seen_where_stretches_are_as_short():
    times_s, is_first = draw_turns(5.0)
    trains = times_s[is_first], times_s[~is_first]
    assert coincidence(*trains, DURATION_S) > MAX_COINCIDENCE
    assert fire_in_turn(*trains, DURATION_S)


@pytest.mark.parametrize("n_first, n_second", [(14, 14), (30, 600), (300, 300)])
def test_independent_neurons_take_no_turns(n_first, n_second):
    rng = np.random.default_rng(0)
    assert not any(
        fire_in_turn(DURATION_S * rng.random(n_first), DURATION_S * rng.random(n_second), DURATION_S) for _ in range(50)
    )


def draw_places(displacement_um, n_spikes=600):
    """Times of one neuron, and which of them are at displacements, one a second, of more than 5 um."""
    times_s = np.sort(DURATION_S * np.random.default_rng(0).random(n_spikes))
    return times_s, displacement_um[times_s.astype(int)] > 5


def test_fragments_that_share_the_displacements_of_fast_drift():
    displacement_um = 20 * np.sin(np.arange(300.0))
    times_s, is_first = draw_places(displacement_um)
    trains = times_s[is_first], times_s[~is_first]
    assert coincidence(*trains, DURATION_S) > 0.9
    assert share_displacement(*trains, displacement_um, DURATION_S)
    assert not share_displacement(*trains, None, DURATION_S)
    assert not share_displacement(*trains, np.roll(displacement_um, 80) ** 2, DURATION_S)
    assert not share_displacement(*trains, np.zeros(300), DURATION_S)


def test_neurons_that_take_turns_share_no_displacement():
    """Behaviour silences one while the other fires, whatever the displacement."""
    times_s, is_first = draw_turns(5.0)
    displacement_um = np.random.default_rng(1).normal(size=300)
    assert fire_in_turn(times_s[is_first], times_s[~is_first], DURATION_S)
    assert not share_displacement(times_s[is_first], times_s[~is_first], displacement_um, DURATION_S)


@pytest.mark.parametrize("n_first, n_second", [(14, 14), (30, 600), (300, 300)])
def test_independent_neurons_share_no_displacement(n_first, n_second):
    rng = np.random.default_rng(0)
    displacement_um = np.cumsum(rng.normal(size=300))
    assert not any(
        share_displacement(
            *(DURATION_S * rng.random(size) for size in (n_first, n_second)), displacement_um, DURATION_S
        )
        for _ in range(50)
    )


def test_in_a_long_recording_taking_turns_every_minute_is_no_drift():
    rng = np.random.default_rng(0)
    minutes = rng.random((2, 1800)) * 60 + 120 * rng.integers(0, 30, size=(2, 1800))
    first_s, second_s = minutes[0], minutes[1] + 60
    assert coincidence(first_s, second_s, 3600.0) > 0.9
    assert coincidence(first_s[first_s < 300], second_s[second_s < 300], 300.0) == 0


# --- templates ---

PULSE = -np.exp(-0.5 * ((np.arange(90) - 40) / 3) ** 2)


def make_units(*units, n_channels=12):
    """Templates of a pulse, given as (amplitude, channel of the centre, delay), on channels 20 um apart."""
    array = np.zeros((len(units), 90, n_channels), dtype="float32")
    for of_unit, (amplitude, channel, delay) in zip(array, units, strict=True):
        of_unit[:, channel - 1 : channel + 2] = amplitude * np.outer(np.roll(PULSE, delay), [0.5, 1, 0.5])
    return make_templates(array, nbefore=40)


def test_alike_templates_by_hand():
    templates = make_units((10, 3, 0), (9, 3, 0), (-10, 3, 0), (10, 9, 0), (10, 3, 5))
    pairs = {(first, second): share for share, first, second in find_alike_templates(templates)}
    assert set(pairs) == {(0, 1), (0, 4), (1, 4)}
    assert pairs[0, 1] == pytest.approx(0.1**2, abs=1e-3)
    assert pairs[0, 4] == pytest.approx(0, abs=1e-3)  # the same at another time
    assert pairs[1, 4] == pytest.approx(0.1**2, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(0.1, 10), seed=st.integers(0, 20))
def test_gain_does_not_matter(gain, seed):
    rng = np.random.default_rng(seed)
    units = [(rng.uniform(5, 10), rng.integers(1, 6), 0) for _ in range(5)]
    wanted, found = (
        find_alike_templates(make_units(*[(factor * a, c, d) for a, c, d in units])) for factor in (1, gain)
    )
    assert [pair[1:] for pair in found] == [pair[1:] for pair in wanted]
    np.testing.assert_allclose([pair[0] for pair in found], [pair[0] for pair in wanted], rtol=1e-3, atol=1e-5)


def make_changing_pair(trains):
    """
    Two units that differ by much in the mean, a recording of two blocks, and how they change in the second.

    Returns
    -------
    templates : Templates
    sorting : NumpySorting
    changes : Changes
    """
    templates = make_units((10, 3, 0), (5, 3, 0))
    templates = templates.to_sparse(ChannelSparsity(np.ones((2, 12), bool), templates.unit_ids, templates.channel_ids))
    n_before, n_after = count_samples(SAMPLING_FREQUENCY)
    as_the_first = templates.get_dense_templates()[1, 40 - n_before : 40 + n_after].T
    half = round(0.5 * DURATION_S * SAMPLING_FREQUENCY)
    changes = Changes([(0, 0, half), (0, half, 2 * half)], [{}, {1: Change(np.arange(12), as_the_first)}])
    return templates, make_trains(*trains), changes


@pytest.mark.parametrize(
    "n_early, n_late, wanted",
    [
        ((100, 0), (100, 100), 0.0),  # only in the second block do both fire
        ((100, 100), (100, 0), 0.25),
        ((100, 100), (100, 100), 0.125),
        ((100, MIN_SPIKES), (100, 30 - MIN_SPIKES), 0.25 * MIN_SPIKES / 30),
        ((100, 100), (100, MIN_SPIKES - 1), 0.25),
        ((100, 0), (0, 100), 0.25),  # never both
    ],
)
def test_templates_are_compared_as_they_are_at_the_same_times(n_early, n_late, wanted):
    trains = [np.r_[fire(early, 0, 0.5), fire(late, 0.5, 1)] for early, late in zip(n_early, n_late, strict=True)]
    [(share, first, second)] = find_alike_templates(*make_changing_pair(trains))
    assert (first, second) == (0, 1) and share == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("is_known, n_neurons", [(True, 1), (False, 2)])
def test_fragments_that_are_the_same_where_they_meet_are_linked(is_known, n_neurons):
    """They fire together in two fifths of the time, too much for templates that differ by as much as in the mean."""
    trains = fire(280, 0, 0.7), fire(280, 0.3, 1)
    templates, sorting, changes = make_changing_pair(trains)
    changes = Changes([(0, 0, 1), changes.blocks[1]], changes.of_block) if is_known else NO_CHANGES
    assert len(set(link_fragments(sorting, templates, [DURATION_S], changes=changes))) == n_neurons


def test_location_by_hand():
    array = np.zeros((2, 60, 3))
    array[0, 20, :2], array[0, 30, 1] = [-3.0, -3.0], 1.0
    array[1, 20, 2] = 5.0
    np.testing.assert_allclose(locate_templates(make_templates(array)), [[0, 20 * 16 / 25], [0, 40]])


# --- refractory period ---


def slow_count(first_s, second_s, nearest_s, farthest_s):
    return sum(nearest_s < abs(a - b) <= farthest_s for a in first_s for b in second_s)


@settings(max_examples=50, deadline=None)
@given(n_first=st.integers(0, 40), n_second=st.integers(0, 40), seed=st.integers(0, 1000))
def test_pairs_are_counted(n_first, n_second, seed):
    rng = np.random.default_rng(seed)
    first_s, second_s = np.sort(rng.random(n_first)), np.sort(rng.random(n_second))
    assert count_pairs(first_s, second_s, 0.01, 0.1) == slow_count(first_s, second_s, 0.01, 0.1)


def fire_at_random(seed, n_spikes=5000, duration_s=150.0, refractory_s=2.5e-3):
    """Times of a neuron with a refractory period, as they come, shape (n_spikes,); `seed` may be a generator."""
    rng = np.random.default_rng(seed)
    return np.cumsum(refractory_s + rng.exponential(duration_s / n_spikes - refractory_s, n_spikes))


def test_two_parts_of_one_train_respect_its_refractory_period():
    train = np.random.default_rng(5).permutation(fire_at_random(0))
    for n_first in (500, 1000, 2500):
        assert respect_refractory_period(train[:n_first], train[n_first:], UNLIKE)
        assert respect_refractory_period(train[n_first:], train[:n_first], UNLIKE)


def test_two_trains_do_not():
    for seed in range(20):
        assert not respect_refractory_period(fire_at_random(seed), fire_at_random(seed + 100), UNLIKE)


@pytest.mark.parametrize("share_of_others, wanted", [(0.1, True), (0.5, False)])
def test_some_spikes_of_others_are_forgiven(share_of_others, wanted):
    train, other = fire_at_random(0), fire_at_random(1)
    first, second = train[::2], train[1::2]
    first[: int(share_of_others * len(first))] = other[::2][: int(share_of_others * len(first))]
    assert respect_refractory_period(first, second, UNLIKE) == wanted


def test_few_spikes_show_nothing():
    train = fire_at_random(0, n_spikes=300)
    assert not respect_refractory_period(train[::2], train[1::2], UNLIKE)
    assert not respect_refractory_period(train, np.zeros(0), UNLIKE)


@pytest.mark.parametrize(("nearest_ms", "wanted"), [(2.5, True), (0.7, False)])
def test_few_spikes_of_bursts_show_a_refractory_period(nearest_ms, wanted):
    """The second spikes of bursts are smaller: one unit has the first ones, another one the second ones."""
    rng = np.random.default_rng(0)
    first = np.sort(rng.uniform(0, 150, 100))
    second = first + rng.uniform(nearest_ms, 8.0, 100) * 1e-3
    assert respect_refractory_period(first, second, UNLIKE) == wanted


@pytest.mark.parametrize(("nearest_ms", "wanted"), [(2.5, True), (0.7, False)])
def test_the_few_small_spikes_of_a_neuron_that_bursts_follow_its_others(nearest_ms, wanted):
    """Too few to show a refractory period; in any order of the two units."""
    rng = np.random.default_rng(0)
    first = rng.permutation(rng.uniform(0, 150, 130))
    second = np.r_[first[:20] + rng.uniform(nearest_ms, 8.0, 20) * 1e-3, rng.uniform(0, 150, 20)]
    assert respect_refractory_period(first, second, UNLIKE) == wanted
    assert respect_refractory_period(second, first, UNLIKE) == wanted


def test_a_spike_that_was_found_twice_breaks_no_refractory_period():
    train = fire_at_random(0)
    assert respect_refractory_period(train[::2], np.r_[train[1::2], train[::20] + 0.5e-3], UNLIKE)


# --- linking ---


def make_trains(*times_s, segments=None, unit_ids=None):
    """Sorting of the units that fire at `times_s`, each in a segment of its own if `segments` says so."""
    labels = np.arange(len(times_s)) if unit_ids is None else np.array(unit_ids)
    sizes = [len(times) for times in times_s]
    samples = np.round(np.concatenate(times_s) * SAMPLING_FREQUENCY).astype("int64")
    segments = np.repeat(np.zeros(len(sizes), int) if segments is None else segments, sizes)
    return make_sorting(samples, np.repeat(labels, sizes), segments, SAMPLING_FREQUENCY)[0]


def fire(n_spikes, start=0.0, stop=1.0):
    """Regular times in s between two shares of the recording."""
    return DURATION_S * np.linspace(start, stop, n_spikes, endpoint=False)


ALIKE = [(10, 3, 0), (7.5, 3, 0), (5.6, 3, 0)]  # neighbours differ by 0.06 of the energy


def test_fragments_are_linked_and_named_after_the_largest():
    sorting = make_trains(fire(200, 0, 0.5), fire(300, 0.5, 1))
    assert link_fragments(sorting, make_units(*ALIKE[:2]), [DURATION_S]).tolist() == [1, 1]


def test_a_chain_of_fragments():
    sorting = make_trains(fire(100, 0, 0.3), fire(300, 0.3, 0.7), fire(200, 0.7, 1))
    assert link_fragments(sorting, make_units(*ALIKE), [DURATION_S]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("change, n_neurons", [(0.99 * MIN_CHANGE, 2), (MIN_CHANGE, 1), (np.inf, 1)])
def test_units_that_fire_at_different_times_are_two_if_others_stay_as_they_are(change, n_neurons):
    asked = []
    steadiness = SimpleNamespace(measure_change=lambda *arguments: asked.append(arguments) or change)
    sorting, templates = make_trains(fire(200, 0, 0.5), fire(300, 0.5, 1)), make_units(*ALIKE[:2])
    neurons = link_fragments(sorting, templates, [DURATION_S], steadiness=steadiness)
    assert len(set(neurons.tolist())) == n_neurons
    [(first_s, second_s, units, difference)] = asked
    assert (len(first_s), len(second_s), units.tolist()) == (200, 300, [0, 1])
    assert difference == find_alike_templates(templates)[0][0]


def test_a_refractory_period_links_however_steady_others_are():
    train = np.sort(fire_at_random(0, duration_s=DURATION_S))
    steadiness = SimpleNamespace(measure_change=lambda *_: 0.0)
    sorting, templates = make_trains(train[::2], train[1::2]), make_units(*ALIKE[:2])
    assert link_fragments(sorting, templates, [DURATION_S], steadiness=steadiness).tolist() == [0, 0]


@pytest.mark.parametrize("size, n_neurons", [(9.5, 1), (6.0, 2)])
def test_fragments_that_take_turns_of_seconds_are_linked_if_nearly_the_same(size, n_neurons):
    times_s, is_first = draw_turns(5.0)
    sorting = make_trains(times_s[is_first], times_s[~is_first])
    neurons = link_fragments(sorting, make_units((10, 3, 0), (size, 3, 0)), [DURATION_S])
    assert len(set(neurons.tolist())) == n_neurons


@pytest.mark.parametrize("change, n_neurons", [(0.99 * MIN_CHANGE_IN_TURN, 2), (MIN_CHANGE_IN_TURN, 1), (np.inf, 2)])
def test_less_like_ones_that_take_turns_are_linked_if_others_change_with_them(change, n_neurons):
    times_s, is_first = draw_turns(5.0)
    sorting, templates = make_trains(times_s[is_first], times_s[~is_first]), make_units((10, 3, 0), (6, 3, 0))
    steadiness = SimpleNamespace(measure_change=lambda *_: change)
    neurons = link_fragments(sorting, templates, [DURATION_S], steadiness=steadiness)
    assert len(set(neurons.tolist())) == n_neurons


def test_a_fragment_that_fires_with_one_fragment_is_linked_to_the_whole():
    """The second and the third, which are most alike, fire at the same time, and most of the neuron at another."""
    sorting = make_trains(fire(400, 0, 0.5), fire(100, 0.5, 1), fire(100, 0.501, 1))
    templates = make_units((10, 3, 0), (3.5, 3, 0), (1.5, 3, 0))
    assert [pair[1:] for pair in sorted(find_alike_templates(templates))] == [(1, 2), (0, 1)]
    assert len(set(link_fragments(sorting, templates, [DURATION_S]).tolist())) == 1
    together = sorting.select_units([1, 2])
    assert len(set(link_fragments(together, templates.select_units([1, 2]), [DURATION_S]).tolist())) == 2


@pytest.mark.parametrize("size, n_neurons", [(9.5, 1), (6.0, 2)])
def test_fragments_that_overlap_are_linked_if_nearly_the_same(size, n_neurons):
    """Drift takes half of the spikes to another template in the second half of the recording."""
    whole, away = np.r_[fire(400, 0, 0.5), fire(200, 0.5, 1)], fire(200, 0.5, 1)
    assert MAX_COINCIDENCE < coincidence(whole, away, DURATION_S) < limit_coincidence(0.01)
    neurons = link_fragments(make_trains(whole, away), make_units((10, 3, 0), (size, 3, 0)), [DURATION_S])
    assert len(set(neurons.tolist())) == n_neurons


def test_neurons_that_fire_together_are_two_however_alike():
    sorting = make_trains(fire(200), fire(300))
    assert link_fragments(sorting, make_units(*ALIKE[:2]), [DURATION_S]).tolist() == [0, 1]


@pytest.mark.parametrize("size, n_neurons", [(9.5, 1), (7.5, 2)])
def test_templates_that_hardly_differ_are_one_neuron(size, n_neurons):
    """Too few spikes to see a refractory period in."""
    train = fire_at_random(0, 300, DURATION_S)
    sorting = make_trains(train[::2], train[1::2])
    assert not respect_refractory_period(train[::2], train[1::2], UNLIKE)
    neurons = link_fragments(sorting, make_units((10, 3, 0), (size, 3, 0)), [DURATION_S])
    assert len(set(neurons.tolist())) == n_neurons


def test_templates_that_hardly_differ_are_two_neurons_if_they_fire_within_the_refractory_period():
    sorting = make_trains(fire_at_random(0, 3000, DURATION_S), fire_at_random(1, 3000, DURATION_S))
    assert link_fragments(sorting, make_units((10, 3, 0), (9.5, 3, 0)), [DURATION_S]).tolist() == [0, 1]


def test_a_neuron_that_fires_all_the_time_takes_no_fragment():
    sorting = make_trains(fire(600), fire(200, 0, 0.5), fire(200, 0.5, 1))
    assert link_fragments(sorting, make_units(*ALIKE), [DURATION_S]).tolist() == [0, 1, 1]


@pytest.mark.parametrize("size, n_neurons", [(5.6, 1), (3.0, 2)])
def test_fragments_that_share_the_displacements_are_linked_if_alike(size, n_neurons):
    displacement_um = 20 * np.sin(np.arange(300.0))
    times_s, is_first = draw_places(displacement_um)
    sorting, templates = make_trains(times_s[is_first], times_s[~is_first]), make_units((10, 3, 0), (size, 3, 0))
    assert link_fragments(sorting, templates, [DURATION_S]).tolist() == [0, 1]
    assert len(set(link_fragments(sorting, templates, [DURATION_S], displacement_um).tolist())) == n_neurons


@pytest.mark.parametrize("n_within, n_neurons", [(0, 1), (1, 1), (10, 2)])
def test_a_doubtful_unit_is_linked_unless_it_breaks_the_refractory_period(n_within, n_neurons):
    train = fire_at_random(0, 5000, DURATION_S)
    frequent, rare = np.delete(train, np.s_[::50]), train[::50]
    rare[:n_within] = frequent[:n_within] + 1e-3
    sorting, templates = make_trains(frequent, rare), make_units((10, 3, 0), (5.6, 3, 0))
    assert link_fragments(sorting, templates, [DURATION_S]).tolist() == [0, 1]
    neurons = link_fragments(sorting, templates, [DURATION_S], doubtful={(0, 1)})
    assert len(set(neurons.tolist())) == n_neurons


@pytest.mark.parametrize("n_within, n_neurons", [(1, 1), (2, 2)])
def test_of_few_doubtful_spikes_one_may_be_of_another_neuron(n_within, n_neurons):
    train = fire_at_random(0, 5000, DURATION_S)
    frequent, rare = np.delete(train, np.s_[::200]), train[::200]
    rare[:n_within] = frequent[:n_within] + 1e-3
    sorting, templates = make_trains(frequent, rare), make_units((10, 3, 0), (5.6, 3, 0))
    assert len(set(link_fragments(sorting, templates, [DURATION_S], doubtful={(0, 1)}).tolist())) == n_neurons


@pytest.mark.parametrize("change, n_neurons", [(0.0, 2), (1.0, 1)])
def test_neurons_that_take_turns_are_two_however_alike_if_others_stay_as_they_are(change, n_neurons):
    """The neurons of two places, visited again and again."""
    times_s = np.random.default_rng(0).uniform(0, DURATION_S, 900)
    is_first = times_s % 20 < 8
    first, second = np.sort(times_s[is_first]), np.sort(times_s[~is_first])
    sorting, templates = make_trains(first, second), make_units((10, 3, 0), (9, 3, 0))
    steadiness = SimpleNamespace(measure_change=lambda *arguments: change)
    neurons = link_fragments(sorting, templates, [DURATION_S], steadiness=steadiness)
    assert len(set(neurons.tolist())) == n_neurons
    assert respect_refractory_period(first, second, 0.01) is False
    assert respect_refractory_period(times_s[::2], times_s[1::2], 0.01) is False  # within the refractory period


def test_few_spikes_of_nearly_the_same_template_are_one_neuron():
    assert respect_refractory_period(np.array([10.0, 30.0, 200.0]), np.array([20.0, 40.0]), 0.01)
    assert not respect_refractory_period(np.array([10.0, 30.0, 200.0]), np.zeros(0), 0.2)


@pytest.mark.parametrize("n_confused, is_one", [(0, True), (3, False)])
def test_alike_units_that_are_confused_where_both_fire_are_two(n_confused, is_one):
    """Each of these pairs of spikes within the refractory period is of one unit, as they were matched."""
    train = fire_at_random(0, 600, DURATION_S)
    first, second = train[::2], train[1::2]
    first = np.sort(np.r_[first, first[:n_confused] + 1e-3])
    assert respect_refractory_period(first, second, 0.01) == is_one


FAR_APART = [(10, 3, 0), (3, 3, 0)]  # these differ by half of the energy


@pytest.mark.parametrize("n_together, n_neurons", [(0, 1), (120, 2)])
def test_fragments_that_are_far_apart_may_hardly_coincide(n_together, n_neurons):
    first, second = fire(300, 0, 0.5), np.r_[fire(n_together, 0, 0.5), fire(300, 0.5, 1)]
    assert coincidence(first, second, DURATION_S) < MAX_COINCIDENCE
    neurons = link_fragments(make_trains(first, second), make_units(*FAR_APART), [DURATION_S])
    assert len(set(neurons.tolist())) == n_neurons


def test_neurons_that_are_far_apart_are_two_though_they_respect_a_refractory_period():
    train = fire_at_random(0, 10_000, DURATION_S)
    sorting = make_trains(train[::2], train[1::2])
    assert respect_refractory_period(train[::2], train[1::2], UNLIKE)
    assert link_fragments(sorting, make_units(*FAR_APART), [DURATION_S]).tolist() == [0, 1]


@pytest.mark.parametrize("other", [(-10, 3, 0), (10, 8, 0), (2, 3, 0)])
def test_neurons_that_are_not_alike_are_two_whenever_they_fire(other):
    sorting = make_trains(fire(200, 0, 0.5), fire(300, 0.5, 1))
    assert link_fragments(sorting, make_units((10, 3, 0), other), [DURATION_S]).tolist() == [0, 1]


def test_what_a_template_has_at_its_ends_counts():
    """Waveforms that are alike at the peak and not well before it."""
    array = make_units((10, 3, 0), (10, 3, 0)).get_dense_templates().copy()
    assert len(find_alike_templates(make_templates(array, nbefore=40))) == 1
    array[1, 18:28, 3] -= 12
    assert find_alike_templates(make_templates(array, nbefore=40)) == []


def test_halves_of_one_train_that_fire_together_are_one_neuron():
    train = fire_at_random(0, 10_000, DURATION_S)
    sorting = make_trains(train[::2], train[1::2], fire_at_random(1, 5000, DURATION_S))
    assert link_fragments(sorting, make_units(*ALIKE), [2 * DURATION_S]).tolist() == [0, 0, 2]


def test_a_neuron_that_has_its_other_half_links_to_no_more():
    first_half, second_half, other = fire(300, 0, 0.5), fire(300, 0.5, 1), fire(200, 0, 0.5)
    sorting, templates = make_trains(first_half, second_half, other), make_units(*ALIKE)
    assert link_fragments(sorting, templates, [DURATION_S]).tolist() == [0, 0, 2]
    # alone with the third, the second half does link
    alone = make_trains(second_half, other)
    assert link_fragments(alone, make_units(*ALIKE[1:]), [DURATION_S]).tolist() == [0, 0]


@pytest.mark.parametrize("stop, n_others, n_neurons", [(0.5, 900, 1), (1.0, 900, 2), (0.5, 30, 2)])
def test_time_in_which_all_others_are_silent_does_not_count(stop, n_others, n_neurons):
    """Chance has it that the fragments fire together half of the time when there is nothing else in the other half."""
    first, second = fire(240, 0, 0.3), np.r_[fire(80, 0.2, 0.3), fire(160, 0.3, 0.5)]
    other, templates = fire(n_others, 0, stop), make_units((10, 3, 0), (5.6, 3, 0), (10, 8, 0))
    neurons = link_fragments(make_trains(first, second, other), templates, [DURATION_S])
    assert len(set(neurons.tolist())) == n_neurons + 1


def test_silence_is_cut_out():
    n_others = np.array([100, 20, 30, 100])
    times_s = np.array([0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 35.0, 40.0])
    first_s, second_s, duration_s = leave_out_silence(times_s, times_s[::-1], n_others, 40.0)
    assert duration_s == 40.0  # 20 is more than a quarter of the mean, 62.5
    n_others[1:3] = 0, 12
    first_s, second_s, duration_s = leave_out_silence(times_s, times_s[::-1], n_others, 40.0)
    np.testing.assert_allclose(first_s, [0, 5, 10, 10, 10, 10, 15, 20])
    np.testing.assert_allclose(second_s, first_s[::-1])
    assert duration_s == 20.0


def test_few_other_spikes_tell_nothing_of_silence():
    times_s = np.array([1.0, 19.0])
    assert leave_out_silence(times_s, times_s, np.array([MIN_OTHERS - 1, 0]) * 2, 20.0)[2] == 20.0
    assert leave_out_silence(times_s, times_s, np.array([MIN_OTHERS, 0]) * 2, 20.0)[2] == 10.0


def test_segments_follow_each_other():
    sorting = make_trains(fire(200, 0, 0.5), fire(300, 0, 0.5), segments=[0, 1])
    templates = make_units(*ALIKE[:2])
    assert link_fragments(sorting, templates, [DURATION_S / 2] * 2).tolist() == [1, 1]
    together = make_trains(fire(200, 0, 0.5), fire(300, 0, 0.5))
    assert link_fragments(together, templates, [DURATION_S / 2] * 2).tolist() == [0, 1]


def test_indices_not_ids():
    sorting = make_trains(fire(200, 0, 0.5), fire(300), fire(100, 0.5, 1), unit_ids=[4, 7, 30])
    templates = make_units((10, 3, 0), (10, 9, 0), (9.5, 3, 0))
    assert link_fragments(sorting, templates, [DURATION_S]).tolist() == [0, 1, 0]


# --- joining ---


def test_join_by_hand():
    samples, labels = np.array([10, 10, 20, 30, 5]), np.array([3, 5, 9, 3, 5])
    sorting, order = make_sorting(samples, labels, np.array([0, 0, 0, 0, 1]), SAMPLING_FREQUENCY)
    posteriors = np.array([0.1, 0.2, 0.3, 0.4, 0.5], dtype="float32")[order]
    neuron_ids = np.array([9, 5, 9])  # 3 belongs to 9
    joined, found = join_fragments(sorting.to_spike_vector(), posteriors, neuron_ids, SAMPLING_FREQUENCY)
    assert joined.unit_ids.tolist() == [5, 9]
    spikes = joined.to_spike_vector()
    assert spikes["sample_index"].tolist() == [10, 10, 20, 30, 5]
    assert spikes["unit_index"].tolist() == [0, 1, 1, 1, 0]
    assert spikes["segment_index"].tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(found, [0.2, 0.1, 0.3, 0.4, 0.5])


@settings(max_examples=30, deadline=None)
@given(
    spikes=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20), st.integers(0, 4)), max_size=40),
    neurons=st.lists(st.integers(0, 4), min_size=5, max_size=5),
)
def test_every_spike_keeps_its_time_and_posterior(spikes, neurons):
    vector = np.array(spikes, dtype="int64").reshape(-1, 3)
    rows = np.zeros(len(vector), dtype=minimum_spike_dtype)
    for column, name in enumerate(("segment_index", "sample_index", "unit_index")):
        rows[name] = vector[:, column]
    posteriors = np.arange(len(vector), dtype="float32")
    joined, found = join_fragments(rows, posteriors, np.array(neurons), SAMPLING_FREQUENCY)
    after = joined.to_spike_vector()
    labels = joined.unit_ids[after["unit_index"]] if len(after) else []
    wanted = [(s, k, neurons[u], p) for (s, k, u), p in zip(vector.tolist(), posteriors, strict=True)]
    assert sorted(zip(after["segment_index"], after["sample_index"], labels, found, strict=True)) == sorted(wanted)
