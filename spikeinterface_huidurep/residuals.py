"""
What is left around every spike when the templates of all spikes are taken away from the traces.

It shows to the sample where a spike is, and whether it is one: what is left and the template together, seen through
the filter that tells the template best from noise, are as large as the template. Matching looks through the template
itself, as for white noise, so that it finds more noise that is like a weak template than the filter lets pass.
"""

import shutil
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from spikeinterface.core import NumpySorting, ms_to_samples
from spikeinterface.core.base import base_peak_dtype
from spikeinterface.core.generate import InjectTemplatesRecording
from spikeinterface.core.node_pipeline import ExtractSparseWaveforms, PeakRetriever
from spikeinterface.core.template_tools import get_template_amplitudes

from spikeinterface_huidurep.changes import NO_CHANGES, Change
from spikeinterface_huidurep.matching import make_sorting, move_inside
from spikeinterface_huidurep.merging import MAX_LAG, find_centres, shift_waveforms
from spikeinterface_huidurep.motion import DISPLACEMENT
from spikeinterface_huidurep.noise import Noise
from spikeinterface_huidurep.restlessness import is_of_restlessness, measure_restlessness
from spikeinterface_huidurep.trains import find_times, has_refractory_period
from spikeinterface_huidurep.waveforms import Neighborhoods, run_into_file

MS_BEFORE, MS_AFTER = 0.8, 1.3
PLACES = np.array([-1, 0, 1])  # samples from where matching put a spike
NOISE_SIZE = 4.5  # noise SD; in minutes noise is hardly ever as much like a template
MAX_DEFICIT = 2.0  # noise SD; hardly any spike is smaller than its template by more
MIN_MEDIAN_SIZE = 5.25  # SD of noise at their times; of the spikes of a unit that are larger; of noise it is less
MIN_SHARE_AROUND = 0.5  # of the energy that the best neighbourhood has, around the main channel of a template
MIN_NORM = 1e-6  # of two waveforms that are the same there is no difference to filter by
BLOCK_SIZE = 10_000  # spikes read at a time
N_SHAPES = 5  # templates are made of, but for 2 % of their energy
MIN_WAVEFORMS = 20  # of a template on a channel each; fewer do not tell what shapes there are


