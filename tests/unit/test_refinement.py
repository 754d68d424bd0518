"""Refinement: two neurons in one unit are told apart, one neuron in two units is put together, templates mended."""

from dataclasses import replace

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep import joining, refinement
from spikeinterface_huidurep.clustering import MIN_SPIKES
from spikeinterface_huidurep.motion import DISPLACEMENT
from spikeinterface_huidurep.refinement import (
    MIN_EXCESS,
    MIN_SHARPENING,
    align_unit,
    find_larger_spikes,
    refine_units,
)
from spikeinterface_huidurep.residuals import Residuals, extract_residuals
from spikeinterface_huidurep.waveforms import Neighborhoods

from .test_joining import PAD, SHAPE, long_pulse, make_residuals
from .test_results import JOB_KWARGS, SAMPLING_FREQUENCY, make_sorting, make_templates
from .test_splitting import N_SAMPLES, OTHER_SIZES, SIZES, THRESHOLD, pulse

# --- templates ---


@pytest.mark.parametrize("share_late", [0.0, 0.3])
def test_a_template_of_spikes_that_are_not_aligned_is_made_anew(share_late):
    """A third of the spikes lie two samples later than the others; the template is the mean of all."""
    late = np.arange(100) < 100 * share_late
    moved = np.where(late[:, None, None], SIZES * long_pulse(2), SIZES * long_pulse())
    residuals, (rows,) = make_residuals([moved.mean(axis=0)], [1])
    residuals.values[:] += (moved - moved.mean(axis=0))[:, :, residuals.window].transpose(0, 2, 1)
    lags, gain = align_unit(residuals, rows, 0, n_made_of=1000)
    assert (gain > MIN_SHARPENING) == (share_late > 0)
    if share_late > 0:
        assert np.mean(lags[late] - np.median(lags[~late]) == 2) > 0.95


def test_a_template_stays_if_most_of_its_spikes_lose():
    """40 of 100 spikes lie on what a larger neuron leaves, so that the mean of all fits these better than its own."""
    residuals, (rows,) = make_residuals([SHAPE], [1])
    residuals.values[:40] += 3 * SHAPE[[3, 2, 1, 0]][:, residuals.window].T
    assert align_unit(residuals, rows, 0, n_made_of=1000)[1] == 0
    residuals.values[40:80] += 3 * SHAPE[[3, 2, 1, 0]][:, residuals.window].T
    assert align_unit(residuals, rows, 0, n_made_of=1000)[1] > MIN_SHARPENING


@pytest.mark.parametrize("n_made_of", [100, 1000])
def test_a_template_that_is_noisy_as_chance_has_it_stays(n_made_of):
    noise = np.random.default_rng(1).normal(size=(N_SAMPLES + 2 * PAD,)) / np.sqrt(n_made_of)
    residuals, (rows,) = make_residuals([SIZES * long_pulse() + noise], [1])
    residuals.values[:] -= np.tile(noise[residuals.window][:, None], residuals.values.shape[2])
    assert align_unit(residuals, rows, 0, n_made_of)[1] < MIN_SHARPENING


def test_a_template_that_is_wrong_is_made_anew():
    residuals, (rows,) = make_residuals([0.6 * SHAPE], [1])
    residuals.values[:] += 0.4 * SHAPE[:, residuals.window].T
    lags, gain = align_unit(residuals, rows, 0, n_made_of=1000)
    assert gain == pytest.approx(0.5 * np.sum((0.4 * SHAPE) ** 2), rel=0.2)
    assert not lags.any()


# --- units ---

N_CHANNELS, LAG, SPACING = 10, 3, 150
MIXED, CLEAN, FIRST_HALF, SECOND_HALF = UNIT_IDS = [10, 20, 31, 42]


def place(sizes, channel, delay=0, width=5.0):
    """Waveform, shape (110, N_CHANNELS), of a neuron from this channel on."""
    shape = np.zeros((110, N_CHANNELS))
    shape[:, channel : channel + len(sizes)] = (sizes * pulse(delay, width, n_before=45, n_samples=110)).T
    return shape


