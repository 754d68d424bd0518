"""The way of the data: from a raw recording to a sorting. Start reading here."""

import logging
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from spikeinterface.core import NumpySorting
from spikeinterface.core.base import minimum_spike_dtype
from spikeinterface.core.job_tools import fix_job_kwargs
from spikeinterface.sortingcomponents.tools import clean_cache_preprocessing
from threadpoolctl import threadpool_limits

from spikeinterface_huidurep.alignment import align_spikes
from spikeinterface_huidurep.changes import NO_CHANGES
from spikeinterface_huidurep.clustering import cluster_spikes
from spikeinterface_huidurep.compilation import keep_compiled_functions
from spikeinterface_huidurep.confidence import assign_spikes, keep_certain_units
from spikeinterface_huidurep.detection import detect_spikes, select_spikes, weigh_peaks
from spikeinterface_huidurep.faint import add_faint_spikes
from spikeinterface_huidurep.features import compute_features, extract_for_features
from spikeinterface_huidurep.joining import find_doubtful_units
from spikeinterface_huidurep.leftovers import (
    MAX_DELAY_MS,
    MAX_DELAY_OF_UNIT_MS,
    find_echoes,
    find_true_shares,
    find_true_spikes,
    is_leftover,
)
from spikeinterface_huidurep.linking import concatenate_times, join_fragments, link_fragments
from spikeinterface_huidurep.matching import (
    estimate_templates,
    keep_confirmed_units,
    keep_frequent_units,
    keep_lasting_units,
    keep_units,
    make_sorting,
    match_templates,
    move_inside,
)
from spikeinterface_huidurep.merging import merge_clusters
from spikeinterface_huidurep.missed import find_missed_units
from spikeinterface_huidurep.motion import DISPLACEMENT
from spikeinterface_huidurep.preprocessing import filter_band, preprocess, remove_dead_channels
from spikeinterface_huidurep.redundancy import remove_redundant_templates
from spikeinterface_huidurep.refinement import refine_units
from spikeinterface_huidurep.renewal import renew_templates
from spikeinterface_huidurep.residuals import extract_residuals, find_main_channels, place_spikes
from spikeinterface_huidurep.results import (
    describe_units,
    join_groups,
    keep_credible_units,
    save_clustering,
    save_results,
)
from spikeinterface_huidurep.steadiness import Steadiness
from spikeinterface_huidurep.tracking import find_changes, find_drift, match_changing_templates, split_time
from spikeinterface_huidurep.waveforms import Neighborhoods, reach_next_channel
from spikeinterface_huidurep.whitening import list_segment_sizes

logger = logging.getLogger(__name__)

MAX_REFINEMENTS = 2  # times that the units are looked at again
MAX_MATCHINGS = 2  # of the same templates, but for some that are taken out
MAX_FOLLOWINGS = 4  # times that waveforms are measured and matched anew where drift was not corrected


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products: on a busy machine threads take many times as long
def sort_recording(recording, params, folder, verbose=False):
    """
    Sort a recording, each group of channels on its own.

    Parameters
    ----------
    recording : BaseRecording
        With a probe, see `checks.check_recording`.
    params : SorterParams
    folder : Path
        Existing folder for the files written beside the sorting.
    verbose : bool, default: False
        Show progress bars.

    Returns
    -------
    sorting : NumpySorting
        Without units if there are none to be found; unit properties as `results.describe_units` sets them.

    Raises
    ------
    ValueError
        If the traces cannot be sorted (not finite, all flat, too short): says what to do.
    """
    job_kwargs = fix_job_kwargs(dict(params.job_kwargs, progress_bar=verbose))
    keep_compiled_functions()
    logger.info("%s", recording)
    recording = remove_dead_channels(recording)
    groups = split_groups(recording)
    sortings, posteriors, seconds = {}, {}, {}
    for group, recording_of_group in groups.items():
        folder_of_group = folder if len(groups) == 1 else folder / f"group_{group}"
        folder_of_group.mkdir(exist_ok=True)
        clock = Clock()
        sortings[group], posteriors[group] = sort_group(recording_of_group, params, folder_of_group, job_kwargs, clock)
        seconds[str(group)] = clock.seconds
    sorting, all_posteriors = join_groups(sortings, posteriors, recording.sampling_frequency)
    save_results(folder, sorting, all_posteriors, seconds)
    return sorting


