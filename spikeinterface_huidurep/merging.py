"""
Merge the clusters that one neuron was split into.

A mixture splits a neuron whose spikes are not Gaussian, most often into its clean spikes and its collisions with
others, and a neuron between two channels has a cluster on each. Two clusters are one neuron when there is no gap
between them: their spikes, projected on one axis, have a single mode (Isosplit's dip test, Magland and Barnett 2015).
Two axes have to agree. The line through the two mean waveforms shows gaps where collisions widen a cluster. Fisher's
discriminant shows them where drift or changes of amplitude move the spikes of both neurons along that line. The closest
pair is merged first and its mean taken anew. Collisions may fill the gap between two neurons nevertheless, so clusters
whose cores, the largest of the clusters they were merged from, have a wide gap between them are not merged.
"""

import numpy as np
from scipy.linalg import eigh
from spikeinterface.sortingcomponents.clustering.isosplit_isocut import isocut

from spikeinterface_huidurep.model import MODEL_HZ
from spikeinterface_huidurep.waveforms import reach_next_channel

MAX_TESTED_SPIKES = 500  # of one cluster; more do not change the verdict
MAX_LAG = 15  # samples at MODEL_HZ: the same spike may be aligned on different extrema on two channels
MAX_DISTANCE_UM = 60.0  # between the centre channels of two clusters of one neuron
MAX_SEPARATION = 4.0  # SD; the halves of one Gaussian are 2.7 apart, and few spikes are too few for the dip test
MIN_SHARED_ENERGY = 0.7  # of both mean waveforms on the channels that two clusters share; with less they cannot be told
MAX_DIFFERENCE = 0.5  # of the energy of the larger mean waveform; beyond it two clusters are not compared
MAX_CORE_SCORE = 2.0  # times the threshold; dip score of two cores from which on there is a wide gap between them
MIN_CORE_SHARE = 0.2  # of the larger of two cores; a smaller one holds collisions, which may join its neuron
N_DIRECTIONS = 10  # in which the spikes of a pair vary most, for the discriminant
MAX_VARIATION_SPIKES = 250  # of one cluster; they give these directions


def merge_clusters(waveforms, peaks, labels, neighborhoods, threshold, sampling_frequency, seed):
    """
    Merge clusters without a gap between them.

    Parameters
    ----------
    waveforms : np.ndarray, float16, shape (n_peaks, n_neighbors, n_samples)
    peaks : np.ndarray, structured, shape (n_peaks,)
    labels : np.ndarray, int64, shape (n_peaks,)
        -1 where a peak has no cluster.
    neighborhoods : Neighborhoods
    threshold : float
        Dip score below which a pair is merged.
    sampling_frequency : float
        Of `peaks`.
    seed : int

    Returns
    -------
    labels : np.ndarray, int64, shape (n_peaks,)
    peaks : np.ndarray, structured, shape (n_peaks,)
        A copy whose sample indices are aligned within the merged clusters.
    """
    clusters = _Clusters(waveforms, peaks["channel_index"], labels, neighborhoods, threshold, seed)
    scores = {}
    for label in sorted(clusters.members):
        clusters.score_neighbors(label, scores)
    clusters.keep_apart(scores)
    while scores:
        (first, second), (score, lag) = min(scores.items(), key=lambda item: (item[1][0], item[0]))
        if score >= threshold:
            break
        if len(clusters.members[first]) < len(clusters.members[second]):
            first, second, lag = second, first, -lag
        clusters.merge(first, second, lag)
        for pair in [pair for pair in scores if first in pair or second in pair]:
            del scores[pair]
        clusters.score_neighbors(first, scores)
    aligned = peaks.copy()
    aligned["sample_index"] += np.round(clusters.lags * sampling_frequency / MODEL_HZ).astype("int64")
    return clusters.labels, aligned


