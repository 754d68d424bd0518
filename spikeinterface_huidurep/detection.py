"""Find the times and channels of spikes."""

import logging

import numpy as np
from spikeinterface.core import ms_to_samples
from spikeinterface.core.base import base_peak_dtype
from spikeinterface.sortingcomponents.peak_detection import detect_peaks
from spikeinterface.sortingcomponents.peak_selection import select_peaks
from spikeinterface.sortingcomponents.tools import get_prototype_and_waveforms_from_peaks

from spikeinterface_huidurep.restlessness import measure_restlessness
from spikeinterface_huidurep.whitening import list_segment_sizes

logger = logging.getLogger(__name__)

EXCLUDE_SWEEP_MS = 1.2  # closer spikes of one neighbourhood are found later, by template matching
POSITIVE_RADIUS = 2.0  # times detection_radius_um: the positive phases of a spike are wider than its trough
MIN_POSITIVE_RATIO = 1.5  # of a positive peak to the troughs around it, for the spike to be detected there
PROTOTYPE_MS_BEFORE, PROTOTYPE_MS_AFTER = 0.6, 1.2
PROTOTYPE_SLICES, PROTOTYPE_SLICE_S = 40, 1.0  # of the recording, to learn the prototype from
MAX_PROTOTYPE_PEAKS, MIN_PROTOTYPE_PEAKS = 5000, 20
NOISE_CHUNKS, NOISE_CHUNK_S = 20, 0.2  # to measure the noise behind the filter on
MAX_NOISE_CHUNKS = 400  # of a segment, when they have to be short
FULL_CHUNK_CHANNELS = 160  # with more, chunks are shorter: twenty filtered copies of all are held in memory


def detect_spikes(traces, params, job_kwargs, examples=None):
    """
    Detect spikes by matched filtering with the median waveform of the large ones.

    Where there are too few large spikes to learn from, the plain threshold on the traces decides. With
    `peak_sign="both"` it also decides on positive peaks; a spike that has a trough too is detected at the trough,
    unless the positive peak is much larger.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    params : SorterParams
    job_kwargs : dict
    examples : BaseRecording | None, default: None
        Traces with the large spikes; `traces` themselves if None.

    Returns
    -------
    peaks : np.ndarray, structured (sample_index, channel_index, amplitude, segment_index), shape (n_peaks,)
        Sorted by segment and sample. The amplitude has the sign of the peak.
    """
    if params.peak_sign != "both":
        peaks = sort_peaks(detect_peaks_of_sign(traces, params.peak_sign, params, job_kwargs, examples))
    else:
        troughs = detect_peaks_of_sign(traces, "neg", params, job_kwargs, examples)
        positive = detect_large_peaks(traces, "pos", params, job_kwargs)
        radius_um = POSITIVE_RADIUS * params.detection_radius_um
        peaks = join_signs(troughs, positive, traces.get_channel_locations(), radius_um, traces.sampling_frequency)
    return leave_out_restlessness(peaks, traces, params.detect_threshold)


def leave_out_restlessness(peaks, traces, threshold):
    """Peaks, structured (n_peaks,), without those below the threshold in multiples of the noise SD at their time."""
    ratios = measure_restlessness(traces, peaks["sample_index"], peaks["segment_index"])
    return peaks[(ratios == 1) | (np.abs(peaks["amplitude"]) >= threshold * ratios)]


def detect_large_peaks(traces, peak_sign, params, job_kwargs, **pipeline_kwargs):
    """Peaks of one sign beyond the threshold on the traces, the largest one in the neighbourhood."""
    method_kwargs = dict(
        peak_sign=peak_sign,
        detect_threshold=params.detect_threshold,
        exclude_sweep_ms=EXCLUDE_SWEEP_MS,
        radius_um=params.detection_radius_um,
        noise_levels=np.ones(traces.get_num_channels(), dtype="float32"),
    )
    return detect_peaks(
        traces,
        method="locally_exclusive",
        method_kwargs=method_kwargs,
        pipeline_kwargs=pipeline_kwargs,
        job_kwargs=job_kwargs,
    )


