"""Parts of the hybrid recordings that have a known answer."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The folder of scripts on the path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_filter_gives_white_noise_the_covariance():
    from hybrid import design_colouring_filter

    lags = 0.6 ** np.arange(121)
    coefficients = design_colouring_filter(3.0 * scipy.linalg.toeplitz(lags))
    autocorrelation = np.correlate(coefficients, coefficients, "full")[len(coefficients) - 1 :]
    np.testing.assert_allclose(autocorrelation[:8], lags[:8], atol=0.02)
    assert autocorrelation[0] == pytest.approx(1.0)


def test_templates_keep_the_column_of_their_site(tmp_path):
    from hybrid import N_CHANNELS, N_UNITS, place_templates

    n_file = 2 * N_UNITS
    rng = np.random.default_rng(0)
    peak_channel = rng.integers(4, 10, n_file)
    electrode = rng.integers(1, 900, n_file).astype(float)
    waveforms = np.zeros((n_file, 14, 61), dtype="float32")
    waveforms[np.arange(n_file), peak_channel, 15] = -60.0 - np.arange(n_file)
    path = tmp_path / "templates.npz"
    np.savez(path, templates=waveforms, peak_channel=peak_channel, electrode=electrode, is_single=np.ones(n_file, bool))

    templates = place_templates(path, np.random.default_rng(1))
    array = templates.templates_array
    assert array.shape == (N_UNITS, 61, N_CHANNELS)
    peaks = array.min(axis=1)
    units = np.rint(-60.0 - peaks.min(axis=1)).astype(int)
    assert len(set(units)) == N_UNITS
    site_of_origin = (electrode[units].astype(int) - 1) % 384
    np.testing.assert_array_equal(peaks.argmin(axis=1) % 4, site_of_origin % 4)
    assert templates.nbefore == 15


@pytest.mark.parametrize("sample, wanted", [(15, 15), (21, 21), (9, 9), (22, 15), (8, 15), (60, 15)])
def test_waveforms_far_from_their_place_are_moved(sample, wanted):
    from hybrid import centre_waveform

    waveform = np.zeros((61, 3))
    waveform[sample] = [1.0, -3.0, 2.0]
    moved = centre_waveform(waveform)
    assert moved.shape == (61, 3)
    assert moved[wanted].tolist() == [1.0, -3.0, 2.0]
    assert np.abs(moved).sum() == 6.0


@pytest.mark.parametrize("mean_in_burst", [1, 2])
def test_spikes_get_smaller_in_bursts(mean_in_burst):
    from hybrid import REFRACTORY_MS, SAMPLING_FREQUENCY_HZ, fire

    samples, sizes = fire(5.0, mean_in_burst, 200.0, np.random.default_rng(0))
    assert len(samples) == pytest.approx(1000, rel=0.15)
    assert len(samples) / np.sum(sizes == 1) == pytest.approx(mean_in_burst, rel=0.1)
    intervals_ms = 1000 * np.diff(samples) / SAMPLING_FREQUENCY_HZ
    assert intervals_ms.min() >= REFRACTORY_MS - 0.1
    assert sizes.min() == (1.0 if mean_in_burst == 1 else 0.4)
    is_later = sizes[1:] < 1
    np.testing.assert_allclose(sizes[1:][is_later], np.maximum(0.8 * sizes[:-1][is_later], 0.4))
    assert is_later.any() == (mean_in_burst > 1)
    assert np.all(intervals_ms[is_later] < 30)
