"""
Stretches of time in which the noise is larger, as when the animal chews.

All that is judged in multiples of the noise SD, from the detection of spikes on, would take that noise for spikes, and
its clusters would hold those of neurons. So the traces are scaled down there to the noise that they have elsewhere, and
more than that in directions in which the noise is larger still: much of it is common to the channels.
"""

import logging
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from spikeinterface.preprocessing.basepreprocessor import BasePreprocessor, BasePreprocessorSegment

from spikeinterface_huidurep.whitening import noise_levels

logger = logging.getLogger(__name__)

STRETCH_S = 0.25
SAMPLES_OF_STRETCH = 500  # are read of it
MIN_RATIO = 1.5  # of its noise SD to that of most of them; many spikes raise it, too, but not as much
MIN_EXCESS = 1.25  # of the noise SD in a direction to that on the channels
MAX_DEFLECTION = 3.0  # noise SD; more is not noise


@dataclass
class Stretch:
    """What is done to the traces of a stretch: divided by `level`, and by more in some directions."""

    level: float = 1.0
    """Noise SD on the channels."""
    directions: tuple = ()
    """Unit vectors, each of n_channels numbers."""
    levels: tuple = ()
    """Noise SD in each direction."""

    def scale_directions(self, traces):
        """What has to be added to traces (n_samples, n_channels) / level, same shape."""
        directions = np.asarray(self.directions, dtype=traces.dtype)  # (n_directions, n_channels)
        gains = 1 / np.asarray(self.levels, dtype=traces.dtype) - 1 / self.level
        return (traces @ directions.T * gains.astype(traces.dtype)) @ directions


class EvenNoiseRecording(BasePreprocessor):
    """
    Scale traces down at times of larger noise.

    Parameters
    ----------
    recording : BaseRecording
        Floating-point traces.
    stretches : list of list of (level, directions, levels)
        For every segment the values of `Stretch` for stretches of the same length; between their middles the traces
        change smoothly from what is done in one to what is done in the next.
    """

    def __init__(self, recording, stretches):
        BasePreprocessor.__init__(self, recording)
        for parent_segment, of_segment in zip(recording.segments, stretches, strict=True):
            self.add_recording_segment(_EvenNoiseSegment(parent_segment, [Stretch(*values) for values in of_segment]))
        self._kwargs = dict(recording=recording, stretches=stretches)


class _EvenNoiseSegment(BasePreprocessorSegment):
    def __init__(self, parent_recording_segment, stretches):
        BasePreprocessorSegment.__init__(self, parent_recording_segment)
        self.stretches = stretches
        self.middles = (np.arange(len(stretches)) + 0.5) * self.get_num_samples() / len(stretches)

    def get_traces(self, start_frame, end_frame, channel_indices):
        parent = self.parent_recording_segment.get_traces(start_frame, end_frame, slice(None))
        frames = np.arange(start_frame, end_frame)
        traces = parent * self._interpolate(frames, [1 / stretch.level for stretch in self.stretches])
        for index, stretch in enumerate(self.stretches):
            if stretch.directions:
                weights = self._interpolate(frames, np.arange(len(self.stretches)) == index)
                rows = np.flatnonzero(weights)
                traces[rows] += weights[rows] * stretch.scale_directions(parent[rows])
        return traces[:, channel_indices]

    def _interpolate(self, frames, values):
        return np.interp(frames, self.middles, values)[:, None].astype("float32")


def even_noise(traces):
    """
    Scale traces down in the stretches where the noise is larger; they stay as they are without any.

    Parameters
    ----------
    traces : BaseRecording
        float32, in multiples of the noise SD.

    Returns
    -------
    traces : BaseRecording
        Lazy; the log says how long the noise is larger.
    """
    readers = [split_segment(traces, index) for index in range(traces.get_num_segments())]
    levels = [[measure_level(read()) for read in of_segment] for of_segment in readers]
    limit = MIN_RATIO * np.median(np.concatenate(levels))
    is_restless = np.concatenate(levels) > limit
    if not is_restless.any():
        return traces
    mean_level, duration_s = np.concatenate(levels)[is_restless].mean(), is_restless.sum() * STRETCH_S
    logger.info("noise is %.1f times larger for %.1f s: scaled down there", mean_level, duration_s)
    stretches = [
        [describe_stretch(read(), level) if level > limit else (1.0, (), ()) for read, level in zip(*both, strict=True)]
        for both in zip(readers, levels, strict=True)
    ]
    return EvenNoiseRecording(traces, stretches)


def split_segment(traces, segment_index):
    """Functions that read stretches of STRETCH_S or little more, all of a segment, one after the other."""
    n_samples = traces.get_num_samples(segment_index)
    n_stretches = max(1, int(n_samples / (STRETCH_S * traces.sampling_frequency)))
    edges = np.linspace(0, n_samples, n_stretches + 1).astype(int).tolist()
    return [partial(traces.get_traces, segment_index, *edge) for edge in pairwise(edges)]


def measure_level(stretch):
    """Noise SD of traces (n_samples, n_channels), median over the channels, from SAMPLES_OF_STRETCH samples."""
    step = max(1, len(stretch) // SAMPLES_OF_STRETCH)
    return float(np.median(noise_levels([stretch[::step]])))


def describe_stretch(stretch, level):
    """
    The directions in which noise is still larger than on the channels.

    Parameters
    ----------
    stretch : np.ndarray, float32, shape (n_samples, n_channels)
    level : float
        Noise SD on the channels.

    Returns
    -------
    level, directions, levels
        See `Stretch`.
    """
    limits = MAX_DEFLECTION * noise_levels([stretch])
    _, vectors = np.linalg.eigh(np.cov(np.clip(stretch, -limits, limits), rowvar=False).reshape(len(limits), -1))
    levels = noise_levels([stretch @ vectors])
    is_larger = levels > MIN_EXCESS * level
    return level, tuple(map(tuple, vectors.T[is_larger].tolist())), tuple(levels[is_larger].tolist())