def detect_peaks_of_sign(traces, peak_sign, params, job_kwargs, examples=None):
    """Peaks of one sign by matched filtering, or beyond the threshold if no prototype can be learned."""
    examples = traces if examples is None else examples
    large = detect_large_peaks(examples, peak_sign, params, job_kwargs, slices=_random_slices(examples, params.seed))
    prototype = _learn_prototype(examples, large, peak_sign, params.seed, job_kwargs)
    if prototype is None:
        logger.info("only %d large peaks: no prototype, plain threshold", len(large))
        return detect_large_peaks(traces, peak_sign, params, job_kwargs)
    method_kwargs = dict(
        peak_sign=peak_sign,
        detect_threshold=params.detect_threshold,
        exclude_sweep_ms=EXCLUDE_SWEEP_MS,
        radius_um=params.detection_radius_um,
        prototype=prototype,
        ms_before=PROTOTYPE_MS_BEFORE,
        random_chunk_kwargs=choose_noise_chunks(traces, params.seed),
    )
    peaks = detect_peaks(traces, method="matched_filtering", method_kwargs=method_kwargs, job_kwargs=job_kwargs)
    peaks = peaks[[name for name, _ in base_peak_dtype]].astype(base_peak_dtype)  # without what matched filtering adds
    peaks["amplitude"] = np.abs(peaks["amplitude"]) * (-1 if peak_sign == "neg" else 1)
    return peaks


def join_signs(troughs, positive, locations_um, radius_um, sampling_frequency):
    """
    Put troughs and positive peaks together, one peak a spike.

    Parameters
    ----------
    troughs, positive : np.ndarray, structured, shape (n_troughs,), (n_positive,)
    locations_um : np.ndarray, float, shape (n_channels, n_dims)
    radius_um : float
        Peaks within this distance and EXCLUDE_SWEEP_MS are of the same spike. It is detected at its trough, unless the
        positive peak is more than MIN_POSITIVE_RATIO times as large.
    sampling_frequency : float

    Returns
    -------
    peaks : np.ndarray, structured, shape (n_peaks,)
        Sorted by segment and sample.
    """
    troughs = sort_peaks(troughs)
    sweep = round(EXCLUDE_SWEEP_MS * 1e-3 * sampling_frequency)
    peaks, partners = find_pairs_of_peaks(positive, troughs, sweep)
    places = locations_um[positive["channel_index"][peaks]], locations_um[troughs["channel_index"][partners]]
    is_near = np.linalg.norm(places[0] - places[1], axis=1) <= radius_um
    peaks, partners = peaks[is_near], partners[is_near]
    is_small = positive["amplitude"][peaks] <= MIN_POSITIVE_RATIO * np.abs(troughs["amplitude"][partners])
    is_kept = ~np.isin(np.arange(len(positive)), peaks[is_small])
    is_kept_trough = ~np.isin(np.arange(len(troughs)), partners[is_kept[peaks]])
    return sort_peaks(np.concatenate([troughs[is_kept_trough], positive[is_kept]]))


def find_pairs_of_peaks(peaks, others, max_delay):
    """
    All pairs of peaks and others that are close, and of the same segment.

    Parameters
    ----------
    peaks, others : np.ndarray, structured (sample_index, segment_index, ...), shape (n_peaks,), (n_others,)
        `others` sorted by segment and sample.
    max_delay : int
        Samples.

    Returns
    -------
    indices, partners : np.ndarray, int64, shape (n_pairs,)
        Of the peaks and of the others.
    """
    gap = max(peaks["sample_index"].max(initial=0), others["sample_index"].max(initial=0)) + max_delay + 1
    return find_pairs(*(of["sample_index"] + gap * of["segment_index"] for of in (peaks, others)), max_delay)


def find_pairs(times, others, max_delay):
    """
    All pairs of times and others that are close.

    Parameters
    ----------
    times, others : np.ndarray, int64, shape (n_times,), (n_others,)
        `others` ascending.
    max_delay : int

    Returns
    -------
    indices, partners : np.ndarray, int64, shape (n_pairs,)
        Of the times and of the others.
    """
    first = np.searchsorted(others, times - max_delay)
    counts = np.searchsorted(others, times + max_delay, side="right") - first
    indices = np.repeat(np.arange(len(times)), counts)
    return indices, first[indices] + np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)


