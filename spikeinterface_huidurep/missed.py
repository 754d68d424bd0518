"""
Neurons that were missed, found among the peaks that no template explains.

A neuron that fires rarely has few spikes on each channel, and these are lost among those of others. With the spikes
found taken away they are many of those that are left. So the peaks of neighbouring channels are clustered together, and
by mixtures that need few spikes. Two kinds of clusters are none: those no larger than what the threshold picks out of
noise, and those of spikes less alike than the spikes of units are, collisions that matching did not resolve. Both are
judged by the noise at the times of their spikes. Large neurons may vary more, and need fewer spikes, but where drift
was corrected: what is left of it makes fragments. Matching may have taken their spikes for those of others: spikes that
do not fit these are put back before (`misfits.py`).
"""

import numpy as np
from spikeinterface.core import NumpySorting

from spikeinterface_huidurep.clustering import cluster_spikes
from spikeinterface_huidurep.detection import detect_spikes, find_pairs_of_peaks, select_spikes, weigh_peaks
from spikeinterface_huidurep.features import compute_features, extract_for_features
from spikeinterface_huidurep.matching import keep_frequent_units, keep_large_clusters
from spikeinterface_huidurep.merging import merge_clusters, thin
from spikeinterface_huidurep.misfits import find_misfits
from spikeinterface_huidurep.residuals import cut_out, read_waveforms, take_away
from spikeinterface_huidurep.splitting import measure_spread
from spikeinterface_huidurep.waveforms import reach_next_channel

EXPLAINED_MS = 1.0  # peaks closer to a spike are what its template leaves of it
EXPLAINED_PTP = 2.0  # noise SD, of the template on the channel of the peak; what is smaller leaves no peak
POOL_RADIUS_UM = 60.0  # on channels that close a small spike is detected now here, now there
MIN_SPIKES, MIN_SPIKES_OF_LARGE = 20, 10  # of a neuron
MIN_PART = 8  # spikes of a component; a neuron may be several before they are merged
MIN_NORM = 5.7  # noise SD; the threshold makes clusters of up to 5.5 out of noise
LARGE_NORM = 12.0  # noise SD; from there on a neuron is large
MAX_SPREAD, MAX_SPREAD_OF_LARGE = 1.04, 1.3  # times that of the spikes of units
MAX_COMPARED_UNITS, MAX_COMPARED_SPIKES = 20, 500  # of each, whose spread is measured
N_STARTS = 3  # of each mixture


def find_missed_units(traces, sorting, templates, changes, residuals, params, folder, job_kwargs):
    """
    Cluster the peaks that are left when all templates are taken away.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of its units.
    changes : Changes
        That it was found with.
    residuals : Residuals
        Of its spikes.
    params : SorterParams
    folder : Path
        For the files of the waveforms; removed by the caller.
    job_kwargs : dict

    Returns
    -------
    peaks : np.ndarray, structured, shape (n_peaks,)
        Of the units found.
    labels : np.ndarray, int64, shape (n_peaks,)
    weights : np.ndarray, float, shape (n_peaks,)
        How many of the peaks left each stands for.
    """
    spread_of_units = measure_spread_of_units(sorting, residuals)
    fitting = sorting.to_spike_vector()[~find_misfits(sorting, residuals)]
    sorting = NumpySorting(fitting, sorting.sampling_frequency, sorting.unit_ids)
    rest = take_away(traces, sorting, templates, changes)
    all_peaks = detect_spikes(rest, params, job_kwargs, examples=traces)
    all_peaks = all_peaks[~find_explained(all_peaks, sorting, templates)]
    peaks = select_spikes(all_peaks, params)
    weights = weigh_peaks(peaks, all_peaks)
    neighborhoods = residuals.neighborhoods
    peaks["channel_index"] = pool_channels(peaks["channel_index"], neighborhoods.locations_um)
    is_pooled = peaks["channel_index"] >= 0
    peaks, weights = peaks[is_pooled], weights[is_pooled]
    if len(peaks) == 0:
        return peaks, np.zeros(0, dtype="int64"), weights

    waveforms = extract_for_features(rest, peaks, neighborhoods, params, folder / "missed", job_kwargs)
    features = compute_features(waveforms, peaks["channel_index"], neighborhoods, params)
    labels, _ = cluster_spikes(
        features,
        peaks["channel_index"],
        params.max_components_per_channel,
        params.seed,
        covariance_type="spherical",
        min_spikes=MIN_PART,
        n_starts=N_STARTS,
    )
    vectors = cut_out(rest, peaks, neighborhoods, folder / "left", job_kwargs)
    labels, is_large = keep_neurons(vectors, peaks, labels, residuals, spread_of_units)
    labels, peaks = merge_clusters(
        waveforms,
        peaks,
        labels,
        neighborhoods,
        params.merge_threshold,
        traces.sampling_frequency,
        params.seed,
    )
    needs_few = is_large & (not residuals.is_drift_corrected())
    labels = keep_large_clusters(labels, MIN_SPIKES, np.where(needs_few, MIN_SPIKES / MIN_SPIKES_OF_LARGE, 1.0))
    labels = keep_frequent_units(labels, traces.get_total_duration(), params, weights)
    return peaks[labels >= 0], labels[labels >= 0], weights[labels >= 0]


