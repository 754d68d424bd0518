"""
Templates that reach too far.

What a neuron leaves on the probe fades within 100 um or so. Cycles of ripples, and artifacts, are almost as large
wherever one looks, and become clusters like spikes.
"""

import logging

import numpy as np

logger = logging.getLogger(__name__)

FAR_UM, MAX_UM = 100.0, 200.0  # from the channel where a template is largest
MIN_FAR_CHANNELS = 6  # with fewer there, a neuron may lie beside most of them
MAX_FAR_SIZE = 0.25  # of the largest; simulated neurons have up to 0.12, ripples from 0.3 on
NOISE_PEAK = 3.0  # noise SD; largest of the samples of a waveform


def find_far_reaching_templates(templates, n_spikes):
    """
    Find templates that are hardly smaller far away, on the median channel, than where they are largest.

    Parameters
    ----------
    templates : spikeinterface.core.Templates
        In multiples of the noise SD; 0 on channels where they are not known.
    n_spikes : np.ndarray, int, shape (n_units,)
        Number of spikes that each is the mean of.

    Returns
    -------
    is_far_reaching : np.ndarray, bool, shape (n_units,)
        False where fewer than MIN_FAR_CHANNELS channels are that far away.
    """
    sizes = np.abs(templates.get_dense_templates()).max(axis=1)
    locations_um = templates.get_channel_locations()
    distances_um = np.linalg.norm(locations_um[sizes.argmax(axis=1)][:, None] - locations_um, axis=2)
    is_far = (distances_um > FAR_UM) & (distances_um <= MAX_UM) & (sizes > 0)
    noise = NOISE_PEAK / np.sqrt(n_spikes)
    is_far_reaching = np.zeros(len(sizes), dtype=bool)
    for unit in np.flatnonzero(is_far.sum(axis=1) >= MIN_FAR_CHANNELS):
        far_size = np.median(sizes[unit, is_far[unit]]) - noise[unit]
        is_far_reaching[unit] = far_size > MAX_FAR_SIZE * sizes[unit].max()
    return is_far_reaching


def leave_out_far_reaching(templates, n_spikes):
    """Templates without those that `find_far_reaching_templates` finds."""
    is_far_reaching = find_far_reaching_templates(templates, n_spikes)
    if is_far_reaching.any():
        logger.info("%d clusters are no neurons: as large far away as near", is_far_reaching.sum())
    return templates.select_units(templates.unit_ids[~is_far_reaching])
