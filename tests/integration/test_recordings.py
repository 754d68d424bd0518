"""What recordings can look like, each with its result or its error."""

import numpy as np
import pytest
from probeinterface import ProbeGroup
from spikeinterface.core import NumpyRecording, NumpySorting, generate_sorting, load
from spikeinterface.sorters.utils import SpikeSortingError

from spikeinterface_huidurep import pipeline

from .conftest import compute_accuracies, make_ground_truth, replace_traces

GOOD = 0.8  # accuracy
NOISE_SD = 10.0


def make_noise(n_samples, n_channels=4, seed=0):
    return (NOISE_SD * np.random.default_rng(seed).standard_normal((n_samples, n_channels))).astype("float32")


def read_log(tmp_path, number=0):
    return (tmp_path / f"out{number}/sorter_output/huidurep.log").read_text()


def assert_same_spikes(sorting, expected):
    np.testing.assert_array_equal(sorting.to_spike_vector(), expected.to_spike_vector())


@pytest.mark.parametrize(
    ("num_channels", "num_units", "duration_s", "num_good"), [(1, 2, 10.0, 2), (16, 8, 10.0, 7), (128, 12, 4.0, 10)]
)
def test_number_of_channels(sort, tmp_path, num_channels, num_units, duration_s, num_good):
    recording, sorting_true = make_ground_truth(tmp_path / "recording", num_channels, num_units, [duration_s])
    sorting = sort(recording)
    assert np.sum(compute_accuracies(sorting_true, sorting) >= GOOD) >= num_good
    assert sorting.get_num_units() <= num_units + 1


def test_a_large_neuron_between_channels_that_are_far_apart_is_found_once(sort):
    """It reaches the smaller channel one sample later; spikes are between the samples."""
    sampling_frequency, n_samples = 20_000.0, 400_000
    traces = make_noise(n_samples, n_channels=8)
    rng = np.random.default_rng(1)
    trains = [np.arange(500 + 100 * unit, n_samples - 100, 600 + 70 * unit) for unit in range(2)]
    for train, sizes in zip(trains, ([0, 0, 0, 26, 14, 0, 0, 0], [0, 0, 0, 0, 0, 0, 20, 0]), strict=True):
        for sample in train:
            delays = rng.uniform(-0.5, 0.5) + (np.arange(8) == 4)
            time_ms = (np.arange(-20, 40)[:, None] - delays) / sampling_frequency * 1000
            shape = 0.3 * np.exp(-0.5 * ((time_ms - 0.7) / 0.3) ** 2) - np.exp(-0.5 * (time_ms / 0.12) ** 2)
            traces[sample - 20 : sample + 40] += NOISE_SD * shape * sizes
    recording = NumpyRecording([traces], sampling_frequency)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(8), 100.0 * np.arange(8)])
    sorting_true = NumpySorting.from_unit_dict(dict(enumerate(trains)), sampling_frequency)
    sorting = sort(recording)
    assert np.all(compute_accuracies(sorting_true, sorting) >= GOOD) and sorting.get_num_units() == 2


@pytest.mark.parametrize("sampling_frequency", [10_000.0, 20_000.0, 25_000.0, 32_000.0, 40_000.0])
def test_sampling_rate(sort, tmp_path, sampling_frequency):
    recording, sorting_true = make_ground_truth(tmp_path / "recording", sampling_frequency=sampling_frequency)
    sorting = sort(recording)
    assert np.sum(compute_accuracies(sorting_true, sorting) >= GOOD) >= 3
    assert sorting.get_num_units() <= 5


@pytest.mark.parametrize("convert", ["int16", "uint16", "volts"])
def test_numbers_of_the_traces_do_not_matter(sort, tetrode, tetrode_sorting, convert):
    traces = tetrode[0].get_traces()
    if convert.endswith("int16"):
        counts = np.round(5 * traces).astype("int16")
        # quantised by a tenth of the noise SD: hardly any spike may differ
        converted = counts if convert == "int16" else (counts.astype("int32") + 2**15).astype("uint16")
        sorting = sort(replace_traces(tetrode[0], [converted]))
        assert sorting.get_num_units() == tetrode_sorting.get_num_units()
        assert compute_accuracies(tetrode_sorting, sorting).min() > 0.97
    else:
        assert_same_spikes(sort(replace_traces(tetrode[0], [np.float32(1e-6) * traces])), tetrode_sorting)


@pytest.mark.parametrize("num_spikes", [0, 1, 5])
def test_too_few_spikes_for_a_unit(sort, tmp_path, num_spikes):
    traces = make_noise(150_000)
    for number in range(num_spikes):
        traces[20_000 * (number + 1) + np.arange(10)] -= 20 * NOISE_SD
    recording = NumpyRecording([traces], 30_000.0)
    sorting = sort(recording)
    assert sorting.get_num_units() == 0 and len(sorting.to_spike_vector()) == 0
    assert "no units: " in read_log(tmp_path)
    assert load(tmp_path / "out0").get_num_units() == 0


