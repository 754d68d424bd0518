"""Results: posteriors, unit properties, and groups put together."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probeinterface import generate_linear_probe
from spikeinterface.core import NumpyRecording, NumpySorting, Templates
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.residuals import extract_residuals
from spikeinterface_huidurep.results import (
    MAX_ODDS,
    OTHER_ODDS,
    QUALITY_NORM,
    RIVAL_ODDS,
    TEMPERATURE,
    compute_posteriors,
    describe_units,
    join_groups,
    multiply,
    posterior_of_products,
    save_clustering,
    save_results,
)
from spikeinterface_huidurep.splitting import N_AROUND
from spikeinterface_huidurep.waveforms import Neighborhoods

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = {"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False}


def make_sorting(samples, units, segments=None, unit_ids=None):
    spikes = np.zeros(len(samples), dtype=minimum_spike_dtype)
    spikes["sample_index"], spikes["unit_index"] = samples, units
    spikes["segment_index"] = 0 if segments is None else segments
    return NumpySorting(
        spikes, SAMPLING_FREQUENCY, np.arange(max(units, default=-1) + 1) if unit_ids is None else unit_ids
    )


def make_templates(array, nbefore=20, pitch_um=20.0, unit_ids=None):
    """Dense templates of shape (n_units, n_samples, n_channels) on a line of channels."""
    n_channels = array.shape[2]
    probe = generate_linear_probe(num_elec=n_channels, ypitch=pitch_um)
    probe.set_device_channel_indices(np.arange(n_channels))
    return Templates(
        array,
        SAMPLING_FREQUENCY,
        nbefore,
        unit_ids=np.arange(len(array)) if unit_ids is None else np.array(unit_ids),
        channel_ids=np.array([f"c{i}" for i in range(n_channels)]),
        probe=probe,
        is_in_uV=False,
    )


# --- posteriors ---


ALONE = 1 / (1 + OTHER_ODDS)  # posterior of a spike that no other unit competes for


def posterior_of_residuals(residuals, differences, frequencies=1.0):
    energies = np.sum(differences**2, axis=(1, 2))
    return posterior_of_products(
        multiply(residuals, differences), energies, np.broadcast_to(frequencies, len(energies))
    )


def slow_posteriors(residuals, differences, frequencies):
    """Odds by Gaussian log-likelihoods along each difference, one spike and one unit at a time."""
    n_others = len(differences)
    odds = np.zeros((len(residuals), n_others))
    for other in range(n_others):
        norm = np.sqrt(np.sum(differences[other] ** 2))
        along = np.array([np.sum(residual * differences[other]) / norm for residual in residuals])
        sd = max(1.0, np.median(np.abs(along - np.median(along))) / 0.6744897501960817)
        odds[:, other] = (-0.5 * (along - norm) ** 2 + 0.5 * along**2) / sd / TEMPERATURE
        odds[:, other] += np.log(RIVAL_ODDS * frequencies[other])
    return 1 / (1 + OTHER_ODDS + limit_odds(np.exp(odds).sum(axis=1)))


def limit_odds(odds):
    return odds * MAX_ODDS / (odds + MAX_ODDS)


@settings(max_examples=20, deadline=None)
@given(n_channels=st.integers(1, 4), n_others=st.integers(1, 4), seed=st.integers(0, 50), scale=st.floats(0.01, 0.5))
def test_posteriors_against_a_slow_softmax(n_channels, n_others, seed, scale):
    rng = np.random.default_rng(seed)
    differences = scale * rng.normal(size=(n_others, n_channels, 60))
    residuals = rng.normal(scale=rng.uniform(0.5, 2), size=(8, n_channels, 60))
    frequencies = rng.uniform(0.1, 10, n_others)
    found = posterior_of_residuals(residuals, differences, frequencies)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_posteriors(residuals, differences, frequencies), atol=1e-5)


def test_equal_units_share_and_far_ones_do_not_overflow():
    residuals = np.random.default_rng(0).normal(size=(9, 2, 60))
    shared = 1 / (1 + OTHER_ODDS + limit_odds(3 * RIVAL_ODDS))
    assert posterior_of_residuals(residuals, np.zeros((3, 2, 60))) == pytest.approx(np.full(9, shared))
    assert posterior_of_residuals(residuals, np.full((1, 2, 60), 1e3)) == pytest.approx(np.full(9, ALONE))


def test_a_rare_unit_takes_few_spikes_from_a_frequent_one():
    residuals = np.random.default_rng(0).normal(size=(9, 2, 60))
    of_rare = posterior_of_residuals(residuals, np.zeros((1, 2, 60)), [0.1])
    assert of_rare == pytest.approx(np.full(9, 1 / (1 + OTHER_ODDS + limit_odds(0.1 * RIVAL_ODDS))))


def test_a_spike_of_another_unit_is_told():
    rng = np.random.default_rng(0)
    difference = np.zeros((1, 2, 60))
    difference[0, 0, 20:30] = 4.0
    residuals = rng.normal(size=(50, 2, 60))
    residuals[7] += difference[0]
    posteriors = posterior_of_residuals(residuals, difference)
    assert posteriors[7] == pytest.approx(1 / (1 + OTHER_ODDS + MAX_ODDS), rel=0.01)
    assert np.delete(posteriors, 7).min() > 0.9


def posteriors_of_traces(traces, sorting, templates, neurons, folder):
    """Posteriors by the residuals of one segment, shape (n_samples, n_channels)."""
    recording = NumpyRecording([traces.astype("float32")], SAMPLING_FREQUENCY, channel_ids=templates.channel_ids)
    recording.set_probe(templates.probe)
    neighborhoods = Neighborhoods(recording.get_channel_locations(), 60.0)
    residuals = extract_residuals(recording, sorting, templates, neighborhoods, "neg", folder / "spikes", JOB_KWARGS)
    return compute_posteriors(sorting, residuals, np.array(neurons))


@pytest.mark.parametrize("n_spikes, drift_counts", [(2000, False), (N_AROUND, True)])
def test_drift_costs_no_confidence_where_there_are_enough_spikes(n_spikes, drift_counts):
    """What is left moves from one side to the other, as far as the units are apart."""
    rng = np.random.default_rng(0)
    difference = np.zeros((1, 2, 60))
    difference[0, 0, 20:30] = 4.0
    residuals = rng.normal(size=(n_spikes, 2, 60))
    drifting = residuals + np.linspace(-1, 1, n_spikes)[:, None, None] * difference
    posteriors, of_drifting = (posterior_of_residuals(left, difference) for left in (residuals, drifting))
    assert posteriors.min() > 0.9
    assert (of_drifting.min() < 0.5) == drift_counts


@pytest.mark.parametrize("neurons", [[0, 1, 2], [0, 0, 2]])
def test_posteriors_of_a_recording(tmp_path, neurons):
    rng = np.random.default_rng(0)
    k = np.arange(90) - 30
    pulse = -np.exp(-0.5 * (k / 5) ** 2)
    units = np.zeros((3, 90, 12))
    units[0, :, :2] = np.outer(pulse, [10, 6])
    units[1, :, :2] = np.outer(pulse, [9.7, 6])  # hardly another unit
    units[2, :, 11] = 10 * pulse  # far away: no competitor
    traces = rng.normal(size=(30_000, 12))
    samples, labels = np.arange(300, 29_700, 200), np.arange(147) % 3
    for sample, label in zip(samples, labels, strict=True):
        traces[sample - 30 : sample + 60] += units[label]
    templates = make_templates(units, nbefore=30)
    found = posteriors_of_traces(traces, make_sorting(samples, labels), templates, neurons, tmp_path)
    assert found.shape == (147,) and found.dtype == np.float32
    np.testing.assert_allclose(found[labels == 2], ALONE)
    if neurons[0] == neurons[1]:  # fragments of one neuron
        np.testing.assert_allclose(found, ALONE)
        return
    assert ((found[labels < 2] > 0.55) & (found[labels < 2] < 0.8)).all()


@pytest.mark.parametrize("n_before, n_after, lowest", [(30, 60, 0.9), (15, 30, 0.9), (9, 15, 0.5)])
def test_an_overlapping_spike_costs_no_confidence(tmp_path, n_before, n_after, lowest):
    """Also where the templates are shorter than the window that is looked at."""
    rng = np.random.default_rng(0)
    k = np.arange(90) - 30
    pulse = -np.exp(-0.5 * (k / 5) ** 2)
    units = np.zeros((2, 90, 3))
    units[0], units[1] = np.outer(pulse, [10, 6, 0]), np.outer(pulse, [0, 6, 10])
    samples, labels = np.repeat(np.arange(300, 29_000, 200), 2), np.tile([0, 1], 144)
    samples[1::2] += 4  # every spike overlaps with one of the other unit
    traces = rng.normal(size=(30_000, 3))
    for sample, label in zip(samples, labels, strict=True):
        traces[sample - 30 : sample + 60] += units[label]
    templates = make_templates(units[:, 30 - n_before : 30 + n_after], nbefore=n_before)
    found = posteriors_of_traces(traces, make_sorting(samples, labels), templates, [0, 1], tmp_path)
    assert found.min() > lowest


# --- units ---


def test_units_are_described_by_hand():
    array = np.zeros((2, 60, 3))
    array[0, 20] = [-10.0, -10.0, 0.0]
    array[0, 30] = [0.0, 0.5, 0.0]
    array[1, 20] = [0.0, 0.0, -6.0]
    array[1, 25] = [0.0, 0.0, 8.0]
    sorting = make_sorting([5, 9, 12], [0, 0, 1])
    describe_units(sorting, make_templates(array), np.array([1.0, 0.5, 0.25]), np.array([0, 2]))
    assert sorting.get_property("main_channel_id").tolist() == ["c0", "c2"]
    assert sorting.get_property("n_spikes").tolist() == [2, 1]
    assert sorting.get_property("mean_posterior").tolist() == [0.75, 0.25]
    assert sorting.get_property("snr").tolist() == [10.0, 8.0]
    np.testing.assert_allclose(sorting.get_property("x_um"), [0, 0])
    np.testing.assert_allclose(sorting.get_property("y_um"), [20 * 10.5**2 / (10**2 + 10.5**2), 40.0])


def test_quality_falls_with_confidence_and_size():
    array = np.zeros((3, 60, 1))
    array[:, 20, 0] = -200, -200, -5
    sorting = make_sorting(np.arange(600), np.arange(600) % 3)
    describe_units(sorting, make_templates(array), np.tile([1.0, 0.5, 1.0], 200), np.zeros(3, "int64"))
    sure, confused, weak = sorting.get_property("quality")
    assert (sure, confused) == pytest.approx((1.0, 0.5))
    assert weak == pytest.approx(1 - np.exp(-0.5 * (5**2 - 60 / 200) / QUALITY_NORM**2))


def test_quality_falls_with_the_share_of_spikes_that_come_with_those_of_a_larger_unit():
    array = np.zeros((2, 60, 1))
    array[:, 20, 0] = -200, -100
    large = 1000 * np.arange(1, 401) + np.random.default_rng(0).integers(0, 900, 400)
    samples = np.concatenate([large, large[:100] + 30, large[100:] + 450])
    sorting = make_sorting(samples, np.repeat([0, 1], 400))
    describe_units(sorting, make_templates(array), np.ones(800), np.zeros(2, "int64"))
    large_quality, small_quality = sorting.get_property("quality")
    assert large_quality == pytest.approx(1.0) and small_quality == pytest.approx(0.75, abs=0.03)


def test_units_without_spikes_have_no_posterior():
    array = np.zeros((2, 60, 1))
    array[:, 20] = -5
    sorting = make_sorting([5], [1], unit_ids=np.array([0, 1]))
    describe_units(sorting, make_templates(array), np.array([0.5]), np.zeros(2, "int64"))
    assert sorting.get_property("n_spikes").tolist() == [0, 1]
    assert sorting.get_property("mean_posterior").tolist() == [0, 0.5]


# --- groups ---


def test_groups_are_joined_by_hand():
    first = make_sorting([10, 30, 5], [0, 1, 0], segments=[0, 0, 1], unit_ids=np.array([4, 8]))
    second = make_sorting([20, 30], [0, 0], unit_ids=np.array([3]))
    first.set_property("snr", [1.0, 2.0])
    second.set_property("snr", [3.0])
    posteriors = {"a": np.array([0.1, 0.2, 0.3], "float32"), "b": np.array([0.4, 0.5], "float32")}
    joined, found = join_groups({"a": first, "b": second}, posteriors, SAMPLING_FREQUENCY)
    assert joined.unit_ids.tolist() == [0, 1, 2]
    assert joined.get_property("group").tolist() == ["a", "a", "b"]
    assert joined.get_property("snr").tolist() == [1.0, 2.0, 3.0]
    spikes = joined.to_spike_vector()
    assert spikes["sample_index"].tolist() == [10, 20, 30, 30, 5]
    assert spikes["unit_index"].tolist() == [0, 2, 1, 2, 0]
    assert spikes["segment_index"].tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(found, [0.1, 0.4, 0.2, 0.5, 0.3])


def test_groups_without_units():
    empty, one = make_sorting([], []), make_sorting([7], [0])
    one.set_property("snr", [5.0])
    nothing = np.zeros(0, "float32")
    joined, posteriors = join_groups({0: empty, 1: empty}, {0: nothing, 1: nothing}, SAMPLING_FREQUENCY)
    assert len(joined.unit_ids) == len(posteriors) == 0
    joined, posteriors = join_groups({0: empty, 1: one}, {0: nothing, 1: np.ones(1, "float32")}, SAMPLING_FREQUENCY)
    assert joined.get_property("group").tolist() == [1] and joined.get_property("snr").tolist() == [5.0]
    assert posteriors.tolist() == [1.0]


def test_joining_does_not_change_the_parts():
    first, second = make_sorting([1, 2], [0, 0]), make_sorting([1, 2], [0, 0])
    join_groups({0: first, 1: second}, {0: np.ones(2), 1: np.ones(2)}, SAMPLING_FREQUENCY)
    assert second.to_spike_vector()["unit_index"].tolist() == [0, 0]


# --- files ---


@pytest.mark.parametrize("save_embeddings", [True, False])
def test_files(tmp_path, save_embeddings):
    rng = np.random.default_rng(0)
    arrays = {"peaks": rng.normal(size=5), "labels": np.arange(5), "posteriors": rng.random(5)}
    features = rng.normal(size=(5, 3))
    save_clustering(tmp_path, *arrays.values(), features, SorterParams(save_embeddings=save_embeddings))
    for name, array in arrays.items():
        assert np.array_equal(np.load(tmp_path / f"clustered_{name}.npy"), array)
    assert (tmp_path / "clustered_embeddings.npy").exists() == save_embeddings

    save_results(tmp_path, make_sorting([1, 2, 3], [0, 1, 1]), np.array([0.5, 0.6, 0.7]), {"0": {"detect": 1.5}})
    assert np.load(tmp_path / "spike_posteriors.npy").tolist() == [0.5, 0.6, 0.7]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"n_units": 2, "n_spikes": 3, "seconds": {"0": {"detect": 1.5}}}
