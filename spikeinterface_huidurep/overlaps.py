"""
Explain spikes that overlap once more, together.

Matching takes templates away one by one, the one that fits best first. Where two large spikes overlap, that may be one
of neither of them, or one of them at another time, and others are needed to make good for it: units get spikes that
nobody fired. Here a spike that leaves more than noise is put back and fitted anew while all others are taken away, and
then those around it, until none changes. So is a spike that explains less than a spike should.

A cluster of collisions makes a template that fits them at once, a mixture. It gives itself away: without it, the other
templates explain its spikes better.
"""

from typing import NamedTuple

import numpy as np
from spikeinterface.core import ms_to_samples
from spikeinterface.core.node_pipeline import run_node_pipeline
from spikeinterface.sortingcomponents.matching.base import BaseTemplateMatching
from spikeinterface.sortingcomponents.matching.wobble import WobbleParameters

from spikeinterface_huidurep.compilation import compile_function
from spikeinterface_huidurep.merging import correlate, thin

MIN_SCORE = float(WobbleParameters.threshold)  # by which a spike makes the squares of what is left smaller
MS_BEFORE, MS_AFTER = 0.8, 1.3  # of a template that are compared
MAX_LAG_MS = 0.13  # that a spike is moved at a time
MIN_OVERLAP = 0.5  # of two templates, as far as their channels tell, of which one may be mistaken for the other
MIN_INTERVAL_MS = 0.5  # between two spikes of a unit: what is left of a larger one than its template is no other
MAX_EXCESS = 4.5  # SD of what noise leaves of a spike
MAX_SWEEPS = 4
MAX_ADDED = 2  # spikes that may take the place of one
N_TESTED = 12  # spikes of a unit
MIN_COSINE = 0.5  # of a mixture and the larger of its parts


def resolve_overlaps(traces, spikes, templates, job_kwargs, mixtures=()):
    """
    Fit spikes that leave more than noise anew, together with those that overlap them.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    spikes : np.ndarray, structured (sample_index, cluster_index, segment_index, ...), shape (n_spikes,)
        What matching found in them, in the order of time; clusters are indices of templates.
    templates : spikeinterface.core.Templates
        In the same unit.
    job_kwargs : dict
    mixtures : sequence of int, default: ()
        Templates that are to explain no spike; those of the others take the place of theirs.

    Returns
    -------
    spikes : np.ndarray, structured, shape (n_left,)
        Without amplitudes and channels.
    """
    if len(spikes) == 0:
        return spikes
    node = ResolveOverlaps(traces, templates, spikes, mixtures)
    return run_node_pipeline(traces, [node], job_kwargs=job_kwargs, job_name="overlaps")


def find_mixtures(traces, spikes, templates, job_kwargs):
    """
    Templates of which most spikes are explained better without them, by the others.

    Parameters are those of `resolve_overlaps`.

    Returns
    -------
    mixtures : np.ndarray, int64
        Indices of templates.
    """
    candidates = find_candidates(templates, np.bincount(spikes["cluster_index"], minlength=len(templates.unit_ids)))
    if len(candidates) == 0:
        return candidates
    rows = [thin(np.flatnonzero(spikes["cluster_index"] == candidate), N_TESTED) for candidate in candidates]
    node = MeasureGains(traces, templates, spikes, np.concatenate(rows))
    tested = run_node_pipeline(traces, [node], job_kwargs=job_kwargs, job_name="mixtures")
    gains = np.array([np.median(tested["amplitude"][tested["cluster_index"] == index]) for index in candidates])
    return candidates[gains > 0]


