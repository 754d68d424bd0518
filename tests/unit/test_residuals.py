"""Residuals: what is left around a spike when all templates are taken away."""

import numpy as np
import pytest
from spikeinterface.core import ChannelSparsity, NumpyRecording

from spikeinterface_huidurep import residuals as residuals_module
from spikeinterface_huidurep.changes import NO_CHANGES, Change, Changes
from spikeinterface_huidurep.merging import MAX_LAG
from spikeinterface_huidurep.residuals import (
    MAX_DEFICIT,
    MIN_MEDIAN_SIZE,
    N_SHAPES,
    NOISE_SIZE,
    extract_residuals,
    find_main_channels,
    make_filters,
    pad_templates,
    place_spikes,
)
from spikeinterface_huidurep.restlessness import ANNOTATION, CALM
from spikeinterface_huidurep.waveforms import Neighborhoods

from .test_results import JOB_KWARGS, SAMPLING_FREQUENCY, make_sorting, make_templates

N_BEFORE, N_AFTER = 24, 39  # samples of 0.8 and 1.3 ms
N_CHANNELS = 5


def make_case(segment_sizes=(3000,), n_spikes=60, nbefore=30, num_samples=90, seed=0):
    """
    Segments of noise, 3 templates of noise, and a sorting whose spikes are anywhere: overlapping, and at the ends.

    The main channels are 4, 0 and 2.
    """
    rng = np.random.default_rng(seed)
    traces = [rng.normal(size=(size, N_CHANNELS)).astype("float32") for size in segment_sizes]
    shapes = rng.normal(size=(3, num_samples, N_CHANNELS))
    shapes[[0, 1, 2], nbefore, [4, 0, 2]] = -20
    segments = np.sort(rng.integers(0, len(segment_sizes), n_spikes))
    samples = rng.integers(0, np.array(segment_sizes)[segments])
    if n_spikes > 1:
        samples[[0, -1]] = 0, segment_sizes[segments[-1]] - 1
    order = np.lexsort((samples, segments))
    sorting = make_sorting(samples[order], rng.integers(0, 3, n_spikes), segments[order], unit_ids=np.array([4, 7, 9]))
    templates = make_templates(shapes, nbefore, unit_ids=[4, 7, 9])
    return traces, sorting, templates


def extract(traces, sorting, templates, folder, radius_um=25.0):
    recording = NumpyRecording(traces, SAMPLING_FREQUENCY, channel_ids=templates.channel_ids)
    recording.set_probe(templates.probe)
    neighborhoods = Neighborhoods(recording.get_channel_locations(), radius_um)
    job_kwargs = dict(JOB_KWARGS, chunk_duration="20ms")
    return extract_residuals(recording, sorting, templates, neighborhoods, "neg", folder / "residuals", job_kwargs)


def slow_residuals(traces, sorting, templates, main_channels):
    """Take away one template and cut out one spike after another; channels next to the main one, in their order."""
    shapes, margin = templates.get_dense_templates(), 200
    spikes = sorting.to_spike_vector()
    left = [np.pad(segment.astype("float64"), ((margin, margin), (0, 0))) for segment in traces]
    for spike in spikes:
        start = spike["sample_index"] + margin - templates.nbefore
        left[spike["segment_index"]][start : start + templates.num_samples] -= shapes[spike["unit_index"]]
    cuts = []
    for spike in spikes:
        segment, peak = left[spike["segment_index"]], spike["sample_index"] + margin
        segment[:margin] = segment[-margin:] = 0  # there is nothing beyond the ends
        main = main_channels[spike["unit_index"]]
        channels = [channel for channel in range(N_CHANNELS) if abs(channel - main) <= 1]
        cuts.append(segment[peak - N_BEFORE : peak + N_AFTER, channels].T)
    return cuts


@pytest.mark.parametrize("nbefore, num_samples", [(30, 90), (15, 40), (70, 160)])
@pytest.mark.parametrize("segment_sizes", [(3000,), (2000, 100, 1000)])
def test_residuals_are_the_traces_without_all_templates(tmp_path, segment_sizes, nbefore, num_samples):
    traces, sorting, templates = make_case(segment_sizes, nbefore=nbefore, num_samples=num_samples)
    residuals = extract(traces, sorting, templates, tmp_path)
    wanted = slow_residuals(traces, sorting, templates, [4, 0, 2])
    assert residuals.values.shape == (60, N_BEFORE + N_AFTER, 3) and residuals.values.dtype == np.float32
    for index, spike in enumerate(sorting.to_spike_vector()):
        found = residuals.read(np.array([index]), spike["unit_index"])
        np.testing.assert_allclose(found, wanted[index][None], atol=1e-4)


