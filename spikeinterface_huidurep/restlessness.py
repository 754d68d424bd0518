"""
Stretches of time in which the noise is larger, as when the animal chews, or licks once.

Peaks of that noise would be clustered as if they were spikes, and matching finds the templates of neurons in it. So a
spike has to be larger there to count, by as much as the noise is, along its own waveform: most of such noise is common
to the channels. And a unit that hardly fires elsewhere is made of it. What the noise of the stretches is like is kept
as an annotation of the traces.
"""

import logging
from functools import partial
from itertools import pairwise

import numpy as np

from spikeinterface_huidurep.artifacts import MANY_CHANNELS
from spikeinterface_huidurep.whitening import noise_levels

logger = logging.getLogger(__name__)

ANNOTATION = "restless_stretches"
STRETCH_S = 0.02  # as long as a lick
STRETCH_ON_FEW_S = 0.1  # on few channels, where a burst of one neuron seems to be noise, too: longer than it is
N_BESIDE = 2  # stretches that are as restless, before and after: such noise comes and goes
VALUES_OF_STRETCH = 10_000  # are looked at
MIN_RATIO = 1.5  # of its noise SD to that of most of them; many spikes raise it, too, but not as much
MAX_DIRECTIONS = 4  # noise that is common to the channels has hardly more; a short stretch always seems to have some
MIN_EXCESS = 1.25  # of the noise SD in a direction to that on the channels
MAX_DEFLECTION = 3.0  # noise SD; more is not noise
MAX_RATE_RATIO = 20.0  # of a unit, there to elsewhere; true ones reach 6, as noise is found with their templates
CALM = (1.0, (), ())


def find_restless_stretches(traces):
    """
    Find the stretches where the noise is larger, and annotate the traces with them, if there are any.

    The annotation holds for each segment stretches of the same length: how much larger the noise is on the channels (1
    where it is not), directions in which it is larger still (unit vectors over the channels), and by how much in each.
    Up to N_BESIDE stretches beside restless ones are taken to be as restless.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    """
    stretch_s = STRETCH_S if traces.get_num_channels() >= MANY_CHANNELS else STRETCH_ON_FEW_S
    readers = [split_segment(traces, index, stretch_s) for index in range(traces.get_num_segments())]
    levels = [[measure_level(read()) for read in of_segment] for of_segment in readers]
    usual = np.median(np.concatenate(levels))
    n_restless = np.sum(np.concatenate(levels) > MIN_RATIO * usual)
    if n_restless == 0:
        return
    logger.info("noise is larger for %.1f s: spikes have to be larger there, too", n_restless * stretch_s)
    stretches = [
        [
            describe_stretch(read(), level, usual) if level > MIN_RATIO * usual else CALM
            for read, level in zip(*of_segment, strict=True)
        ]
        for of_segment in zip(readers, levels, strict=True)
    ]
    traces.annotate(**{ANNOTATION: [spread_restlessness(of_segment) for of_segment in stretches]})


def split_segment(traces, segment_index, stretch_s):
    """Functions that read stretches of `stretch_s` or little more, all of a segment, one after the other."""
    n_samples = traces.get_num_samples(segment_index)
    n_stretches = max(1, int(n_samples / (stretch_s * traces.sampling_frequency)))
    edges = np.linspace(0, n_samples, n_stretches + 1).astype(int).tolist()
    return [partial(traces.get_traces, segment_index, *edge) for edge in pairwise(edges)]


def measure_level(stretch):
    """Noise SD of traces (n_samples, n_channels), median over the channels, from about VALUES_OF_STRETCH values."""
    return float(np.median(noise_levels([stretch[:: max(1, stretch.size // VALUES_OF_STRETCH)]])))


def describe_stretch(stretch, level, usual):
    """
    How much larger than usual noise is.

    Parameters
    ----------
    stretch : np.ndarray, float32, shape (n_samples, n_channels)
    level, usual : float
        Noise SD on the channels, here and elsewhere.

    Returns
    -------
    ratio, directions, ratios
        See `find_restless_stretches`.
    """
    limits = MAX_DEFLECTION * noise_levels([stretch])
    _, vectors = np.linalg.eigh(np.cov(np.clip(stretch, -limits, limits), rowvar=False).reshape(len(limits), -1))
    levels = noise_levels([stretch @ vectors])
    largest = np.argsort(levels)[-MAX_DIRECTIONS:]
    largest = largest[levels[largest] > MIN_EXCESS * level]
    return level / usual, vectors.T[largest].tolist(), (levels[largest] / usual).tolist()


def spread_restlessness(stretches):
    """Every stretch, a tuple as of `describe_stretch`, gets the largest noise of its own and N_BESIDE on each side."""
    near = (stretches[max(0, index - N_BESIDE) : index + N_BESIDE + 1] for index in range(len(stretches)))
    return [max(some, key=lambda stretch: stretch[0]) for some in near]


def measure_restlessness(traces, samples, segment_indices, waveform=None):
    """
    How much larger than usual the noise is at some times.

    Parameters
    ----------
    traces : BaseRecording
        Annotated by `find_restless_stretches`, or what was made of such.
    samples, segment_indices : np.ndarray, int64, shape (n_times,)
    waveform : None | np.ndarray, float, shape (n_channels, n_samples), default: None
        Along which the noise counts; None for the channels, one by one.

    Returns
    -------
    ratios : np.ndarray, float64, shape (n_times,)
        1 where it is not.
    """
    ratios = np.ones(len(samples))
    for segment_index, stretches in enumerate(traces.get_annotation(ANNOTATION, copy=False) or ()):
        rows = np.flatnonzero(segment_indices == segment_index)
        if len(rows) == 0:  # what was made of the traces may lack the last segments
            continue
        indices = samples[rows] * len(stretches) // traces.get_num_samples(segment_index)
        present, inverse = np.unique(np.clip(indices, 0, len(stretches) - 1), return_inverse=True)
        ratios[rows] = np.array([measure_along(*stretches[index], waveform) for index in present])[inverse]
    return ratios


def measure_along(ratio, directions, ratios, waveform):
    """How much larger than usual the noise of a stretch is along a waveform, see `measure_restlessness`."""
    if waveform is None or not directions:
        return ratio
    shares = np.sum((np.asarray(directions) @ waveform) ** 2, axis=1) / np.sum(waveform**2)
    return float(np.sqrt(ratio**2 + np.sum(shares * (np.square(ratios) - ratio**2))))


def is_of_restlessness(traces, restlessness):
    """
    Whether a unit is but noise of restless stretches: it fires MAX_RATE_RATIO times as often there as elsewhere.

    Parameters
    ----------
    traces : BaseRecording
        Annotated by `find_restless_stretches`, or what was made of such.
    restlessness : np.ndarray, float64, shape (n_spikes,)
        Of its spikes, see `measure_restlessness`.
    """
    n_there = np.sum(restlessness > 1)
    if n_there == 0:
        return False
    segments = traces.get_annotation(ANNOTATION, copy=False)
    share = np.mean([ratio > 1 for stretches in segments for ratio, _, _ in stretches])
    return n_there * (1 - share) > MAX_RATE_RATIO * (len(restlessness) - n_there) * share