class ResolveOverlaps(BaseTemplateMatching):
    """See `resolve_overlaps`."""

    def __init__(self, recording, templates, spikes, mixtures=()):
        BaseTemplateMatching.__init__(self, recording, templates)
        self.samples, self.units = (spikes[name].astype("int64") for name in ("sample_index", "cluster_index"))
        self.edges = np.searchsorted(spikes["segment_index"], np.arange(recording.get_num_segments() + 1))
        self.is_mixture = np.isin(np.arange(len(templates.unit_ids)), mixtures)
        self.bank = make_bank(templates)
        self.n_samples = templates.num_samples

    def get_margin(self):
        return 2 * self.n_samples

    def read_spikes(self, start_frame, end_frame, segment_index):
        """
        Spikes whose templates are within the margin.

        Returns
        -------
        rows : np.ndarray, int64, shape (n_spikes,)
        starts : np.ndarray, int64, shape (n_spikes,)
            First samples of their templates, counted from the margin on.
        units : np.ndarray, int64, shape (n_spikes,)
        """
        first, last = self.edges[segment_index : segment_index + 2]
        limits = [start_frame - self.n_samples, end_frame + self.n_samples]
        rows = first + np.arange(*np.searchsorted(self.samples[first:last], limits))
        starts = self.samples[rows] - (start_frame - self.get_margin()) - self.templates.nbefore
        return rows, starts, self.units[rows]

    def compute_matching(self, traces, start_frame, end_frame, segment_index):
        _, starts, units = self.read_spikes(start_frame, end_frame, segment_index)
        left = copy_traces(traces)
        starts, units = _resolve(left, starts, units, self.is_mixture, self.bank)
        return self.make_spikes(starts, units)

    def make_spikes(self, starts, units):
        """What a node of matching returns, in the order of time, of `starts` and `units` as `read_spikes` has them."""
        spikes = np.zeros(len(starts), dtype=self.get_dtype())
        spikes["sample_index"], spikes["cluster_index"] = starts + self.templates.nbefore, units
        return spikes[np.argsort(starts, kind="stable")]


class MeasureGains(ResolveOverlaps):
    """By how much spikes are explained better without the template of their unit: in the field "amplitude"."""

    def __init__(self, recording, templates, spikes, tested):
        ResolveOverlaps.__init__(self, recording, templates, spikes)
        self.is_tested = np.zeros(len(spikes), dtype=bool)
        self.is_tested[tested] = True

    def compute_matching(self, traces, start_frame, end_frame, segment_index):
        rows, starts, units = self.read_spikes(start_frame, end_frame, segment_index)
        is_inside = (self.samples[rows] >= start_frame) & (self.samples[rows] < end_frame)
        tested = np.flatnonzero(self.is_tested[rows] & is_inside)
        spikes = self.make_spikes(starts[tested], units[tested])
        if len(tested) > 0:
            left = copy_traces(traces)
            _take_away(left, starts, units, self.bank)
            spikes["amplitude"] = [_measure_gain(left, starts, units, index, self.bank) for index in tested]
        return spikes


def copy_traces(traces):
    """Traces (n_samples, n_channels) as the compiled functions change them in place: (n_channels, n_samples)."""
    return np.array(traces.T, order="C")


def find_candidates(templates, counts):
    """
    Templates that are like one of more spikes, at some time.

    Parameters
    ----------
    templates : spikeinterface.core.Templates
    counts : np.ndarray, int64, shape (n_units,)
        Spikes of each.

    Returns
    -------
    candidates : np.ndarray, int64
        Indices of templates; none of those without spikes.
    """
    waveforms = templates.get_dense_templates().astype("float32")
    norms = np.linalg.norm(waveforms, axis=(1, 2))
    candidates = []
    for unit in np.flatnonzero(counts):
        others, channels = np.flatnonzero(counts > counts[unit]), np.flatnonzero(np.any(waveforms[unit], axis=0))
        products = correlate(waveforms[unit][:, channels], waveforms[others][:, :, channels])
        if np.any(products.max(axis=1) >= MIN_COSINE * norms[unit] * norms[others]):
            candidates.append(unit)
    return np.array(candidates, dtype="int64")


class Bank(NamedTuple):
    """What the compiled functions take of templates."""

    waveforms: np.ndarray
    """float32 (n_units, n_channels, n_samples)."""
    energies: np.ndarray
    """float32 (n_units,): within the window."""
    tolerances: np.ndarray
    """float32 (n_units,): energy of what a spike half a sample off leaves."""
    channels: np.ndarray
    """int64 (n_units, n_channels): those of each template first."""
    n_channels: np.ndarray
    """int64 (n_units,)."""
    rivals: np.ndarray
    """int64 (n_units, n_units): templates that may be mistaken for each, first; itself among them."""
    n_rivals: np.ndarray
    """int64 (n_units,)."""
    window: tuple
    """First sample that is compared, and the one after the last."""
    max_lag: int
    """Samples."""
    min_interval: int
    """Samples."""


