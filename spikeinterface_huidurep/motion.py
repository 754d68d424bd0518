"""The drift of the probe: estimated by SpikeInterface, and corrected where that makes spikes more alike."""

import itertools
import logging

import numpy as np
from spikeinterface.core import append_recordings, concatenate_recordings, get_noise_levels
from spikeinterface.preprocessing import compute_motion, load_motion_info
from spikeinterface.preprocessing.motion import motion_options_preset, save_motion_info
from spikeinterface.sortingcomponents.motion import InterpolateMotionRecording
from spikeinterface.sortingcomponents.motion import estimate_motion as estimate_from_peaks

from spikeinterface_huidurep.likeness import find_share_made_alike, measure_ranges
from spikeinterface_huidurep.whitening import list_segment_sizes

logger = logging.getLogger(__name__)

MIN_CHANNELS_FOR_MOTION = 16  # on fewer, drift cannot be told from the neurons' own changes
MIN_DEPTH_FOR_MOTION_UM = 100.0  # between the first and the last channel along the probe
MIN_DURATION_FOR_MOTION_S = 30.0
MOTION_SMOOTHING = dict(histogram_depth_smooth_um=3.0, histogram_time_smooth_s=2.0)  # 1 of both is for many spikes
SMALL_WINDOW_UM, LARGE_WINDOW_UM = 150.0, 400.0  # of a non-rigid estimate
MIN_PEAKS_PER_S = 30.0  # in a window; from fewer the drift of each is less certain than that of all
MAX_WINDOWS = 9  # of a long probe; more take minutes
MAX_DISPLACEMENT_UM = 100.0  # between any two times
DISPLACEMENT = "displacement_um"  # annotation of traces whose motion was corrected
MIN_SHARE_MADE_ALIKE = 0.5  # of the spikes, by the correction; where there is drift it is 0.8 or more
MIN_DRIFT_UM = 2.0  # less is not worth an interpolation; where nothing moves 0.2 um are found


def join_segments(recording):
    """All segments as one, with times from 0 on whatever those of the recording are."""
    return concatenate_recordings([recording])


def move_back(traces, motion):
    """
    Interpolate the traces to where the tissue was.

    Parameters
    ----------
    traces : BaseRecording
    motion : spikeinterface.core.motion.Motion
        Of the joined segments.

    Returns
    -------
    moved : BaseRecording
        Lazy, in the segments of `traces`. Its annotation DISPLACEMENT says where the tissue was: in um, of about every
        second of the joined segments, mean over all depths.
    """
    joined = interpolate(join_segments(traces), motion)
    edges = np.cumsum([0, *list_segment_sizes(traces)])
    moved = append_recordings([joined.frame_slice(start, stop) for start, stop in itertools.pairwise(edges)])
    n_stretches = max(1, round(joined.get_total_duration()))
    times_s = (np.arange(n_stretches) + 0.5) * joined.get_total_duration() / n_stretches
    displacement_um = np.interp(times_s, motion.temporal_bins_s[0], motion.displacement[0].mean(axis=1))
    moved.annotate(**{DISPLACEMENT: displacement_um.tolist()})
    return moved


def interpolate(recording, motion):
    """A recording of one segment, interpolated to where the tissue was, on the same channels; lazy."""
    return InterpolateMotionRecording(recording, motion, border_mode="force_extrapolate")


def decide_motion(recording, params, folder, job_kwargs):
    """
    The motion to correct, or None.

    With `apply_motion_correction="auto"` it is estimated where the probe allows it, and corrected where the traces
    drift by more than MIN_DRIFT_UM and the correction makes spikes more alike. The log says what was found and decided.

    Parameters are those of `estimate_motion`.

    Returns
    -------
    motion : spikeinterface.core.motion.Motion | None
    """
    if params.apply_motion_correction != "auto":
        return estimate_motion(recording, params, folder, job_kwargs) if params.apply_motion_correction else None
    if not can_show_motion(recording):
        logger.info("drift is not estimated: too few channels, or too short a probe or recording")
        return None
    try:
        motion = estimate_motion(recording, params, folder, job_kwargs)
    except ValueError as error:
        logger.warning("drift is not corrected: %s", error)
        return None
    drift_um = measure_drift(motion)
    if drift_um < MIN_DRIFT_UM:
        logger.info("drift of %.1f um: not corrected", drift_um)
        return None
    peaks = load_motion_info(folder)["peaks"]
    share = find_share_made_alike(recording, interpolate(recording, motion), motion, peaks)
    verdict = "corrected" if share >= MIN_SHARE_MADE_ALIKE else "not corrected, as other neurons seem to fire"
    logger.info("drift of %.1f um, makes %.0f %% of the spikes more alike: %s", drift_um, 100 * share, verdict)
    return motion if share >= MIN_SHARE_MADE_ALIKE else None


