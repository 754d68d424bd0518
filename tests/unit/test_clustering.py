"""Mixtures: as many components as the data have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeinterface_huidurep.clustering import MIN_SPIKES, cluster_channel, cluster_spikes, fit_mixture


def make_gaussians(rng, sizes, n_dims=6, distance=20.0):
    """(features, truth): one Gaussian of unit SD a size, `distance` apart, in shuffled order."""
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centers = distance * np.eye(len(sizes), n_dims)
    return (centers[truth] + rng.normal(size=(len(truth), n_dims))).astype("float32"), truth


def same_partition(first, second):
    """True if two labellings differ by the names only."""
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


@pytest.mark.parametrize("sizes", [(200,), (200, 300), (60, 400, 150), (100, 100, 100, 100, 100)])
@pytest.mark.parametrize("seed", [0, 1])
def test_well_separated_gaussians_are_recovered_exactly(sizes, seed):
    features, truth = make_gaussians(np.random.default_rng(seed), sizes)
    labels, posteriors = cluster_spikes(features, np.zeros(len(truth), dtype=int), 10, seed)
    assert same_partition(labels, truth)
    assert posteriors.min() > 0.999


@pytest.mark.parametrize("seed", range(5))
def test_one_gaussian_stays_one(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8))
    mixture = fit_mixture(features, max_components=8, seed=seed)
    assert mixture.n_components == 1


@settings(max_examples=15, deadline=None)
@given(
    n_spikes=st.integers(1, 150), n_dims=st.integers(1, 15), max_components=st.integers(1, 6), seed=st.integers(0, 9)
)
def test_rows_of_responsibilities_sum_to_one(n_spikes, n_dims, max_components, seed):
    features = np.random.default_rng(seed).normal(size=(max(n_spikes, 2), n_dims))
    found = cluster_channel(features, max_components, seed)
    assert found.shape[0] == len(features) and 1 <= found.shape[1] <= max_components
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
    assert (found >= 0).all()


def test_posterior_is_the_closed_form_of_two_gaussians():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 2000)
    features = rng.normal(size=(4000, 1)) + 6.0 * truth[:, None]
    found = cluster_channel(features, 2, 0)
    of_second = found[:, np.argmax(features[:, 0] @ found)]
    wanted = 1 / (1 + np.exp(-6.0 * (features[:, 0] - 3)))
    np.testing.assert_allclose(of_second, wanted, atol=0.12)


def test_max_components_is_a_limit():
    features, _ = make_gaussians(np.random.default_rng(0), (100, 100, 100, 100))
    assert fit_mixture(features.astype("float64"), 3, 0).n_components == 3


def test_channels_are_clustered_on_their_own():
    rng = np.random.default_rng(0)
    features, truth = make_gaussians(rng, (200, 200))
    channels = rng.integers(0, 2, size=400)
    labels, _ = cluster_spikes(features, channels, 5, 0)
    assert same_partition(labels, 2 * channels + truth)
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]


def test_few_spikes():
    assert [len(array) for array in cluster_spikes(np.zeros((0, 4), "float32"), np.zeros(0, int), 5, 0)] == [0, 0]
    features = np.random.default_rng(0).normal(size=(MIN_SPIKES - 1 + MIN_SPIKES, 4)).astype("float32")
    channels = np.repeat([7, 3], [MIN_SPIKES - 1, MIN_SPIKES])
    labels, posteriors = cluster_spikes(features, channels, 5, 0)
    assert (labels[channels == 7] == -1).all() and (posteriors[channels == 7] == 0).all()
    assert (labels[channels == 3] == 0).all() and (posteriors[channels == 3] == 1).all()


def test_a_cluster_of_too_few_spikes_is_left_out():
    features, truth = make_gaussians(np.random.default_rng(0), (MIN_SPIKES - 5, 300), distance=60.0)
    labels, posteriors = cluster_spikes(features, np.zeros(len(truth), dtype=int), 4, 0)
    assert (labels[truth == 0] == -1).all() and (posteriors[truth == 0] == 0).all()
    assert (labels[truth == 1] >= 0).all()


def test_equal_vectors_are_one_cluster():
    labels, posteriors = cluster_spikes(np.ones((100, 5), "float32"), np.zeros(100, int), 5, 0)
    assert (labels == 0).all() and np.isfinite(posteriors).all()


def test_same_seed_same_clusters():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 8)).astype("float32") + 3 * rng.integers(0, 3, size=(600, 1))
    channels = rng.integers(0, 2, size=600)
    first, second = (cluster_spikes(features, channels, 6, 0) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


@settings(max_examples=10, deadline=None)
@given(gain=st.floats(1e-2, 1e2), shift=st.floats(-100, 100))
def test_gain_and_offset_do_not_matter(gain, shift):
    features, truth = make_gaussians(np.random.default_rng(0), (150, 100))
    labels, _ = cluster_spikes(features * np.float32(gain) + np.float32(shift), np.zeros(250, int), 4, 0)
    assert same_partition(labels, truth)


def test_more_spikes_than_are_fitted():
    features, truth = make_gaussians(np.random.default_rng(0), (4000, 3000))
    labels, _ = cluster_spikes(features, np.zeros(7000, int), 3, 0)
    assert same_partition(labels, truth)


@pytest.mark.parametrize("covariance_type, n_found", [("full", 1), ("spherical", 2)])
def test_few_spikes_need_simple_covariances(covariance_type, n_found):
    """Two neurons of 24 spikes each, 6 SD apart in 10 dimensions."""
    features, truth = make_gaussians(np.random.default_rng(0), (24, 24), n_dims=10, distance=6 / np.sqrt(2))
    labels, _ = cluster_spikes(
        features, np.zeros(48, dtype=int), 5, 0, min_spikes=20, covariance_type=covariance_type, n_starts=3
    )
    assert labels.max() + 1 == n_found
    assert n_found == 1 or same_partition(labels, truth)