def test_too_few_spikes_are_left_of_every_unit(sort, tetrode, tmp_path, monkeypatch):
    assign_spikes = pipeline.assign_spikes

    def find_all_repeated(*arguments):
        spikes, posteriors, is_repeated = assign_spikes(*arguments)
        return spikes, posteriors, np.ones_like(is_repeated)

    monkeypatch.setattr(pipeline, "assign_spikes", find_all_repeated)
    assert sort(tetrode[0]).get_num_units() == 0
    assert "no units: too few spikes are left" in read_log(tmp_path)


def test_a_device_that_is_not_there_fails_at_once(sort, tetrode, tmp_path):
    with pytest.raises(SpikeSortingError, match="torch_device must be"):
        sort(tetrode[0], torch_device="cuda:99")
    assert not (tmp_path / "out0/sorter_output/huidurep.log").exists()


def test_noise_makes_hardly_any_unit(sort):
    sorting = sort(NumpyRecording([make_noise(600_000, seed=1)], 30_000.0), detect_threshold=4.0)
    assert sorting.get_num_units() <= 2


def test_silence_is_refused(sort):
    with pytest.raises(SpikeSortingError, match="all channels are flat"):
        sort(NumpyRecording([np.zeros((60_000, 4), dtype="int16")], 30_000.0))


def test_dead_channel_is_left_out(sort, tmp_path, tetrode):
    traces = tetrode[0].get_traces().copy()
    traces[:, 2] = 7.0
    sorting = sort(replace_traces(tetrode[0], [traces]))
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= GOOD) >= 3
    assert "2" not in sorting.get_property("main_channel_id")
    assert "WARNING channels without signal are left out: ['2']" in read_log(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(sort, tetrode, value):
    traces = tetrode[0].get_traces()[:60_000].copy()
    traces[45_678, 2] = value
    with pytest.raises(SpikeSortingError, match=f"channel 2 is {value} at sample 45678 of segment 0"):
        sort(replace_traces(tetrode[0], [traces]))


@pytest.mark.parametrize("duration_s", [1.0, 0.2])
def test_very_short_recordings(sort, tetrode, duration_s):
    """There are fewer spikes than a cluster needs, unless a unit fires at more than 30 Hz."""
    traces = tetrode[0].get_traces()[: int(30_000 * duration_s)]
    sorting = sort(replace_traces(tetrode[0], [traces]))
    assert sorting.get_num_units() == 0


def test_one_second_of_fast_units_is_sorted(sort, tmp_path):
    recording, sorting_true = make_ground_truth(
        tmp_path / "recording", num_units=2, durations=[1.0], generate_sorting_kwargs={"firing_rates": 60.0}
    )
    assert compute_accuracies(sorting_true, sort(recording)).max() >= GOOD


def test_too_short_to_measure_the_noise(sort, tetrode):
    traces = tetrode[0].get_traces()
    with pytest.raises(SpikeSortingError, match=r"the recording lasts 0.050 s; at least 0.1 s are needed"):
        sort(replace_traces(tetrode[0], [traces[:1500]]))
    with pytest.raises(SpikeSortingError, match=r"segment 1 lasts 1.00 ms; at least 5.0 ms are needed"):
        sort(replace_traces(tetrode[0], [traces[:60_000], traces[60_000:60_030]]))


@pytest.mark.parametrize("cut", [150_000, 9000, 299_500])
def test_two_segments(sort, tetrode, tetrode_sorting, cut):
    """The same units in both, whatever their lengths, and hardly another spike than in one piece."""
    traces = tetrode[0].get_traces()
    sorting = sort(replace_traces(tetrode[0], [traces[:cut], traces[cut:]]))
    assert sorting.get_num_segments() == 2
    assert sorting.get_num_units() == tetrode_sorting.get_num_units()
    joined = sorting.to_spike_vector().copy()
    sizes = np.array([cut, len(traces) - cut])
    assert np.all(joined["sample_index"] < sizes[joined["segment_index"]])
    joined["sample_index"] += np.where(joined["segment_index"] == 1, cut, 0)
    distances = np.abs(joined["sample_index"][:, None] - tetrode_sorting.to_spike_vector()["sample_index"])
    assert np.mean(distances.min(axis=1) <= 1) > 0.98 and np.mean(distances.min(axis=0) <= 1) > 0.98


def test_artifacts_are_no_spikes(sort, tmp_path, tetrode):
    """Deflections of all channels as after pulses of stimulation, of different sizes."""
    rng = np.random.default_rng(0)
    traces = tetrode[0].get_traces().copy()
    shape = np.r_[np.ones(30), -0.6 * np.exp(-np.arange(420) / 90)].astype("float32")[:, None]
    starts = rng.permutation(np.arange(3000, len(traces) - 3000, 3000))[:50]
    for start in starts:
        gains = 150 * NOISE_SD * rng.uniform(0.3, 1.3, 4) * rng.choice([-1, 1], 4)
        traces[start : start + 450] += shape * gains.astype("float32")
    sorting = sort(replace_traces(tetrode[0], [traces]))
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= GOOD) >= 3
    assert sorting.get_num_units() <= 4
    assert "artifacts are silenced: " in read_log(tmp_path)