def test_arguments_are_not_changed(tmp_path):
    traces, sorting, templates = make_case()
    before = traces[0].copy()
    extract(traces, sorting, templates, tmp_path)
    assert np.array_equal(traces[0], before)


@pytest.mark.parametrize("n_segments_with_spikes", [1, 2])
def test_last_segments_without_spikes(tmp_path, n_segments_with_spikes):
    """The sorting does not know of segments after the last spike."""
    traces, sorting, templates = make_case((1000,) * n_segments_with_spikes)
    wanted = extract(traces, sorting, templates, tmp_path / "short")
    found = extract(traces + [np.ones((500, N_CHANNELS), "float32")], sorting, templates, tmp_path / "long")
    assert np.array_equal(found.values, wanted.values)


def test_one_spike(tmp_path):
    traces, sorting, templates = make_case(n_spikes=1)
    residuals = extract(traces, sorting, templates, tmp_path)
    assert residuals.values.shape == (1, N_BEFORE + N_AFTER, 3)


def test_channels_are_the_neighbors_in_ascending_order(tmp_path):
    traces, sorting, templates = make_case()
    residuals = extract(traces, sorting, templates, tmp_path)
    assert residuals.main_channels.tolist() == [4, 0, 2]
    assert [residuals.find_channels(index).tolist() for index in range(3)] == [[3, 4], [0, 1], [1, 2, 3]]


def test_shapes_are_what_templates_are_made_of(tmp_path):
    residuals = extract(*make_case(), tmp_path)
    rng = np.random.default_rng(0)
    n_samples = residuals.window.stop - residuals.window.start
    true_shapes = np.linalg.qr(rng.normal(size=(n_samples, N_SHAPES)))[0].T
    residuals.waveforms = np.zeros((8, residuals.waveforms.shape[1], 6), dtype="float32")
    residuals.waveforms[:, residuals.window, :3] = np.moveaxis(rng.normal(size=(8, 3, N_SHAPES)) @ true_shapes, 2, 1)
    residuals.waveforms[0] *= 1000  # a large template counts no more than a small one
    shapes = residuals.find_shapes()
    np.testing.assert_allclose(shapes @ shapes.T, np.eye(N_SHAPES), atol=1e-5)
    np.testing.assert_allclose(true_shapes @ shapes.T @ shapes, true_shapes, atol=1e-4)
    residuals.waveforms[6:] = 0  # 18 waveforms are left
    assert residuals.find_shapes() is None


def test_waveforms_are_the_templates_on_the_channels_asked_for(tmp_path):
    traces, sorting, templates = make_case()
    residuals = extract(traces, sorting, templates, tmp_path)
    found = residuals.get_waveform(1, [3, 0])[:, residuals.window]
    wanted = templates.get_dense_templates()[1, 30 - N_BEFORE : 30 + N_AFTER][:, [3, 0]].T
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def place(traces, sorting, templates, folder, changes=NO_CHANGES, stretches=None):
    recording = NumpyRecording(traces, SAMPLING_FREQUENCY, channel_ids=templates.channel_ids)
    recording.annotate(**{ANNOTATION: stretches})
    recording.set_probe(templates.probe)
    neighborhoods = Neighborhoods(recording.get_channel_locations(), 25.0)
    return place_spikes(recording, sorting, templates, neighborhoods, "neg", folder / "spikes", JOB_KWARGS, changes)


PLACED_SHAPES = np.zeros((2, 90, N_CHANNELS))
PLACED_SHAPES[0, 25:40, 3:] = PLACED_SHAPES[1, 25:40, :3] = -20 * np.hanning(15)[:, None]


def make_traces(n_samples, spikes, seed=0):
    """White noise and spikes: tuples of sample, unit and size."""
    traces = np.random.default_rng(seed).normal(size=(n_samples, N_CHANNELS)).astype("float32")
    for sample, unit, size in spikes:
        traces[sample - 30 : sample + 60] += size * PLACED_SHAPES[unit]
    return traces


