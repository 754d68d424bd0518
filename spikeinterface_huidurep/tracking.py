"""
Follow neurons whose waveforms change slowly, as they do where the probe drifts.

A template is the mean over the whole recording. What is left of the spikes of a unit in one part of it shows how its
waveform differs there; matched anew with the templates of each part, spikes that had come to resemble another unit's
template go back to their own. What is noise is judged by these templates, too (`residuals.place_spikes`).
"""

from collections import ChainMap
from dataclasses import replace
from itertools import pairwise

import numpy as np

from spikeinterface_huidurep.changes import Change, Changes, find_block
from spikeinterface_huidurep.matching import find_spikes, keep_frequent_units, make_sorting
from spikeinterface_huidurep.merging import thin
from spikeinterface_huidurep.refinement import MAX_SPIKES
from spikeinterface_huidurep.residuals import count_samples

BLOCK_S = 30.0  # at least
MAX_BLOCKS = 40  # of a segment: each has to make its templates ready
MIN_SPIKES = 10  # in a block, to say how a waveform differs there
MIN_SHARE = 1 / 3  # of the energy of a change that is not chance; few reach it where nothing drifts, most where it does
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


def find_changes(sorting, residuals, blocks):
    """
    How the waveforms of units differ from their templates in blocks of time.

    The mean of what is left of the spikes, shrunk by what their noise makes of it (James and Stein 1961). A unit that
    has too few spikes in a block, as where drift made them another unit's, is taken to be as in the nearest one.

    Parameters
    ----------
    sorting : NumpySorting
    residuals : Residuals
        Of its spikes.
    blocks : list of (int, int, int)
        See `split_time`.

    Returns
    -------
    changes : Changes
        Of the units that change by MIN_CHANGE or more.
    """
    spikes = sorting.to_spike_vector()
    measured = [_measure_changes(spikes, sorting.unit_ids, residuals, block) for block in blocks]
    of_block = [
        {unit: change for unit, change in changes.items() if np.linalg.norm(change.waveform) >= MIN_CHANGE}
        for changes in borrow_changes(measured, blocks)
    ]
    return Changes(blocks, of_block)


def _measure_changes(spikes, unit_ids, residuals, block):
    """Changes in a block of the units that have MIN_SPIKES there, be they ever so small: dict of unit id -> Change."""
    inside = find_block(spikes, block)
    unit_indices = spikes["unit_index"][inside]
    changes = {}
    for index in np.flatnonzero(np.bincount(unit_indices) >= MIN_SPIKES).tolist():
        rows = thin(inside.start + np.flatnonzero(unit_indices == index), MAX_SPIKES)
        changes[int(unit_ids[index])] = Change(residuals.find_channels(index), shrink_mean(residuals.read(rows, index)))
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


def shrink_mean(values):
    """
    Mean over the first axis, smaller by the share of its energy that chance would give; 0 where that is most of it.

    Parameters
    ----------
    values : np.ndarray, float32, shape (n, ...)
        n > 1.

    Returns
    -------
    mean : np.ndarray, float32, shape (...)
    """
    mean = values.mean(axis=0)
    share = 1.0 - measure_chance(values) / max(np.sum(mean**2), 1e-12)
    return mean * (share if share >= MIN_SHARE else 0.0)


def measure_chance(values):
    """Energy that noise gives to the mean over the first axis of values of shape (n, ...), n > 1."""
    return np.sum((values - values.mean(axis=0)) ** 2) / (len(values) - 1) / len(values)


def match_changing_templates(traces, sorting, templates, changes, params, job_kwargs):
    """
    Match the blocks in which some unit changes by MIN_CHANGE_OF_BLOCK with the templates as they are there.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
        What the templates of the whole recording found: kept in the other blocks, all of it if there is no such block.
    templates : spikeinterface.core.Templates
        Of the units of the sorting, in their order.
    changes : Changes
    params : SorterParams
    job_kwargs : dict

    Returns
    -------
    sorting : NumpySorting
        Unit ids are those of the templates that fire at least at `min_firing_rate`.
    """
    changed = [change_templates(templates, of_block) for of_block in changes.of_block]
    is_matched = [measure_largest_change(templates, of_block) >= MIN_CHANGE_OF_BLOCK for of_block in changed]
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


def change_templates(templates, changes):
    """
    Templates as they are in a block.

    Parameters
    ----------
    templates : spikeinterface.core.Templates
        Sparse.
    changes : dict of unit id -> Change

    Returns
    -------
    templates : spikeinterface.core.Templates
        On the same channels.
    """
    array = templates.templates_array.copy()
    start = templates.nbefore - count_samples(templates.sampling_frequency)[0]
    indices = {unit_id: index for index, unit_id in enumerate(templates.unit_ids.tolist())}
    for unit_id, change in changes.items():
        own_channels = np.flatnonzero(templates.sparsity_mask[indices[unit_id]])
        change.add_to(array[indices[unit_id]].T, own_channels, start)
    return replace(templates, templates_array=array)
