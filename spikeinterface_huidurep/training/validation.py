"""Does the embedding separate units better than PCA of the waveforms? Measured on units not seen in training."""

import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA

from .views import draw_scene, draw_view, make_static

N_COMPONENTS = 10  # dimensions handed to the mixture, of embedding and waveforms alike
N_PRINCIPAL = 32  # components of the waveforms that the embedding is compared with
N_NEIGHBOURS = 15


def draw_static_spikes(source, n_sites, n_units, n_spikes, config, generator):
    """
    Spikes of held-out units of a recording without drift.

    Returns
    -------
    spikes : list of Views
        `n_spikes` views of all units.
    site, unit : np.ndarray, int, shape (n_sites * n_units,)
    """
    config = make_static(config, collision_probability=0.1)
    scene = draw_scene(source, n_sites, n_units, config, generator)
    spikes = [draw_view(scene, config, generator) for _ in range(n_spikes)]
    return spikes, np.repeat(np.arange(n_sites), n_units), np.tile(np.arange(n_units), n_sites)


def score_mixture(features, labels, n_dims=N_COMPONENTS, seed=0):
    """
    Separate one site's spikes by a Gaussian mixture with the number of units known.

    Parameters
    ----------
    features : np.ndarray, shape (n_spikes, n_features)
    labels : np.ndarray, int, shape (n_spikes,)
    n_dims : int, default: 10
        Principal components of the features handed to the mixture.
    seed : int, default: 0

    Returns
    -------
    adjusted_rand : float
        Of a mixture with full covariance.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    features = PCA(min(n_dims, *features.shape), random_state=seed).fit_transform(features)
    features = features / features[:, 0].std()
    mixture = GaussianMixture(len(np.unique(labels)), n_init=2, reg_covar=1e-5, random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # small problems: threads only cost
        warnings.simplefilter("ignore", ConvergenceWarning)
        return adjusted_rand_score(labels, mixture.fit_predict(features))


def score_neighbours(features, labels):
    """
    Accuracy of 15-nearest-neighbour classification, 5-fold with shuffled spikes.

    Parameters
    ----------
    features : np.ndarray, shape (n_spikes, n_features)
    labels : np.ndarray, int, shape (n_spikes,)

    Returns
    -------
    accuracy : float
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    with threadpool_limits(1):
        return cross_val_score(KNeighborsClassifier(N_NEIGHBOURS), features, labels, cv=folds).mean()


def validate_encoder(encoder, spikes, site, unit, with_pca=True):
    """
    Compare embedding and waveforms on the spikes of `draw_static_spikes`.

    Returns
    -------
    scores : dict of str to float
        Means over sites: embedding_ari, embedding_neighbours, and pca_* unless `with_pca` is False.
    """
    was_training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        parts = [encoder.encode(view.waveforms, view.positions, view.channel_mask) for view in spikes]
    encoder.train(was_training)
    embeddings = torch.stack(parts, dim=1).numpy()  # (units, spikes, dims)
    waveforms = torch.stack([view.waveforms.flatten(1) for view in spikes], dim=1).numpy()
    candidates = {"embedding": embeddings, "pca": waveforms} if with_pca else {"embedding": embeddings}
    scores = {}
    for name, values in candidates.items():
        results = []
        for index in np.unique(site):
            chosen = values[site == index]
            labels = np.repeat(unit[site == index], chosen.shape[1])
            features = chosen.reshape(len(labels), -1)
            features = PCA(min(N_PRINCIPAL, *features.shape), random_state=0).fit_transform(features)
            results.append((score_mixture(features, labels), score_neighbours(features, labels)))
        scores[f"{name}_ari"], scores[f"{name}_neighbours"] = np.mean(results, axis=0).tolist()
    return scores
