"""From the raw recording to traces in which noise is white, with unit SD on every channel."""

import logging
from dataclasses import replace

import numpy as np
from spikeinterface.core import get_noise_levels, ms_to_samples
from spikeinterface.preprocessing import bandpass_filter, clip, common_reference, scale
from spikeinterface.sortingcomponents.tools import cache_preprocessing

from spikeinterface_huidurep.artifacts import MIN_HZ, find_artifacts, silence_artifacts, spread_channels
from spikeinterface_huidurep.glitches import silence_glitches
from spikeinterface_huidurep.motion import decide_motion, join_segments, move_back
from spikeinterface_huidurep.restlessness import find_restless_stretches
from spikeinterface_huidurep.whitening import (
    estimate_temporal_filter,
    noise_levels,
    read_random_chunks,
    spatial_whiten,
    temporal_whiten,
)

logger = logging.getLogger(__name__)

MIN_CHANNELS_FOR_REFERENCE = 32  # the mean of fewer channels holds too much of the spikes
MAX_LEVEL_IN_REFERENCE = 2.0  # noise of the channels that are averaged, in multiples of the median channel's
REFERENCED = "referenced"  # annotation of traces from which their mean is taken away: it takes spikes to all channels
WINDOW_MS = 20.0  # in which noise is measured with and without a reference
MIN_RATIO = 1.4  # of the two; 1.25 by noise that neighbours share and by spikes, and whitening takes away as much
MIN_SHARE_OF_WINDOWS = 0.05  # in which it is; the noise of muscles comes and goes, but artifacts are no such noise
DEAD_LEVEL = 1e-3  # a channel whose noise is below this share of the median channel is not connected
BLANK_MS = 1.0  # so long no channel changes where traces are blanked, or padded
NOTED_BLANK_SHARE, MAX_BLANK_SHARE = 0.1, 0.3  # of the time: the noise is measured too small by 13 and by 46 %
MIN_DURATION_S = 0.1
MIN_SEGMENT_MS = 5.0  # the margin of the band-pass filter
STEPS_PER_SD = 64  # of the noise: traces are kept as 16-bit integers, which take half the memory of floats
MAX_SIZE = 32767 / STEPS_PER_SD  # noise SD


def remove_dead_channels(recording):
    """
    Leave out channels without signal.

    Parameters
    ----------
    recording : BaseRecording

    Returns
    -------
    recording : BaseRecording
        Without the flat channels; a warning in the log lists them.

    Raises
    ------
    ValueError
        If samples are not finite, the recording or a segment is too short, all channels are flat, or all are for too
        much of the time.
    """
    check_duration(recording)
    check_finite(recording)
    changes = [np.diff(chunk, axis=0) for chunk in read_random_chunks(recording, seed=0)]
    if any(chunk.any() for chunk in changes):
        check_blanks(changes, recording.sampling_frequency)
    levels = noise_levels(changes)
    dead = levels <= DEAD_LEVEL * np.median(levels)
    if dead.all():
        raise ValueError("all channels are flat (their samples do not change): nothing can be sorted")
    if dead.any():
        logger.warning("channels without signal are left out: %s", recording.channel_ids[dead].tolist())
        recording = recording.select_channels(recording.channel_ids[~dead])
    return recording