def select_spikes(peaks, params):
    """Draw at most `n_peaks_per_channel` peaks of each channel, so that clustering does not grow with the duration."""
    if len(peaks) == 0:
        return peaks
    peaks = select_peaks(
        peaks, method="uniform", select_per_channel=True, n_peaks=params.n_peaks_per_channel, seed=params.seed
    )
    return sort_peaks(peaks)


def weigh_peaks(peaks, all_peaks):
    """
    How many peaks each of those drawn by `select_spikes` stands for: all of a channel for as many drawn there.

    Parameters
    ----------
    peaks, all_peaks : np.ndarray, structured (channel_index, ...), shape (n_peaks,), (n_all_peaks,)

    Returns
    -------
    weights : np.ndarray, float, shape (n_peaks,)
    """
    n_channels = 1 + all_peaks["channel_index"].max(initial=-1)
    drawn, detected = (np.bincount(of["channel_index"], minlength=n_channels) for of in (peaks, all_peaks))
    return (detected / np.maximum(drawn, 1))[peaks["channel_index"]]


def sort_peaks(peaks):
    """Peaks, structured (n_peaks,), by segment, sample and channel."""
    return peaks[np.lexsort((peaks["channel_index"], peaks["sample_index"], peaks["segment_index"]))]


def choose_noise_chunks(traces, seed):
    """
    Where the noise behind the filter is measured.

    Parameters
    ----------
    traces : BaseRecording
    seed : int

    Returns
    -------
    kwargs : dict
        For `spikeinterface.core.get_random_data_chunks`. Of many channels or segments it reads no more values than of
        FULL_CHUNK_CHANNELS in one segment; where a short segment makes all chunks short, it reads more of them.
    """
    sizes = list_segment_sizes(traces)
    share = min(1.0, FULL_CHUNK_CHANNELS / traces.get_num_channels())
    full_size = int(share * NOISE_CHUNK_S * traces.sampling_frequency)
    n_wanted = NOISE_CHUNKS * full_size  # samples
    chunk_size = min(full_size, n_wanted // len(sizes), *sizes)
    n_chunks = min(n_wanted // (chunk_size * len(sizes)), MAX_NOISE_CHUNKS)
    return dict(num_chunks_per_segment=n_chunks, chunk_duration=None, chunk_size=chunk_size, seed=seed)


def _random_slices(traces, seed):
    """Slices (segment_index, start, stop); segments shorter than a slice are left out, unless all are."""
    sizes = np.array(list_segment_sizes(traces))
    slice_size = min(int(PROTOTYPE_SLICE_S * traces.sampling_frequency), sizes.max())
    segment_indices = np.flatnonzero(sizes >= slice_size)
    n_slices = max(1, PROTOTYPE_SLICES // len(segment_indices))
    rng = np.random.default_rng(seed)
    slices = set()
    for segment_index in segment_indices:
        for start in rng.integers(0, sizes[segment_index] - slice_size, n_slices, endpoint=True):
            slices.add((int(segment_index), int(start), int(start + slice_size)))
    return sorted(slices)


def _learn_prototype(traces, peaks, peak_sign, seed, job_kwargs):
    """Median waveform of the largest channel, peak at -1 or 1, shape (n_samples,); None if there are too few spikes."""
    if len(peaks) < MIN_PROTOTYPE_PEAKS:
        return None
    prototype, _, _ = get_prototype_and_waveforms_from_peaks(
        traces,
        peaks,
        n_peaks=MAX_PROTOTYPE_PEAKS,
        ms_before=PROTOTYPE_MS_BEFORE,
        ms_after=PROTOTYPE_MS_AFTER,
        seed=seed,
        job_kwargs=job_kwargs,
    )
    at_peak = prototype[ms_to_samples(PROTOTYPE_MS_BEFORE, traces.sampling_frequency)]
    wrong_sign = at_peak >= 0 if peak_sign == "neg" else at_peak <= 0
    return None if wrong_sign or not np.isfinite(prototype).all() else prototype
