"""The folder contract, with a stand-in for the algorithm."""

import json
import logging
import sys
import types

import numpy as np
import pytest
from spikeinterface import load
from spikeinterface.core import NumpyRecording, NumpySorting
from spikeinterface.sorters import (
    get_default_sorter_params,
    get_sorter_description,
    get_sorter_params_description,
    run_sorter,
)
from spikeinterface.sorters.utils import SpikeSortingError

from spikeinterface_huidurep import HuiduRepSorter, SorterParams
from spikeinterface_huidurep.sorter import log_to_file

VERSION = "v0-00000000"


@pytest.fixture
def calls(monkeypatch):
    """Calls of the stand-in for `sort_recording`, which finds two spikes of one unit."""
    calls = []

    def sort_recording(recording, params, folder, verbose):
        calls.append(types.SimpleNamespace(recording=recording, params=params, folder=folder, verbose=verbose))
        logging.getLogger("spikeinterface_huidurep.pipeline").info("two spikes found")
        sorting = NumpySorting.from_unit_dict(
            [{"0": np.array([100, 200])}] + [{"0": np.array([50])}] * (recording.get_num_segments() - 1),
            sampling_frequency=recording.sampling_frequency,
        )
        sorting.set_property("main_channel_id", recording.channel_ids[:1])
        return sorting

    stand_in = types.SimpleNamespace(sort_recording=sort_recording)
    monkeypatch.setitem(sys.modules, "spikeinterface_huidurep.pipeline", stand_in)
    monkeypatch.setattr("spikeinterface_huidurep.sorter.weights_version", lambda path=None: VERSION)
    return calls


@pytest.fixture
def recording(tiny_recording_folder):
    return load(tiny_recording_folder)


def save_recording(tmp_path, num_channels, num_segments=1, sampling_frequency=30_000.0):
    traces = [np.zeros((3000, num_channels), dtype="int16")] * num_segments
    recording = NumpyRecording(traces, sampling_frequency=sampling_frequency)
    return recording.save(folder=tmp_path / "recording", verbose=False)


def test_run_and_load_again(calls, recording, tmp_path):
    folder = tmp_path / "out"
    sorting = run_sorter("huidurep", recording, folder=folder, detect_threshold=4)
    for loaded in (sorting, load(folder)):
        np.testing.assert_array_equal(loaded.get_unit_spike_train("0", segment_index=0), [100, 200])
        assert loaded.get_property("main_channel_id")[0] == recording.channel_ids[0]
        assert loaded.has_recording()
    (call,) = calls
    assert call.params == SorterParams.from_dict({"detect_threshold": 4.0})
    assert call.folder == folder / "sorter_output"
    assert call.recording.get_num_channels() == 4


def test_files_written(calls, recording, tmp_path):
    run_sorter("huidurep", recording, folder=tmp_path / "out", seed=7)
    used = json.loads((tmp_path / "out/sorter_output/parameters_used.json").read_text())
    assert used["parameters"] == {**get_default_sorter_params("huidurep"), "seed": 7}
    assert used["weights_version"] == VERSION and used["sorter_version"].endswith("+" + VERSION)
    assert "two spikes found" in (tmp_path / "out/sorter_output/huidurep.log").read_text()
    log = json.loads((tmp_path / "out/spikeinterface_log.json").read_text())
    assert any("two spikes found" in line for line in log["runtime_trace"])


@pytest.mark.parametrize("verbose", [True, False])
def test_console_only_if_verbose(calls, recording, tmp_path, capfd, verbose):
    run_sorter("huidurep", recording, folder=tmp_path / "out", verbose=verbose)
    assert ("two spikes found" in capfd.readouterr().err) == verbose
    assert calls[0].verbose == verbose


def test_no_handler_is_left_behind(tmp_path):
    logger = logging.getLogger("spikeinterface_huidurep")
    before, level_before = list(logger.handlers), logger.level
    with pytest.raises(RuntimeError), log_to_file(tmp_path / "huidurep.log", verbose=True):
        raise RuntimeError("no luck")
    assert logger.handlers == before and logger.level == level_before
    assert "RuntimeError: no luck" in (tmp_path / "huidurep.log").read_text()


