"""
A second look at the units, by spikes freed from those that overlap them.

Weak neurons that share a place may enter the matching as one template, and one neuron as two. With all templates taken
away, what is left of the spikes of a template shows it (`splitting.py`), as do the spikes of two templates that are
alike (`joining.py`). So may neurons that differ in size alone (`sizes.py`), and rare ones beside a frequent one
(`hidden.py`).

A weak neuron of which few spikes were detected has a template that is not quite its own. Matching finds many more of
its spikes. Where many are far larger than the template, these make a better one; what it picks out of noise is smaller,
and would make a template that picks more. Of a strong neuron they would be those that drift or bursts made large.

The spikes of a large neuron may have been detected at different samples, so that its template is a blur, and the next
template finds what the blur does not fit. Matched and aligned, they make a sharp one.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from spikeinterface.core.base import base_peak_dtype

from spikeinterface_huidurep.clustering import MIN_SPIKES
from spikeinterface_huidurep.hidden import find_hidden_neuron, find_lonely_spikes
from spikeinterface_huidurep.joining import find_same_units
from spikeinterface_huidurep.matching import WEAK_NORM, make_sorting
from spikeinterface_huidurep.merging import shift_each, thin
from spikeinterface_huidurep.residuals import choose_lags, move_waveform, multiply
from spikeinterface_huidurep.sizes import split_sizes
from spikeinterface_huidurep.splitting import split_unit
from spikeinterface_huidurep.trains import list_trains

MAX_SPIKES = 3000  # of one unit; more do not change the verdict nor the templates
MIN_GAIN = 1.5  # times more spikes than were known of the unit: they make a better template
MIN_EXCESS = 2.0  # noise SD; mean of what is left, along the template, of those spikes that are larger than it
MAX_NORM = 16.0  # noise SD; most spikes of a neuron with a larger template were detected
MIN_LARGER = 0.2  # of the spikes of a unit: where fewer are larger, its template is too large already
LAGS = np.arange(-3, 4)  # samples that a spike may be off the others of its unit
N_ALIGNMENTS = 4
MIN_SHARPENING = 8.0  # log-likelihood of a spike; a template that fits so much worse than it could is made anew


@dataclass
class RefinedUnits:
    """Units that changed, and what takes their place; and units that were missed."""

    peaks: np.ndarray
    """structured (n_peaks,): spikes of the old units, at most MAX_SPIKES that look alike of each."""
    labels: np.ndarray
    """int64 (n_peaks,): new unit ids."""
    origins: np.ndarray
    """int64 (n_peaks,): old unit ids; -1 for the spikes of missed units, which had none."""
    lags: np.ndarray
    """int64 (n_peaks,): samples by which the peaks are later than the spikes of the old units."""
    n_spikes: dict
    """Number of spikes of each new unit, dict of id -> float."""
    made_of: dict
    """Number of spikes that its template is made of: fewer, where these are the larger ones."""
    replaced: list
    """Ids of the old units."""
    free_id: int
    """Neither an old unit nor a new one has this id or a larger one."""

    def make_sorting(self, sorting, unit_ids):
        """
        The spikes of the old units that stay, and the peaks of the new ones, as far as they are among `unit_ids`.

        Parameters
        ----------
        sorting : NumpySorting
            Of the old units.
        unit_ids : np.ndarray, int

        Returns
        -------
        sorting : NumpySorting
        """
        spikes = sorting.to_spike_vector()
        old = sorting.unit_ids[spikes["unit_index"]]
        stays = ~np.isin(old, self.replaced)
        samples, segments = (
            np.concatenate([spikes[name][stays], self.peaks[name]]) for name in ("sample_index", "segment_index")
        )
        labels = np.concatenate([old[stays], self.labels]).astype("int64")
        kept = np.isin(labels, unit_ids)
        return make_sorting(samples[kept], labels[kept], segments[kept], sorting.sampling_frequency)[0]

    def add(self, peaks, labels, weights):
        """
        The same with more new units.

        Parameters
        ----------
        peaks : np.ndarray, structured, shape (n_peaks,)
        labels : np.ndarray, int64, shape (n_peaks,)
        weights : np.ndarray, float, shape (n_peaks,)
            Detected spikes that each stands for.

        Returns
        -------
        refined : RefinedUnits
        """
        unit_ids, indices = np.unique(labels, return_inverse=True)
        counts = np.bincount(indices, weights=weights)
        n_spikes = {self.free_id + index: count for index, count in enumerate(counts.tolist())}
        return RefinedUnits(
            np.concatenate([self.peaks, peaks[list(self.peaks.dtype.names)]]),
            np.r_[self.labels, self.free_id + indices],
            np.r_[self.origins, np.full(len(peaks), -1)],
            np.r_[self.lags, np.zeros(len(peaks), dtype="int64")],
            self.n_spikes | n_spikes,
            self.made_of | n_spikes,
            self.replaced,
            self.free_id + len(unit_ids),
        )


def refine_units(sorting, residuals, n_spikes, made_of, threshold, seed):
    """
    Split units that hold several neurons, join units that are one, make templates anew that do not fit their spikes.

    So are those of units that found many more spikes, if they are larger.

    Parameters
    ----------
    sorting : NumpySorting
        What matching found.
    residuals : Residuals
        Of its spikes.
    n_spikes, made_of : dict of unit id -> float
        Number of spikes of each unit as far as it was known, and number of those that the template was made of.
    threshold : float
        Dip score from which on there is a gap between two neurons.
    seed : int

    Returns
    -------
    refined : RefinedUnits
    """
    unit_indices = sorting.to_spike_vector()["unit_index"]
    sizes = np.bincount(unit_indices, minlength=len(sorting.unit_ids))
    members = [thin(np.flatnonzero(unit_indices == index), MAX_SPIKES) for index in range(len(sizes))]
    n_known, made_of = (
        np.array([counts[unit_id] for unit_id in sorting.unit_ids.tolist()]) for counts in (n_spikes, made_of)
    )
    norms = residuals.measure_norms()
    changes = _Changes()
    weights = (sizes / np.maximum([len(rows) for rows in members], 1))[unit_indices]
    _split_units(changes, residuals, members, list_trains(sorting), threshold, seed)
    _uncover_neurons(changes, residuals, sorting.to_spike_vector(), sizes, weights, threshold, seed)
    for first, second, lag in find_same_units(residuals, members, sizes, made_of, threshold):
        lags = np.repeat([0, lag], [len(members[first]), len(members[second])])
        changes.replace([first, second], [(np.concatenate([members[first], members[second]]), lags)])
    _align_units(changes, residuals, members, made_of, norms)
    _take_larger_spikes(changes, residuals, members, sizes, n_known, norms)
    rows, labels, lags = _collect_spikes(changes.groups)
    spikes = sorting.to_spike_vector()[rows]
    first_id = max(sorting.unit_ids) + 1
    n_spikes_of_new = {first_id + group: weights[found].sum() for group, (_, _, found) in enumerate(changes.groups)}
    made_of_new = {first_id + group: weights[taken].sum() for group, (taken, _, _) in enumerate(changes.groups)}
    replaced = sorting.unit_ids[sorted(changes.units)].tolist()
    return RefinedUnits(
        _make_peaks(spikes, lags, residuals.main_channels),
        labels + first_id,
        sorting.unit_ids[spikes["unit_index"]].astype("int64"),
        lags,
        n_spikes_of_new,
        made_of_new,
        replaced,
        first_id + len(changes.groups),
    )


class _Changes:
    """The units that changed so far, each but once, and the groups of spikes that take their place."""

    def __init__(self):
        self.units = set()
        self.groups = []  # of (indices of spikes, lags that align them, indices of the spikes that they stand for)

    def replace(self, units, groups, found=None):
        """Groups of (indices, lags) take the place of the units; `found` if a group is but some of the spikes found."""
        if self.units.isdisjoint(units):
            self.units.update(units)
            self.groups += [(rows, lags, rows if found is None else found) for rows, lags in groups]


def _split_units(changes, residuals, members, times_s, threshold, seed):
    shapes = _find_shapes(residuals)
    for index, rows in enumerate(members):
        waveform, whitener = _get_waveform_and_whitener(residuals, index)
        spikes, all_times_s = residuals.read(rows, index, has_followed=True), times_s[index]
        parts = split_unit(spikes, waveform, whitener, shapes, threshold, seed)
        if parts.max() == 0:
            looked_at_s = thin(all_times_s, MAX_SPIKES)  # as the rows are
            parts = split_sizes(spikes, waveform, whitener, looked_at_s, all_times_s, threshold)
        if parts.max() > 0:
            changes.replace([index], [(rows[parts == part], 0) for part in range(parts.max() + 1)])


def _uncover_neurons(changes, residuals, spikes, sizes, weights, threshold, seed):
    """Neurons of few spikes beside those of many; `weights` becomes how many spikes each that is taken stands for."""
    shapes = _find_shapes(residuals)
    if shapes is None:
        return
    for index in sorted(set(np.flatnonzero(sizes > MAX_SPIKES).tolist()) - changes.units):
        rows = find_lonely_spikes(spikes, index, residuals)
        if len(rows) <= MAX_SPIKES:
            continue
        waveform, whitener = _get_waveform_and_whitener(residuals, index)
        apply_to_residuals = partial(residuals.apply, spike_indices=rows, unit_index=index, has_followed=True)
        is_hidden = find_hidden_neuron(apply_to_residuals, waveform, whitener, shapes, MAX_SPIKES, threshold, seed)
        if is_hidden.any():
            parts = rows[~is_hidden], rows[is_hidden]
            groups = [thin(part, MAX_SPIKES) for part in parts]
            for part, group in zip(parts, groups, strict=True):
                weights[group] = sizes[index] / len(rows) * len(part) / len(group)
            changes.replace([index], [(group, 0) for group in groups])


def _find_shapes(residuals):
    """`Residuals.find_shapes`; None where drift was corrected: what that leaves of it looks like a neuron."""
    return None if residuals.is_drift_corrected() else residuals.find_shapes()


def _get_waveform_and_whitener(residuals, unit_index):
    """Template and whitener of a unit, as `splitting.split_unit` takes them."""
    waveform = residuals.get_template(unit_index)
    return waveform, residuals.noise.make_whitener(residuals.find_channels(unit_index), waveform.shape[1])


def _align_units(changes, residuals, members, made_of, norms):
    for index, rows in enumerate(members):
        if index not in changes.units and norms[index] >= WEAK_NORM and len(rows) >= MIN_SPIKES:
            lags, gain = align_unit(residuals, rows, index, made_of[index])
            if gain >= MIN_SHARPENING:
                changes.replace([index], [(rows, lags)])


def _take_larger_spikes(changes, residuals, members, sizes, n_known, norms):
    has_gained = (sizes > MIN_GAIN * n_known) & (norms <= MAX_NORM)
    for index in np.flatnonzero(has_gained).tolist():
        if index in changes.units:
            continue
        larger = find_larger_spikes(residuals, members[index], index)
        if len(larger) >= MIN_SPIKES:
            # all that were found count: made of the larger alone, it would find many more and grow again and again
            changes.replace([index], [(larger, 0)], found=members[index])


def align_unit(residuals, rows, unit_index, n_made_of):
    """
    Bring the spikes of a unit on top of each other, as the spikes that its template was made of may not have been.

    Parameters
    ----------
    residuals : Residuals
    rows : np.ndarray, int64, shape (n_spikes,)
    unit_index : int
    n_made_of : float
        Number of spikes that the template was made of.

    Returns
    -------
    lags : np.ndarray, int64, shape (n_spikes,)
        `spike[:, k + lag]` is like the others.
    gain : float
        By how much the mean of the aligned spikes fits them better than the template fitted them, without what chance
        would give: log-likelihood in white noise of SD 1, mean over spikes. 0 if most of them lose: the others are what
        a larger neuron leaves.
    """
    left = residuals.read(rows, unit_index)
    spikes = left + residuals.get_template(unit_index)
    aligned = spikes
    for _ in range(N_ALIGNMENTS):
        moved = move_waveform(aligned.mean(axis=0), LAGS)
        lags = LAGS[choose_lags(multiply(spikes, moved), moved)]
        aligned = shift_each(spikes, lags)
    inner = slice(max(LAGS), left.shape[2] - max(LAGS))
    left, aligned = left[:, :, inner], aligned[:, :, inner]
    before, after = (np.sum(part**2, axis=(1, 2)) for part in (left, aligned - aligned.mean(axis=0)))
    by_chance = after.mean() * (1 / len(rows) + 1 / n_made_of)
    gains = 0.5 * (before - after - by_chance)
    return lags, gains.mean() if np.median(gains) > 0 else 0.0


def find_larger_spikes(residuals, rows, unit_index):
    """
    Which of the spikes of a unit show that the neuron is larger than the template.

    Half of the spikes are larger than a good template, by about 0.8 noise SD. What is picked out of noise is smaller.

    Parameters
    ----------
    residuals : Residuals
    rows : np.ndarray, int64, shape (n_spikes,)
    unit_index : int

    Returns
    -------
    rows : np.ndarray, int64, shape (n_larger,)
        Those at least as large as the template, if they are MIN_LARGER of all and in the mean larger by MIN_EXCESS;
        none otherwise.
    """
    waveform = residuals.get_template(unit_index)
    excess = np.tensordot(residuals.read(rows, unit_index), waveform, axes=([1, 2], [0, 1])) / np.linalg.norm(waveform)
    is_larger = excess >= 0
    shows_larger = is_larger.mean() >= MIN_LARGER and excess[is_larger].mean() >= MIN_EXCESS
    return rows[is_larger] if shows_larger else rows[:0]


def _collect_spikes(groups):
    """Indices of the spikes of all groups, the group of each, and its lag; int64 (n_spikes,)."""
    if not groups:
        return (np.zeros(0, dtype="int64"),) * 3
    labels = np.repeat(np.arange(len(groups)), [len(rows) for rows, _, _ in groups])
    lags = np.concatenate([np.broadcast_to(lags, len(rows)) for rows, lags, _ in groups])
    return np.concatenate([rows for rows, _, _ in groups]), labels, lags


def _make_peaks(spikes, lags, main_channels):
    peaks = np.zeros(len(spikes), dtype=base_peak_dtype)
    peaks["sample_index"], peaks["segment_index"] = spikes["sample_index"] + lags, spikes["segment_index"]
    peaks["channel_index"] = main_channels[spikes["unit_index"]]
    return peaks
