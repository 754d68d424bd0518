import numpy as np
import pytest
from probeinterface import ProbeGroup, generate_linear_probe, generate_tetrode
from spikeinterface.core import NumpyRecording, NumpySnippets

from spikeinterface_huidurep.checks import attach_default_probe, check_recording


def make_recording(num_channels, num_samples=100):
    return NumpyRecording([np.zeros((num_samples, num_channels), dtype="float32")], sampling_frequency=30_000.0)


def attach(recording, *probes):
    probegroup = ProbeGroup()
    for probe in probes:
        probegroup.add_probe(probe)
    probegroup.set_global_device_channel_indices(np.arange(recording.get_num_channels()))
    recording.set_probegroup(probegroup, group_mode="by_probe", check_overlap=False)
    return recording


def test_one_channel_needs_no_probe():
    recording = attach_default_probe(make_recording(1))
    np.testing.assert_array_equal(recording.get_channel_locations(), [[0.0, 0.0]])


def test_four_channels_without_probe_are_a_tetrode():
    recording = make_recording(4)
    with_probe = attach_default_probe(recording)
    locations_um = with_probe.get_channel_locations()
    distances_um = np.linalg.norm(locations_um[:, None] - locations_um[None], axis=-1)
    sides = np.sort(distances_um[np.triu_indices(4, 1)])
    np.testing.assert_allclose(sides, [25.0] * 4 + [25.0 * np.sqrt(2)] * 2)
    np.testing.assert_array_equal(with_probe.channel_ids, recording.channel_ids)
    assert not recording.has_probe()


def test_a_probe_is_left_alone():
    recording = attach(make_recording(4), generate_linear_probe(4))
    assert attach_default_probe(recording) is recording


@pytest.mark.parametrize("num_channels", [2, 3, 5, 32])
def test_other_channel_counts_need_a_probe(num_channels):
    with pytest.raises(ValueError, match="set_probe"):
        check_recording(make_recording(num_channels))


def test_384_channels_are_accepted_and_more_are_not():
    check_recording(attach(make_recording(384), generate_linear_probe(384)))
    with pytest.raises(ValueError, match="385 channels"):
        check_recording(attach(make_recording(385), generate_linear_probe(385)))


def test_a_group_on_two_probes_is_refused():
    far = generate_tetrode()
    far.move([500.0, 0.0])
    recording = attach(make_recording(8), generate_tetrode(), far)
    check_recording(recording)
    recording.set_property("group", np.zeros(8, dtype=int))
    with pytest.raises(ValueError, match="group 0 are on 2 probes"):
        check_recording(recording)


def test_repeated_locations_in_one_group_are_refused():
    recording = attach(make_recording(8), generate_tetrode(), generate_tetrode())
    recording.set_property("group", np.zeros(8, dtype=int))
    with pytest.raises(ValueError, match="run_sorter_by_property"):
        check_recording(recording)


def test_repeated_locations_in_two_groups_are_accepted():
    check_recording(attach(make_recording(8), generate_tetrode(), generate_tetrode()))


def test_empty_recordings_and_snippets_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        check_recording(make_recording(1, num_samples=0))
    snippets = NumpySnippets([np.zeros((1, 64, 4))], [np.array([100])], 30_000.0, nbefore=20)
    with pytest.raises(ValueError, match="NumpySnippets"):
        check_recording(snippets)
