"""Checks of the recording before anything heavy is done, and the default probe of a recording that has none."""

import numpy as np

MAX_CHANNELS = 384
TETRODE_PITCH_UM = 25.0  # side of the square of contacts assumed for four channels without a probe


def check_recording(recording):
    """
    Check that a recording can be sorted, without reading traces.

    Parameters
    ----------
    recording : BaseRecording

    Raises
    ------
    ValueError
        If it is not a recording, has too many channels or no samples, has no probe where one is needed, or has a group
        on several probes or with two channels at the same place: says what to do.
    """
    from spikeinterface.core import BaseRecording

    if not isinstance(recording, BaseRecording):
        raise ValueError(f"huidurep sorts recordings (continuous traces), not {type(recording).__name__}")
    num_channels = recording.get_num_channels()
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise ValueError(
            f"the recording has {num_channels} channels; huidurep sorts 1 to {MAX_CHANNELS} at once (split a longer "
            "probe with recording.select_channels or run_sorter_by_property)"
        )
    if recording.get_total_samples() == 0:
        raise ValueError("the recording has no samples")
    check_locations(attach_default_probe(recording))


def attach_default_probe(recording):
    """
    Give a recording without a probe the probe it can only have.

    One channel gets a single contact, four channels a generic tetrode (square of 25 um). Nothing can be assumed of any
    other number of channels.

    Parameters
    ----------
    recording : BaseRecording

    Returns
    -------
    recording : BaseRecording
        The same object if it has a probe, otherwise a new one with a probe.

    Raises
    ------
    ValueError
        If a probe is missing and cannot be assumed: says how to attach one.
    """
    if recording.has_probe():
        return recording
    from probeinterface import Probe, generate_tetrode

    num_channels = recording.get_num_channels()
    if num_channels == 1:
        probe = Probe(ndim=2, si_units="um")
        probe.set_contacts(positions=np.zeros((1, 2)), shapes="circle", shape_params={"radius": 5.0})
    elif num_channels == 4:
        probe = generate_tetrode(r=TETRODE_PITCH_UM / np.sqrt(2))
    else:
        raise ValueError(
            f"the recording has {num_channels} channels and no probe, so it is not known which channels are close to "
            "each other. Attach one: `recording.set_probe(probe)` with `probe = "
            "probeinterface.read_probeinterface(file_path)` or `probeinterface.get_probe(manufacturer, probe_name)`, "
            "or `recording.set_dummy_probe_from_locations(locations_um)` with an array (num_channels, 2)"
        )
    probe.set_device_channel_indices(np.arange(num_channels))
    return recording.select_channels_with_probe(probe)


def check_locations(recording):
    """
    Check that each group is on one probe, and no two of its channels at the same place.

    Parameters
    ----------
    recording : BaseRecording
        With a probe.

    Raises
    ------
    ValueError
        If locations are not finite, or repeated within a group, or a group is on several probes.
    """
    locations_um = recording.get_channel_locations()  # (c, 2)
    if not np.all(np.isfinite(locations_um)):
        raise ValueError("some channel locations are not finite; attach a probe with a location for every channel")
    groups = recording.get_channel_groups()
    is_3d = recording.get_probegroup().ndim == 3
    for group in np.unique(groups):
        channel_ids = recording.channel_ids[groups == group]
        _, first, counts = np.unique(locations_um[groups == group], axis=0, return_index=True, return_counts=True)
        if np.any(counts > 1) and is_3d:
            raise ValueError(
                f"several channels of group {group} differ in z only, and huidurep takes x and y; lay the probe in a "
                "plane, for example with `recording.planarize(axes='xz')`"
            )
        if np.any(counts > 1):
            raise ValueError(
                f"several channels of group {group} are at the same location (for example that of channel "
                f"{channel_ids[first[counts > 1][0]]}). If they belong to different tetrodes or shanks, set the "
                "property 'group' and sort each one alone with `run_sorter_by_property('huidurep', recording, "
                "grouping_property='group', folder=...)`; otherwise attach a probe with true locations"
            )
        n_probes = len(recording.select_channels(channel_ids).get_probegroup().probes)
        if n_probes > 1:
            raise ValueError(
                f"the channels of group {group} are on {n_probes} probes; give each probe a group of its own: "
                "`recording.set_probegroup(probegroup, group_mode='by_probe')` or 'by_shank'"
            )
