"""Results: unit properties, and groups put together."""

import json

import numpy as np
import pytest
from probeinterface import generate_linear_probe
from spikeinterface.core import NumpySorting, Templates
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.results import (
    MIN_QUALITY,
    QUALITY_NORM,
    describe_units,
    join_groups,
    keep_credible_units,
    save_clustering,
    save_results,
)

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


def test_units_that_are_hardly_neurons_are_left_out():
    sorting = make_sorting([5, 9, 12, 15], [0, 1, 2, 0])
    sorting.set_property("quality", np.array([MIN_QUALITY, MIN_QUALITY - 0.01, 1.0]))
    sorting.set_property("snr", np.array([3.0, 4.0, 5.0]))
    kept, posteriors = keep_credible_units(sorting, np.array([0.1, 0.2, 0.3, 0.4]))
    assert kept.unit_ids.tolist() == [0, 2]
    assert kept.to_spike_vector()["sample_index"].tolist() == [5, 12, 15]
    assert kept.get_property("snr").tolist() == [3.0, 5.0]
    assert posteriors.tolist() == [0.1, 0.3, 0.4]


def test_no_unit_may_be_left():
    sorting = make_sorting([5, 9], [0, 1])
    sorting.set_property("quality", np.zeros(2))
    kept, posteriors = keep_credible_units(sorting, np.ones(2))
    joined, of_joined = join_groups({0: kept}, {0: posteriors}, SAMPLING_FREQUENCY)
    assert len(joined.unit_ids) == len(posteriors) == len(of_joined) == 0


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
