"""Templates that reach too far are no neurons'."""

import numpy as np
import pytest
from probeinterface import generate_linear_probe, generate_tetrode
from spikeinterface.core import Templates

from spikeinterface_huidurep.footprints import find_far_reaching_templates, leave_out_far_reaching
from spikeinterface_huidurep.matching import keep_templates_of_neurons
from spikeinterface_huidurep.params import SorterParams

N_SPIKES = 400
REACHES_UM = (30.0, 60.0, 1000.0)  # two neurons and a ripple


def make_probe(n_channels=32):
    probe = generate_linear_probe(n_channels, ypitch=20)
    probe.set_device_channel_indices(np.arange(n_channels))
    return probe


def make_templates(probe, size=10.0, n_spikes=N_SPIKES, reaches_um=REACHES_UM):
    """Templates that fall off exponentially from the middle of the probe, and what is left of the noise in a mean."""
    y_um = probe.contact_positions[:, 1]
    wave = -np.exp(-0.5 * ((np.arange(60) - 30) / 5) ** 2)
    decays = np.exp(-np.abs(y_um - y_um[len(y_um) // 2]) / np.array(reaches_um)[:, None])
    waveforms = size * wave[:, None] * decays[:, None, :]
    noise = np.random.default_rng(0).standard_normal(waveforms.shape) / np.sqrt(n_spikes)
    return Templates(
        (waveforms + noise).astype("float32"),
        sampling_frequency=30000.0,
        nbefore=30,
        is_in_uV=False,
        unit_ids=np.arange(len(reaches_um)),
        probe=probe,
    )


def count(templates, n_spikes=N_SPIKES):
    return np.full(len(templates.unit_ids), n_spikes)


def test_what_does_not_fade_is_left_out(caplog):
    caplog.set_level("INFO")
    templates = make_templates(make_probe())
    assert leave_out_far_reaching(templates, count(templates)).unit_ids.tolist() == [0, 1]
    assert "1 clusters are no neurons" in caplog.text


def test_noise_of_few_spikes_reaches_nowhere():
    templates = make_templates(make_probe(), size=2.0, n_spikes=12)
    assert find_far_reaching_templates(templates, count(templates, 12)).tolist() == [False, False, True]
    assert find_far_reaching_templates(templates, count(templates)).tolist() == [True, True, True]


@pytest.mark.parametrize("probe", [generate_tetrode(), make_probe(8)])
def test_small_probes_do_not_tell(probe):
    probe.set_device_channel_indices(np.arange(probe.get_contact_count()))
    templates = make_templates(probe)
    assert not find_far_reaching_templates(templates, count(templates)).any()


def test_channels_that_are_not_known_do_not_count():
    templates = make_templates(make_probe())
    templates.templates_array[:, :, np.abs(templates.get_channel_locations()[:, 1] - 320) > 150] = 0
    assert not find_far_reaching_templates(templates, count(templates)).any()


def test_without_neurons_there_are_no_templates():
    templates = make_templates(make_probe(), reaches_um=(1000.0,))
    assert keep_templates_of_neurons(templates, count(templates), SorterParams()) is None