def split_groups(recording):
    """
    Recordings of the channel groups, dict of group -> BaseRecording.

    `recording.split_by` refuses a recording that was split before, as `run_sorter_by_property` does.
    """
    channel_groups = recording.get_channel_groups()
    return {
        group: recording.select_channels(recording.channel_ids[channel_groups == group])
        for group in np.unique(channel_groups).tolist()
    }


def sort_group(recording, params, folder, job_kwargs, clock):
    """
    Sort channels that belong together.

    Returns
    -------
    sorting : NumpySorting
    posteriors : np.ndarray, float32, shape (n_spikes,)
        Confidence of each spike, in the order of `sorting.to_spike_vector()`.
    """
    params = widen_radii(params, recording.get_channel_locations()[:, :2])
    traces, cache_info = preprocess(recording, params, folder, job_kwargs)
    clock.log("preprocess", f"{traces.get_num_channels()} channels, {traces.get_total_duration():.1f} s")
    try:
        filtered = filter_band(recording, params)
        return _sort_traces(traces, filtered, params, folder, job_kwargs, clock)
    finally:
        del traces
        clean_cache_preprocessing(cache_info)
        shutil.rmtree(folder / "waveforms", ignore_errors=True)


def widen_radii(params, locations_um):
    """The parameters with radii that reach the next channel, see `waveforms.reach_next_channel`."""
    names = "whitening_radius_um", "detection_radius_um", "neighborhood_radius_um"
    return replace(params, **{name: reach_next_channel(getattr(params, name), locations_um) for name in names})


def _sort_traces(traces, filtered, params, folder, job_kwargs, clock):
    clusters = find_clusters(traces, params, folder, job_kwargs, clock)
    if clusters is None:
        return _find_nothing("no peak crosses detect_threshold", traces)
    save_clustering(folder, clusters.peaks, clusters.labels, clusters.posteriors, clusters.features, params)

    templates = estimate_templates(traces, clusters.peaks, clusters.labels, params, job_kwargs)
    if templates is None:
        return _find_nothing(f"none of {len(clusters.count_spikes())} clusters can be a unit", traces)
    clock.log("templates", f"{len(templates.unit_ids)} templates")

    duration_s = traces.get_total_duration()
    if params.assignment == "matching":
        sorting, templates, _, assignment = find_units(traces, clusters, templates, params, folder, job_kwargs, clock)
        if len(sorting.unit_ids) == 0:
            return _find_nothing("the spikes found confirm none of the templates", traces)
        neurons, spikes, posteriors = assignment.neurons, assignment.spikes, assignment.posteriors
        move_inside(spikes, traces)
        labels = np.where(assignment.is_true, neurons[spikes["unit_index"]], -1)
    else:
        sorting, posteriors = clusters.make_sorting(templates.unit_ids, traces.sampling_frequency)
        spikes, spikes_folder = sorting.to_spike_vector(), folder / "waveforms" / "spikes"
        neurons = link_clusters(traces, sorting, templates, clusters.neighborhoods, params, spikes_folder, job_kwargs)
        labels = neurons[spikes["unit_index"]]
    kept = keep_frequent_units(labels, duration_s, params) >= 0
    neuron_ids = sorting.unit_ids[neurons]
    sorting, posteriors = join_fragments(spikes[kept], posteriors[kept], neuron_ids, traces.sampling_frequency)
    clock.log("link", f"{len(templates.unit_ids)} units, {len(sorting.unit_ids)} neurons")
    if len(sorting.unit_ids) == 0:
        return _find_nothing("too few spikes are left of each unit for min_firing_rate", traces)

    templates = templates.select_units(sorting.unit_ids)
    main_channels = find_main_channels(templates, clusters.neighborhoods, params.peak_sign)
    around = clusters.neighborhoods.make_sparsity_mask()[main_channels]
    waveforms_folder = folder / "waveforms" / "aligned"
    sorting, posteriors = align_spikes(sorting, posteriors, filtered, around, params, waveforms_folder, job_kwargs)
    describe_units(sorting, templates, posteriors, main_channels)
    sorting, posteriors = keep_credible_units(sorting, posteriors)
    clock.log("finish", f"{len(sorting.unit_ids)} units, {len(posteriors)} spikes")
    return sorting, posteriors


