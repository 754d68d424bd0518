"""Confidence of spikes: against closed forms, and in recordings where it is known what is right."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from spikeinterface.core import ChannelSparsity, NumpyRecording
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep.changes import NO_CHANGES, Change, Changes
from spikeinterface_huidurep.confidence import (
    CAUTION,
    MAX_FREEDOM,
    MAX_ODDS,
    MIN_FREEDOM,
    MIN_MEAN_POSTERIOR,
    N_AROUND,
    NOISE_DECAY,
    NOISE_RATE,
    SIZE_FREEDOM,
    VARIATION,
    assign_spikes,
    find_repeated,
    find_rivals,
    fit_student,
    keep_certain_units,
    keep_likeliest,
    limit_odds,
    remove_drift,
    weigh_noise,
    weigh_rivals,
)
from spikeinterface_huidurep.residuals import NOISE_SIZE, extract_residuals, multiply
from spikeinterface_huidurep.waveforms import Neighborhoods

from .test_refinement import make_residuals
from .test_results import JOB_KWARGS, SAMPLING_FREQUENCY, make_sorting, make_templates

# --- other units ---


def odds_of_residuals(residuals, differences, frequencies=1.0):
    """In white noise, where the others vary as the unit does."""
    norms = np.sqrt(np.sum(differences**2, axis=(1, 2))) + 1e-6
    along = remove_drift(multiply(residuals, differences) / norms)
    return frequencies * weigh_rivals(along, norms, *fit_student(along))


def slow_odds(residuals, differences, frequencies):
    """By the densities of Student's distribution along each difference, one unit at a time."""
    n_others = len(differences)
    odds = np.zeros((len(residuals), n_others))
    for other in range(n_others):
        norm = np.sqrt(np.sum(differences[other] ** 2))
        along = np.array([np.sum(residual * differences[other]) / norm for residual in residuals])
        sd = max(1.0, np.median(np.abs(along - np.median(along))) / 0.6744897501960817)
        (freedom,) = fit_student(along[:, None])[1]
        own, of_other = (1 + (along - mean) ** 2 / sd**2 / freedom for mean in (0, norm))
        odds[:, other] = frequencies[other] * (own / of_other) ** ((freedom + 1) / 2)
    return odds


@settings(max_examples=20, deadline=None)
@given(n_channels=st.integers(1, 4), n_others=st.integers(1, 4), seed=st.integers(0, 50), scale=st.floats(0.01, 0.5))
def test_rivals_against_slow_likelihoods(n_channels, n_others, seed, scale):
    rng = np.random.default_rng(seed)
    differences = scale * rng.normal(size=(n_others, n_channels, 60))
    residuals = rng.normal(scale=rng.uniform(0.5, 2), size=(8, n_channels, 60))
    frequencies = rng.uniform(0.1, 10, n_others)
    found = odds_of_residuals(residuals, differences, frequencies)
    np.testing.assert_allclose(found, slow_odds(residuals, differences, frequencies), rtol=1e-3, atol=1e-12)


def test_equal_units_share_and_far_ones_do_not_overflow():
    residuals = np.random.default_rng(0).normal(size=(9, 2, 60))
    assert odds_of_residuals(residuals, np.zeros((3, 2, 60))) == pytest.approx(np.ones((9, 3)))
    assert odds_of_residuals(residuals, np.full((1, 2, 60), 1e3)) == pytest.approx(np.zeros((9, 1)))


def test_a_rare_unit_takes_few_spikes_from_a_frequent_one():
    residuals = np.random.default_rng(0).normal(size=(9, 2, 60))
    assert odds_of_residuals(residuals, np.zeros((1, 2, 60)), [0.1]) == pytest.approx(np.full((9, 1), 0.1))


