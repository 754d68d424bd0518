"""Gaussian mixtures with the number of components chosen by the data, channel by channel."""

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

N_DIMS = 10  # dimensions of the vectors that the mixture sees
MIN_SPIKES = 30  # of a channel, and of a cluster
MIN_SPIKES_PER_COMPONENT = 20  # a full covariance needs more than N_DIMS of them
MAX_FIT_SPIKES = 5000  # more of them do not change the mixture
PATIENCE = 2  # components added without a better BIC before the search ends
REGULARIZATION = 1e-3  # of the mean variance, added to the diagonal of a covariance


def cluster_spikes(features, channels, max_components, seed, *, min_spikes=MIN_SPIKES, **mixture_kwargs):
    """
    Cluster the spikes of every centre channel on their own.

    Parameters
    ----------
    features : np.ndarray, float32, shape (n_spikes, n_dims)
    channels : np.ndarray, int, shape (n_spikes,)
        Centre channel of each spike.
    max_components : int
        Largest number of components on one channel.
    seed : int
    min_spikes : int, default: MIN_SPIKES
        A channel, or a cluster, of fewer spikes is not clustered.
    mixture_kwargs : dict
        For `fit_mixture`.

    Returns
    -------
    labels : np.ndarray, int64, shape (n_spikes,)
        Clusters counted over all channels; -1 for spikes of channels and clusters with too few of them.
    posteriors : np.ndarray, float32, shape (n_spikes,)
        Probability of the label given by the mixture, 0 where the label is -1.
    """
    labels = np.full(len(channels), -1, dtype="int64")
    posteriors = np.zeros(len(channels), dtype="float32")
    n_clusters = 0
    with threadpool_limits(1):  # many small matrices: threads only get in each other's way
        for channel in np.unique(channels):
            members = np.flatnonzero(channels == channel)
            if len(members) < min_spikes:
                continue
            responsibilities = cluster_channel(features[members], max_components, seed, **mixture_kwargs)
            winners = responsibilities.argmax(axis=1)
            for component in np.unique(winners):
                chosen = winners == component
                if chosen.sum() < min_spikes:
                    continue
                labels[members[chosen]] = n_clusters
                posteriors[members[chosen]] = responsibilities[chosen, component]
                n_clusters += 1
    return labels, posteriors


def cluster_channel(features, max_components, seed, **mixture_kwargs):
    """
    Posterior probabilities of the components of one channel's mixture, shape (n_spikes, n_components).

    The rows sum to 1.
    """
    n_dims = min(N_DIMS, *features.shape)
    reduced = PCA(n_dims, svd_solver="full").fit_transform(features.astype("float64"))
    fitted = reduced
    if len(reduced) > MAX_FIT_SPIKES:
        fitted = np.random.default_rng(seed).choice(reduced, MAX_FIT_SPIKES, replace=False)
    return fit_mixture(fitted, max_components, seed, **mixture_kwargs).predict_proba(reduced)


def fit_mixture(features, max_components, seed, n_starts=1, covariance_type="full"):
    """
    Fit Gaussian mixtures of growing size and return the one with the lowest BIC.

    Parameters
    ----------
    features : np.ndarray, float64, shape (n_spikes, n_dims)
    max_components : int
    seed : int
    n_starts : int, default: 1
        Fits of each size, of which the most likely is taken.
    covariance_type : "full" | "spherical", default: "full"
        Few spikes are too few to find full covariances.

    Returns
    -------
    mixture : sklearn.mixture.GaussianMixture
    """
    best, best_bic, n_worse = None, np.inf, 0
    for n_components in range(1, max_components + 1):
        if n_components > 1 and len(features) < MIN_SPIKES_PER_COMPONENT * n_components:
            break
        mixture = GaussianMixture(
            n_components,
            covariance_type=covariance_type,
            reg_covar=REGULARIZATION * features.var(axis=0).mean() + 1e-9,
            init_params="k-means++",
            max_iter=60,
            n_init=n_starts,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # more iterations do not change the clusters
            mixture.fit(features)
        bic = mixture.bic(features)
        if bic < best_bic:
            best, best_bic, n_worse = mixture, bic, 0
        else:
            n_worse += 1
            if n_worse > PATIENCE:
                break
    return best