def find_units(traces, clusters, templates, params, folder, job_kwargs, clock):
    """
    Match the templates, look again at the units found and for missed ones, and match again while some change.

    Units that turn out to be leftovers, or whose spikes are probably of others, may have taken spikes from these: they
    give them back.

    Returns
    -------
    sorting : NumpySorting
        Without units if nothing confirms any.
    templates : spikeinterface.core.Templates
        Of these units.
    residuals : Residuals | None
        Of the spikes of the last units; None if there were none.
    assignment : Assignment
    """
    peak_sign, neighborhoods = params.peak_sign, clusters.neighborhoods
    n_spikes = made_of = clusters.count_spikes()
    known, _ = clusters.make_sorting(templates.unit_ids, traces.sampling_frequency)
    changes = None
    for look in range(1 + MAX_REFINEMENTS):
        waveforms_folder = folder / "waveforms" / f"look_{look}"
        if changes is not NO_CHANGES:
            drift_folder = waveforms_folder / "drift"
            changes = find_drift(traces, known, templates, neighborhoods, peak_sign, drift_folder, job_kwargs)
        sorting, templates = match_units(traces, templates, changes, n_spikes, made_of, params, job_kwargs)
        clock.log("match", f"{len(sorting.to_spike_vector())} spikes of {len(sorting.unit_ids)} units")
        sorting, templates, residuals = place_spikes(
            traces, sorting, templates, neighborhoods, peak_sign, waveforms_folder, job_kwargs, changes
        )
        clock.log("place", f"{len(sorting.to_spike_vector())} spikes of {len(sorting.unit_ids)} units are no noise")
        if residuals is None or look == MAX_REFINEMENTS:
            break
        refined = refine_units(sorting, residuals, n_spikes, made_of, params.merge_threshold, params.seed)
        clock.log("refine", f"{len(refined.replaced)} units become {len(refined.n_spikes)}")
        if look == 0:  # later ones find what drift leaves of the units known
            missed = find_missed_units(
                traces, sorting, templates, changes, residuals, params, waveforms_folder, job_kwargs
            )
            clock.log("missed", f"{len(np.unique(missed[1]))} units were missed")
            refined = refined.add(*missed)
        if not refined.replaced and not refined.n_spikes:
            break
        n_spikes, made_of = n_spikes | refined.n_spikes, made_of | refined.made_of
        move_inside(refined.peaks, traces)
        new_templates = renew_templates(traces, sorting, templates, changes, refined, params, job_kwargs)
        if new_templates is None:
            break
        templates = new_templates
        known = refined.make_sorting(sorting, templates.unit_ids)
        shutil.rmtree(waveforms_folder, ignore_errors=True)
    follow = partial(
        follow_units,
        drifts=changes is not NO_CHANGES,
        params=params,
        folder=waveforms_folder / "followed",
        job_kwargs=job_kwargs,
        clock=clock,
    )
    *units, changes = follow(traces, sorting, templates, residuals, changes)
    assignment = assign_neurons(*units, traces, changes)
    sorting, templates, _ = units
    unit_indices = sorting.to_spike_vector()["unit_index"]
    has_stayed = assignment.spikes["unit_index"] == unit_indices  # what others gave it makes no unit true
    true_units = np.unique(unit_indices[assignment.is_true & has_stayed])
    if len(true_units) in (0, len(sorting.unit_ids)):
        return *units, assignment
    shutil.rmtree(waveforms_folder, ignore_errors=True)
    sorting, templates = keep_units(traces, sorting, templates, true_units, assignment.is_leftover, job_kwargs)
    clock.log("give back", f"{len(sorting.to_spike_vector())} spikes of the {len(true_units)} units that are neurons")
    placed = place_spikes(traces, sorting, templates, neighborhoods, peak_sign, waveforms_folder, job_kwargs, changes)
    *units, changes = follow(traces, *placed, NO_CHANGES)
    return *units, assign_neurons(*units, traces, changes)