@dataclass
class Residuals:
    """Residuals of the spikes of a sorting, each on the neighbours of its unit's main channel."""

    values: np.ndarray
    """float32 (n_spikes, n_samples, n_neighbors): memory-mapped; in the order of `sorting.to_spike_vector()`."""
    waveforms: np.ndarray
    """float32 (n_units, n_samples_of_template, n_channels): templates, longer than the window by any lag."""
    window: slice
    """The samples of `waveforms` that `values` are of."""
    n_template_samples: int
    """Samples of the templates themselves."""
    main_channels: np.ndarray
    """int (n_units,)."""
    neighborhoods: Neighborhoods
    noise: Noise
    """What is left at any time."""
    blocks: np.ndarray | None = None
    """int64 (n_spikes,): of the changes; None if there is none."""
    changes: dict = field(default_factory=dict)
    """Of unit index -> float32 (n_blocks, n_channels, n_samples): what was taken away beside its template."""

    def measure_norms(self):
        """Norms of the templates, shape (n_units,) in noise SD."""
        return np.sqrt(np.sum(self.waveforms**2, axis=(1, 2)))

    def find_shapes(self):
        """Shapes in time that templates are made of, orthonormal, float32 (N_SHAPES, n_samples); None of too few."""
        templates = self.waveforms[:, self.window]
        norms = np.linalg.norm(templates, axis=(1, 2), keepdims=True)
        waveforms = (templates / np.maximum(norms, MIN_NORM)).transpose(0, 2, 1)
        waveforms = waveforms[np.any(waveforms != 0, axis=2)]
        if len(waveforms) < MIN_WAVEFORMS:
            return None
        return np.linalg.svd(waveforms, full_matrices=False)[2][:N_SHAPES]

    def is_drift_corrected(self):
        """Whether the spikes are from traces that were interpolated, as the probe moved."""
        return self.noise.traces.get_annotation(DISPLACEMENT, copy=False) is not None

    def locate_templates(self):
        """Centres of mass of the squared peak-to-peak amplitudes of the templates, shape (n_units, 2) in um."""
        return find_centres(self.waveforms, self.neighborhoods.locations_um)

    def find_channels(self, unit_index):
        """Channels of the residuals of a unit, in their order."""
        return self.neighborhoods.find_neighbors(self.main_channels[unit_index])

    def read(self, spike_indices, unit_index, has_followed=False):
        """Residuals of spikes of one unit, float32 (n, n_channels, n_samples); without its changes if followed."""
        left = read_waveforms(self.values, spike_indices, len(self.find_channels(unit_index)))
        if has_followed or unit_index not in self.changes:
            return left
        return left + self.changes[unit_index][self.blocks[spike_indices]]

    def get_template(self, unit_index, block=None):
        """`get_waveform` of a unit where its residuals are: float32 (n_channels, n_samples), as `read` has them."""
        return self.get_waveform(unit_index, self.find_channels(unit_index), block)[:, self.window]

    def apply(self, function, spike_indices, unit_index, has_followed=False):
        """
        Function of the residuals of spikes of one unit, one block of spikes after the other to spare memory.

        Parameters
        ----------
        function : Callable
            Takes what `read` returns, shape (n, n_channels, n_samples), and returns an array of n rows.
        spike_indices : np.ndarray, int64, shape (n_spikes,)
        unit_index : int
        has_followed : bool, default: False
            As for `read`.

        Returns
        -------
        values : np.ndarray, shape (n_spikes, ...)
        """
        blocks = np.split(spike_indices, range(BLOCK_SIZE, len(spike_indices), BLOCK_SIZE))
        return np.concatenate([function(self.read(block, unit_index, has_followed)) for block in blocks])

    def get_waveform(self, unit_index, channels, block=None):
        """Template of a unit on some channels, in a block if given: float32 (n_channels, n_samples_of_template)."""
        waveform = self.waveforms[unit_index][:, channels].T
        if block is None or unit_index not in self.changes:
            return waveform
        changed = waveform.copy()
        Change(self.find_channels(unit_index), self.changes[unit_index][block]).add_to(
            changed, channels, self.window.start
        )
        return changed

    def divide(self, spike_indices, unit_indices):
        """
        Spikes in whose time the waveforms of some units are the same.

        Parameters
        ----------
        spike_indices : np.ndarray, int64, shape (n_spikes,)
        unit_indices : iterable of int

        Returns
        -------
        parts : list of (np.ndarray, int | None)
            Which of the spikes, int64 (n,), and their block; None if none of the units changes.
        """
        if not self.changes.keys() & set(unit_indices):
            return [(np.arange(len(spike_indices)), None)]
        blocks = self.blocks[spike_indices]
        return [(np.flatnonzero(blocks == block), block) for block in np.unique(blocks).tolist()]


def extract_residuals(
    traces, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs, changes=NO_CHANGES, noise=None
):
    """
    Take all templates away and cut out what is left around every spike.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of the units of the sorting.
    neighborhoods : Neighborhoods
    peak_sign : "neg" | "pos" | "both"
    folder : Path
        For the file of the residuals; removed by the caller.
    job_kwargs : dict
    changes : Changes, default: NO_CHANGES
        Of the waveforms taken away.
    noise : Noise | None, default: None
        Measured in what is left if it is not known.

    Returns
    -------
    residuals : Residuals
    """
    explained = take_away(traces, sorting, templates, changes)
    residuals = _cut_out_spikes(explained, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs)
    channels = [residuals.find_channels(index) for index in range(len(sorting.unit_ids))]
    of_units = collect_changes(changes, sorting.unit_ids, channels)
    blocks = changes.find_blocks(sorting.to_spike_vector())
    return replace(residuals, noise=noise or residuals.noise, blocks=blocks, changes=of_units)


def extract_deviations(traces, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs):
    """`extract_residuals` where other spikes are not known: only the template of each is taken away from it."""
    deviations = _cut_out_spikes(traces, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs)
    minus_own = {index: -deviations.get_template(index)[None] for index in range(len(sorting.unit_ids))}
    return replace(deviations, blocks=np.zeros(len(deviations.values), dtype="int64"), changes=minus_own)


def _cut_out_spikes(traces, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs):
    """`Residuals` of traces as they are."""
    main_channels = find_main_channels(templates, neighborhoods, peak_sign)
    spikes = sorting.to_spike_vector()
    peaks = np.zeros(len(spikes), dtype=base_peak_dtype)
    peaks["sample_index"], peaks["segment_index"] = spikes["sample_index"], spikes["segment_index"]
    peaks["channel_index"] = main_channels[spikes["unit_index"]]
    return Residuals(
        cut_out(traces, peaks, neighborhoods, folder, job_kwargs),
        *pad_templates(templates),
        templates.num_samples,
        main_channels,
        neighborhoods,
        Noise(traces),
    )


