"""
Glitches: deflections of a single channel far larger than spikes, as of a loose contact; silenced as lazy preprocessing.

Matching would explain each of them by many spikes of the neurons nearby, and their units would be taken for noise.
"""

import numpy as np
from scipy.ndimage import maximum_filter1d
from spikeinterface.core import get_channel_distances
from spikeinterface.core.recording_tools import get_chunk_with_margin
from spikeinterface.preprocessing.basepreprocessor import BasePreprocessor, BasePreprocessorSegment

from spikeinterface_huidurep.whitening import noise_levels, read_random_chunks

MIN_GLITCH = 30.0  # noise SD
MAX_SHARE = 0.1  # of it on channels near it; of 1087 real units of 200 uV or more the second channel has at least 0.16
NEAR_UM = 30.0  # where no channel is as near, nothing is a glitch
GLITCH_MS = 1.0  # within which the deflections of channels are compared
MARGIN_MS = 6.0  # the band-pass filter rings so long after a glitch of hundreds of noise SD


class SilenceGlitchesRecording(BasePreprocessor):
    """
    Set a channel to 0 for MARGIN_MS around its glitches: what is beyond MIN_GLITCH, and seen by no channel near it.

    The traces do not depend on how they are asked for.

    Parameters
    ----------
    recording : BaseRecording
        Band-pass filtered.
    levels : sequence of float, shape (n_channels,)
        Noise SD of every channel.
    """

    def __init__(self, recording, levels):
        BasePreprocessor.__init__(self, recording)
        distances_um = get_channel_distances(recording)
        is_near = (distances_um <= NEAR_UM) & ~np.eye(len(distances_um), dtype=bool)
        scale = 1 / np.maximum(np.asarray(levels, dtype="float32"), 1e-12)
        half, margin = (round(ms * 1e-3 * recording.sampling_frequency) for ms in (GLITCH_MS / 2, MARGIN_MS))
        for parent_segment in recording.segments:
            self.add_recording_segment(_SilenceGlitchesSegment(parent_segment, is_near, scale, half, margin))
        self._kwargs = dict(recording=recording, levels=np.asarray(levels).tolist())


class _SilenceGlitchesSegment(BasePreprocessorSegment):
    def __init__(self, parent_recording_segment, is_near, scale, half, margin):
        BasePreprocessorSegment.__init__(self, parent_recording_segment)
        self.is_near, self.scale, self.half, self.margin = is_near, scale, half, margin

    def get_traces(self, start_frame, end_frame, channel_indices):
        traces, before, after = get_chunk_with_margin(
            self.parent_recording_segment, start_frame, end_frame, slice(None), self.half + self.margin
        )
        sizes = np.abs(traces) * self.scale
        traces = silence_glitches_of_chunk(traces, sizes, self.is_near, self.half, self.margin)
        return traces[before : len(traces) - after, slice(None) if channel_indices is None else channel_indices]


def silence_glitches(recording, seed):
    """
    Set channels to 0 around their glitches; lazy.

    Parameters
    ----------
    recording : BaseRecording
        Band-pass filtered.
    seed : int
        Of the samples that the noise is measured on.

    Returns
    -------
    silenced : SilenceGlitchesRecording
    """
    return SilenceGlitchesRecording(recording, noise_levels(read_random_chunks(recording, seed)))


def silence_glitches_of_chunk(traces, sizes, is_near, half, margin):
    """
    Set channels to 0 around their glitches.

    Parameters
    ----------
    traces : np.ndarray, shape (n_samples, n_channels)
        Left as they are.
    sizes : np.ndarray, float, shape (n_samples, n_channels)
        Their absolute values in noise SD.
    is_near : np.ndarray, bool, shape (n_channels, n_channels)
        Which other channels would see a spike, too.
    half, margin : int
        Samples to each side in which the deflections of channels are compared, and of what is set to 0.

    Returns
    -------
    silenced : np.ndarray, shape (n_samples, n_channels)
        `traces` themselves if there are none.
    """
    suspects = np.flatnonzero((sizes.max(axis=0, initial=0) > MIN_GLITCH) & is_near.any(axis=1))
    if len(suspects) == 0:
        return traces
    silenced = traces.copy()
    for channel in suspects:
        is_glitch = sizes[:, channel] > MIN_GLITCH
        samples = np.flatnonzero(is_glitch)
        around = np.clip(samples[:, None] + np.arange(-half, half + 1), 0, len(sizes) - 1)
        largest_near = sizes[around[:, :, None], np.flatnonzero(is_near[channel])].max(axis=(1, 2))
        is_glitch[samples] = largest_near < MAX_SHARE * sizes[around, channel].max(axis=1)
        silenced[maximum_filter1d(is_glitch, 2 * margin + 1), channel] = 0
    return silenced