def follow_units(traces, sorting, templates, residuals, known, *, drifts, params, folder, job_kwargs, clock):
    """
    Match again where the waveforms of units change slowly, and look for faint spikes: of weak units, and of bursts.

    The spikes found show better how waveforms change: where drift was not corrected this is done anew until they do not
    change any more. The files of the residuals go to `folder`, which is made.

    Parameters
    ----------
    known : Changes
        That the spikes of the sorting were found with.
    drifts : bool
        Whether many units change. Where they do not, what changes is not taken away, and once is enough: a weak unit
        would gather noise.

    Returns
    -------
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
    residuals : Residuals | None
        As they are, if none changes and none is weak; None if no spikes are left.
    changes : Changes
        That the spikes were found with, where many units change; else NO_CHANGES.
    """
    for turn in range(MAX_FOLLOWINGS if drifts else 1):
        if residuals is None:
            break
        changes = find_changes(sorting, residuals, split_time(traces))
        matched = match_changing_templates(traces, sorting, templates, changes, known, params, job_kwargs)
        is_same = matched is sorting
        if turn > 0 and is_same:
            break
        known, n_changed = changes, len(changes.find_units())
        templates = templates.select_units(matched.unit_ids)
        sorting = add_faint_spikes(traces, matched, templates, changes if drifts else NO_CHANGES, job_kwargs)
        n_faint = len(sorting.to_spike_vector()) - len(matched.to_spike_vector())
        if n_changed > 0 or n_faint > 0:
            place = residuals.neighborhoods, params.peak_sign, folder / f"turn_{turn}", job_kwargs
            sorting, templates, residuals = place_spikes(traces, sorting, templates, *place, changes, drifts)
        n_spikes = len(sorting.to_spike_vector())
        clock.log("follow", f"{n_changed} units change, {n_faint} faint spikes, {n_spikes} spikes")
        if is_same:
            break
    return sorting, templates, residuals, known if drifts else NO_CHANGES


def match_units(traces, templates, changes, n_spikes, made_of, params, job_kwargs):
    """
    The units of which matching finds spikes, and that these confirm.

    Those that are not may have lost their spikes to one that found noise: they are matched again without it.

    Returns
    -------
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of its units.
    """
    templates = remove_redundant_templates(templates, n_spikes, traces.get_total_duration())
    for _ in range(MAX_MATCHINGS):
        found = match_templates(traces, templates, params, job_kwargs)
        found = match_changing_templates(
            traces, found, templates.select_units(found.unit_ids), changes, NO_CHANGES, params, job_kwargs
        )
        lasting = keep_lasting_units(traces, found, templates, n_spikes, made_of, job_kwargs)
        sorting = keep_confirmed_units(lasting, templates, made_of)
        if len(sorting.unit_ids) == len(lasting.unit_ids) or len(lasting.unit_ids) == len(found.unit_ids):
            break
        is_taken_out = np.isin(templates.unit_ids, np.setdiff1d(found.unit_ids, lasting.unit_ids))
        templates = templates.select_units(templates.unit_ids[~is_taken_out])
    return sorting, templates.select_units(sorting.unit_ids)