def test_a_spike_of_another_unit_is_told():
    rng = np.random.default_rng(0)
    difference = np.zeros((1, 2, 60))
    difference[0, 0, 20:30] = 4.0
    residuals = rng.normal(size=(50, 2, 60))
    residuals[7] += difference[0]
    odds = odds_of_residuals(residuals, difference)
    assert odds[7] > 10 * MAX_ODDS and np.delete(odds, 7).max() < 0.1


@pytest.mark.parametrize("n_spikes, drift_counts", [(2000, False), (N_AROUND, True)])
def test_drift_costs_no_confidence_where_there_are_enough_spikes(n_spikes, drift_counts):
    """What is left moves from one side to the other, as far as the units are apart."""
    rng = np.random.default_rng(0)
    difference = np.zeros((1, 2, 60))
    difference[0, 0, 20:30] = 4.0
    residuals = rng.normal(size=(n_spikes, 2, 60))
    drifting = residuals + np.linspace(-1, 1, n_spikes)[:, None, None] * difference
    odds, of_drifting = (odds_of_residuals(left, difference) for left in (residuals, drifting))
    assert odds.max() < 0.1
    assert (of_drifting.max() > 1) == drift_counts


@pytest.mark.parametrize("freedom", [MIN_FREEDOM, 8.0, 15.0])
def test_students_distribution_is_fitted(freedom):
    deviations = student.rvs(freedom, scale=3.0, size=(200000, 2), random_state=0)
    scales, freedoms = fit_student(deviations)
    np.testing.assert_allclose(scales, 3.0, rtol=0.1)
    np.testing.assert_allclose(freedoms, freedom, rtol=0.25)


def test_few_spikes_and_those_that_overlap_others_on_one_side_have_heavy_tails():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(20, 1)).clip(-2, 2), rng.normal(size=(20000, 1))
    overlapping = np.where(rng.random((20000, 1)) < 0.01, many + 6, many)
    freedoms = [fit_student(deviations)[1][0] for deviations in (few, many, overlapping)]
    assert freedoms[0] < MIN_FREEDOM + 1 and freedoms[1] == pytest.approx(MAX_FREEDOM, rel=0.2)
    assert freedoms[2] == MIN_FREEDOM


def test_spikes_of_a_rare_unit_are_its_own_where_those_of_the_frequent_one_do_not_come_near():
    of_steady, of_wide = (140 * weigh_rivals(np.zeros(1), 7.5, 1.0, freedom) for freedom in (MAX_FREEDOM, MIN_FREEDOM))
    assert of_steady < 0.001 and of_wide > 0.05


# --- no unit ---


def test_noise_by_hand():
    deviations = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    sizes = 10.0 + deviations
    spread = np.hypot(1.482602218505602, VARIATION * 10.0)
    of_unit = 3.0 * student.pdf(deviations / spread, SIZE_FREEDOM) / spread
    of_noise = NOISE_RATE * np.exp(-NOISE_DECAY * (sizes - NOISE_SIZE))
    np.testing.assert_allclose(weigh_noise(sizes, deviations, 3.0), of_noise / of_unit)


@settings(max_examples=30, deadline=None)
@given(usual=st.floats(5, 100), rate=st.floats(0.05, 50), seed=st.integers(0, 50))
def test_smaller_spikes_and_those_of_rarer_units_are_more_likely_noise(usual, rate, seed):
    deviations = np.sort(np.random.default_rng(seed).normal(size=200))
    deviations -= np.median(deviations)
    odds, of_rarer = (weigh_noise(usual + deviations, deviations, r) for r in (rate, 0.5 * rate))
    assert np.all(np.diff(odds[deviations < 0]) < 0)
    np.testing.assert_allclose(of_rarer, 2 * odds)


def test_a_spike_that_is_small_for_its_unit_is_doubted():
    deviations = np.random.default_rng(0).normal(size=500)
    deviations[3] = -6.0
    odds = weigh_noise(12.0 + deviations, deviations, 5.0)
    assert odds[3] > 10 and np.delete(odds, 3).max() < 1 and np.quantile(odds, 0.9) < 0.01


