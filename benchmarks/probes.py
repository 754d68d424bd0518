"""Probes that SpikeInterface would have to download."""

import numpy as np
import probeinterface


def make_neuropixels_probe(n_channels):
    """The first sites of a Neuropixels 1.0 probe, in micrometres."""
    site = np.arange(n_channels)
    probe = probeinterface.Probe(ndim=2, si_units="um")
    positions = np.column_stack([np.array([43.0, 11.0, 59.0, 27.0])[site % 4], 20.0 * (site // 2)])
    probe.set_contacts(positions=positions, shapes="square", shape_params=dict(width=12))
    probe.set_device_channel_indices(site)
    return probe
