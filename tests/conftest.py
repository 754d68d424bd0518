"""Recordings that are small enough for every test."""

import pytest
from spikeinterface.core import generate_ground_truth_recording

TINY_DURATION_S = 4.0


@pytest.fixture(scope="session")
def tiny_ground_truth():
    """(recording, sorting_true): a few seconds of 4 channels at 30 kHz, with 3 units of 17 to 45 times the noise SD."""
    return generate_ground_truth_recording(
        durations=[TINY_DURATION_S],
        num_channels=4,
        num_units=3,
        sampling_frequency=30_000.0,
        generate_unit_locations_kwargs={"margin_um": 10.0, "minimum_z": 5.0, "maximum_z": 20.0, "minimum_distance": 20},
        seed=1,
    )


@pytest.fixture(scope="session")
def tiny_recording(tiny_ground_truth):
    """The recording of `tiny_ground_truth`."""
    return tiny_ground_truth[0]


@pytest.fixture(scope="session")
def tiny_recording_folder(tiny_recording, tmp_path_factory):
    """`tiny_recording` saved as a binary folder, for other processes to load."""
    folder = tmp_path_factory.mktemp("recordings") / "tiny"
    tiny_recording.save(folder=folder, verbose=False)
    return folder