def test_one_spike_has_no_spread():
    assert np.isfinite(weigh_noise(np.array([8.0]), np.zeros(1), 0.01)).all()


# --- together ---


def test_only_the_likeliest_rival_counts():
    odds = np.array([[1.0, 2.0, 3.0], [5.0, 4.0, 0.0]])
    assert keep_likeliest(odds).tolist() == [[0.0, 0.0, 3.0], [5.0, 0.0, 0.0]]
    assert keep_likeliest(odds[:, :0]).shape == (2, 0)


def test_units_whose_spikes_are_probably_of_others_lose_their_label():
    labels = np.repeat([-1, 0, 1, 3], [4, 2, 2, 1])
    posteriors = np.array([0.1, 0.1, 0.1, 0.1, 1.0, 0.31, 1.0, 0.29, 0.64])
    assert MIN_MEAN_POSTERIOR == 0.65
    assert keep_certain_units(labels, posteriors).tolist() == [-1] * 4 + [0, 0] + [-1] * 3


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_without_units_none_is_certain(labels):
    labels = np.array(labels, dtype="int64")
    assert keep_certain_units(labels, np.zeros(len(labels))).tolist() == labels.tolist()


@given(odds=st.floats(1e-6, 1e6))
def test_odds_are_limited(odds):
    assert 0 < limit_odds(odds) <= min(CAUTION * odds, MAX_ODDS)
    assert limit_odds(1e-4 * MAX_ODDS) == pytest.approx(CAUTION * 1e-4 * MAX_ODDS, rel=1e-3)


def assign(traces, samples, labels, templates, neurons, folder, shares=1.0, nbefore=30, changes=NO_CHANGES):
    """By the residuals of one segment, shape (n_samples, n_channels)."""
    templates = make_templates(templates, nbefore)
    on_all_channels = np.ones((len(templates.unit_ids), templates.num_channels), dtype=bool)
    templates = templates.to_sparse(ChannelSparsity(on_all_channels, templates.unit_ids, templates.channel_ids))
    recording = NumpyRecording([traces.astype("float32")], SAMPLING_FREQUENCY, channel_ids=templates.channel_ids)
    recording.set_probe(templates.probe)
    sorting = make_sorting(samples, labels)
    neighborhoods = Neighborhoods(recording.get_channel_locations(), 60.0)
    residuals = extract_residuals(
        recording, sorting, templates, neighborhoods, "neg", folder / "spikes", JOB_KWARGS, changes
    )
    shares = np.broadcast_to(shares, len(samples))
    return assign_spikes(sorting, residuals, np.array(neurons), shares, recording.get_total_duration())


def make_pulse():
    return -np.exp(-0.5 * ((np.arange(90) - 30) / 5) ** 2)


def add_spikes(traces, units, samples, labels):
    for sample, label in zip(samples, labels, strict=True):
        traces[sample - 30 : sample + 60] += units[label]
    return traces


@pytest.mark.parametrize("neurons", [[0, 1, 2], [0, 0, 2]])
def test_posteriors_of_a_recording(tmp_path, neurons):
    rng = np.random.default_rng(0)
    units = np.zeros((3, 90, 12))
    units[0, :, :2] = np.outer(make_pulse(), [10, 6])
    units[1, :, :2] = np.outer(make_pulse(), [9.9, 6])  # hardly another unit
    units[2, :, 11] = 10 * make_pulse()  # far away: no competitor
    samples, labels = np.arange(300, 29_700, 200), np.arange(147) % 3
    traces = add_spikes(rng.normal(size=(30_000, 12)), units, samples, labels)
    spikes, found, is_repeated = assign(traces, samples, labels, units, neurons, tmp_path)
    assert spikes["unit_index"].tolist() == labels.tolist() and not is_repeated.any()
    assert found.shape == (147,) and found.dtype == np.float32
    assert found[labels == 2].min() > 0.99
    if neurons[0] == neurons[1]:  # fragments of one neuron
        assert found.min() > 0.99
        return
    assert ((found[labels < 2] > 0.35) & (found[labels < 2] < 0.65)).all()  # matching knows no better