def find_explained(peaks, sorting, templates):
    """
    Which peaks are close to a spike whose template reaches their channel.

    Parameters
    ----------
    peaks : np.ndarray, structured, shape (n_peaks,)
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of its units.

    Returns
    -------
    is_explained : np.ndarray, bool, shape (n_peaks,)
    """
    max_delay = round(EXPLAINED_MS * 1e-3 * sorting.sampling_frequency)
    spikes = sorting.to_spike_vector()
    indices, partners = find_pairs_of_peaks(peaks, spikes, max_delay)
    reach = np.ptp(templates.get_dense_templates(), axis=1) >= EXPLAINED_PTP  # (u, c)
    is_explained = np.zeros(len(peaks), dtype=bool)
    is_explained[indices[reach[spikes["unit_index"][partners], peaks["channel_index"][indices]]]] = True
    return is_explained


def pool_channels(channels, locations_um):
    """
    Give the peaks of neighbouring channels to one of them, the channel with most peaks on it and close to it first.

    Parameters
    ----------
    channels : np.ndarray, int64, shape (n_peaks,)
    locations_um : np.ndarray, float, shape (n_channels, 2)

    Returns
    -------
    centres : np.ndarray, int64, shape (n_peaks,)
        -1 where there are fewer than MIN_SPIKES_OF_LARGE.
    """
    distances_um = np.linalg.norm(locations_um[:, None] - locations_um[None], axis=2)
    radius_um = reach_next_channel(POOL_RADIUS_UM, locations_um)
    is_near, closeness = distances_um <= radius_um, np.maximum(1 - distances_um / radius_um, 0)
    centres = np.full(len(channels), -1)
    counts = np.bincount(channels, minlength=len(locations_um))
    while np.max(is_near @ counts) >= MIN_SPIKES_OF_LARGE:
        centre = np.argmax(np.where(is_near @ counts >= MIN_SPIKES_OF_LARGE, closeness @ counts, -1))
        centres[is_near[centre][channels] & (centres == -1)] = centre
        counts[is_near[centre]] = 0
    return centres


def keep_neurons(vectors, peaks, labels, residuals, spread_of_units):
    """
    Take the label from clusters of noise and of collisions.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_peaks, n_samples, n_neighbors)
        See `residuals.cut_out`.
    peaks : np.ndarray, structured, shape (n_peaks,)
        Those of one cluster are of one channel.
    labels : np.ndarray, int64, shape (n_peaks,)
        -1 where a peak has no cluster.
    residuals : Residuals
    spread_of_units : float
        See `measure_spread_of_units`.

    Returns
    -------
    labels : np.ndarray, int64, shape (n_peaks,)
    is_large : np.ndarray, bool, shape (n_peaks,)
        Whether each is of a cluster of LARGE_NORM or more.
    """
    kept, large = [], []
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        neighbors = residuals.neighborhoods.find_neighbors(peaks["channel_index"][rows[0]])
        white = whiten(read_waveforms(vectors, rows, len(neighbors)), peaks[rows], neighbors, residuals.noise)
        norm = measure_norm(white)
        max_spread = MAX_SPREAD if norm < LARGE_NORM else MAX_SPREAD_OF_LARGE
        if norm >= MIN_NORM and measure_spread(white) <= max_spread * spread_of_units * white.shape[1]:
            kept.append(label)
        if norm >= LARGE_NORM:
            large.append(label)
    return np.where(np.isin(labels, kept), labels, -1), np.isin(labels, large)


def measure_spread_of_units(sorting, residuals):
    """
    How unlike the spikes of a unit are, of every dimension of whitened waveforms: median over units.

    Parameters
    ----------
    sorting : NumpySorting
    residuals : Residuals
        Of its spikes.

    Returns
    -------
    spread : float
        See `splitting.measure_spread`. 0 where no unit has two spikes.
    """
    spikes = sorting.to_spike_vector()
    spreads = []
    for unit_index in thin(np.arange(len(sorting.unit_ids)), MAX_COMPARED_UNITS):
        rows = thin(np.flatnonzero(spikes["unit_index"] == unit_index), MAX_COMPARED_SPIKES)
        if len(rows) >= 2:
            channels = residuals.find_channels(unit_index)
            white = whiten(residuals.read(rows, unit_index, has_followed=True), spikes[rows], channels, residuals.noise)
            spreads.append(measure_spread(white) / white.shape[1])
    return float(np.median(spreads)) if spreads else 0.0


def whiten(waveforms, spikes, channels, noise):
    """
    Waveforms in which the noise is white, and as large at all times.

    Parameters
    ----------
    waveforms : np.ndarray, float32, shape (n_spikes, n_channels, n_samples)
    spikes : np.ndarray, structured (sample_index, segment_index, ...), shape (n_spikes,)
    channels : np.ndarray, int, shape (n_channels,)
    noise : noise.Noise

    Returns
    -------
    vectors : np.ndarray, float, shape (n_spikes, n_channels * n_samples)
    """
    vectors = waveforms.reshape(len(waveforms), -1) @ noise.make_whitener(channels, waveforms.shape[2])
    return vectors / noise.measure_levels(spikes["sample_index"], spikes["segment_index"], channels)[:, None]


def measure_norm(vectors):
    """Norm of the mean of vectors (n_vectors, n_dims), without what their noise adds to it."""
    first, second = (vectors[start::2].mean(axis=0) for start in (0, 1))
    return np.sqrt(max(first @ second, 0.0))