def collect_changes(changes, unit_ids, channels_of_units):
    """
    The changes of each unit on its channels, 0 where there is none.

    Parameters
    ----------
    changes : Changes
    unit_ids : np.ndarray, shape (n_units,)
    channels_of_units : list of np.ndarray, int, shape (n_channels,)

    Returns
    -------
    of_units : dict of int -> np.ndarray, float32, shape (n_blocks, n_channels, n_samples)
        Of the indices of the units that change.
    """
    of_units = {}
    for unit_index, (unit_id, channels) in enumerate(zip(unit_ids.tolist(), channels_of_units, strict=True)):
        for block, of_block in enumerate(changes.of_block):
            if unit_id in of_block:
                change = of_block[unit_id]
                shape = len(changes.blocks), len(channels), change.waveform.shape[1]
                change.add_to(of_units.setdefault(unit_index, np.zeros(shape, dtype="float32"))[block], channels, 0)
    return of_units


def take_away(traces, sorting, templates, changes=NO_CHANGES):
    """The traces without the templates of all spikes, as they are at the time; a recording that reads as traces do."""
    sorting, waveforms = list_waveforms(sorting, templates, changes)
    return InjectTemplatesRecording(
        sorting,
        waveforms,
        nbefore=templates.nbefore,
        amplitude_factor=-1.0,
        parent_recording=traces.select_segments(range(sorting.get_num_segments())),  # later ones have no spike
    )


def list_waveforms(sorting, templates, changes):
    """
    All waveforms that there are, each template and each change of it, and the spikes of each.

    Parameters
    ----------
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of its units, in their order.
    changes : Changes

    Returns
    -------
    sorting : NumpySorting
        Units are the waveforms.
    waveforms : np.ndarray, float32, shape (n_waveforms, n_samples, n_channels)
    """
    waveforms = templates.get_dense_templates().astype("float32")
    if not changes.find_units():
        return sorting, waveforms
    old_spikes, waveforms = sorting.to_spike_vector(), list(waveforms)
    spikes, blocks = old_spikes.copy(), changes.find_blocks(old_spikes)
    unit_ids = sorting.unit_ids.tolist()
    for block, of_block in enumerate(changes.of_block):
        changed = change_templates(templates, of_block).get_dense_templates()
        for unit_index in np.unique(old_spikes["unit_index"][blocks == block]).tolist():
            if unit_ids[unit_index] in of_block:
                rows = (old_spikes["unit_index"] == unit_index) & (blocks == block)
                spikes["unit_index"][rows] = len(waveforms)
                waveforms.append(changed[unit_index])
    return NumpySorting(spikes, sorting.sampling_frequency, np.arange(len(waveforms))), np.stack(waveforms)


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
    for unit_id in changes.keys() & indices.keys():
        change = changes[unit_id]
        own_channels = np.flatnonzero(templates.sparsity_mask[indices[unit_id]])
        change.add_to(array[indices[unit_id]].T, own_channels, start)
    return replace(templates, templates_array=array)


def cut_out(traces, peaks, neighborhoods, folder, job_kwargs):
    """
    Cut the window of residuals out of traces.

    Parameters
    ----------
    traces : BaseRecording
    peaks : np.ndarray, structured, shape (n_peaks,)
    neighborhoods : Neighborhoods
    folder : Path
        For the file; removed by the caller.
    job_kwargs : dict

    Returns
    -------
    values : np.ndarray, float32, shape (n_peaks, n_samples, n_neighbors)
        Memory-mapped. On the neighbours of the channel of each peak, as `Neighborhoods.find_neighbors` gives them.
    """
    retriever = PeakRetriever(traces, peaks)
    n_before, n_after = count_samples(traces.sampling_frequency)
    node = ExtractSparseWaveforms(
        traces,
        nbefore=n_before,
        nafter=n_after,
        parents=[retriever],
        return_output=True,
        sparsity_mask=neighborhoods.make_sparsity_mask(),
    )
    return run_into_file(traces, [retriever, node], "residuals", folder, job_kwargs)


def read_waveforms(values, rows, n_channels):
    """Rows of what `cut_out` returns, on the first channels of a neighbourhood: float32 (n, n_channels, n_samples)."""
    return values[rows][:, :, :n_channels].transpose(0, 2, 1)


