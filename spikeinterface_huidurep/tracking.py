"""
Follow neurons whose waveforms change slowly, as they do where the probe drifts.

A template is the mean over the whole recording. What is left of the spikes of a unit in one part of it shows how its
waveform differs there; matched anew with the templates of each part, spikes that had come to resemble another unit's
template go back to their own, and show better how waveforms differ. What is noise is judged by these templates, too
(`residuals.place_spikes`), and so is which unit a spike is of (`confidence.py`).

Where drift was not corrected, as on tetrodes, the mean may be like none of the waveforms: the changes have to be known
before anything is matched.
"""

import shutil
from collections import ChainMap
from functools import partial
from itertools import pairwise

import numpy as np

from spikeinterface_huidurep.changes import (
    MIN_SPIKES,
    NO_CHANGES,
    Change,
    Changes,
    find_block,
    shrink_mean,
    shrink_median,
)
from spikeinterface_huidurep.matching import find_spikes, keep_frequent_units, make_sorting
from spikeinterface_huidurep.merging import thin
from spikeinterface_huidurep.motion import DISPLACEMENT
from spikeinterface_huidurep.refinement import MAX_SPIKES
from spikeinterface_huidurep.residuals import change_templates, extract_deviations

BLOCK_S = 30.0  # at least
MAX_BLOCKS = 40  # of a segment: each has to make its templates ready
MIN_SHARE_OF_MEAN = 0.35  # of the spikes that a unit has in a block in the mean; fewer may be another's
MIN_CHANGING = 0.3  # of the units, in the mean over the blocks: hardly any change where the probe stays
MIN_CHANGE = 1.0  # noise SD; with less the template of the whole recording fits as well
MIN_CHANGE_OF_BLOCK = 3.0  # noise SD, of some template on its own channels; with less no other spikes are found


def split_time(traces):
    """
    Parts of a recording of about BLOCK_S, or longer ones where there would be more than MAX_BLOCKS.

    Returns
    -------
    blocks : list of (int, int, int)
        Segment, first sample and the sample after the last; in the order of time.
    """
    blocks = []
    for segment in range(traces.get_num_segments()):
        n_samples = traces.get_num_samples(segment)
        n_blocks = min(max(1, round(n_samples / traces.sampling_frequency / BLOCK_S)), MAX_BLOCKS)
        edges = np.linspace(0, n_samples, n_blocks + 1).astype(int).tolist()
        blocks += [(segment, *pair) for pair in pairwise(edges)]
    return blocks


def find_drift(traces, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs):
    """
    How the waveforms of units change, where many of them do and drift was not corrected.

    Templates that are a mean over all that drift made of a neuron find the wrong spikes: this has to be known before
    they are matched. What overlaps the spikes is not known yet: it is left out as most spikes have none.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
        The spikes as far as they are known.
    templates : spikeinterface.core.Templates
        Of its units, and maybe of others.
    neighborhoods : Neighborhoods
    peak_sign : "neg" | "pos" | "both"
    folder : Path
        For the file of the waveforms, which is removed.
    job_kwargs : dict

    Returns
    -------
    changes : Changes
        NO_CHANGES if fewer units change, or the traces were interpolated as the probe moved.
    """
    if traces.get_annotation(DISPLACEMENT, copy=False) is not None:
        return NO_CHANGES
    templates = templates.select_units(sorting.unit_ids)
    deviations = extract_deviations(traces, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs)
    find = partial(find_changes, sorting, deviations, split_time(traces), shrink_median)
    n_changing = np.mean([len(of_block) for of_block in find(measure_medians(sorting, deviations)).of_block])
    changes = find() if n_changing >= MIN_CHANGING * len(sorting.unit_ids) else NO_CHANGES
    shutil.rmtree(folder)
    return changes


def measure_medians(sorting, deviations):
    """
    What is left of the spikes of each unit at any time: a template that is not quite right is no drift.

    Returns
    -------
    medians : list of np.ndarray, float32, shape (n_channels, n_samples)
        One a unit.
    """
    unit_indices = sorting.to_spike_vector()["unit_index"]
    members = (thin(np.flatnonzero(unit_indices == index), MAX_SPIKES) for index in range(len(sorting.unit_ids)))
    return [np.median(deviations.read(rows, index), axis=0) for index, rows in enumerate(members)]