def test_glitches_of_a_channel_are_no_spikes(sort, tetrode, tetrode_sorting):
    rng = np.random.default_rng(0)
    traces = tetrode[0].get_traces().copy()
    for start in rng.integers(3000, len(traces) - 3000, 30):
        traces[start : start + rng.integers(10, 60), 1] += NOISE_SD * rng.choice([-1, 1]) * rng.uniform(50, 500)
    sorting = sort(replace_traces(tetrode[0], [traces]))
    assert sorting.get_num_units() == tetrode_sorting.get_num_units()
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= GOOD) >= 3


def test_default_probe_of_one_channel_and_of_a_tetrode(sort, tetrode):
    traces = tetrode[0].get_traces()
    sorting = sort(NumpyRecording([traces], 30_000.0))
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= GOOD) >= 3
    assert sort(NumpyRecording([traces[:, :1]], 30_000.0)).get_num_units() >= 1
    with pytest.raises(ValueError, match="3 channels and no probe.*set_probe"):
        sort(NumpyRecording([traces[:, :3]], 30_000.0))


def test_probe_with_three_dimensions(sort, tetrode, tetrode_sorting):
    recording = replace_traces(tetrode[0], [tetrode[0].get_traces()])
    probe = recording.get_probe()
    recording.set_probe(probe.to_3d(axes="xy"))
    assert_same_spikes(sort(recording), tetrode_sorting)
    recording.set_probe(probe.to_3d(axes="xz"))
    with pytest.raises(ValueError, match="differ in z only.*planarize"):
        sort(recording)


def test_groups_at_the_same_place_are_sorted_apart(sort, tmp_path, tetrode, tetrode_sorting):
    """Two tetrodes with the same coordinates, one the other back in time, and a third that is not connected."""
    traces = tetrode[0].get_traces()
    parts = [traces, traces[::-1], np.zeros_like(traces)]
    ids = [f"{letter}{number}" for letter in "abc" for number in range(4)]
    recording = NumpyRecording([np.concatenate(parts, axis=1)], 30_000.0, channel_ids=ids)
    probes = ProbeGroup()
    for number in range(len(parts)):
        probe = tetrode[0].get_probe().copy()
        probe.set_device_channel_indices(4 * number + np.arange(4))
        probes.add_probe(probe)
    recording.set_probegroup(probes, check_overlap=False)
    recording.set_property("group", np.zeros(12, dtype=int))
    with pytest.raises(ValueError, match="several channels of group 0 are at the same location"):
        sort(recording)
    recording.set_property("group", np.repeat(["a", "b", "c"], 4))

    sorting = sort(recording)
    groups = sorting.get_property("group")
    assert set(groups) == {"a", "b"}
    for unit_group, channel_id in zip(groups, sorting.get_property("main_channel_id"), strict=True):
        assert channel_id[0] == unit_group
    first = sorting.select_units(sorting.unit_ids[groups == "a"])
    assert compute_accuracies(tetrode_sorting, first).min() > 0.99
    assert "left out: ['c0', 'c1', 'c2', 'c3']" in read_log(tmp_path, number=1)
    assert {"group_a", "group_b"} <= {path.name for path in (tmp_path / "out1/sorter_output").iterdir()}
    posteriors = np.load(tmp_path / "out1/sorter_output/spike_posteriors.npy")
    assert posteriors.shape == sorting.to_spike_vector().shape


def test_neurons_of_two_contexts_are_no_fragments_of_one(sort, tmp_path):
    """Each of three pairs of neurons fires in one half of the time; the last two neurons fire always."""
    duration_s, n_units = 70.0, 8
    fire = dict(num_units=n_units, sampling_frequency=20_000.0, durations=[duration_s], firing_rates=8.0, seed=3)
    spikes = generate_sorting(**fire).to_spike_vector()
    is_late = spikes["sample_index"] >= 20_000 * duration_s / 2
    kept = (spikes["unit_index"] >= 6) | (spikes["unit_index"] % 2 == is_late)
    sorting_true = NumpySorting(spikes[kept], 20_000.0, np.arange(n_units))
    recording, _ = make_ground_truth(
        tmp_path / "recording", 4, n_units, [duration_s], 20_000.0, sorting=sorting_true, seed=3
    )
    sorting = sort(recording)
    assert np.sum(compute_accuracies(sorting_true, sorting) >= GOOD) == n_units
