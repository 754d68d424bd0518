"""
Neurons that were missed, found among the peaks that no template explains.

A neuron that fires rarely has few spikes on each channel, and these are lost among those of others. With the spikes
found taken away they are many of those that are left. So the peaks of neighbouring channels are clustered together, and
by mixtures that need few spikes. Two kinds of clusters are none: those no larger than what the threshold picks out of
noise, and those of spikes less alike than noise makes them, collisions that matching did not resolve.
"""

import numpy as np

from spikeinterface_huidurep.clustering import cluster_spikes
from spikeinterface_huidurep.detection import detect_spikes, find_pairs_of_peaks, select_spikes
from spikeinterface_huidurep.features import compute_features, extract_for_features
from spikeinterface_huidurep.matching import keep_frequent_units
from spikeinterface_huidurep.merging import merge_clusters
from spikeinterface_huidurep.residuals import cut_out, read_waveforms, take_away
from spikeinterface_huidurep.splitting import MAX_SPREAD, measure_spread

EXPLAINED_MS = 1.0  # peaks closer to a spike are what its template leaves of it
EXPLAINED_PTP = 2.0  # noise SD, of the template on the channel of the peak; what is smaller leaves no peak
POOL_RADIUS_UM = 60.0  # on channels that close a small spike is detected now here, now there
MIN_SPIKES = 20
MIN_NORM = 5.7  # noise SD; the threshold makes clusters of up to 5.5 out of noise
N_STARTS = 3  # of each mixture


def find_missed_units(traces, sorting, templates, residuals, params, folder, job_kwargs):
    """
    Cluster the peaks that are left when all templates are taken away.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of its units.
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
    share_selected : float
        Share of the peaks left that were clustered.
    """
    rest = take_away(traces, sorting, templates)
    all_peaks = detect_spikes(rest, params, job_kwargs, examples=traces)
    all_peaks = all_peaks[~find_explained(all_peaks, sorting, templates)]
    peaks = select_spikes(all_peaks, params)
    share_selected = len(peaks) / max(len(all_peaks), 1)
    neighborhoods = residuals.neighborhoods
    peaks["channel_index"] = pool_channels(peaks["channel_index"], neighborhoods.locations_um)
    peaks = peaks[peaks["channel_index"] >= 0]
    if len(peaks) == 0:
        return peaks, np.zeros(0, dtype="int64"), share_selected

    waveforms = extract_for_features(rest, peaks, neighborhoods, params, folder / "missed", job_kwargs)
    features = compute_features(waveforms, peaks["channel_index"], neighborhoods, params)
    labels, _ = cluster_spikes(
        features,
        peaks["channel_index"],
        params.max_components_per_channel,
        params.seed,
        covariance_type="spherical",
        min_spikes=MIN_SPIKES,
        n_starts=N_STARTS,
    )
    vectors = cut_out(rest, peaks, neighborhoods, folder / "left", job_kwargs)
    labels = keep_neurons(vectors, peaks["channel_index"], labels, residuals)
    labels, peaks = merge_clusters(
        waveforms,
        peaks,
        labels,
        neighborhoods,
        params.merge_threshold,
        traces.sampling_frequency,
        params.seed,
    )
    labels = keep_frequent_units(labels, share_selected, traces.get_total_duration(), params)
    return peaks[labels >= 0], labels[labels >= 0], share_selected


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
        -1 where there are fewer than MIN_SPIKES.
    """
    distances_um = np.linalg.norm(locations_um[:, None] - locations_um[None], axis=2)
    is_near, closeness = distances_um <= POOL_RADIUS_UM, np.maximum(1 - distances_um / POOL_RADIUS_UM, 0)
    centres = np.full(len(channels), -1)
    counts = np.bincount(channels, minlength=len(locations_um))
    while np.max(is_near @ counts) >= MIN_SPIKES:
        centre = np.argmax(np.where(is_near @ counts >= MIN_SPIKES, closeness @ counts, -1))
        centres[is_near[centre][channels] & (centres == -1)] = centre
        counts[is_near[centre]] = 0
    return centres


def keep_neurons(vectors, channels, labels, residuals):
    """
    Take the label from clusters of noise and of collisions.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_peaks, n_samples, n_neighbors)
        See `residuals.cut_out`.
    channels : np.ndarray, int64, shape (n_peaks,)
        The same for all peaks of a cluster.
    labels : np.ndarray, int64, shape (n_peaks,)
        -1 where a peak has no cluster.
    residuals : Residuals

    Returns
    -------
    labels : np.ndarray, int64, shape (n_peaks,)
    """
    unit_ids = np.unique(labels[labels >= 0])
    norms, spreads = np.zeros(len(unit_ids)), np.zeros(len(unit_ids))
    for index, unit_id in enumerate(unit_ids):
        rows = np.flatnonzero(labels == unit_id)
        neighbors = residuals.neighborhoods.find_neighbors(channels[rows[0]])
        waveforms = read_waveforms(vectors, rows, len(neighbors)).reshape(len(rows), -1)
        white = waveforms @ residuals.noise.make_whitener(neighbors, vectors.shape[1])
        norms[index], spreads[index] = measure_norm(white), measure_spread(white) / white.shape[1]
    is_neuron = (norms >= MIN_NORM) & (spreads <= MAX_SPREAD * np.min(spreads, initial=np.inf))
    return np.where(np.isin(labels, unit_ids[is_neuron]), labels, -1)


def measure_norm(vectors):
    """Norm of the mean of vectors (n_vectors, n_dims), without what their noise adds to it."""
    first, second = (vectors[start::2].mean(axis=0) for start in (0, 1))
    return np.sqrt(max(first @ second, 0.0))