def test_errors_reach_the_user_and_the_log(calls, recording, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no luck")

    monkeypatch.setattr(sys.modules["spikeinterface_huidurep.pipeline"], "sort_recording", fail)
    with pytest.raises(SpikeSortingError, match="no luck"):
        run_sorter("huidurep", recording, folder=tmp_path / "out")
    log = json.loads((tmp_path / "out/spikeinterface_log.json").read_text())
    assert log["error"] and any("no luck" in line for line in log["runtime_trace"])


@pytest.mark.parametrize("num_channels", [1, 4])
def test_default_probe_is_attached_at_run_time(calls, tmp_path, num_channels):
    recording = save_recording(tmp_path, num_channels)
    run_sorter("huidurep", recording, folder=tmp_path / "out")
    assert calls[0].recording.has_probe() and not recording.has_probe()


def test_several_segments(calls, tmp_path):
    sorting = run_sorter("huidurep", save_recording(tmp_path, 1, num_segments=2), folder=tmp_path / "out")
    assert sorting.get_num_segments() == 2
    np.testing.assert_array_equal(sorting.get_unit_spike_train("0", segment_index=1), [50])


@pytest.mark.parametrize("num_segments", [1, 3])
def test_nothing_found_is_a_valid_sorting(calls, tmp_path, monkeypatch, num_segments):
    def find_nothing(recording, *others):
        return NumpySorting.from_unit_dict([{}] * num_segments, sampling_frequency=recording.sampling_frequency)

    monkeypatch.setattr(sys.modules["spikeinterface_huidurep.pipeline"], "sort_recording", find_nothing)
    recording = save_recording(tmp_path, 1, num_segments=num_segments)
    sorting = run_sorter("huidurep", recording, folder=tmp_path / "out")
    for loaded in (sorting, load(tmp_path / "out")):
        assert loaded.get_num_units() == 0 and loaded.get_num_segments() == num_segments
        assert loaded.unit_ids.dtype.kind == "i"
        assert len(loaded.to_spike_vector()) == 0


def test_segments_without_spikes_are_kept(calls, tmp_path, monkeypatch):
    def find_in_first_segment(recording, *others):
        units = [{"0": np.array([7])}, {"0": np.array([], dtype=int)}, {"0": np.array([], dtype=int)}]
        return NumpySorting.from_unit_dict(units, sampling_frequency=recording.sampling_frequency)

    monkeypatch.setattr(sys.modules["spikeinterface_huidurep.pipeline"], "sort_recording", find_in_first_segment)
    sorting = run_sorter("huidurep", save_recording(tmp_path, 1, num_segments=3), folder=tmp_path / "out")
    assert [len(sorting.get_unit_spike_train("0", segment_index=i)) for i in range(3)] == [1, 0, 0]


@pytest.mark.parametrize(
    ("num_channels", "sampling_frequency", "params", "message"),
    [
        (4, 30_000.0, {"detect_threshold": -1}, "detect_threshold=-1"),
        (4, 5_000.0, {}, "5000 Hz"),
        (8, 30_000.0, {}, "set_probe"),
    ],
)
def test_wrong_input_is_refused_before_the_run(calls, tmp_path, num_channels, sampling_frequency, params, message):
    recording = save_recording(tmp_path, num_channels, sampling_frequency=sampling_frequency)
    with pytest.raises(ValueError, match=message):
        run_sorter("huidurep", recording, folder=tmp_path / "out", raise_error=False, **params)
    assert calls == []


def test_class_answers(monkeypatch):
    assert set(get_sorter_params_description("huidurep")) == set(get_default_sorter_params("huidurep"))
    assert "HuiduRep" in get_sorter_description("huidurep")
    assert HuiduRepSorter.is_installed()
    assert HuiduRepSorter.use_gpu({"torch_device": "auto"}) and not HuiduRepSorter.use_gpu({"torch_device": "cpu"})
    monkeypatch.setattr("spikeinterface_huidurep.sorter.REQUIRED_MODULES", ("numpy", "huidurep_no_such_module"))
    assert not HuiduRepSorter.is_installed()


def test_filtered_recordings_are_pointed_out(calls, tmp_path, capsys):
    recording = save_recording(tmp_path, 1)
    recording.annotate(is_filtered=True)
    run_sorter("huidurep", recording, folder=tmp_path / "filter", verbose=True)
    assert "already filtered" in capsys.readouterr().out
    run_sorter("huidurep", recording, folder=tmp_path / "no_filter", verbose=True, apply_preprocessing=False)
    assert "already filtered" not in capsys.readouterr().out
