"""Find the times and channels of spikes."""

import logging

import numpy as np
from spikeinterface.core import ms_to_samples
from spikeinterface.sortingcomponents.peak_detection import detect_peaks
from spikeinterface.sortingcomponents.peak_selection import select_peaks
from spikeinterface.sortingcomponents.tools import get_prototype_and_waveforms_from_peaks

logger = logging.getLogger(__name__)

EXCLUDE_SWEEP_MS = 0.8  # closer spikes of one neighbourhood are found later, by template matching
PROTOTYPE_MS_BEFORE, PROTOTYPE_MS_AFTER = 0.6, 1.2
PROTOTYPE_SLICES, PROTOTYPE_SLICE_S = 40, 1.0  # of the recording, to learn the prototype from
MAX_PROTOTYPE_PEAKS, MIN_PROTOTYPE_PEAKS = 5000, 20


def detect_spikes(traces, params, job_kwargs):
    """
    Detect spikes by matched filtering with the median waveform of the large ones.

    Where there are too few large spikes to learn from, the plain threshold on the traces decides.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    params : SorterParams
    job_kwargs : dict

    Returns
    -------
    peaks : np.ndarray, structured (sample_index, channel_index, amplitude, segment_index), shape (n_peaks,)
        Sorted by segment and sample.
    """
    criteria = dict(
        peak_sign=params.peak_sign,
        detect_threshold=params.detect_threshold,
        exclude_sweep_ms=EXCLUDE_SWEEP_MS,
        radius_um=params.detection_radius_um,
    )
    large = dict(criteria, noise_levels=np.ones(traces.get_num_channels(), dtype="float32"))
    examples = detect_peaks(
        traces,
        method="locally_exclusive",
        method_kwargs=large,
        pipeline_kwargs=dict(slices=_random_slices(traces, params.seed)),
        job_kwargs=job_kwargs,
    )
    prototype = _learn_prototype(traces, examples, params, job_kwargs)
    if prototype is None:
        logger.info("only %d large peaks: no prototype, plain threshold", len(examples))
        peaks = detect_peaks(traces, method="locally_exclusive", method_kwargs=large, job_kwargs=job_kwargs)
    else:
        filtering = dict(
            criteria,
            prototype=prototype,
            ms_before=PROTOTYPE_MS_BEFORE,
            random_chunk_kwargs=dict(num_chunks_per_segment=20, seed=params.seed),
        )
        peaks = detect_peaks(traces, method="matched_filtering", method_kwargs=filtering, job_kwargs=job_kwargs)
    return _sort_peaks(peaks)


def select_spikes(peaks, params):
    """Draw at most `n_peaks_per_channel` peaks of each channel, so that clustering does not grow with the duration."""
    if len(peaks) == 0:
        return peaks
    peaks = select_peaks(
        peaks, method="uniform", select_per_channel=True, n_peaks=params.n_peaks_per_channel, seed=params.seed
    )
    return _sort_peaks(peaks)


def _sort_peaks(peaks):
    return peaks[np.lexsort((peaks["channel_index"], peaks["sample_index"], peaks["segment_index"]))]


def _random_slices(traces, seed):
    """Slices (segment_index, start, stop); segments shorter than a slice are left out, unless all are."""
    sizes = np.array([traces.get_num_samples(index) for index in range(traces.get_num_segments())])
    slice_size = min(int(PROTOTYPE_SLICE_S * traces.sampling_frequency), sizes.max())
    segment_indices = np.flatnonzero(sizes >= slice_size)
    n_slices = max(1, PROTOTYPE_SLICES // len(segment_indices))
    rng = np.random.default_rng(seed)
    slices = set()
    for segment_index in segment_indices:
        for start in rng.integers(0, sizes[segment_index] - slice_size, n_slices, endpoint=True):
            slices.add((int(segment_index), int(start), int(start + slice_size)))
    return sorted(slices)


def _learn_prototype(traces, peaks, params, job_kwargs):
    """Median waveform of the largest channel, peak at -1 or 1, shape (n_samples,); None if there are too few spikes."""
    if len(peaks) < MIN_PROTOTYPE_PEAKS:
        return None
    prototype, _, _ = get_prototype_and_waveforms_from_peaks(
        traces,
        peaks,
        n_peaks=MAX_PROTOTYPE_PEAKS,
        ms_before=PROTOTYPE_MS_BEFORE,
        ms_after=PROTOTYPE_MS_AFTER,
        seed=params.seed,
        job_kwargs=job_kwargs,
    )
    at_peak = prototype[ms_to_samples(PROTOTYPE_MS_BEFORE, traces.sampling_frequency)]
    wrong_sign = (params.peak_sign == "neg" and at_peak >= 0) or (params.peak_sign == "pos" and at_peak <= 0)
    return None if wrong_sign or not np.isfinite(prototype).all() else prototype
