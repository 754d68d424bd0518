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

MIN_HZ = 500.0  # ripples of the hippocampus, up to 250 Hz, are as large as artifacts, but hold spikes
BIN_MS = 1.0
SMOOTHED_BINS = 5  # longer than a spike
MIN_RATIO = 2.5  # of the mean size, on the median channel, to its 90th percentile; 900 spikes a second reach 2.3
MAX_MIN_SIZE = 6.0  # noise SD; more is always an artifact
MIN_MEAN_ON_FEW, MIN_SIZE_ON_FEW = 15.0, 3.0  # noise SD; spikes reach 4.2 and, at the smallest in 5 ms, 1.8 on tetrodes
EDGE_SIZE = 1.25  # down to this size it is the same artifact; noise has 0.8
MARGIN_BINS = 2  # more: the filter smears what is far larger than spikes
MIN_CHANNELS, MANY_CHANNELS = 4, 16  # on fewer than MIN_CHANNELS a unit may be as large on the median channel


def spread_channels(recording):
    """Ids of at most MANY_CHANNELS channels from all over the probe: artifacts are the same on the others."""
    n_channels = recording.get_num_channels()
    return recording.channel_ids[np.linspace(0, n_channels - 1, min(n_channels, MANY_CHANNELS)).astype(int)]


def find_artifacts(recording, fast, seed, job_kwargs):
    """
    Find when artifacts begin and end.

    Parameters
    ----------
    recording : BaseRecording
        Band-pass filtered.
    fast : BaseRecording
        The same from MIN_HZ on: artifacts show here, and end where the other does.
    seed : int
        Of the samples that the noise is measured on.
    job_kwargs : dict

    Returns
    -------
    artifacts : np.ndarray, structured (segment_index, start_sample_index, end_sample_index), shape (n_artifacts,)
        Empty where there are fewer than MIN_CHANNELS channels.
    """
    none = np.zeros(0, dtype=base_period_dtype)
    n_channels = recording.get_num_channels()
    if n_channels < MIN_CHANNELS:
        return none
    is_core = find_cores(measure_bins(fast, seed, job_kwargs)["size"], n_channels)
    if not is_core.any():
        return none
    bins = measure_bins(recording, seed, job_kwargs)
    of_segments = [bins["segment_index"] == index for index in range(recording.get_num_segments())]
    return np.concatenate([join_bins(bins[of_segment], is_core[of_segment]) for of_segment in of_segments])


def measure_bins(recording, seed, job_kwargs):
    """Size of the deflections in bins of BIN_MS, in the order of time: see `MeasureSize`."""
    node = MeasureSize(recording, noise_levels(read_random_chunks(recording, seed)))
    return run_node_pipeline(recording, [node], job_kwargs, job_name="find artifacts", check_for_peak_source=False)


def find_cores(sizes, n_channels):
    """
    Where deflections are larger for SMOOTHED_BINS than those of spikes.

    On many channels, where many neurons fire, they have to be larger. On few, all may see a burst of spikes: so they
    have to be large between its spikes, too, or much larger.

    Parameters
    ----------
    sizes : np.ndarray, float, shape (n_bins,)
    n_channels : int

    Returns
    -------
    is_core : np.ndarray, bool, shape (n_bins,)
    """
    means = uniform_filter1d(sizes, SMOOTHED_BINS)
    if n_channels >= MANY_CHANNELS:
        return means > min(MIN_RATIO * np.quantile(means, 0.9), MAX_MIN_SIZE)
    return (means > MIN_MEAN_ON_FEW) | (minimum_filter1d(sizes, SMOOTHED_BINS) > MIN_SIZE_ON_FEW)


def join_bins(bins, is_core):
    """
    Put together the bins of the artifacts of one segment.

    Parameters
    ----------
    bins : np.ndarray, structured (segment_index, start_sample_index, end_sample_index, size), shape (n_bins,)
        In the order of time.
    is_core : np.ndarray, bool, shape (n_bins,)
        See `find_cores`.

    Returns
    -------
    artifacts : np.ndarray, structured, shape (n_artifacts,)
        See `find_artifacts`.
    """
    is_large = maximum_filter1d(bins["size"], 3) > EDGE_SIZE
    is_artifact = binary_dilation(binary_propagation(is_core & is_large, mask=is_large), iterations=MARGIN_BINS)
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

    def get_dtype(self):
        return self.dtype

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