def place_spikes(
    traces, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs, changes=NO_CHANGES, takes_changes=True
):
    """
    Move spikes by a sample where their template fits better there, leave out noise, and take all templates away.

    Matching with templates that lie between the samples leaves the times of a fifth of the spikes a sample off. To a
    large spike this is more than noise.

    Parameters
    ----------
    traces, sorting, templates, neighborhoods, peak_sign, folder, job_kwargs
        As for `extract_residuals`.
    changes : Changes, default: NO_CHANGES
        Of the waveforms that the spikes are compared with.
    takes_changes : bool, default: True
        Whether the waveforms that are taken away change, too. The more they fit, the less noise is left, and the more
        of it looks like spikes: only where templates alone leave more than noise.

    Returns
    -------
    sorting : NumpySorting
        Without the units that are noise.
    templates : spikeinterface.core.Templates
        Of its units.
    residuals : Residuals | None
        Of its spikes; None if there are none.
    """
    if len(sorting.unit_ids) == 0:
        return sorting, templates, None
    taken = changes if takes_changes else NO_CHANGES
    residuals = extract_residuals(
        traces, sorting, templates, neighborhoods, peak_sign, folder / "found", job_kwargs, taken
    )
    spikes = sorting.to_spike_vector().copy()
    kept = np.zeros(len(spikes), dtype=bool)
    for unit_index, unit_id in enumerate(sorting.unit_ids.tolist()):
        parts = changes.divide(spikes, np.flatnonzero(spikes["unit_index"] == unit_index), unit_id)
        members, places, is_spike = judge_spikes(residuals, spikes, parts, unit_index)
        spikes["sample_index"][members] += places
        kept[members] = is_spike
    move_inside(spikes, traces)
    shutil.rmtree(folder / "found")
    spikes = spikes[kept]
    labels = sorting.unit_ids[spikes["unit_index"]]
    placed, _ = make_sorting(spikes["sample_index"], labels, spikes["segment_index"], sorting.sampling_frequency)
    templates = templates.select_units(placed.unit_ids)
    if len(spikes) == 0:
        return placed, templates, None
    noise = residuals.noise
    residuals = extract_residuals(
        traces, placed, templates, neighborhoods, peak_sign, folder / "placed", job_kwargs, taken, noise
    )
    return placed, templates, residuals


def judge_spikes(residuals, spikes, parts, unit_index):
    """
    Where the spikes of a unit are, and whether they are spikes.

    Parameters
    ----------
    residuals : Residuals
    spikes : np.ndarray, structured, shape (n_all_spikes,)
        Of all units.
    parts : list of (np.ndarray, Change | None)
        Rows of the spikes of the unit, see `Changes.divide`.
    unit_index : int

    Returns
    -------
    members : np.ndarray, int64, shape (n_spikes,)
        Rows of the spikes, the parts one after the other.
    places : np.ndarray, int64, shape (n_spikes,)
        Samples from where each spike is to where its waveform fits it best.
    is_spike : np.ndarray, bool, shape (n_spikes,)
        Whether it is too large to be noise there.
    """
    channels = residuals.find_channels(unit_index)
    measured = [_measure_spikes(residuals, rows, unit_index, change) for rows, change in parts]
    places, sizes, is_spike = (np.concatenate(values) for values in zip(*measured, strict=True))
    members = np.concatenate([rows for rows, _ in parts])
    times = spikes["sample_index"][members], spikes["segment_index"][members]
    noise = residuals.noise.measure_levels(*times, channels)
    waveform = residuals.get_waveform(unit_index, slice(None))
    restlessness = measure_restlessness(residuals.noise.traces, *times, waveform)
    is_spike &= (restlessness == 1) | (sizes >= NOISE_SIZE * restlessness)
    if np.any(is_spike):
        is_large = np.median((sizes / noise)[is_spike]) >= MIN_MEDIAN_SIZE
        is_neuron = is_large or _have_refractory_period(residuals, spikes[members[is_spike]])
        is_spike &= is_neuron and not is_of_restlessness(residuals.noise.traces, restlessness[is_spike])
    return members, places, is_spike


def _have_refractory_period(residuals, spikes):
    return has_refractory_period(np.sort(find_times(spikes, residuals.noise.traces.sampling_frequency)))