NEURONS = np.stack(
    [place(SIZES, 0), place(OTHER_SIZES, 0, width=6.0), place(OTHER_SIZES, 3, width=8.0), place(1.3 * SIZES, 6)]
)
NEURON_COUNTS = [160, 140, 100, 300]


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    """
    (sorting, residuals, neurons): what matching found in two segments with a wrong idea of the units.

    Neurons 0 and 1 are in unit MIXED, neuron 2 is unit CLEAN, and of neuron 3 every third spike is in SECOND_HALF,
    whose template lies LAG samples earlier: its spikes are as many samples late.
    """
    rng = np.random.default_rng(0)
    neurons = rng.permutation(np.repeat(np.arange(4), NEURON_COUNTS))
    segments = np.repeat([0, 1], [400, 300])
    samples = 100 + SPACING * np.r_[np.arange(400), np.arange(300)]
    traces = [rng.normal(size=(SPACING * size + 200, N_CHANNELS)) for size in (400, 300)]
    for segment, sample, neuron in zip(segments, samples, neurons, strict=True):
        traces[segment][sample - 45 : sample + 65] += NEURONS[neuron]
    units = np.array([0, 0, 1, 2])[neurons]
    units[np.flatnonzero(units == 2)[::3]] = 3
    sorting = make_sorting(samples + np.where(units == 3, LAG, 0), units, segments, unit_ids=np.array(UNIT_IDS))
    shapes = np.stack([NEURONS[:2].mean(axis=0), NEURONS[2], NEURONS[3], place(1.3 * SIZES, 6, delay=-LAG)])
    templates = make_templates(shapes, nbefore=45, unit_ids=UNIT_IDS)
    traces = [segment.astype("float32") for segment in traces]
    recording = NumpyRecording(traces, SAMPLING_FREQUENCY, channel_ids=templates.channel_ids)
    recording.set_probe(templates.probe)
    neighborhoods = Neighborhoods(recording.get_channel_locations(), 60.0)
    folder = tmp_path_factory.mktemp("refinement") / "spikes"
    return sorting, extract_residuals(recording, sorting, templates, neighborhoods, "neg", folder, JOB_KWARGS), neurons


def refine(sorting, residuals, threshold=THRESHOLD, **made_of):
    """`refine_units` where units had, and were made of, as many spikes as they found, or a share of them."""
    found = sorting.count_num_spikes_per_unit(outputs="dict")
    n_spikes = {unit_id: count * made_of.get(f"unit_{unit_id}", 1.0) for unit_id, count in found.items()}
    return refine_units(sorting, residuals, n_spikes, n_spikes, threshold, seed=0)


def list_spikes(spikes):
    return list(zip(spikes["segment_index"].tolist(), spikes["sample_index"].tolist(), strict=True))


def test_units_are_split_and_joined(matched):
    sorting, residuals, neurons = matched
    refined = refine(sorting, residuals)
    assert refined.replaced == [MIXED, FIRST_HALF, SECOND_HALF]
    assert sorted(set(refined.labels)) == sorted(refined.n_spikes) == [43, 44, 45]
    # at 100, 250, 400, ... in each segment
    wanted = {neuron: [] for neuron in range(4)}
    for index, neuron in enumerate(neurons):
        segment = int(index >= 400)
        wanted[neuron].append((segment, 100 + SPACING * (index - 400 * segment)))
    found = {label: sorted(list_spikes(refined.peaks[refined.labels == label])) for label in (43, 44, 45)}
    assert found[45] == wanted[3]  # with the lag
    assert sorted([found[43], found[44]]) == sorted([wanted[0], wanted[1]])
    assert refined.n_spikes == {label: len(spikes) for label, spikes in found.items()}
    channels = {label: set(refined.peaks["channel_index"][refined.labels == label]) for label in (43, 44)}
    assert channels[43] == channels[44] == {residuals.main_channels[0]}
    assert set(refined.peaks["channel_index"][refined.labels == 45]) == {7}


@pytest.mark.parametrize("is_corrected", [False, True])
def test_shapes_count_only_where_no_drift_was_corrected(is_corrected, monkeypatch):
    residuals, members = make_residuals([SHAPE] * 6, [1] * 6)
    if is_corrected:
        residuals.noise.traces.annotate(**{DISPLACEMENT: [0.0, 1.0]})
    given = []
    monkeypatch.setattr(
        refinement, "split_unit", lambda *arguments: given.append(arguments[3]) or np.zeros(len(arguments[0]), int)
    )
    refinement._split_units(refinement._Changes(), residuals, members, members, THRESHOLD, 0)
    assert len(given) == 6
    for shapes in given:
        assert shapes is None if is_corrected else np.array_equal(shapes, residuals.find_shapes())


