"""The vectors that describe spikes: the embedding, or principal components for comparison."""

import numpy as np
from sklearn.decomposition import PCA

from spikeinterface_huidurep.embedding import embed_waveforms
from spikeinterface_huidurep.model.weights import load_encoder
from spikeinterface_huidurep.waveforms import N_BEFORE, N_SAMPLES, extract_waveforms

BLOCK_SIZE = 4096  # spikes read from disk at once
N_COMPONENTS = 32  # as many principal components as the embedding has dimensions
MAX_PCA_SPIKES = 10_000


def find_window(params):
    """
    Window of the waveforms that `compute_features` takes, at the rate of the encoder.

    Parameters
    ----------
    params : SorterParams

    Returns
    -------
    n_samples, n_before : int
        Samples of a waveform, and those of them before the peak.
    """
    if params.features == "pca":
        return N_SAMPLES, N_BEFORE
    config = load_encoder(params.weights).config
    return config.n_samples, config.n_before


def extract_for_features(traces, peaks, neighborhoods, params, folder, job_kwargs):
    """The waveforms that `compute_features` takes, float16 (n_peaks, n_neighbors, n_samples): `extract_waveforms`."""
    n_samples, n_before = find_window(params)
    return extract_waveforms(
        traces, peaks, neighborhoods, params.peak_sign, folder, job_kwargs, n_samples=n_samples, n_before=n_before
    )


def compute_features(waveforms, channels, neighborhoods, params):
    """
    Describe every spike by a vector.

    Parameters
    ----------
    waveforms : np.ndarray, float16, shape (n_spikes, n_neighbors, n_samples)
        In the window that `find_window` says. May be memory-mapped.
    channels : np.ndarray, int, shape (n_spikes,)
        Centre channels.
    neighborhoods : Neighborhoods
    params : SorterParams

    Returns
    -------
    features : np.ndarray, float32, shape (n_spikes, n_dims)
    """
    if params.features == "pca":
        return _principal_components(waveforms, channels, params.seed)
    encoder = load_encoder(params.weights)
    features = np.empty((len(waveforms), encoder.config.n_dims), dtype="float32")
    for start in range(0, len(waveforms), BLOCK_SIZE):
        block = slice(start, start + BLOCK_SIZE)
        features[block] = embed_waveforms(
            waveforms[block].astype("float32"),
            neighborhoods.positions_um[channels[block]],
            neighborhoods.channel_mask[channels[block]],
            encoder,
            batch_size=params.batch_size,
            torch_device=params.torch_device,
        )
    return features


def _principal_components(waveforms, channels, seed):
    """Principal components of the waveforms around each centre channel, zero where there are fewer."""
    features = np.zeros((len(waveforms), N_COMPONENTS), dtype="float32")
    rng = np.random.default_rng(seed)
    for channel in np.unique(channels):
        members = np.flatnonzero(channels == channel)
        fitted = np.sort(rng.permutation(members)[:MAX_PCA_SPIKES])
        n_components = min(N_COMPONENTS, len(fitted), waveforms[0].size)
        pca = PCA(n_components, random_state=seed).fit(waveforms[fitted].reshape(len(fitted), -1).astype("float32"))
        for start in range(0, len(members), BLOCK_SIZE):
            block = members[start : start + BLOCK_SIZE]
            features[block, :n_components] = pca.transform(waveforms[block].reshape(len(block), -1).astype("float32"))
    return features