def can_show_motion(recording):
    """Whether the probe is long enough, and the recording, to estimate drift."""
    return (
        recording.get_num_channels() >= MIN_CHANNELS_FOR_MOTION
        and measure_depth(recording) >= MIN_DEPTH_FOR_MOTION_UM
        and recording.get_total_duration() >= MIN_DURATION_FOR_MOTION_S
    )


def measure_drift(motion):
    """Range of the displacement in um, from its 5th to its 95th percentile, at the depth where it is largest."""
    return float(measure_ranges(motion).max())


def choose_motion_kwargs(recording, preset, window_um=LARGE_WINDOW_UM):
    """
    What the estimate of motion by DREDge does otherwise than the preset, dict; empty for other methods.

    Histograms of few spikes are noise where they are not smoothed. A probe shorter than the step between the windows of
    a non-rigid estimate is better taken as one window.

    Parameters
    ----------
    recording : BaseRecording
    preset : str
    window_um : float, default: LARGE_WINDOW_UM
        Size of the windows of a non-rigid estimate, and the step between them.
    """
    kwargs = motion_options_preset[preset]["estimate_motion_kwargs"]
    if kwargs.get("method") != "dredge_ap":
        return {}
    if kwargs["rigid"] or measure_depth(recording) < window_um:
        return dict(MOTION_SMOOTHING, rigid=True)
    windows = dict(win_step_um=window_um, win_scale_um=window_um, max_disp_um=MAX_DISPLACEMENT_UM)
    return dict(MOTION_SMOOTHING, rigid=False, **windows)


def choose_window(recording, n_peaks):
    """
    Size of the windows of a non-rigid estimate of drift in um: so small that one has MIN_PEAKS_PER_S.

    Parameters
    ----------
    recording : BaseRecording
    n_peaks : int
        Peaks found in the recording.
    """
    depth_um, duration_s = measure_depth(recording), recording.get_total_duration()
    wanted_um = depth_um * max(MIN_PEAKS_PER_S * duration_s / max(n_peaks, 1), 1 / MAX_WINDOWS)
    return float(np.clip(wanted_um, SMALL_WINDOW_UM, LARGE_WINDOW_UM))


def measure_depth(recording):
    """From the first to the last channel along the probe in um."""
    return float(np.ptp(recording.get_channel_locations()[:, 1]))


def estimate_motion(recording, params, folder, job_kwargs):
    """
    Estimate the drift of the probe.

    DREDge does so in windows as large as the preset has them, and again in smaller ones where there are peaks enough.

    Parameters
    ----------
    recording : BaseRecording
        Band-pass filtered, one segment.
    params : SorterParams
    folder : Path
        Gets the estimate, for `spikeinterface.preprocessing.load_motion_info`.
    job_kwargs : dict

    Returns
    -------
    motion : spikeinterface.core.motion.Motion

    Raises
    ------
    ValueError
        If SpikeInterface cannot estimate it, for example with too few spikes for the preset.
    """
    # kept in a property of the recording, so that the estimate does not measure them with another seed each time
    get_noise_levels(
        recording,
        return_in_uV=False,
        random_slices_kwargs=dict(seed=params.seed),
        progress_bar=job_kwargs.get("progress_bar", False),
    )
    preset = params.motion_correction_preset
    kwargs = choose_motion_kwargs(recording, preset)
    try:
        _, info = compute_motion(
            recording, preset=preset, estimate_motion_kwargs=kwargs, output_motion_info=True, **job_kwargs
        )
        finer = choose_motion_kwargs(recording, preset, choose_window(recording, len(info["peaks"])))
        if finer != kwargs:
            kwargs = info["parameters"]["estimate_motion_kwargs"] | finer
            info["parameters"]["estimate_motion_kwargs"] = kwargs
            progress_bar = job_kwargs.get("progress_bar", False)
            info["motion"] = estimate_from_peaks(
                recording, info["peaks"], info["peak_locations"], progress_bar=progress_bar, **kwargs
            )
    except (RuntimeError, ValueError, IndexError, ImportError) as error:
        raise ValueError(
            f"the drift could not be estimated with motion_correction_preset={preset!r} ({error}); try another preset, "
            "or apply_motion_correction=False"
        ) from error
    save_motion_info(info, folder)
    return info["motion"]