def test_of_many_spikes_some_are_looked_at_and_all_are_counted(matched, monkeypatch):
    monkeypatch.setattr(refinement, "MAX_SPIKES", 100)
    sorting, residuals, _ = matched
    refined = refine(sorting, residuals)
    assert refined.replaced == [MIXED, FIRST_HALF, SECOND_HALF]
    n_looked_at = np.bincount(refined.labels)[43:]
    assert n_looked_at[0] + n_looked_at[1] == 100 and n_looked_at[2] == 200
    assert refined.n_spikes == pytest.approx({43: 3 * n_looked_at[0], 44: 3 * n_looked_at[1], 45: 300})
    assert len(set(list_spikes(refined.peaks))) == 300
    of_mixed = refined.peaks[refined.labels < 45]
    assert 30 < np.sum(of_mixed["segment_index"] == 1) < 55  # from the whole recording


@pytest.mark.parametrize("is_corrected", [False, True])
def test_a_hidden_neuron_gets_a_unit_and_all_spikes_are_counted(matched, monkeypatch, is_corrected):
    """Every tenth spike of CLEAN that is alone; every second one is."""
    sorting, residuals, _ = matched
    is_alone = np.arange(len(sorting.to_spike_vector())) % 2 == 0

    def find_every_second(spikes, unit_index, _):
        return np.flatnonzero((spikes["unit_index"] == unit_index) & is_alone)

    monkeypatch.setattr(refinement, "MAX_SPIKES", 30)
    monkeypatch.setattr(refinement, "find_lonely_spikes", find_every_second)
    monkeypatch.setattr(Residuals, "find_shapes", lambda residuals: np.eye(2))
    monkeypatch.setattr(Residuals, "is_drift_corrected", lambda residuals: is_corrected)
    monkeypatch.setattr(refinement, "split_unit", lambda spikes, *_: np.zeros(len(spikes), "int64"))
    given = []

    def find_every_tenth(project, *_):
        given.append(project(lambda residuals: residuals[:, 0, 0]))
        return np.arange(len(given[-1])) % 10 == 0

    monkeypatch.setattr(refinement, "find_hidden_neuron", find_every_tenth)
    refined = refine(sorting, residuals)
    if is_corrected:
        assert not given and CLEAN not in refined.replaced
        return
    rows = np.flatnonzero((sorting.to_spike_vector()["unit_index"] == 1) & is_alone)
    assert any(np.array_equal(values, residuals.read(rows, 1)[:, 0, 0]) for values in given)
    assert CLEAN in refined.replaced
    others, hidden = np.unique(refined.labels[refined.origins == CLEAN])
    assert list_spikes(refined.peaks[refined.labels == hidden]) == list_spikes(sorting.to_spike_vector()[rows[::10]])
    assert np.sum(refined.labels == others) == 30
    n_hidden = len(rows[::10])
    assert refined.n_spikes[hidden] == pytest.approx(100 * n_hidden / len(rows))
    assert refined.n_spikes[others] == pytest.approx(100 * (1 - n_hidden / len(rows)))


def test_threshold_zero_joins_no_units_and_a_high_one_splits_what_is_far_apart(matched):
    sorting, residuals, _ = matched
    assert not {FIRST_HALF, SECOND_HALF} & set(refine(sorting, residuals, 0.0).replaced)
    assert refine(sorting, residuals, 1e6).replaced == [MIXED, FIRST_HALF, SECOND_HALF]


@pytest.mark.parametrize("n_rare, replaced", [(100, [MIXED, FIRST_HALF, SECOND_HALF]), (101, [MIXED])])
def test_rare_units_are_not_joined(matched, monkeypatch, n_rare, replaced):
    monkeypatch.setattr(joining, "MIN_SPIKES", n_rare)  # SECOND_HALF has 100
    sorting, residuals, _ = matched
    assert refine(sorting, residuals, 1e6).replaced == replaced