def _measure_spikes(residuals, rows, unit_index, change):
    """Of spikes with one waveform: where they are, their size in noise SD there, and whether it is large enough."""
    channels = residuals.find_channels(unit_index)
    template = residuals.get_waveform(unit_index, channels)
    waveform = template.copy()
    if change is not None:
        change.add_to(waveform, channels, residuals.window.start)
    moved = move_waveform(waveform, PLACES)[:, :, residuals.window]
    filters, norms = make_filters(moved, residuals.noise.make_whitener(channels, moved.shape[2]))
    others = np.concatenate([moved, filters])
    products = residuals.apply(partial(multiply, others=others), rows, unit_index)
    products, sizes = np.split(products + multiply(template[None, :, residuals.window], others), 2, axis=1)
    chosen = choose_lags(products, moved)
    sizes = sizes[np.arange(len(rows)), chosen]
    return PLACES[chosen], sizes, sizes >= np.minimum(NOISE_SIZE, norms - MAX_DEFICIT)[chosen]


def make_filters(waveforms, whitener):
    """
    Filters that tell waveforms best from noise (matched filters).

    Parameters
    ----------
    waveforms : np.ndarray, float32, shape (n, n_channels, n_samples)
    whitener : np.ndarray, float32, shape (n_channels * n_samples, n_channels * n_samples)
        See `noise.Noise.make_whitener`.

    Returns
    -------
    filters : np.ndarray, float32, shape (n, n_channels, n_samples)
        Noise multiplied by them has an SD of 1.
    norms : np.ndarray, float32, shape (n,)
        What they make of the waveforms.
    """
    whitened = waveforms.reshape(len(waveforms), -1) @ whitener
    norms = np.maximum(np.linalg.norm(whitened, axis=1), MIN_NORM)
    return (whitened @ whitener.T / norms[:, None]).reshape(waveforms.shape), norms


def move_waveform(waveform, lags):
    """A waveform (n_channels, n_samples) later by each of the lags in samples: (n_lags, n_channels, n_samples)."""
    return np.stack([shift_waveforms(waveform, -lag) for lag in lags])


def choose_lags(products, moved):
    """
    The lag at which a waveform fits each spike best, in white noise.

    Parameters
    ----------
    products : np.ndarray, float, shape (n_spikes, n_lags)
        Inner products of spikes and moved waveforms.
    moved : np.ndarray, float, shape (n_lags, n_channels, n_samples)
        Of `move_waveform`.

    Returns
    -------
    chosen : np.ndarray, int64, shape (n_spikes,)
        Indices of lags.
    """
    return np.argmax(products - 0.5 * np.sum(moved**2, axis=(1, 2)), axis=1)


def multiply(waveforms, others):
    """Inner products of two arrays (n, n_channels, n_samples) and (m, n_channels, n_samples): shape (n, m)."""
    return np.tensordot(waveforms, others, axes=([1, 2], [1, 2]))


def pad_templates(templates):
    """
    Dense templates long enough for the window of the residuals and any lag.

    Returns
    -------
    waveforms : np.ndarray, float32, shape (n_units, n_samples, n_channels)
        0 beyond the ends of the templates.
    window : slice
        The samples of the window.
    """
    n_before, n_after = count_samples(templates.sampling_frequency)
    pad_before = max(0, n_before + MAX_LAG - templates.nbefore)
    pad_after = max(0, n_after + MAX_LAG - templates.nafter)
    dense = templates.get_dense_templates().astype("float32")
    peak = pad_before + templates.nbefore
    return np.pad(dense, ((0, 0), (pad_before, pad_after), (0, 0))), slice(peak - n_before, peak + n_after)


def count_samples(sampling_frequency):
    """Samples of the window before and after the peak."""
    return tuple(ms_to_samples(ms, sampling_frequency) for ms in (MS_BEFORE, MS_AFTER))


def find_main_channels(templates, neighborhoods, peak_sign):
    """
    Index of the channel with the largest extremum of each template, of those that have most of it around them.

    A template that is small on each of many channels may have its extremum away from all others.

    Parameters
    ----------
    templates : spikeinterface.core.Templates
    neighborhoods : Neighborhoods
    peak_sign : "neg" | "pos" | "both"

    Returns
    -------
    main_channels : np.ndarray, int64, shape (n_units,)
    """
    amplitudes = np.stack(list(get_template_amplitudes(templates, peak_sign, "extremum").values()))
    energies_around = np.sum(templates.get_dense_templates() ** 2, axis=1) @ neighborhoods.make_sparsity_mask().T
    has_most = energies_around >= MIN_SHARE_AROUND * energies_around.max(axis=1, keepdims=True)
    return np.where(has_most, amplitudes, -1).argmax(axis=1)