@pytest.mark.parametrize("is_known", [True, False])
def test_units_are_compared_as_they_are_at_the_time(tmp_path, is_known):
    """Late spikes of the first unit are as early ones of the second, which has changed by then, too."""
    rng = np.random.default_rng(0)
    first, second, third = (np.outer(make_pulse(), sizes) for sizes in ([12, 6, 0], [8, 8, 6], [0, 8, 12]))
    samples, labels = np.arange(300, 59_700, 200), np.arange(297) % 2
    is_late = samples >= 30_000
    traces = rng.normal(size=(60_000, 3))
    traces = add_spikes(traces, [first, second], samples[~is_late], labels[~is_late])
    traces = add_spikes(traces, [second, third], samples[is_late], labels[is_late])
    window = slice(30 - 24, 30 + 39)  # 0.8 ms before and 1.3 ms after the peak
    pairs = (first, second), (second, third)
    late = {
        unit: Change(np.arange(3), (after - before)[window].T.astype("float32"))
        for unit, (before, after) in enumerate(pairs)
    }
    changes = Changes([(0, 0, 30_000), (0, 30_000, 60_000)], [{}, late if is_known else {}])
    templates = np.stack([first, second])
    spikes, found, _ = assign(traces, samples, labels, templates, [0, 1], tmp_path, changes=changes)
    assert spikes["unit_index"][~is_late].tolist() == labels[~is_late].tolist()
    assert (np.percentile(found[is_late], 1) > 0.99) == is_known
    if is_known:
        assert spikes["unit_index"].tolist() == labels.tolist()


def test_leftovers_are_doubted_and_none_is_below_the_limit(tmp_path):
    rng = np.random.default_rng(0)
    units = np.outer(make_pulse(), [10, 6])[None]
    samples = np.arange(300, 29_700, 200)
    traces = add_spikes(rng.normal(size=(30_000, 2)), units, samples, np.zeros(147, "int64"))
    shares = np.where(np.arange(147) % 3 == 0, 1.0, 0.5)
    shares[1] = 0.0
    _, found, _ = assign(traces, samples, np.zeros(147, "int64"), units, [0], tmp_path, shares)
    assert found[shares == 1].min() > 0.99
    assert found[shares == 0.5] == pytest.approx(1 / (1 + limit_odds(1.0)), abs=0.01)
    assert found[1] == pytest.approx(1 / (1 + MAX_ODDS), rel=1e-3)


def test_noise_is_doubted_where_a_unit_is_weak(tmp_path):
    rng = np.random.default_rng(0)
    units = np.outer(make_pulse(), [3, 2])[None]
    samples = np.arange(300, 29_700, 200)
    labels = np.zeros(147, "int64")
    is_spike = np.arange(147) % 7 > 0
    traces = add_spikes(rng.normal(size=(30_000, 2)), units, samples[is_spike], labels[is_spike])
    _, found, _ = assign(traces, samples, labels, units, [0], tmp_path)
    assert found[~is_spike].max() < 0.6 and np.median(found[is_spike]) > 0.98


@pytest.mark.parametrize("n_before, n_after, lowest", [(30, 60, 0.9), (15, 30, 0.9), (9, 15, 0.5)])
def test_an_overlapping_spike_costs_no_confidence(tmp_path, n_before, n_after, lowest):
    """Also where the templates are shorter than the window that is looked at."""
    rng = np.random.default_rng(0)
    units = np.zeros((2, 90, 3))
    units[0], units[1] = np.outer(make_pulse(), [10, 6, 0]), np.outer(make_pulse(), [0, 6, 10])
    samples, labels = np.repeat(np.arange(300, 29_000, 200), 2), np.tile([0, 1], 144)
    samples[1::2] += 4  # every spike overlaps with one of the other unit
    traces = add_spikes(rng.normal(size=(30_000, 3)), units, samples, labels)
    templates = units[:, 30 - n_before : 30 + n_after]
    _, found, _ = assign(traces, samples, labels, templates, [0, 1], tmp_path, nbefore=n_before)
    assert found.min() > lowest