def make_bank(templates):
    """Bank of templates."""
    waveforms = np.ascontiguousarray(templates.get_dense_templates().transpose(0, 2, 1), dtype="float32")
    n_before, n_after = (ms_to_samples(ms, templates.sampling_frequency) for ms in (MS_BEFORE, MS_AFTER))
    window = max(0, templates.nbefore - n_before), min(templates.num_samples, templates.nbefore + n_after)
    seen = waveforms[:, :, slice(*window)]
    norms = np.sqrt(np.sum(seen**2, axis=2))
    energies = np.sum(norms**2, axis=1)
    half_off = 0.5 * np.diff(seen, axis=2)
    overlaps = (norms @ norms.T) / np.sqrt(np.outer(energies, energies))
    return Bank(
        waveforms,
        energies,
        np.sum(half_off**2, axis=(1, 2)),
        *_list_rows(np.any(waveforms != 0, axis=2)),
        *_list_rows(overlaps >= MIN_OVERLAP),
        window,
        *(ms_to_samples(ms, templates.sampling_frequency) for ms in (MAX_LAG_MS, MIN_INTERVAL_MS)),
    )


def _list_rows(mask):
    """Indices of what is True in each row, and how many there are."""
    counts = mask.sum(axis=1)
    indices = np.zeros(mask.shape, dtype="int64")
    for row, values in enumerate(mask):
        indices[row, : counts[row]] = np.flatnonzero(values)
    return indices, counts


@compile_function(fastmath=True)
def _add(left, start, unit, sign, bank):
    for channel in bank.channels[unit, : bank.n_channels[unit]]:
        waveform = bank.waveforms[unit, channel]
        values = left[channel, start : start + len(waveform)]
        for sample in range(len(waveform)):
            values[sample] += sign * waveform[sample]


@compile_function(fastmath=True)
def _score(left, start, unit, bank):
    """By how much a spike makes the squares of what is left smaller."""
    if start < 0 or start + bank.waveforms.shape[2] > left.shape[1]:
        return -np.inf
    product, (first, last) = np.float32(0), bank.window
    for channel in bank.channels[unit, : bank.n_channels[unit]]:
        waveform = bank.waveforms[unit, channel, first:last]
        values = left[channel, start + first : start + last]
        for sample in range(len(waveform)):
            product += values[sample] * waveform[sample]
    return 2 * product - bank.energies[unit]


@compile_function()
def _take_away(left, starts, units, bank):
    for index in range(len(starts)):
        _add(left, starts[index], units[index], -1.0, bank)


@compile_function()
def _find_unexplained(left, starts, units, bank):
    """Which spikes leave more than noise, or explain less than a spike should."""
    is_unexplained, (first, last) = np.zeros(len(starts), dtype=np.bool_), bank.window
    for index in range(len(starts)):
        unit, start, energy = units[index], starts[index], 0.0
        for channel in bank.channels[unit, : bank.n_channels[unit]]:
            for value in left[channel, start + first : start + last]:
                energy += value**2
        n_values = bank.n_channels[unit] * (last - first)
        leaves_more = energy > n_values + MAX_EXCESS * np.sqrt(2.0 * n_values)
        explained = _score(left, start, unit, bank) + 2 * bank.energies[unit]  # with its template put back
        is_unexplained[index] = leaves_more or explained < MIN_SCORE - bank.tolerances[unit]
    return is_unexplained


@compile_function()
def _find_lag(left, start, unit, max_lag, bank):
    """Lag at which a spike of a unit explains most of what is left, and how much."""
    best, best_lag = -np.inf, 0
    for lag in range(-max_lag, max_lag + 1):
        score = _score(left, start + lag, unit, bank)
        if score > best:
            best, best_lag = score, lag
    return best, best_lag


@compile_function()
def _find_rival(left, start, unit, is_mixture, max_lag, bank):
    """The other unit of which a spike explains most of what is left, its lag, and how much; -1 if there is none."""
    best, best_unit, best_lag = -np.inf, -1, 0
    for rival in bank.rivals[unit, : bank.n_rivals[unit]]:
        if rival != unit and not is_mixture[rival]:
            score, lag = _find_lag(left, start, rival, max_lag, bank)
            if score > best:
                best, best_unit, best_lag = score, rival, lag
    return best, best_unit, best_lag


@compile_function()
def _find_near(starts, start, bank):
    """Which spikes overlap one within the window."""
    return np.abs(starts - start) < bank.window[1] - bank.window[0]


@compile_function()
def _is_taken(starts, units, start, unit, bank):
    """Whether a unit has a spike there already."""
    return np.any((units == unit) & (np.abs(starts - start) < bank.min_interval))