def regroup(matched, units, templates_of):
    """Sorting and residuals with other units, -1 for spikes left out, that have the templates of these old ones."""
    sorting, residuals, _ = matched
    spikes, kept = sorting.to_spike_vector(), units >= 0
    found = make_sorting(spikes["sample_index"][kept], units[kept], spikes["segment_index"][kept])
    changed = {"waveforms": residuals.waveforms[templates_of], "main_channels": residuals.main_channels[templates_of]}
    return found, replace(residuals, values=residuals.values[kept], **changed)


def test_nothing_to_change(matched):
    """Units CLEAN and FIRST_HALF only."""
    units = np.array([-1, 0, 1, -1])[matched[0].to_spike_vector()["unit_index"]]
    refined = refine(*regroup(matched, units, [1, 2]))
    assert refined.replaced == [] and refined.n_spikes == {}
    assert len(refined.peaks) == len(refined.labels) == 0


def test_a_unit_changes_once(matched):
    """Three units of one neuron: two are joined, the third stays; two units of two neurons each: no half is joined."""
    old_units = matched[0].to_spike_vector()["unit_index"]
    thirds = np.where(old_units == 2, np.arange(len(old_units)) % 3, -1)
    refined = refine(*regroup(matched, thirds, [2, 2, 2]))
    assert len(refined.replaced) == 2 and list(refined.n_spikes) == [3]
    mixed = np.where(old_units == 0, np.arange(len(old_units)) % 2, -1)
    refined = refine(*regroup(matched, mixed, [0, 0]))
    assert refined.replaced == [0, 1] and list(refined.n_spikes) == [2, 3, 4, 5]
    assert len(set(list_spikes(refined.peaks))) == len(refined.peaks) == 300


@pytest.fixture
def all_weak(monkeypatch):
    """All units are weak enough for a template of the larger spikes."""
    monkeypatch.setattr(refinement, "MAX_NORM", np.inf)


def make_larger(matched, excess):
    """
    Residuals of `matched`, those of unit CLEAN with this much more along its template, (n,) or a number in noise SD.

    Returns
    -------
    residuals : Residuals
    own : np.ndarray, int64
        Indices of the spikes of CLEAN.
    """
    sorting, residuals, _ = matched
    channels = residuals.find_channels(1)
    waveform = residuals.get_waveform(1, channels)[:, residuals.window].T
    own = np.flatnonzero(sorting.to_spike_vector()["unit_index"] == 1)
    values = residuals.values.copy()
    steps = np.broadcast_to(excess, len(own))[:, None, None] * waveform / np.linalg.norm(waveform)
    values[own, :, : len(channels)] += steps
    return replace(residuals, values=values), own


@pytest.mark.usefixtures("all_weak")
@pytest.mark.parametrize("share, is_replaced", [(1 / 1.49, False), (1 / 1.51, True)])
def test_a_unit_that_found_many_more_and_larger_spikes_gets_a_new_template(matched, monkeypatch, share, is_replaced):
    """Unit CLEAN, unlike the others, neither holds two neurons nor is one with another."""
    monkeypatch.setattr(refinement, "MIN_SHARPENING", np.inf)
    sorting, residuals = matched[0], make_larger(matched, 10.0)[0]
    refined = refine(sorting, residuals, unit_20=share)
    assert (CLEAN in refined.replaced) == is_replaced
    assert sorted(refined.n_spikes) == [43, 44, 45, 46][: 3 + is_replaced]
    if is_replaced:
        assert refined.n_spikes[46] == 100
        wanted = sorting.to_spike_vector()[sorting.to_spike_vector()["unit_index"] == 1]
        assert list_spikes(refined.peaks[refined.labels == 46]) == list_spikes(wanted)


@pytest.mark.parametrize("is_weak", [True, False])
def test_the_larger_spikes_of_a_strong_unit_are_no_better(matched, monkeypatch, is_weak):
    sorting, residuals = matched[0], make_larger(matched, 10.0)[0]
    monkeypatch.setattr(refinement, "MIN_SHARPENING", np.inf)
    monkeypatch.setattr(refinement, "MAX_NORM", residuals.measure_norms()[1] + (1 if is_weak else -1))
    assert (CLEAN in refine(sorting, residuals, unit_20=0.1).replaced) == is_weak