def check_blanks(changes, sampling_frequency):
    """
    Check that the traces are not blanked most of the time; the noise cannot be measured then.

    Parameters
    ----------
    changes : list of np.ndarray, each of shape (n_samples, n_channels)
        Differences of successive samples.
    sampling_frequency : float

    Raises
    ------
    ValueError
        If no channel changes for more than MAX_BLANK_SHARE of the time; there is a warning from NOTED_BLANK_SHARE on.
    """
    size = int(BLANK_MS * 1e-3 * sampling_frequency)
    stretches = np.concatenate([chunk[: len(chunk) // size * size].any(axis=1) for chunk in changes]).reshape(-1, size)
    share = 1 - stretches.any(axis=1).mean()
    if share < NOTED_BLANK_SHARE:
        return
    text = (
        f"for about {share:.0%} of the recording no channel changes, as if it were blanked or padded, and the noise "
        "looks smaller than it is; sort the rest alone: spikeinterface.concatenate_recordings("
        "[recording.frame_slice(start, stop), ...])"
    )
    if share > MAX_BLANK_SHARE:
        raise ValueError(text)
    logger.warning(text)


def check_duration(recording):
    """
    Check that there is enough to measure the noise, and to filter each segment.

    Raises
    ------
    ValueError
        Says how long the recording or the segment is, and how long it has to be.
    """
    if recording.get_total_duration() < MIN_DURATION_S:
        raise ValueError(
            f"the recording lasts {recording.get_total_duration():.3f} s; at least {MIN_DURATION_S} s are needed to "
            "measure the noise"
        )
    for segment_index in range(recording.get_num_segments()):
        duration_ms = 1000 * recording.get_num_samples(segment_index) / recording.sampling_frequency
        if duration_ms < MIN_SEGMENT_MS:
            raise ValueError(
                f"segment {segment_index} lasts {duration_ms:.2f} ms; at least {MIN_SEGMENT_MS} ms are needed to "
                "filter it; leave it out with recording.select_segments([...])"
            )


def check_finite(recording):
    """
    Check that a floating-point recording holds no NaN and no infinity, reading all of it once.

    Raises
    ------
    ValueError
        Names the channel, the segment and the first sample.
    """
    if recording.get_dtype().kind != "f":
        return
    chunk_size = int(recording.sampling_frequency)
    for segment_index in range(recording.get_num_segments()):
        for start in range(0, recording.get_num_samples(segment_index), chunk_size):
            stop = min(start + chunk_size, recording.get_num_samples(segment_index))
            traces = recording.get_traces(segment_index, start, stop)
            if np.isfinite(traces).all():
                continue
            sample, channel = np.argwhere(~np.isfinite(traces))[0]
            raise ValueError(
                f"channel {recording.channel_ids[channel]} is {traces[sample, channel]} at sample {start + sample} of "
                f"segment {segment_index}; replace such samples (for example by 0) or leave the channel out with "
                "recording.remove_channels([...])"
            )


def preprocess(recording, params, folder, job_kwargs):
    """
    Filter, reference, whiten, and find where the noise is larger for a while.

    Parameters
    ----------
    recording : BaseRecording
        Raw traces, all channels alive.
    params : SorterParams
    folder : Path
        For the estimated motion, and for the traces if they do not fit in memory.
    job_kwargs : dict

    Returns
    -------
    traces : BaseRecording
        float32, in multiples of the noise SD, rounded to 1 / STEPS_PER_SD and no larger than MAX_SIZE.
    cache_info : dict
        For `spikeinterface.sortingcomponents.tools.clean_cache_preprocessing`.
    """
    if params.apply_preprocessing:
        traces = whiten(recording, params, folder, job_kwargs)
    else:
        levels = get_noise_levels(recording, return_in_uV=False, random_slices_kwargs=dict(seed=params.seed))
        traces = scale(recording, gain=1 / levels, dtype="float32")
    steps, cache_info = cache_preprocessing(
        scale(clip(traces, -MAX_SIZE, MAX_SIZE), gain=STEPS_PER_SD, dtype="int16"),
        mode=params.cache_preprocessing_mode,
        folder=folder / "cache_preprocessing",
        job_kwargs=job_kwargs,
    )
    traces = scale_back(steps)
    find_restless_stretches(traces)
    return traces, cache_info


def scale_back(steps):
    """Traces in noise SD from integer ones; lazy. Factors in float32 take a third of the time of plain numbers."""
    ones = np.ones(steps.get_num_channels(), dtype="float32")
    return scale(steps, gain=ones / STEPS_PER_SD, offset=0 * ones, dtype="float32")


def filter_band(recording, params):
    """
    Band-pass filter; lazy.

    Parameters
    ----------
    recording : BaseRecording
        Raw traces, all channels alive.
    params : SorterParams
        Without `apply_preprocessing` the traces are filtered already.

    Returns
    -------
    filtered : BaseRecording
    """
    if not params.apply_preprocessing:
        return recording
    return bandpass_filter(
        recording,
        freq_min=params.freq_min,
        freq_max=params.limit_freq_max(recording.sampling_frequency),
        ftype="bessel",
        filter_order=2,
        dtype="float32",
    )


def choose_reference(filtered, seed):
    """
    Channels whose mean is to be taken away from all, if channels share noise.

    Not their median: the spikes of a large neuron reach so many channels of a short probe that they move it, and where
    two overlap, it moves by something else than the sum, which no templates explain. They move the mean, too, and so
    reach all channels: without common noise it is left.

    Parameters
    ----------
    filtered : BaseRecording
        Band-pass filtered, without glitches.
    seed : int
        Of the samples that the noise is measured on.

    Returns
    -------
    channel_ids : list
        Empty where nothing is to be taken away.
    """
    if filtered.get_num_channels() < MIN_CHANNELS_FOR_REFERENCE:
        return []
    chunks = read_random_chunks(filtered, seed)
    levels = noise_levels(chunks)
    is_quiet = levels <= MAX_LEVEL_IN_REFERENCE * np.median(levels)
    if not share_noise(chunks, is_quiet, filtered.sampling_frequency):
        return []
    logger.info("channels share noise: the average of %d is taken away from all", np.sum(is_quiet))
    return filtered.channel_ids[is_quiet].tolist()


def take_mean_away(recording, channel_ids):
    """The mean of some channels taken away from all, as the annotation REFERENCED says; lazy."""
    referenced = common_reference(recording, operator="average", ref_channel_ids=channel_ids)
    referenced.annotate(**{REFERENCED: True})
    return referenced


def share_noise(chunks, is_quiet, sampling_frequency):
    """
    Whether noise is much smaller without the mean of quiet channels, on most channels and now and then at least.

    Parameters
    ----------
    chunks : list of np.ndarray, float32, each of shape (n_samples, n_channels)
    is_quiet : np.ndarray, bool, shape (n_channels,)
    sampling_frequency : float

    Returns
    -------
    shares : bool
    """
    without_mean = (chunk - chunk[:, is_quiet].mean(axis=1, keepdims=True) for chunk in chunks)
    before, after = (measure_windows(values, sampling_frequency) for values in (chunks, without_mean))
    ratios = np.median(before / np.maximum(after, 1e-12), axis=1)
    return bool(np.quantile(ratios, 1 - MIN_SHARE_OF_WINDOWS) >= MIN_RATIO)


def measure_windows(chunks, sampling_frequency):
    """Median absolute values in windows of WINDOW_MS of chunks (n_samples, n_channels): (n_windows, n_channels)."""
    levels = []
    for chunk in chunks:
        size = min(ms_to_samples(WINDOW_MS, sampling_frequency), len(chunk))
        windows = np.abs(chunk[: len(chunk) // size * size]).reshape(-1, size, chunk.shape[1])
        levels.append(np.median(windows, axis=1))
    return np.concatenate(levels)


def filter_without_artifacts(recording, params, job_kwargs):
    """Filtered, with artifacts, on all channels, and glitches, on one, set to 0, and without common noise; lazy."""
    filtered = silence_glitches(filter_band(recording, params), params.seed)
    reference = choose_reference(filtered, params.seed)
    fast_params = replace(params, freq_min=max(params.freq_min, MIN_HZ))
    some, fast = (
        filter_band(recording, band_params).select_channels(spread_channels(recording))
        for band_params in (params, fast_params)
    )
    if reference:
        filtered = take_mean_away(filtered, reference)
        some, fast = common_reference(some), common_reference(fast)  # medians: glitches are left in them
    return silence_artifacts(filtered, find_artifacts(some, fast, params.seed, job_kwargs))


def whiten(recording, params, folder, job_kwargs):
    """Band-pass filter, reference, no artifacts or glitches, whitening in time and space, no motion; all lazy."""
    if recording.is_filtered():
        logger.warning("the recording is marked as filtered; it is band-pass filtered again")
    filtered = traces = filter_without_artifacts(recording, params, job_kwargs)
    if params.temporal_whitening:
        taps = estimate_temporal_filter(traces, params.whitening_radius_um, seed=params.seed)
        traces = temporal_whiten(traces, taps=taps)
    traces = spatial_whiten(traces, params.whitening_radius_um, seed=params.seed)
    motion = decide_motion(join_segments(filtered), params, folder / "motion", job_kwargs)
    return traces if motion is None else move_back(traces, motion)