class Assignment(NamedTuple):
    """What the spikes of a sorting are, in the order of its spike vector."""

    neurons: np.ndarray
    """int64 (n_units,): see `linking.link_fragments`."""
    spikes: np.ndarray
    """structured (n_spikes,): see `confidence.assign_spikes`."""
    posteriors: np.ndarray
    """float32 (n_spikes,): probability that each belongs to the unit it has now."""
    is_true: np.ndarray
    """bool (n_spikes,): neither a leftover, nor twice in its neuron, nor of a neuron whose spikes are of others."""
    is_leftover: np.ndarray
    """bool (n_spikes,): of a larger spike."""


def assign_neurons(sorting, templates, residuals, traces, changes=NO_CHANGES):
    """
    Link the fragments of neurons, give spikes to the units that they most probably are of, and leave out what is none.

    Parameters are those of `find_neurons`.

    Returns
    -------
    assignment : Assignment
    """
    neurons, shares, is_true = find_neurons(sorting, templates, residuals, traces, changes)
    if residuals is None:
        return Assignment(neurons, sorting.to_spike_vector(), shares, is_true, ~is_true)
    spikes, posteriors, is_repeated = assign_spikes(sorting, residuals, neurons, shares, traces.get_total_duration())
    labels = np.where(is_true & ~is_repeated, neurons[spikes["unit_index"]], -1)
    is_certain = keep_certain_units(labels, posteriors) >= 0
    return Assignment(neurons, spikes, posteriors, is_certain, is_leftover(shares))


def find_neurons(sorting, templates, residuals, traces, changes=NO_CHANGES):
    """
    The units that are fragments of one neuron, and the spikes that are none but what larger ones left over.

    The fragments of a larger neuron together leave over more than chance has it, and leftovers hide that fragments take
    turns: units are linked, leftovers found, and what is none linked again.

    Parameters
    ----------
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of its units.
    residuals : Residuals | None
        Of its spikes; None if there are none.
    traces : BaseRecording
    changes : Changes, default: NO_CHANGES
        Of the waveforms, if drift was not corrected.

    Returns
    -------
    neurons : np.ndarray, int64, shape (n_units,)
        See `linking.link_fragments`.
    shares : np.ndarray, float32, shape (n_spikes,)
        Probability that each spike is no leftover.
    is_true : np.ndarray, bool, shape (n_spikes,)
        See `leftovers.find_true_spikes`.
    """
    if residuals is None:
        return np.zeros(0, dtype="int64"), np.zeros(0, dtype="float32"), np.zeros(0, dtype=bool)
    steadiness = measure_steadiness(sorting, residuals, traces)
    norms, neurons = residuals.measure_norms(), link(sorting, templates, traces, steadiness, changes=changes)
    shares, shares_of_unit = find_true_shares(sorting, norms, neurons, (MAX_DELAY_MS, MAX_DELAY_OF_UNIT_MS))
    is_true = find_true_spikes(sorting, shares, shares_of_unit, find_echoes(sorting, norms, neurons))
    true_spikes = sorting.to_spike_vector()[is_true]
    without_leftovers = NumpySorting(true_spikes, sorting.sampling_frequency, sorting.unit_ids)
    doubtful = find_doubtful_units(residuals, sorting, is_true)
    return link(without_leftovers, templates, traces, steadiness, doubtful, changes), shares, is_true


def link_clusters(traces, sorting, templates, neighborhoods, params, folder, job_kwargs):
    """`link` for clusters as they are; files go to `folder`, which is made."""
    residuals = extract_residuals(traces, sorting, templates, neighborhoods, params.peak_sign, folder, job_kwargs)
    return link(sorting, templates, traces, measure_steadiness(sorting, residuals, traces))


def link(sorting, templates, traces, steadiness=None, doubtful=(), changes=NO_CHANGES):
    """`linking.link_fragments` with what is known of the traces: how long their segments are, and how they moved."""
    displacement_um = traces.get_annotation(DISPLACEMENT, copy=False)
    durations_s = list_durations(traces)
    return link_fragments(sorting, templates, durations_s, displacement_um, steadiness, doubtful, changes)


def measure_steadiness(sorting, residuals, traces):
    """`Steadiness` with what is known of the traces."""
    return Steadiness(sorting, residuals, concatenate_times(sorting, list_durations(traces)))