class _Clusters:
    """Clusters with a sample of waveforms and their mean, on the neighbourhood of their most frequent channel."""

    def __init__(self, waveforms, channels, labels, neighborhoods, threshold, seed):
        self.waveforms, self.channels, self.labels = waveforms, channels, labels.copy()
        self.neighborhoods, self.threshold = neighborhoods, threshold
        self.max_distance_um = reach_next_channel(MAX_DISTANCE_UM, neighborhoods.locations_um)
        self.rng = np.random.default_rng(seed)
        self.lags = np.zeros(len(labels), dtype="int64")
        self.members, self.centers, self.samples, self.means = {}, {}, {}, {}
        for label in np.unique(labels[labels >= 0]).tolist():
            self._update(label)
        self.cores = {label: (len(members), label) for label, members in self.members.items()}
        self.apart = set()

    def keep_apart(self, scores):
        """Never merge clusters whose cores have one of these scores, if it is of a wide gap and both are large."""
        limit = MAX_CORE_SCORE * self.threshold
        for pair, (score, _) in scores.items():
            sizes = [len(self.members[label]) for label in pair]
            if limit <= score < np.inf and min(sizes) >= MIN_CORE_SHARE * max(sizes):
                self.apart.add(pair)

    def merge(self, label, other, lag):
        """Give the spikes of `other`, moved by `lag` samples, to `label`."""
        self.labels[self.members[other]] = label
        self.lags[self.members[other]] += lag
        self.cores[label] = max(self.cores[label], self.cores.pop(other))
        for table in (self.members, self.centers, self.samples, self.means):
            del table[other]
        self._update(label)

    def score_neighbors(self, label, scores):
        """Add the score and lag of every pair of `label` and a close cluster to `scores`."""
        for other in self.members:
            first_um, second_um = self.neighborhoods.locations_um[[self.centers[label], self.centers[other]]]
            distance_um = np.linalg.norm(first_um - second_um)
            if other != label and distance_um <= self.max_distance_um:
                pair = (min(label, other), max(label, other))
                if pair not in scores:
                    scores[pair] = self._score(*pair)

    def _update(self, label):
        members = np.flatnonzero(self.labels == label)
        centers, counts = np.unique(self.channels[members], return_counts=True)
        center = centers[np.argmax(counts)]
        at_center = members[self.channels[members] == center]
        chosen = np.sort(self.rng.permutation(at_center)[:MAX_TESTED_SPIKES])
        sample = shift_each(self.waveforms[chosen], self.lags[chosen])
        self.members[label], self.centers[label] = members, center
        self.samples[label], self.means[label] = sample, sample.mean(axis=0, dtype="float32")

    def _score(self, first, second):
        """Dip score between two clusters and the lag of the second; infinite for those that cannot be one neuron."""
        if tuple(sorted(self.cores[label][1] for label in (first, second))) in self.apart:
            return np.inf, 0
        rows_first, rows_second = self._shared_rows(first, second)
        mean_first, mean_second = self.means[first][rows_first], self.means[second][rows_second]
        shares = _energy_share(self.means[first], rows_first), _energy_share(self.means[second], rows_second)
        if min(shares) < MIN_SHARED_ENERGY:
            return np.inf, 0
        lag, difference = find_lag(mean_first, mean_second)
        if difference > MAX_DIFFERENCE * max(np.sum(mean_first**2), np.sum(mean_second**2)):
            return np.inf, 0
        n_samples = mean_first.shape[1]
        start, stop = max(0, -lag), n_samples - max(0, lag)
        cut_first = self.samples[first][:, rows_first, start:stop]
        cut_second = self.samples[second][:, rows_second, start + lag : stop + lag]
        vectors = [cut.reshape(len(cut), -1).astype("float32") for cut in (cut_first, cut_second)]
        along = project_on_difference(*vectors)
        if separation(*along) > MAX_SEPARATION:
            return np.inf, lag
        sizes = len(self.members[first]), len(self.members[second])
        score = dip_score(*along, sizes)
        if score >= self.threshold:
            return score, lag
        return max(score, dip_score(*project_on_difference(*equalize_variation(*vectors)), sizes)), lag

    def _shared_rows(self, first, second):
        """Where the channels that two clusters share stand in the neighbourhood of each."""
        rows, channels = [], []
        for label in (first, second):
            center = self.centers[label]
            rows.append(np.flatnonzero(self.neighborhoods.channel_mask[center]))
            channels.append(self.neighborhoods.channel_indices[center][rows[-1]])
        _, in_first, in_second = np.intersect1d(*channels, return_indices=True)
        return rows[0][in_first], rows[1][in_second]


def project_on_difference(first, second):
    """
    Project the vectors of two clusters on the difference of their means, without each vector's share in its own mean.

    Few vectors of many dimensions would otherwise lie apart along the noise of their own means.

    Parameters
    ----------
    first, second : np.ndarray, float, shape (n_first, n_dims), (n_second, n_dims)
        At least two vectors each.

    Returns
    -------
    along_first, along_second : np.ndarray, float, shape (n_first,), (n_second,)
    """
    own_first, own_second = _project_on_mean_of_others(first), _project_on_mean_of_others(second)
    return own_first - first @ second.mean(axis=0), second @ first.mean(axis=0) - own_second


def _project_on_mean_of_others(vectors):
    n = len(vectors)
    return (n * (vectors @ vectors.mean(axis=0)) - np.sum(vectors**2, axis=1)) / (n - 1)


def equalize_variation(first, second):
    """
    Scale the directions in which the vectors of two clusters vary by more than noise, so that they vary like noise.

    The difference of the means then is Fisher's discriminant: noise is white already, so that only directions beyond
    it have to be found, the few with variances that noise of so many dimensions does not reach (Marchenko and Pastur).

    Parameters
    ----------
    first, second : np.ndarray, float32, shape (n_first, n_dims), (n_second, n_dims)
        Noise of SD 1.

    Returns
    -------
    first, second : np.ndarray, float32, shape (n_first, n_dims), (n_second, n_dims)
    """
    parts = [thin(vectors, MAX_VARIATION_SPIKES) for vectors in (first, second)]
    deviations = np.concatenate([part - part.mean(axis=0) for part in parts])
    n_vectors, n_dims = deviations.shape
    products = deviations @ deviations.T  # smaller than the covariance, with the same eigenvalues
    n_found = min(N_DIRECTIONS, n_vectors)
    values, mixing = eigh(products / n_vectors, subset_by_index=[n_vectors - n_found, n_vectors - 1])
    is_large = values > (1 + np.sqrt(n_dims / n_vectors)) ** 2
    directions = deviations.T @ (mixing[:, is_large] / np.sqrt(n_vectors * values[is_large]))
    excess = 1 - 1 / np.sqrt(values[is_large])
    return tuple(vectors - ((vectors @ directions) * excess) @ directions.T for vectors in (first, second))


