"""Recordings that are small enough for every test."""

import pytest
from spikeinterface.core import generate_ground_truth_recording

TINY_DURATION_S = 4.0


@pytest.fixture(scope="session")
def tiny_ground_truth():
    """(recording, sorting_true): 4 channels with a tetrode-like probe, 30 kHz, 3 loud units, a few seconds."""
    return generate_ground_truth_recording(
        durations=[TINY_DURATION_S], num_channels=4, num_units=3, sampling_frequency=30_000.0, seed=0
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
