"""What is written, and what can be done with it."""

import importlib.util
import json

import numpy as np
import pytest
from spikeinterface.core import create_sorting_analyzer, load
from spikeinterface.sorters import run_sorter_by_property

from .conftest import compute_accuracies, make_ground_truth, replace_traces

MAX_LAG = 30  # samples


@pytest.fixture
def sorter_output(tetrode_folder):
    return tetrode_folder / "sorter_output"


def test_unit_properties(tetrode, tetrode_sorting, sorter_output):
    recording, sorting = tetrode[0], tetrode_sorting
    locations = recording.get_channel_locations()
    main_channels = recording.ids_to_indices(sorting.get_property("main_channel_id"))
    centers = np.column_stack([sorting.get_property("x_um"), sorting.get_property("y_um")])
    assert np.linalg.norm(centers - locations[main_channels], axis=1).max() < 50
    assert np.all(sorting.get_property("snr") > 3)
    counts = [len(sorting.get_unit_spike_train(unit_id, segment_index=0)) for unit_id in sorting.unit_ids]
    assert sorting.get_property("n_spikes").tolist() == counts
    posteriors = np.load(sorter_output / "spike_posteriors.npy")
    spikes = sorting.to_spike_vector()
    for unit_index, mean in enumerate(sorting.get_property("mean_posterior")):
        assert posteriors[spikes["unit_index"] == unit_index].mean() == pytest.approx(mean, abs=1e-5)


def test_files(tetrode_sorting, sorter_output):
    spikes = tetrode_sorting.to_spike_vector()
    posteriors = np.load(sorter_output / "spike_posteriors.npy")
    assert posteriors.shape == spikes.shape and posteriors.dtype == np.float32
    assert posteriors.min() >= 0 and posteriors.max() <= 1
    names = ("peaks", "labels", "posteriors", "embeddings")
    sizes = {len(np.load(sorter_output / f"clustered_{name}.npy")) for name in names}
    assert len(sizes) == 1
    summary = json.loads((sorter_output / "summary.json").read_text())
    assert (summary["n_units"], summary["n_spikes"]) == (len(tetrode_sorting.unit_ids), len(spikes))
    assert json.loads((sorter_output / "parameters_used.json").read_text())["parameters"]["seed"] == 0
    log = json.loads((sorter_output.parent / "spikeinterface_log.json").read_text())
    lines = (sorter_output / "huidurep.log").read_text().splitlines()
    assert [line.strip() for line in log["runtime_trace"]] == [line.strip() for line in lines]
    assert sum("INFO" in line for line in lines) >= 9  # a line a stage


def test_nothing_is_left_behind(sorter_output):
    assert not (sorter_output / "waveforms").exists()
    assert not (sorter_output / "cache_preprocessing").exists()


def test_embeddings_are_not_saved_if_not_wanted(sort, tmp_path, tetrode):
    sort(tetrode[0], save_embeddings=False)
    assert not (tmp_path / "out0/sorter_output/clustered_embeddings.npy").exists()


def test_spike_times_are_aligned(tetrode, tetrode_sorting):
    """The median lag to the truth is 0 +- 1 samples for every unit that is found."""
    n_found = 0
    for true_id in tetrode[1].unit_ids:
        truth = tetrode[1].get_unit_spike_train(true_id, segment_index=0)
        for unit_id in tetrode_sorting.unit_ids:
            lags = tetrode_sorting.get_unit_spike_train(unit_id, segment_index=0)[:, None] - truth
            lags = lags[np.abs(lags) <= MAX_LAG]
            if len(lags) > 0.8 * len(truth):
                n_found += 1
                assert abs(np.median(lags)) <= 1
    assert n_found >= 3


def test_by_property(tmp_path, tetrode, tetrode_sorting):
    recording = replace_traces(tetrode[0], [tetrode[0].get_traces()])
    recording.set_property("shank", np.repeat(["left", "right"], 2))
    recording = recording.save(folder=tmp_path / "recording", verbose=False, progress_bar=False)
    sorting = run_sorter_by_property("huidurep", recording, grouping_property="shank", folder=tmp_path / "out")
    assert set(sorting.get_property("shank")) <= {"left", "right"}
    assert sorting.get_num_units() >= 2


def test_analyzer_and_phy(tmp_path, tetrode, tetrode_folder):
    sorting = load(tetrode_folder)
    analyzer = create_sorting_analyzer(sorting, tetrode[0], sparse=False)
    analyzer.compute(["random_spikes", "waveforms", "templates", "noise_levels", "spike_amplitudes"])
    assert analyzer.get_extension("templates").get_templates().shape[0] == sorting.get_num_units()
    if importlib.util.find_spec("spikeinterface.exporters") is None:
        pytest.skip("SpikeInterface has no exporters here")
    from spikeinterface.exporters import export_to_phy

    export_to_phy(analyzer, tmp_path / "phy", compute_pc_features=True, copy_binary=False, verbose=False)
    clusters = np.load(tmp_path / "phy/spike_clusters.npy").ravel()
    assert np.bincount(clusters).tolist() == sorting.get_property("n_spikes").tolist()


@pytest.mark.parametrize(("noise", "floor"), [("white", 0.9), ("coloured", 0.8)])
def test_accuracy_floor(sort, tmp_path, noise, floor):
    recording, sorting_true = make_ground_truth(
        tmp_path / "recording",
        num_channels=16,
        num_units=10,
        durations=[30.0],
        noise_kwargs={"noise_levels": 6.0 if noise == "white" else 1e-3, "strategy": "on_the_fly"},
    )
    if noise == "coloured":
        recording = replace_traces(recording, [recording.get_traces() + make_coloured_noise(recording)])
    sorting = sort(recording)
    assert compute_accuracies(sorting_true, sorting).mean() >= floor
    assert sorting.get_num_units() <= 12


def make_coloured_noise(recording):
    """Noise with a power spectrum of 1 / (1 + f / 500 Hz), shared by neighbours, and 6 SD between 300 and 6000 Hz."""
    n_samples, n_channels = recording.get_num_samples(), recording.get_num_channels()
    frequencies_hz = np.fft.rfftfreq(n_samples, 1 / recording.sampling_frequency)
    locations = recording.get_channel_locations()
    distances = np.linalg.norm(locations[:, None] - locations, axis=2)
    white = np.random.default_rng(0).standard_normal((n_samples, n_channels)) @ np.exp(-distances / 20)
    spectrum = np.fft.rfft(white, axis=0) / np.sqrt(1 + frequencies_hz / 500)[:, None]
    spectrum[frequencies_hz < 10] = 0
    in_band = spectrum * ((frequencies_hz > 300) & (frequencies_hz < 6000))[:, None]
    sd = np.fft.irfft(in_band, n_samples, axis=0).std(axis=0)
    return (6.0 * np.fft.irfft(spectrum, n_samples, axis=0) / sd).astype("float32")
