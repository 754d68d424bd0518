"""Recordings with known spikes, and the way to sort them."""

from itertools import count

import pytest
from spikeinterface.comparison import compare_sorter_to_ground_truth
from spikeinterface.core import NumpyRecording, generate_ground_truth_recording
from spikeinterface.sorters import run_sorter

from spikeinterface_huidurep.demo import DELTA_TIME_MS, UNIT_LOCATIONS

TETRODE_UNITS = 4


def make_ground_truth(
    folder, num_channels=4, num_units=TETRODE_UNITS, durations=(10.0,), sampling_frequency=30_000.0, **kwargs
):
    """(recording, sorting_true): float32, white noise, units close to the probe; the recording is saved in `folder`."""
    kwargs = dict(generate_unit_locations_kwargs=UNIT_LOCATIONS, seed=0) | kwargs
    recording, sorting_true = generate_ground_truth_recording(
        durations=list(durations),
        num_channels=num_channels,
        num_units=num_units,
        sampling_frequency=sampling_frequency,
        **kwargs,
    )
    return recording.save(folder=folder, verbose=False, progress_bar=False), sorting_true


def replace_traces(recording, traces_list):
    """A recording of other traces on the probe of `recording`, not marked as filtered."""
    replaced = NumpyRecording(traces_list, recording.sampling_frequency, channel_ids=recording.channel_ids)
    if recording.has_probe():
        replaced.set_probegroup(recording.get_probegroup())
    return replaced


def compute_accuracies(sorting_true, sorting):
    """Accuracy of every true unit, shape (n_true,)."""
    comparison = compare_sorter_to_ground_truth(sorting_true, sorting, exhaustive_gt=True, delta_time=DELTA_TIME_MS)
    return comparison.get_performance()["accuracy"].to_numpy(dtype=float)


@pytest.fixture
def sort(tmp_path):
    """Function (recording, **params) -> sorting; the n-th call writes to `tmp_path / "out<n>"`, from 0."""
    numbers = count()

    def sort_in_new_folder(recording, **params):
        number = next(numbers)
        if not recording.check_serializability("json"):
            recording = recording.save(folder=tmp_path / f"recording{number}", verbose=False, progress_bar=False)
        return run_sorter("huidurep", recording, folder=tmp_path / f"out{number}", **params)

    return sort_in_new_folder


@pytest.fixture(scope="session")
def tetrode(tmp_path_factory):
    """(recording, sorting_true): 10 s of 4 channels at 30 kHz with 4 units."""
    return make_ground_truth(tmp_path_factory.mktemp("tetrode") / "recording")


@pytest.fixture(scope="session")
def tetrode_folder(tetrode, tmp_path_factory):
    """Folder of `run_sorter` on `tetrode` with the default parameters."""
    folder = tmp_path_factory.mktemp("tetrode_sorted") / "out"
    run_sorter("huidurep", tetrode[0], folder=folder)
    return folder


@pytest.fixture(scope="session")
def tetrode_sorting(tetrode_folder):
    """The sorting of `tetrode` with the default parameters."""
    from spikeinterface import load

    return load(tetrode_folder)
