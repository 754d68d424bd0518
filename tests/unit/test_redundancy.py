"""Redundant templates: collisions and repeats go, neurons stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeinterface_huidurep.redundancy import (
    find_off_centre,
    find_redundant_templates,
    remove_redundant_templates,
    shift_samples,
    subtract_best,
)

from .test_results import SAMPLING_FREQUENCY, make_templates

DURATION_S = 300.0
N_SAMPLES = 150
PULSE = -np.exp(-0.5 * ((np.arange(N_SAMPLES) - 60) / 4) ** 2)
FIRST, SECOND = (10 * np.outer(PULSE, gains).astype("float32") for gains in ([1.0, 0.4, 0, 0], [0, 0, 0.4, 1.0]))
THIRD = 10 * np.outer(np.gradient(PULSE), [8.0, 2.0, 2.0, 0]).astype("float32")


def find(waveforms, n_spikes, duration_s=DURATION_S, pitch_um=20.0):
    templates = make_templates(np.stack(waveforms), nbefore=60, pitch_um=pitch_um)
    return find_redundant_templates(templates, np.array(n_spikes, dtype=float), duration_s).tolist()


# --- repeats ---


@pytest.mark.parametrize(
    ("shift", "wanted"),
    [(0, False), (3, False), (4, True), (-4, True), (12, True), (20, True), (-45, True), (70, False)],
)
def test_the_same_template_at_another_time(shift, wanted):
    assert find([FIRST, shift_samples(FIRST, shift)], [1000, 300]) == [False, wanted]


@pytest.mark.parametrize("shift", [4, -12])
def test_of_two_repeats_the_rarer_goes(shift):
    assert find([FIRST, shift_samples(FIRST, shift)], [300, 1000]) == [True, False]


def test_of_two_equally_frequent_repeats_one_stays():
    assert sum(find([FIRST, shift_samples(FIRST, 10)], [500, 500])) == 1


@pytest.mark.parametrize(("n_repeat", "wanted"), [(400, [False, True]), (590, [False, True]), (610, [True, False])])
@pytest.mark.parametrize("repeat", [0.95 * FIRST, FIRST * [1, 0, 1, 1]], ids=["smaller", "without a channel"])
def test_of_two_repeats_about_as_frequent_the_smaller_goes(repeat, n_repeat, wanted):
    assert find([FIRST, shift_samples(repeat.astype("float32"), 6)], [300, n_repeat]) == wanted


def test_repeats_of_a_repeat_go():
    waveforms = [shift_samples(FIRST, shift) for shift in (10, 0, -10)]
    assert find(waveforms, [200, 1000, 300]) == [True, False, True]


@pytest.mark.parametrize(("share", "wanted"), [(0.45, True), (0.55, False)])
def test_a_repeat_has_to_be_the_same(share, wanted):
    """What is left is a share of the energy: share^2 / (1 + share^2) of another template on top."""
    other = share * SECOND * np.linalg.norm(FIRST) / np.linalg.norm(SECOND)
    assert find([FIRST, shift_samples(FIRST + other, 10)], [1000, 100]) == [False, wanted]


# --- detected beside the extremum ---


@pytest.mark.parametrize(("shift", "wanted"), [(0, False), (12, False), (13, True), (-13, True), (40, True)])
def test_off_centre_is_farther_than_the_jitter(shift, wanted):
    waveforms = np.stack([FIRST, shift_samples(FIRST, shift)])
    assert find_off_centre(waveforms, 60, SAMPLING_FREQUENCY).tolist() == [False, wanted]


@pytest.mark.parametrize("n_spikes", [[300, 1000], [1000, 300]])
def test_of_two_repeats_the_one_off_centre_goes_however_frequent(n_spikes):
    assert find([FIRST, shift_samples(FIRST, 30)], n_spikes) == [False, True]
    assert find([shift_samples(FIRST, -30), FIRST], n_spikes) == [True, False]


@pytest.mark.parametrize(("share", "wanted"), [(0.9, True), (1.1, False)])
def test_off_centre_a_repeat_may_be_smeared(share, wanted):
    other = share * SECOND * np.linalg.norm(FIRST) / np.linalg.norm(SECOND)
    assert find([FIRST, shift_samples(FIRST + other, 20)], [100, 1000]) == [False, wanted]


def test_off_centre_without_the_neuron_itself_stays():
    assert find([shift_samples(FIRST, 30), THIRD], [1000, 1000]) == [False, False]


# --- sums ---


@pytest.mark.parametrize("shift", [0, 10, -30, 45])
@pytest.mark.parametrize(("n_spikes", "wanted"), [(1, True), (89, True), (91, False), (1000, False)])
def test_a_sum_that_is_as_rare_as_a_collision(shift, n_spikes, wanted):
    collision = FIRST + shift_samples(SECOND, shift)  # chance: 3000 * 3000 * 3 ms / 300 s = 90
    assert find([FIRST, collision, SECOND], [3000, n_spikes, 3000]) == [False, wanted, False]


def test_a_longer_recording_has_fewer_collisions():
    waveforms = [FIRST, SECOND, FIRST + SECOND]
    assert find(waveforms, [3000, 3000, 80], duration_s=300.0)[2]
    assert not find(waveforms, [3000, 3000, 80], duration_s=400.0)[2]


@pytest.mark.parametrize("sum_of", [[FIRST, FIRST], [FIRST, SECOND, THIRD], [FIRST, THIRD], [FIRST, -SECOND]])
def test_what_is_no_sum_of_two_others_stays(sum_of):
    waveform = sum(shift_samples(part, shift) for part, shift in zip(sum_of, (0, 25, -25), strict=False))
    assert find([FIRST, SECOND, waveform], [3000, 3000, 5]) == [False] * 3


def test_rare_templates_explain_no_frequent_one():
    n_spikes = [100, 1_000_000, 500]  # chance would give 1000 collisions of a neuron with 100 spikes
    assert find([FIRST, SECOND, FIRST + SECOND], n_spikes) == [False] * 3


def test_the_second_of_two_has_to_explain_something():
    """What FIRST leaves is little already; a template that takes hardly any of it does not make it a collision."""
    waveform = FIRST + 0.4 * SECOND
    assert find([FIRST, 0.05 * SECOND, waveform], [3000, 3000, 5]) == [False] * 3
    assert find([FIRST, 0.4 * SECOND, waveform], [3000, 3000, 5]) == [False, False, True]


def test_templates_far_away_are_not_compared():
    waveforms = [FIRST, SECOND, FIRST + SECOND]
    assert find(waveforms, [3000, 3000, 5], pitch_um=20.0)[2]
    assert not find(waveforms, [3000, 3000, 5], pitch_um=200.0)[2]


def make_many(seed):
    """
    Waveforms of 3 neurons, collisions and repeats of them, and all their numbers of spikes.

    None is as large or as frequent as another: rounding would tell which of two is the better.
    """
    rng = np.random.default_rng(seed)
    waveforms, n_spikes = [FIRST, 1.2 * SECOND, THIRD], [3000, 2800, 2600]
    for index in range(5):
        shift = int(rng.integers(-40, 40))
        first, second = rng.permutation(3)[:2]
        other = waveforms[second] if rng.random() < 0.7 else np.zeros_like(FIRST)
        waveforms.append((0.99 - 0.01 * index) * (shift_samples(waveforms[first], shift) + other))
        n_spikes.append(int(rng.integers(10, 100)) * 10 + index)
    return np.stack(waveforms), np.array(n_spikes, dtype=float)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), gain=st.floats(0.1, 10))
def test_order_of_units_and_gain_do_not_matter(seed, gain):
    waveforms, n_spikes = make_many(seed)
    order = np.random.default_rng(seed).permutation(len(waveforms))
    wanted = np.array(find(waveforms, n_spikes))
    assert not wanted[:3].any()
    assert find((gain * waveforms[order]).astype("float32"), n_spikes[order]) == wanted[order].tolist()


def test_the_shortest_window():
    """0.8 ms, less than the largest shift between two spikes."""
    rng = np.random.default_rng(0)
    waveforms = rng.normal(size=(8, 24, 4)).astype("float32")
    waveforms[7] = shift_samples(waveforms[0], 3) + waveforms[1]
    found = find(waveforms, [10_000] * 7 + [10])
    assert found == [False] * 7 + [True]


def test_removal_by_hand():
    templates = make_templates(np.stack([FIRST + SECOND, FIRST, shift_samples(SECOND, 10), SECOND]), nbefore=60)
    templates.unit_ids[:] = [8, 2, 5, 4]
    kept = remove_redundant_templates(templates, {2: 3000.0, 4: 3000.0, 5: 10.0, 8: 80.0, 9: 1.0}, DURATION_S)
    assert kept.unit_ids.tolist() == [2, 4]
    np.testing.assert_array_equal(kept.get_dense_templates(), [FIRST, SECOND])


def test_a_single_template_stays():
    assert find([FIRST], [10]) == [False]


# --- parts ---


def slow_subtract(waveform, other, shift):
    """Energy of the difference, sample by sample; both are 0 outside."""
    n_samples, n_channels = waveform.shape
    energy = 0.0
    for sample in range(-n_samples, 2 * n_samples):
        for channel in range(n_channels):
            value = waveform[sample, channel] if 0 <= sample < n_samples else 0.0
            if 0 <= sample - shift < n_samples:
                value -= other[sample - shift, channel]
            energy += value**2
    return energy


@settings(max_examples=30, deadline=None)
@given(
    n_samples=st.integers(1, 8),
    n_channels=st.integers(1, 3),
    n_others=st.integers(0, 4),
    max_shift=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
def test_subtraction_against_sample_by_sample(n_samples, n_channels, n_others, max_shift, seed):
    max_shift = min(max_shift, n_samples - 1)
    rng = np.random.default_rng(seed)
    waveform = rng.normal(size=(n_samples, n_channels))
    others = rng.normal(size=(n_others, n_samples, n_channels))
    left, shifts = subtract_best(waveform, others, max_shift)
    assert left.shape == shifts.shape == (n_others,)
    for other, found, shift in zip(others, left, shifts, strict=True):
        energies = {k: slow_subtract(waveform, other, k) for k in range(-max_shift, max_shift + 1)}
        assert found == pytest.approx(min(energies.values()))
        assert energies[shift] == pytest.approx(min(energies.values()))


@pytest.mark.parametrize("shift", [-30, -1, 0, 7, 45])
def test_shift_is_recovered(shift):
    left, shifts = subtract_best(shift_samples(FIRST, shift), np.stack([SECOND, FIRST]), 45)
    assert shifts[1] == shift
    energy = float(np.sum(FIRST**2))
    np.testing.assert_allclose(left, [2 * energy, 0], atol=1e-3 * energy)


@pytest.mark.parametrize(
    ("shift", "wanted"), [(0, [1, 2, 3, 4]), (1, [0, 1, 2, 3]), (-2, [3, 4, 0, 0]), (3, [0, 0, 0, 1])]
)
def test_shift_by_hand(shift, wanted):
    waveform = np.tile(np.arange(1, 5)[:, None], (1, 2))
    assert (shift_samples(waveform, shift) == np.array(wanted)[:, None]).all()
