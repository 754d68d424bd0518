"""Features: the embedding in blocks, or principal components of each channel."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spikeinterface_huidurep.features as features_module
from spikeinterface_huidurep.embedding import embed_waveforms
from spikeinterface_huidurep.features import N_COMPONENTS, compute_features
from spikeinterface_huidurep.model.encoder import EncoderConfig, SpikeEncoder
from spikeinterface_huidurep.model.weights import load_encoder, save_encoder
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.waveforms import N_SAMPLES, Neighborhoods

NEIGHBORHOODS = Neighborhoods(np.c_[np.zeros(4), 20.0 * np.arange(4)], 30.0)
PCA = SorterParams(features="pca")


def make_spikes(rng, n_spikes, n_channels=3):
    waveforms = rng.normal(size=(n_spikes, n_channels, N_SAMPLES)).astype("float16")
    return waveforms, rng.integers(0, 4, size=n_spikes)


def test_embedding_is_that_of_the_encoder_whatever_the_blocks(monkeypatch):
    waveforms, channels = make_spikes(np.random.default_rng(0), 25)
    params = SorterParams(torch_device="cpu", batch_size=4)
    wanted = embed_waveforms(
        waveforms.astype("float32"),
        NEIGHBORHOODS.positions_um[channels],
        NEIGHBORHOODS.channel_mask[channels],
        load_encoder(params.weights),
    )
    for block_size in (7, 100):
        monkeypatch.setattr(features_module, "BLOCK_SIZE", block_size)
        found = compute_features(waveforms, channels, NEIGHBORHOODS, params)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_memory_of_embedding_is_the_result_and_a_block(tmp_path):
    """A million spikes must stay far below 1 GB: measured on fewer, with a small encoder, beyond the result itself."""
    torch.manual_seed(0)
    config = EncoderConfig(width=8, n_layers=1, n_heads=1, feed_forward=8)
    weights = save_encoder(SpikeEncoder(config), tmp_path / "small.safetensors", {})
    n_spikes = 40_000
    shape = (n_spikes, 3, N_SAMPLES)
    waveforms = np.lib.format.open_memmap(tmp_path / "waveforms.npy", mode="w+", dtype="float16", shape=shape)
    channels = np.zeros(n_spikes, dtype=int)
    params = SorterParams(torch_device="cpu", weights=str(weights))
    tracemalloc.start()
    features = compute_features(waveforms, channels, NEIGHBORHOODS, params)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes - features.nbytes < 20e6  # all waveforms as float32: 31 MB


def test_embedding_of_no_spikes():
    waveforms, channels = make_spikes(np.random.default_rng(0), 0)
    found = compute_features(waveforms, channels, NEIGHBORHOODS, SorterParams(torch_device="cpu"))
    assert found.shape == (0, load_encoder(SorterParams().weights).config.n_dims)


def test_principal_components_by_singular_values(monkeypatch):
    monkeypatch.setattr(features_module, "BLOCK_SIZE", 30)
    rng = np.random.default_rng(0)
    waveforms, channels = make_spikes(rng, 150)
    waveforms *= rng.permutation(np.linspace(0.1, 3, N_SAMPLES)).astype("float16")
    found = compute_features(waveforms, channels, NEIGHBORHOODS, PCA)
    assert found.shape == (150, N_COMPONENTS) and found.dtype == np.float32
    for channel in range(4):
        flat = waveforms[channels == channel].reshape((channels == channel).sum(), -1).astype("float64")
        left, values, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
        n_components = min(N_COMPONENTS, len(flat))
        wanted = np.abs(left * values)[:, :10]
        assert n_components > 10
        np.testing.assert_allclose(np.abs(found[channels == channel])[:, :10], wanted, atol=0.05)


@settings(max_examples=20, deadline=None)
@given(n_spikes=st.integers(0, 60), seed=st.integers(0, 10))
def test_principal_components_of_few_spikes(n_spikes, seed):
    waveforms, channels = make_spikes(np.random.default_rng(seed), n_spikes)
    found = compute_features(waveforms, channels, NEIGHBORHOODS, PCA)
    assert found.shape == (n_spikes, N_COMPONENTS)
    assert np.isfinite(found).all()
    for channel in np.unique(channels):
        n_members = np.sum(channels == channel)
        assert not found[channels == channel][:, n_members:].any()


def test_more_spikes_than_are_fitted(monkeypatch):
    monkeypatch.setattr(features_module, "MAX_PCA_SPIKES", 50)
    waveforms, _ = make_spikes(np.random.default_rng(0), 300)
    channels = np.zeros(300, dtype=int)
    first, second = (compute_features(waveforms, channels, NEIGHBORHOODS, PCA) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.linalg.norm(first, axis=1).min() > 0


@pytest.mark.parametrize("features", ["embedding", "pca"])
def test_other_channels_do_not_change_the_features(features):
    waveforms, channels = make_spikes(np.random.default_rng(0), 60)
    params = SorterParams(features=features, torch_device="cpu")
    everything = compute_features(waveforms, channels, NEIGHBORHOODS, params)
    one = channels == 2
    alone = compute_features(waveforms[one], channels[one], NEIGHBORHOODS, params)
    np.testing.assert_allclose(alone, everything[one], atol=1e-4)