def test_spikes_go_to_the_sample_where_their_template_fits_best(tmp_path):
    """Also where they overlap, and with residuals of the new places."""
    truth = 100 + 55 * np.arange(300)
    units = np.arange(300) % 2
    traces = make_traces(20_000, zip(truth, units, np.ones(300), strict=True))
    off = np.random.default_rng(1).integers(-1, 2, 300)
    sorting = make_sorting(truth + off, units, np.zeros(300, int), unit_ids=np.array([4, 7]))
    templates = make_templates(PLACED_SHAPES, 30, unit_ids=[4, 7])
    placed, of_placed, residuals = place([traces], sorting, templates, tmp_path)
    assert placed.unit_ids.tolist() == of_placed.unit_ids.tolist() == [4, 7]
    assert placed.to_spike_vector()["sample_index"].tolist() == truth.tolist()
    assert placed.to_spike_vector()["unit_index"].tolist() == units.tolist()
    assert np.std(residuals.values[:, :, :2]) == pytest.approx(1, abs=0.02)
    assert sorting.to_spike_vector()["sample_index"].tolist() == (truth + off).tolist()


def test_spikes_stay_inside_their_segments(tmp_path, monkeypatch):
    for limit in ("NOISE_SIZE", "MIN_MEDIAN_SIZE"):
        monkeypatch.setattr(residuals_module, limit, -np.inf)  # there are none in these traces
    traces, sorting, templates = make_case((2000, 100, 1000))
    placed, _, _ = place(traces, sorting, templates, tmp_path)
    before, after = sorting.to_spike_vector(), placed.to_spike_vector()
    assert np.array_equal(before["segment_index"], after["segment_index"])
    for segment, size in enumerate((2000, 100, 1000)):
        samples, old = (spikes["sample_index"][spikes["segment_index"] == segment] for spikes in (after, before))
        assert samples.min() >= 0 and samples.max() < size and np.all(np.diff(samples) >= 0)
        assert np.abs(samples - old).max() <= 1


@pytest.mark.parametrize("size, is_spike", [(1.0, True), (0.5, True), (0.05, False), (-1.0, False)])
def test_noise_is_left_out(tmp_path, size, is_spike):
    """The template has a norm of 65 noise SD, its spikes that of their size."""
    samples = 100 + 100 * np.arange(100)
    sizes = np.where(np.arange(100) % 4 == 0, size, 1.0)
    traces = make_traces(11_000, [(sample, 0, size) for sample, size in zip(samples, sizes, strict=True)])
    sorting = make_sorting(samples, np.zeros(100, int), np.zeros(100, int), unit_ids=np.array([4]))
    placed, _, residuals = place([traces], sorting, make_templates(PLACED_SHAPES[:1], 30, unit_ids=[4]), tmp_path)
    wanted = samples if is_spike else samples[sizes == 1]
    assert placed.to_spike_vector()["sample_index"].tolist() == wanted.tolist()
    assert len(residuals.values) == len(wanted)


SHARED = ((N_CHANNELS**-0.5,) * N_CHANNELS,)


@pytest.mark.parametrize(
    "restless, are_kept",
    [((2.0, (), ()), True), ((20.0, (), ()), False), ((2.0, SHARED, (3.0,)), True), ((2.0, SHARED, (50.0,)), False)],
)
def test_spikes_must_be_larger_than_the_noise_of_their_time(tmp_path, restless, are_kept):
    """The template has a norm of 65 noise SD; the noise is larger in the second half."""
    samples = 100 + 100 * np.arange(100)
    traces = make_traces(10_200, [(sample, 0, 1.0) for sample in samples])
    sorting = make_sorting(samples, np.zeros(100, int), np.zeros(100, int), unit_ids=np.array([4]))
    templates = make_templates(PLACED_SHAPES[:1], 30, unit_ids=[4])
    placed, _, _ = place([traces], sorting, templates, tmp_path, stretches=[[CALM, restless]])
    assert placed.to_spike_vector()["sample_index"].tolist() == samples[: 100 if are_kept else 50].tolist()


@pytest.mark.parametrize("share, n_units", [(0.6, 2), (0.1, 2), (0.0, 1)])
def test_a_unit_that_is_all_noise_is_left_out(tmp_path, share, n_units):
    samples = 100 + 100 * np.arange(100)
    units = np.arange(100) % 2
    is_true = (units == 1) | (np.arange(100) < 100 * share)
    traces = make_traces(11_000, zip(samples[is_true], units[is_true], np.ones(is_true.sum()), strict=True))
    sorting = make_sorting(samples, units, np.zeros(100, int), unit_ids=np.array([4, 7]))
    templates = make_templates(PLACED_SHAPES, 30, unit_ids=[4, 7])
    placed, of_placed, residuals = place([traces], sorting, templates, tmp_path)
    assert placed.unit_ids.tolist() == of_placed.unit_ids.tolist() == [4, 7][-n_units:]
    assert len(residuals.waveforms) == n_units
    assert len(placed.to_spike_vector()) == 50 + (n_units == 2) * np.sum(is_true[units == 0])


