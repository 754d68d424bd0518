"""Rare neurons among the many spikes of another: found, all of them, and not where one neuron only varies."""

import numpy as np
import pytest
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep import hidden
from spikeinterface_huidurep.hidden import find_hidden_neuron, find_lonely_spikes, make_projection
from spikeinterface_huidurep.splitting import find_variation

from .test_joining import SHAPE, make_residuals
from .test_results import SAMPLING_FREQUENCY
from .test_splitting import (
    OTHER_SIZES,
    SIZES,
    THRESHOLD,
    drift,
    drift_and_rest,
    jitter,
    jitter_to_both_sides,
    mix,
    pulse,
    vary_gain,
)

N_SPIKES, N_LOOKED_AT = 12_000, 3000
SHAPES = np.linalg.svd(pulse(np.linspace(-2, 2, 9), width=np.linspace(4, 7, 9)[:, None]))[2][:5].astype("float32")


def find_hidden(spikes, rng):
    """Which of such waveforms in white noise, shape (n_spikes, n_channels, n_samples), are of a hidden neuron."""
    spikes = spikes.astype("float32")
    spikes += rng.standard_normal(spikes.shape, dtype="float32")
    waveform = spikes.mean(axis=0)
    spikes -= waveform
    whitener = np.eye(waveform.size, dtype="float32")
    is_hidden = find_hidden_neuron(
        lambda function: function(spikes), waveform, whitener, SHAPES, N_LOOKED_AT, THRESHOLD, seed=0
    )
    assert is_hidden.shape == (len(spikes),) and is_hidden.dtype == bool
    return is_hidden


@pytest.mark.parametrize("n_hidden", [120, 1000])
def test_all_spikes_of_a_hidden_neuron_are_found(n_hidden):
    rng = np.random.default_rng(0)
    truth = np.isin(np.arange(N_SPIKES), rng.choice(N_SPIKES, n_hidden, replace=False))
    is_hidden = find_hidden(mix(truth, 0.6), rng)
    assert np.mean(is_hidden[truth]) > 0.95
    assert np.mean(truth[is_hidden]) > 0.95


def test_too_few_spikes_are_no_hidden_neuron():
    rng = np.random.default_rng(0)
    truth = np.isin(np.arange(N_SPIKES), rng.choice(N_SPIKES, hidden.MIN_SPIKES // 2, replace=False))
    assert not find_hidden(mix(truth, 0.6), rng).any()


@pytest.mark.parametrize("make_spikes", [vary_gain, jitter, jitter_to_both_sides, drift, drift_and_rest])
def test_one_neuron_hides_none(make_spikes):
    rng = np.random.default_rng(0)
    assert not find_hidden(make_spikes(rng, N_SPIKES), rng).any()


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_collisions_are_no_hidden_neuron(share):
    """Some spikes have those of another neuron upon them, at any delay."""
    rng = np.random.default_rng(0)
    spikes = np.tile(SIZES * pulse(), (N_SPIKES, 1, 1))
    rows = rng.choice(N_SPIKES, int(share * N_SPIKES), replace=False)
    spikes[rows] += OTHER_SIZES * pulse(rng.uniform(-20, 20, len(rows)))[:, None]
    assert not find_hidden(spikes, rng).any()


def are_alone(spikes, residuals):
    is_alone = np.zeros(len(spikes), dtype=bool)
    for unit_index in range(len(residuals.waveforms)):
        is_alone[find_lonely_spikes(spikes, unit_index, residuals)] = True
    return is_alone


def test_spikes_close_to_others_are_not_alone():
    """Two units on the same channels, in one segment, in two, and where one is too small to be seen."""
    residuals, _ = make_residuals([SHAPE, SHAPE], [1, 1])
    near = round(hidden.ALONE_MS * 1e-3 * SAMPLING_FREQUENCY)
    spikes = np.zeros(5, dtype=minimum_spike_dtype)
    spikes["sample_index"] = [100, 100 + near, 1000, 1000 + near + 1, 3000]
    spikes["unit_index"] = [0, 1, 0, 1, 0]
    assert are_alone(spikes, residuals).tolist() == [False, False, True, True, True]
    spikes["segment_index"][1:] = 1
    assert are_alone(spikes, residuals).all()
    spikes["segment_index"] = 0
    residuals.waveforms[1] *= 0.99 * hidden.MIN_PTP / np.ptp(residuals.waveforms[1], axis=0).max()
    assert are_alone(spikes, residuals).tolist() == [True, False, True, True, True]


def test_what_one_neuron_does_is_not_projected():
    waveform = (SIZES * pulse()).astype("float32")
    projection = make_projection(waveform, np.eye(waveform.size, dtype="float32"), SHAPES)
    sizes = np.linalg.norm(projection, axis=0)
    variation = find_variation(waveform)
    variation /= np.linalg.norm(variation, axis=1, keepdims=True)
    assert projection.shape == (waveform.size, 4 * len(SHAPES))
    assert np.abs(variation @ projection).max() < 0.05 * sizes.max()
    other = (OTHER_SIZES * pulse()).ravel().astype("float32")
    assert np.linalg.norm((other - variation.T @ (variation @ other)) @ projection) > 0.5 * np.linalg.norm(other) / 2