# --- to another unit ---


def test_rivals_are_seen_on_the_channels_of_a_unit():
    """On channels 20 um apart, of which those up to 60 um away are looked at."""
    energies = np.zeros((4, 12))
    energies[0, 2] = energies[1, 4] = energies[2, 11] = 1.0
    energies[3, [4, 11]] = 0.8, 1.0  # more of it is out of sight
    residuals, _ = make_residuals([np.zeros((12, 140))] * 4, [0, 1, 2, 3])
    waveforms = np.zeros_like(residuals.waveforms)
    waveforms[:, 30] = np.sqrt(energies)
    neighborhoods = Neighborhoods(np.c_[np.zeros(12), 20.0 * np.arange(12)], 60.0)
    main_channels = np.array([2, 4, 11, 4])
    residuals = replace(residuals, waveforms=waveforms, neighborhoods=neighborhoods, main_channels=main_channels)
    rivals = [found.tolist() for found in find_rivals(residuals, np.arange(4))]
    assert rivals == [[1], [0], [3], [0, 1]]
    rivals = [found.tolist() for found in find_rivals(residuals, np.array([0, 0, 2, 3]))]
    assert rivals == [[], [], [3], [0, 1]]


def make_two_units(rng, later):
    """Traces of two units in turn, the second one with a waveform that is `later` by some samples."""
    units = np.zeros((2, 90, 3))
    units[0], units[1] = np.outer(make_pulse(), [10, 6, 2]), np.outer(np.roll(make_pulse(), later), [6, 10, 2])
    samples, labels = np.arange(300, 29_700, 200), np.arange(147) % 2
    return add_spikes(rng.normal(size=(30_000, 3)), units, samples, labels), units, samples, labels


@pytest.mark.parametrize("later", [0, 5, -5])
@pytest.mark.parametrize("neurons", [[0, 1], [0, 0]])
def test_spikes_go_to_the_unit_that_fits_them(tmp_path, later, neurons):
    traces, units, samples, labels = make_two_units(np.random.default_rng(0), later)
    wrong, given = [20, 21, 60], labels.copy()
    given[wrong] = 1 - given[wrong]
    moved = samples + np.where(np.isin(np.arange(147), wrong), later * (2 * labels - 1), 0)  # troughs on each other
    order = np.argsort(moved)
    spikes, posteriors, is_repeated = assign(traces, moved[order], given[order], units, neurons, tmp_path)
    if neurons == [0, 0]:  # one neuron: nothing to tell
        assert spikes["unit_index"].tolist() == given[order].tolist()
        return
    assert spikes["unit_index"].tolist() == labels.tolist()
    assert spikes["sample_index"].tolist() == samples.tolist()
    assert posteriors.min() > 0.95 and not is_repeated.any()


def test_a_spike_that_its_neuron_has_already_is_repeated():
    spikes = np.zeros(6, dtype=minimum_spike_dtype)
    spikes["sample_index"] = 100, 110, 110, 500, 505, 900
    spikes["unit_index"] = 0, 0, 1, 0, 2, 0
    is_moved = np.array([False, True, True, True, False, True])
    found = find_repeated(spikes, is_moved, np.array([0, 1, 0]), SAMPLING_FREQUENCY)  # unit 2 is a fragment of unit 0
    assert found.tolist() == [False, True, False, True, False, False]
    spikes["segment_index"] = 0, 1, 1, 1, 1, 1
    found = find_repeated(spikes, is_moved, np.array([0, 1, 0]), SAMPLING_FREQUENCY)
    assert found.tolist() == [False, False, False, True, False, False]