@pytest.mark.parametrize("step, n_neurons", [(2.0, 1), (20.0, 2)])
def test_a_unit_of_two_sizes_is_two_neurons(matched, step, n_neurons):
    """They fire in no order, as the spikes of bursts do not."""
    is_large = np.random.default_rng(4).random(100) < 0.5
    residuals, own = make_larger(matched, np.where(is_large, 0.5, -0.5) * step)
    refined = refine(matched[0], residuals)
    assert (CLEAN in refined.replaced) == (n_neurons == 2)
    spikes = matched[0].to_spike_vector()
    found = [
        set(list_spikes(refined.peaks[refined.origins == CLEAN][refined.labels[refined.origins == CLEAN] == label]))
        for label in np.unique(refined.labels[refined.origins == CLEAN])
    ]
    wanted = [set(list_spikes(spikes[own[chosen]])) for chosen in (is_large, ~is_large)]
    assert sorted(found, key=len) == (sorted(wanted, key=len) if n_neurons == 2 else [])


@pytest.mark.usefixtures("all_weak")
@pytest.mark.parametrize("excess, is_replaced", [(-3.0, False), (0.0, False), (4.0, True)])
def test_spikes_must_be_larger_than_the_template(matched, excess, is_replaced):
    """Noise alone makes half of them larger by 0.8 SD, which is below MIN_EXCESS."""
    residuals, _ = make_larger(matched, excess)
    assert 0.8 < MIN_EXCESS < 4.0
    assert (CLEAN in refine(matched[0], residuals, unit_20=0.1).replaced) == is_replaced


@pytest.mark.usefixtures("all_weak")
def test_small_spikes_among_the_larger_make_no_template(matched, monkeypatch):
    """As where a blurred template of a neuron picks noise too. All were found: it is not made anew again."""
    monkeypatch.setattr(refinement, "split_sizes", lambda spikes, *_: np.zeros(len(spikes), "int64"))
    residuals, own = make_larger(matched, np.where(np.arange(100) % 3, -6.0, 10.0))
    refined = refine(matched[0], residuals, unit_20=0.1)
    wanted = matched[0].to_spike_vector()[own[::3]]
    assert CLEAN in refined.replaced and refined.n_spikes[46] == 100
    assert refined.made_of[46] == len(wanted) < 100
    assert list_spikes(refined.peaks[refined.labels == 46]) == list_spikes(wanted)
    assert find_larger_spikes(residuals, own, 1).tolist() == own[::3].tolist()


@pytest.mark.usefixtures("all_weak")
def test_too_few_larger_spikes_make_no_template(matched):
    few = MIN_SPIKES - 1
    residuals, _ = make_larger(matched, np.where(np.arange(100) < few, 10.0, -6.0))
    assert CLEAN not in refine(matched[0], residuals, unit_20=0.1).replaced


@pytest.mark.usefixtures("all_weak")
@pytest.mark.parametrize("n_larger, is_replaced", [(35, True), (45, False)])
def test_a_template_that_is_too_large_for_most_spikes_grows_no_further(matched, monkeypatch, n_larger, is_replaced):
    """Enough spikes are larger in both cases; in the second they are fewer than asked of the unit."""
    monkeypatch.setattr(refinement, "MIN_LARGER", 0.3 if is_replaced else 0.5)
    residuals, own = make_larger(matched, np.where(np.arange(100) < n_larger, 10.0, -6.0))
    assert MIN_SPIKES <= n_larger < len(own)
    assert (CLEAN in refine(matched[0], residuals, unit_20=0.1).replaced) == is_replaced


def test_no_spike_larger_than_the_template(matched):
    residuals, own = make_larger(matched, -6.0)
    assert len(find_larger_spikes(residuals, own, 1)) == 0


@pytest.mark.usefixtures("all_weak")
def test_a_unit_that_is_split_or_joined_is_not_taken_again(matched):
    sorting, residuals, _ = matched
    refined = refine(sorting, residuals, unit_10=0.1, unit_31=0.1, unit_42=0.1)
    assert refined.replaced == [MIXED, FIRST_HALF, SECOND_HALF] and len(refined.n_spikes) == 3