@compile_function()
def _refit(left, starts, units, is_awake, is_mixture, bank):
    """
    Put the spikes that are awake back one by one, and take them away where and as what they fit best.

    Units become -1 where none fits. No spike that is awake stays of a mixture.
    """
    for _ in range(MAX_SWEEPS):
        has_changed = False
        for index in range(len(starts)):
            unit = units[index]
            if unit < 0 or not is_awake[index]:
                continue
            is_awake[index] = False
            _add(left, starts[index], unit, 1.0, bank)
            units[index] = -1
            best, best_unit, lag = -np.inf, -1, 0
            if not is_mixture[unit]:
                best, lag = _find_lag(left, starts[index], unit, bank.max_lag, bank)
                best_unit = unit
            rival_score, rival, rival_lag = _find_rival(left, starts[index], unit, is_mixture, bank.max_lag, bank)
            if rival_score > best + bank.tolerances[unit]:
                best, best_unit, lag = rival_score, rival, rival_lag
            is_none = best < MIN_SCORE - bank.tolerances[unit]
            if is_none or _is_taken(starts, units, starts[index] + lag, best_unit, bank):
                best_unit, lag = -1, 0
            units[index] = best_unit
            starts[index] += lag
            if best_unit >= 0:
                _add(left, starts[index], best_unit, -1.0, bank)
            if best_unit != unit or lag != 0:
                has_changed = True
                is_awake |= _find_near(starts, starts[index], bank)
        if not has_changed:
            break


@compile_function()
def _add_rival(left, starts, units, start, unit, is_mixture, bank):
    """Whether a spike of another unit is left where one of a unit was taken out; it gets the first free place."""
    score, rival, lag = _find_rival(left, start, unit, is_mixture, (bank.window[1] - bank.window[0]) // 2, bank)
    if score < MIN_SCORE or _is_taken(starts, units, start + lag, rival, bank):
        return False
    free = np.flatnonzero(units < 0)[0]
    starts[free], units[free] = start + lag, rival
    _add(left, start + lag, rival, -1.0, bank)
    _refit(left, starts, units, _find_near(starts, start + lag, bank), is_mixture, bank)
    return True


@compile_function()
def _extend(values, n_more, fill):
    """Values and as many more."""
    return np.concatenate((values, np.full(n_more, fill, dtype=values.dtype)))


@compile_function()
def _resolve(left, starts, units, is_mixture, bank):
    """Spikes (starts, units) that explain traces better than those given; `left` becomes what they leave."""
    _take_away(left, starts, units, bank)
    of_mixture = np.flatnonzero(is_mixture[units])
    is_awake = _find_unexplained(left, starts, units, bank) | is_mixture[units]
    n_more = MAX_ADDED * len(of_mixture)
    new_starts, new_units = _extend(starts, n_more, 0), _extend(units, n_more, -1)
    _refit(left, new_starts, new_units, _extend(is_awake, n_more, False), is_mixture, bank)
    for index in of_mixture:
        for _ in range(MAX_ADDED):
            if not _add_rival(left, new_starts, new_units, starts[index], units[index], is_mixture, bank):
                break
    return new_starts[new_units >= 0], new_units[new_units >= 0]


@compile_function()
def _measure_gain(left, starts, units, tested, bank):
    """What the unit of a spike adds to the squares of what is left and MIN_SCORE for every spike, both fitted anew."""
    n_units, _, n_samples = bank.waveforms.shape
    unit, first, last = units[tested], starts[tested] - n_samples, starts[tested] + 2 * n_samples
    is_near = _find_near(starts, starts[tested], bank)
    near_starts, near_units = _extend(starts[is_near] - first, MAX_ADDED, 0), _extend(units[is_near], MAX_ADDED, -1)
    local = left[:, first:last].copy()
    is_mixture = np.zeros(n_units, dtype=np.bool_)
    _refit(local, near_starts, near_units, np.ones(len(near_starts), dtype=np.bool_), is_mixture, bank)
    with_unit = _measure_cost(local, near_units)
    is_mixture[unit] = True
    _refit(local, near_starts, near_units, np.ones(len(near_starts), dtype=np.bool_), is_mixture, bank)
    without = _measure_cost(local, near_units)
    for _ in range(MAX_ADDED):
        if not _add_rival(local, near_starts, near_units, starts[tested] - first, unit, is_mixture, bank):
            break
        without = min(without, _measure_cost(local, near_units))
    return with_unit - without


@compile_function()
def _measure_cost(left, units):
    return np.sum(left**2) + MIN_SCORE * np.sum(units >= 0)
