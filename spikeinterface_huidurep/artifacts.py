"""
Artifacts: deflections of most channels at once, longer and larger than spikes, as of stimulation or of licking.

They would be clustered as if they were spikes, and matching takes them apart into hundreds of spikes of all neurons.
What happens during an artifact is lost in any case.
"""

import logging

import numpy as np
from scipy.ndimage import binary_dilation, binary_propagation, maximum_filter1d, minimum_filter1d, uniform_filter1d
from spikeinterface.core.base import base_period_dtype
from spikeinterface.core.node_pipeline import PipelineNode, run_node_pipeline
from spikeinterface.preprocessing import silence_periods

from spikeinterface_huidurep.whitening import noise_levels, read_random_chunks

logger = logging.getLogger(__name__)

BIN_MS = 1.0
SMOOTHED_BINS = 5  # longer than a spike
MIN_RATIO, MAX_MIN_SIZE = 3.0, 6.0  # size on the median channel, to its 90th percentile and in noise SD
MIN_SIZE_ON_FEW = 5.0  # noise SD; the spikes of a busy tetrode reach 3
EDGE_SIZE = 1.25  # down to this size it is the same artifact; noise has 0.8
MARGIN_BINS = 2  # more: the filter smears what is far larger than spikes
MIN_CHANNELS, MANY_CHANNELS = 4, 16  # on fewer than MIN_CHANNELS a unit may be as large on the median channel


def spread_channels(recording):
    """Ids of at most MANY_CHANNELS channels from all over the probe: artifacts are the same on the others."""
    n_channels = recording.get_num_channels()
    return recording.channel_ids[np.linspace(0, n_channels - 1, min(n_channels, MANY_CHANNELS)).astype(int)]


def find_artifacts(recording, seed, job_kwargs):
    """
    Find when artifacts begin and end.

    Parameters
    ----------
    recording : BaseRecording
        Band-pass filtered.
    seed : int
        Of the samples that the noise is measured on.
    job_kwargs : dict

    Returns
    -------
    artifacts : np.ndarray, structured (segment_index, start_sample_index, end_sample_index), shape (n_artifacts,)
        Empty where there are fewer than MIN_CHANNELS channels.
    """
    n_channels = recording.get_num_channels()
    if n_channels < MIN_CHANNELS:
        return np.zeros(0, dtype=base_period_dtype)
    node = MeasureSize(recording, noise_levels(read_random_chunks(recording, seed)))
    bins = run_node_pipeline(recording, [node], job_kwargs, job_name="find artifacts", check_for_peak_source=False)
    of_segments = [bins[bins["segment_index"] == index] for index in range(recording.get_num_segments())]
    sizes = [smooth_sizes(of_segment["size"], n_channels) for of_segment in of_segments]
    min_size = choose_min_size(np.concatenate(sizes), n_channels)
    return np.concatenate([join_bins(*pair, min_size) for pair in zip(of_segments, sizes, strict=True)])


def smooth_sizes(sizes, n_channels):
    """
    Mean size over SMOOTHED_BINS; on few channels, all of which see the spikes of a burst, the smallest: between them.

    Parameters
    ----------
    sizes : np.ndarray, float, shape (n_bins,)
    n_channels : int

    Returns
    -------
    smoothed : np.ndarray, float, shape (n_bins,)
    """
    smooth = uniform_filter1d if n_channels >= MANY_CHANNELS else minimum_filter1d
    return smooth(sizes, SMOOTHED_BINS)


def choose_min_size(sizes, n_channels):
    """
    Size, in noise SD, beyond which it is an artifact: where many neurons fire, it has to be larger.

    Parameters
    ----------
    sizes : np.ndarray, float, shape (n_bins,)
        Smoothed.
    n_channels : int
    """
    if n_channels < MANY_CHANNELS:
        return MIN_SIZE_ON_FEW
    return min(MIN_RATIO * np.quantile(sizes, 0.9), MAX_MIN_SIZE)


def silence_artifacts(recording, artifacts):
    """
    Set the samples of artifacts to 0; lazy.

    Parameters
    ----------
    recording : BaseRecording
        Band-pass filtered.
    artifacts : np.ndarray, structured, shape (n_artifacts,)
        See `find_artifacts`.

    Returns
    -------
    silenced : BaseRecording
        The recording itself if there are none.
    """
    if len(artifacts) == 0:
        return recording
    duration_s = np.sum(artifacts["end_sample_index"] - artifacts["start_sample_index"]) / recording.sampling_frequency
    share = duration_s / recording.get_total_duration()
    logger.warning(
        "artifacts are silenced: %d of %.2f s in all, %.1f %% of the time", len(artifacts), duration_s, 100 * share
    )
    return silence_periods(recording, artifacts, mode="zeros")


def join_bins(bins, sizes, min_size):
    """
    Put together the bins of the artifacts of one segment.

    Parameters
    ----------
    bins : np.ndarray, structured (segment_index, start_sample_index, end_sample_index, size), shape (n_bins,)
        In the order of time.
    sizes : np.ndarray, float, shape (n_bins,)
        Smoothed.
    min_size : float
        Of the largest bins of an artifact, smoothed.

    Returns
    -------
    artifacts : np.ndarray, structured, shape (n_artifacts,)
        See `find_artifacts`.
    """
    is_large = maximum_filter1d(bins["size"], 3) > EDGE_SIZE
    is_core = is_large & (sizes > min_size)
    is_artifact = binary_dilation(binary_propagation(is_core, mask=is_large), iterations=MARGIN_BINS)
    edges = np.flatnonzero(np.diff(is_artifact, prepend=False, append=False)).reshape(-1, 2)
    artifacts = np.zeros(len(edges), dtype=base_period_dtype)
    artifacts["segment_index"] = bins["segment_index"][edges[:, 0]]
    artifacts["start_sample_index"] = bins["start_sample_index"][edges[:, 0]]
    artifacts["end_sample_index"] = bins["end_sample_index"][edges[:, 1] - 1]
    return artifacts


class MeasureSize(PipelineNode):
    """
    Mean absolute deflection in bins of BIN_MS, in noise SD, median over the channels.

    Parameters
    ----------
    recording : BaseRecording
    levels : np.ndarray, float, shape (n_channels,)
        Noise SD of every channel.
    """

    dtype = np.dtype([*base_period_dtype, ("size", "float32")])
    _compute_has_extended_signature = True

    def __init__(self, recording, levels):
        PipelineNode.__init__(self, recording, return_output=True)
        self.levels = np.maximum(levels, 1e-12)
        self.bin_size = max(1, round(BIN_MS * 1e-3 * recording.sampling_frequency))
        self._kwargs.update(levels=levels)

    def get_dtype(self):
        return self.dtype

    def get_margin(self):
        return 0

    def compute(self, traces, start_frame, end_frame, segment_index, max_margin):
        starts = np.arange(0, len(traces), self.bin_size)
        stops = np.minimum(starts + self.bin_size, len(traces))
        sums = np.add.reduceat(np.abs(traces), starts, axis=0)
        bins = np.zeros(len(starts), dtype=self.dtype)
        bins["segment_index"] = segment_index
        bins["start_sample_index"] = start_frame + starts
        bins["end_sample_index"] = start_frame + stops
        bins["size"] = np.median(sums / (stops - starts)[:, None] / self.levels, axis=1)
        return bins