def list_durations(traces):
    """Of all segments in s."""
    return [size / traces.sampling_frequency for size in list_segment_sizes(traces)]


@dataclass
class Clusters:
    """The spikes that were clustered, row by row."""

    peaks: np.ndarray
    """structured (n_peaks,)."""
    waveforms: np.ndarray
    """float16 (n_peaks, n_neighbors, n_samples): memory-mapped."""
    features: np.ndarray
    """float32 (n_peaks, n_dims)."""
    labels: np.ndarray
    """int64 (n_peaks,): -1 where a peak has no cluster."""
    posteriors: np.ndarray
    """float32 (n_peaks,)."""
    neighborhoods: Neighborhoods
    weights: np.ndarray
    """float (n_peaks,): detected spikes that each stands for."""

    def count_spikes(self):
        """Number of detected spikes of each cluster, made good for the selection: dict of label -> float."""
        counts = np.bincount(self.labels + 1, weights=self.weights)[1:]
        return {label: float(counts[label]) for label in np.unique(self.labels[self.labels >= 0]).tolist()}

    def make_sorting(self, unit_ids, sampling_frequency):
        """
        The clusters `unit_ids` as they are.

        Returns
        -------
        sorting : NumpySorting
        posteriors : np.ndarray, float32, shape (n_spikes,)
            In the order of `sorting.to_spike_vector()`.
        """
        kept = np.isin(self.labels, unit_ids)
        peaks = self.peaks[kept]
        sorting, order = make_sorting(
            peaks["sample_index"], self.labels[kept], peaks["segment_index"], sampling_frequency
        )
        return sorting, self.posteriors[kept][order]


def find_clusters(traces, params, folder, job_kwargs, clock):
    """
    Detect, extract, embed, cluster and merge.

    Returns
    -------
    clusters : Clusters | None
        None without any peak.
    """
    all_peaks = detect_spikes(traces, params, job_kwargs)
    peaks = select_spikes(all_peaks, params) if params.assignment == "matching" else all_peaks
    clock.log("detect", f"{len(all_peaks)} peaks, {len(peaks)} kept for clustering")
    if len(peaks) == 0:
        return None
    weights = weigh_peaks(peaks, all_peaks)

    neighborhoods = Neighborhoods(traces.get_channel_locations()[:, :2], params.neighborhood_radius_um)
    waveforms = extract_for_features(traces, peaks, neighborhoods, params, folder / "waveforms" / "peaks", job_kwargs)
    clock.log("extract", f"{waveforms.shape[1]} channels a spike")

    features = compute_features(waveforms, peaks["channel_index"], neighborhoods, params)
    clock.log("embed", f"{features.shape[1]} numbers a spike")

    labels, posteriors = cluster_spikes(
        features, peaks["channel_index"], params.max_components_per_channel, params.seed
    )
    clock.log("cluster", f"{labels.max() + 1} clusters")

    labels, peaks = merge_clusters(
        waveforms,
        peaks,
        labels,
        neighborhoods,
        params.merge_threshold,
        traces.sampling_frequency,
        params.seed,
    )
    move_inside(peaks, traces)
    labels = keep_frequent_units(labels, traces.get_total_duration(), params, weights)
    clock.log("merge", f"{len(np.unique(labels[labels >= 0]))} clusters")
    return Clusters(peaks, waveforms, features, labels, posteriors, neighborhoods, weights)


def _find_nothing(reason, traces):
    logger.warning("no units: %s", reason)
    sorting = NumpySorting(np.zeros(0, minimum_spike_dtype), traces.sampling_frequency, np.zeros(0, "int64"))
    return sorting, np.zeros(0, dtype="float32")


class Clock:
    """Logs one line a stage, and keeps the seconds each took."""

    def __init__(self):
        self.seconds = {}
        self.last = time.perf_counter()

    def log(self, stage, text):
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 2)
        logger.info("%-10s %6.1f s  %s", stage, now - self.last, text)
        self.last = now