def find_changes(sorting, residuals, blocks, average=shrink_mean, usual=None):
    """
    How the waveforms of units differ from their templates in blocks of time.

    The average of what is left of the spikes, shrunk by what their noise makes of it (James and Stein 1961). A unit
    that has too few spikes in a block, as where drift made them another unit's, is taken to be as in the nearest one.

    Parameters
    ----------
    sorting : NumpySorting
    residuals : Residuals
        Of its spikes.
    blocks : list of (int, int, int)
        See `split_time`.
    average : Callable, default: shrink_mean
        Of waveforms, shape (n, n_channels, n_samples).
    usual : list of np.ndarray, optional
        Of each unit, (n_channels, n_samples): what is left of its spikes and no change.

    Returns
    -------
    changes : Changes
        Of the units that change by MIN_CHANGE or more.
    """
    spikes = sorting.to_spike_vector()
    mean_counts = np.bincount(spikes["unit_index"], minlength=len(sorting.unit_ids)) / len(blocks)
    needed = np.maximum(MIN_SPIKES, MIN_SHARE_OF_MEAN * mean_counts)
    measured = [
        _measure_changes(spikes, sorting.unit_ids, residuals, block, needed, average, usual) for block in blocks
    ]
    of_block = [
        {unit: change for unit, change in changes.items() if np.linalg.norm(change.waveform) >= MIN_CHANGE}
        for changes in borrow_changes(measured, blocks)
    ]
    return Changes(blocks, of_block)


def _measure_changes(spikes, unit_ids, residuals, block, needed, average, usual):
    """Changes in a block of the units that have the spikes needed, be they ever so small: dict of unit id -> Change."""
    inside = find_block(spikes, block)
    unit_indices = spikes["unit_index"][inside]
    changes = {}
    for index in np.flatnonzero(np.bincount(unit_indices, minlength=len(needed)) >= needed).tolist():
        rows = thin(inside.start + np.flatnonzero(unit_indices == index), MAX_SPIKES)
        values = residuals.read(rows, index)
        if usual is not None:
            values = values - usual[index]
        changes[int(unit_ids[index])] = Change(residuals.find_channels(index), average(values))
    return changes


def borrow_changes(measured, blocks):
    """
    Take what is not known of a block from the nearest one of the segment, the earlier of two.

    Parameters
    ----------
    measured : list of dict
        One a block.
    blocks : list of (int, int, int)

    Returns
    -------
    borrowed : list of dict
    """
    borrowed = []
    for index, (segment, _, _) in enumerate(blocks):
        same_segment = [other for other, block in enumerate(blocks) if block[0] == segment]
        nearest_first = sorted(same_segment, key=lambda other, index=index: abs(other - index))
        borrowed.append(dict(ChainMap(*(measured[other] for other in nearest_first))))
    return borrowed


def match_changing_templates(traces, sorting, templates, changes, known, params, job_kwargs):
    """
    Match the blocks in which some unit is by MIN_CHANGE_OF_BLOCK not as it is known, with the templates as they are.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
        What was found by the templates as they are known: kept in the other blocks, all of it if there is none such.
    templates : spikeinterface.core.Templates
        Of the units of the sorting, in their order.
    changes, known : Changes
        As they are, and as they were when the blocks were matched last.
    params : SorterParams
    job_kwargs : dict

    Returns
    -------
    sorting : NumpySorting
        Unit ids are those of the templates that fire at least at `min_firing_rate`.
    """
    changed = [change_templates(templates, of_block) for of_block in changes.of_block]
    matched_with = [change_templates(templates, of_block) for of_block in known.of_block or [{}] * len(changed)]
    largest = [measure_largest_change(before, now) for before, now in zip(matched_with, changed, strict=True)]
    is_matched = [change >= MIN_CHANGE_OF_BLOCK for change in largest]
    if not any(is_matched):
        return sorting
    spikes = sorting.to_spike_vector()
    found = []
    for block, of_block, matches in zip(changes.blocks, changed, is_matched, strict=True):
        if matches:
            found.append(_match_block(traces, of_block, block, job_kwargs))
        else:
            inside = spikes[find_block(spikes, block)]
            found.append((inside["sample_index"], inside["unit_index"], inside["segment_index"]))
    samples, unit_indices, segments = (np.concatenate(values) for values in zip(*found, strict=True))
    labels = sorting.unit_ids[unit_indices].astype("int64")
    labels = keep_frequent_units(labels, traces.get_total_duration(), params)
    kept = labels >= 0
    return make_sorting(samples[kept], labels[kept], segments[kept], traces.sampling_frequency)[0]


def measure_largest_change(templates, changed):
    """Largest norm of the difference between the templates and those of `change_templates`, in noise SD."""
    return np.linalg.norm(changed.templates_array - templates.templates_array, axis=(1, 2)).max(initial=0.0)


def _match_block(traces, templates, block, job_kwargs):
    segment, start, stop = block
    margin = 2 * templates.num_samples  # spikes beyond the ends of a block overlap those in it
    first, last = max(0, start - margin), min(traces.get_num_samples(segment), stop + margin)
    part = traces.select_segments([segment]).frame_slice(first, last)
    spikes = find_spikes(part, templates, job_kwargs)
    samples = spikes["sample_index"] + first
    inside = (samples >= start) & (samples < stop)
    return samples[inside], spikes["cluster_index"][inside], np.full(inside.sum(), segment)