def test_nothing_is_left_of_noise(tmp_path):
    sorting = make_sorting(np.arange(100, 1000, 50), np.zeros(18, int), np.zeros(18, int), unit_ids=np.array([4]))
    placed, templates, residuals = place(
        [make_traces(2000, [])], sorting, make_templates(PLACED_SHAPES[:1], 30, unit_ids=[4]), tmp_path
    )
    assert len(placed.unit_ids) == len(templates.unit_ids) == 0 and residuals is None
    assert not list((tmp_path / "spikes").iterdir())


REGULAR = 100 + 100 * np.arange(500)
RANDOM = np.sort(np.random.default_rng(3).integers(100, 50_100, 500))


def place_weak_unit(norm, folder, samples):
    """500 spikes of a unit of this norm in noise SD, placed."""
    shape = PLACED_SHAPES[:1] * norm / np.linalg.norm(PLACED_SHAPES[0])
    factor = norm / np.linalg.norm(PLACED_SHAPES[0])
    traces = make_traces(51_000, [(sample, 0, factor) for sample in samples])
    sorting = make_sorting(samples, np.zeros(500, int), np.zeros(500, int), unit_ids=np.array([4]))
    placed, _, _ = place([traces], sorting, make_templates(shape, 30, unit_ids=[4]), folder)
    return placed


@pytest.mark.parametrize("norm", [NOISE_SIZE + 10, NOISE_SIZE + MAX_DEFICIT, MIN_MEDIAN_SIZE + 0.3])
def test_most_spikes_of_weak_units_are_kept(tmp_path, norm):
    """A spike is smaller than its template by 2 SD once in 44 times."""
    assert len(place_weak_unit(norm, tmp_path, RANDOM).to_spike_vector()) >= 0.95 * 500


@pytest.mark.parametrize("norm", [NOISE_SIZE, MIN_MEDIAN_SIZE - 0.5])
def test_a_unit_of_spikes_as_small_as_those_of_noise_is_left_out(tmp_path, norm):
    assert len(place_weak_unit(norm, tmp_path, RANDOM).unit_ids) == 0


def test_but_not_one_that_has_a_refractory_period(tmp_path):
    assert len(place_weak_unit(MIN_MEDIAN_SIZE - 0.5, tmp_path, REGULAR).unit_ids) == 1


@pytest.mark.parametrize("loud, n_units", [(slice(0, 60_000), 0), (slice(60_000, None), 1)])
def test_spikes_that_come_when_noise_is_loud_must_be_larger(tmp_path, loud, n_units):
    """The spikes are in the first half."""
    factor = 6.5 / np.linalg.norm(PLACED_SHAPES[0])
    traces = make_traces(120_000, [(sample, 0, factor) for sample in RANDOM])
    traces[loud] += np.random.default_rng(5).normal(size=traces[loud].shape)
    sorting = make_sorting(RANDOM, np.zeros(500, int), np.zeros(500, int), unit_ids=np.array([4]))
    templates = make_templates(PLACED_SHAPES[:1] * factor, 30, unit_ids=[4])
    placed, _, _ = place([traces], sorting, templates, tmp_path)
    assert len(placed.unit_ids) == n_units


@pytest.mark.parametrize("is_known, share_kept", [(True, 1.0), (False, 0.0)])
def test_spikes_are_judged_by_the_waveform_of_their_time(tmp_path, is_known, share_kept):
    """In the second half the neuron is smaller and has its trough later; its template is the early one."""
    samples = 100 + 2000 * np.arange(100)
    edge = 100_000
    early = 20 * PLACED_SHAPES[0] / np.linalg.norm(PLACED_SHAPES[0])
    late = 0.4 * np.roll(early, 12, axis=0)
    traces = np.random.default_rng(0).normal(size=(2 * edge, N_CHANNELS)).astype("float32")
    for sample in samples:
        traces[sample - 30 : sample + 60] += early if sample < edge else late
    sorting = make_sorting(samples, np.zeros(100, int), np.zeros(100, int), unit_ids=np.array([4]))
    change = Change(np.arange(N_CHANNELS), (late - early)[30 - N_BEFORE : 30 + N_AFTER].T.astype("float32"))
    changes = Changes([(0, 0, edge), (0, edge, 2 * edge)], [{}, {4: change} if is_known else {}])
    templates = make_templates(early[None], 30, unit_ids=[4])
    templates = templates.to_sparse(ChannelSparsity(np.ones((1, N_CHANNELS), bool), [4], templates.channel_ids))
    placed, _, residuals = place([traces], sorting, templates, tmp_path, changes)
    kept = placed.to_spike_vector()["sample_index"]
    assert np.sum(kept < edge) == 50
    assert np.sum(kept >= edge) == pytest.approx(50 * share_kept, abs=2)
    if is_known:
        is_late = np.flatnonzero(kept >= edge)
        assert np.abs(residuals.read(is_late, 0, has_followed=True).mean(axis=0)).max() < 0.8  # noise alone is left
        own_change = change.waveform[residuals.find_channels(0)]
        np.testing.assert_array_equal(residuals.get_template(0, 1) - residuals.get_template(0), own_change)
        np.testing.assert_array_equal(residuals.get_template(0, 0), residuals.get_template(0))
        assert [block for _, block in residuals.divide(is_late, [0])] == [1]
        assert [block for _, block in residuals.divide(np.arange(len(kept)), [0])] == [0, 1]
        assert [block for _, block in residuals.divide(np.arange(len(kept)), [1])] == [None]
        whole = residuals.read(is_late, 0).mean(axis=0)
        assert np.abs(whole - own_change).max() < 0.8
        early_rows = np.flatnonzero(kept < edge)
        followed = residuals.read(early_rows, 0, has_followed=True)
        np.testing.assert_array_equal(residuals.read(early_rows, 0), followed)