def thin(values, n_max):
    """At most `n_max` of the values, evenly spaced."""
    return values[np.linspace(0, len(values) - 1, min(len(values), n_max)).astype("int64")]


def separation(first, second):
    """By how many common SD the mean of the first sample is above that of the second; 0 if it is below."""
    return max(0.0, first.mean() - second.mean()) / np.sqrt(0.5 * (first.var() + second.var()) + 1e-12)


def dip_score(first, second, sizes):
    """
    Isocut's dip score of two samples on one axis: low without a gap between them.

    A small cluster beside a large one hides in its tail, and an equal share of both exaggerates the gap of a tail that
    was cut off: the higher score of the two mixtures counts.

    Parameters
    ----------
    first, second : np.ndarray, float, shape (n_first,), (n_second,)
    sizes : (int, int)
        Spikes of the two clusters the samples were drawn from.

    Returns
    -------
    score : float
    """
    n_equal = min(len(first), len(second))
    share = min(len(first) / sizes[0], len(second) / sizes[1])
    mixtures = [(n_equal, n_equal), (max(2, int(share * sizes[0])), max(2, int(share * sizes[1])))]
    union = [np.sort(np.r_[first[:n], second[:m]]).astype("float64") for n, m in mixtures]
    return max(isocut(values)[0] for values in union)


def _energy_share(mean, rows):
    return np.sum(mean[rows] ** 2) / max(np.sum(mean**2), 1e-12)


def find_lag(first, second):
    """
    Lag of the second waveform that brings it closest to the first.

    Parameters
    ----------
    first, second : np.ndarray, float, shape (n_channels, n_samples)

    Returns
    -------
    lag : int
        `second[:, k + lag]` is like `first[:, k]`.
    difference : float
        Squared distance at that lag, without the MAX_LAG samples at each end.
    """
    n_samples = first.shape[1]
    inner = first[:, MAX_LAG : n_samples - MAX_LAG]
    differences = [
        np.sum((inner - second[:, MAX_LAG + lag : n_samples - MAX_LAG + lag]) ** 2)
        for lag in range(-MAX_LAG, MAX_LAG + 1)
    ]
    return int(np.argmin(differences)) - MAX_LAG, float(min(differences))


def correlate(waveform, others):
    """
    Inner products of a waveform and others at every shift.

    Parameters
    ----------
    waveform : np.ndarray, float32, shape (n_samples, n_channels)
    others : np.ndarray, float32, shape (n_others, n_samples, n_channels)

    Returns
    -------
    products : np.ndarray, float, shape (n_others, 2 * n_samples)
        At `[:, shift]`, also of negative shifts, of `waveform[t]` and `others[:, t - shift]`.
    """
    n_fft = 2 * len(waveform)
    spectrum, spectra = np.fft.rfft(waveform, n_fft, axis=0), np.fft.rfft(others, n_fft, axis=1)
    return np.fft.irfft((spectrum * spectra.conj()).sum(axis=2), n_fft, axis=1)


def find_centres(waveforms, locations_um):
    """Centres of mass of squared peak-to-peak amplitudes: (n_units, n_samples, n_channels) to (n_units, 2) in um."""
    weights = np.ptp(waveforms, axis=1) ** 2
    return weights @ locations_um / weights.sum(axis=1, keepdims=True)


def shift_each(waveforms, lags):
    """
    Waveforms, each shifted by its own lag as `shift_waveforms` does.

    Parameters
    ----------
    waveforms : np.ndarray, float, shape (n_spikes, n_channels, n_samples)
    lags : np.ndarray, int64, shape (n_spikes,)
        Samples.

    Returns
    -------
    waveforms : np.ndarray, float, shape (n_spikes, n_channels, n_samples)
    """
    shifted = np.empty_like(waveforms)
    for lag in np.unique(lags):
        shifted[lags == lag] = shift_waveforms(waveforms[lags == lag], lag)
    return shifted


def shift_waveforms(waveforms, lag):
    """Waveforms whose sample k is the old sample k + lag; 0 beyond the end."""
    moved = np.zeros_like(waveforms)
    n_samples = waveforms.shape[-1]
    start, stop = max(0, -lag), n_samples - max(0, lag)
    moved[..., start:stop] = waveforms[..., start + lag : stop + lag]
    return moved