def test_matched_filters():
    """Noise through them has an SD of 1, and no other filter makes more of the waveforms."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 12))
    covariance = mixing @ mixing.T + np.eye(12)
    whitener = np.linalg.inv(np.linalg.cholesky(covariance)).T
    waveforms = rng.normal(size=(2, 3, 4))
    filters, norms = make_filters(waveforms, whitener)
    for waveform, found, norm in zip(waveforms.reshape(2, 12), filters.reshape(2, 12), norms, strict=True):
        assert found @ covariance @ found == pytest.approx(1)
        assert found @ waveform == pytest.approx(norm)
        others = rng.normal(size=(1000, 12))
        assert np.all(others @ waveform <= norm * np.sqrt(np.sum(others @ covariance * others, axis=1)))


# --- templates ---


@pytest.mark.parametrize("nbefore, nafter", [(10, 20), (24, 39), (39, 54), (60, 90), (10, 90), (60, 20)])
def test_padded_templates_leave_room_for_any_lag(nbefore, nafter):
    array = np.random.default_rng(0).normal(size=(2, nbefore + nafter, 3))
    padded, window = pad_templates(make_templates(array, nbefore))
    assert window.stop - window.start == N_BEFORE + N_AFTER
    assert window.start >= MAX_LAG and window.stop + MAX_LAG <= padded.shape[1]
    peak = window.start + N_BEFORE
    np.testing.assert_allclose(padded[:, peak - nbefore : peak + nafter], array, rtol=1e-6)
    assert not padded[:, : peak - nbefore].any() and not padded[:, peak + nafter :].any()


def find_main(array, peak_sign, radius_um):
    templates = make_templates(array)
    neighborhoods = Neighborhoods(templates.get_channel_locations(), radius_um)
    return find_main_channels(templates, neighborhoods, peak_sign).tolist()


@pytest.mark.parametrize("peak_sign, wanted", [("neg", 0), ("pos", 1), ("both", 1)])
def test_main_channel_follows_the_sign(peak_sign, wanted):
    array = np.zeros((1, 60, 2))
    array[0, 20] = [-5.0, 9.0]
    assert find_main(array, peak_sign, radius_um=100.0) == [wanted]


@pytest.mark.parametrize("size, wanted", [(9.0, 5), (20.0, 0)])
def test_main_channel_is_where_most_of_a_template_is(size, wanted):
    """One channel far from many on which the template is smaller, largest on the sixth."""
    array = np.zeros((1, 60, 9))
    array[0, 20] = [size, 0, 0, 5, 6, 7, 6, 5, 0]
    assert find_main(array, "both", radius_um=40.0) == [wanted]


@pytest.mark.parametrize("block_size", [1, 7, 20, 1000])
def test_blocks_of_spikes_give_what_all_at_once_do(tmp_path, monkeypatch, block_size):
    monkeypatch.setattr(residuals_module, "BLOCK_SIZE", block_size)
    _, sorting, _ = case = make_case()
    residuals = extract(*case, tmp_path)
    members = np.flatnonzero(sorting.to_spike_vector()["unit_index"] == 1)[:20]
    sizes = []

    def measure(left):
        sizes.append(len(left))
        return left.sum(axis=2)

    np.testing.assert_array_equal(residuals.apply(measure, members, 1), residuals.read(members, 1).sum(axis=2))
    assert sum(sizes) == len(members) and max(sizes) <= block_size
