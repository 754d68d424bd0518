"""Training views: seeded, in the domain of the sorter's input, and clean where they say so."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spikeinterface_huidurep.model.encoder import expand_amplitude  # noqa: E402
from spikeinterface_huidurep.training.data import make_source  # noqa: E402
from spikeinterface_huidurep.training.probes import (  # noqa: E402
    compute_whitening,
    draw_noise_covariance,
    draw_probe,
    draw_site,
)
from spikeinterface_huidurep.training.units import DEFAULT_WINDOW, Window  # noqa: E402
from spikeinterface_huidurep.training.views import (  # noqa: E402
    ViewConfig,
    _simulate_noise,
    draw_filters,
    draw_pair,
    draw_scene,
    draw_view,
    shift_and_crop,
)

STILL = dict(
    amplitude_sd=0.0,
    bursting_probability=0.0,
    drift_um=0.0,
    drift_probability=0.0,
    collision_probability=0.0,
    other_centre_probability=0.0,
    dropout_probability=0.0,
    few_channels_probability=0.0,
)


@pytest.fixture(scope="module")
def source():
    return make_source(None, n_sites=40, fraction_real=0.5, seed=0)


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pair_shapes(source):
    for view in draw_pair(source, 3, 5, ViewConfig(), make_generator()):
        assert view.waveforms.shape == (15, 12, 64) and view.positions.shape == (15, 12, 2)
        assert view.channel_mask.shape == (15, 12) and view.channel_mask.dtype == torch.bool
        assert view.clean_compressed.shape == view.aligned_compressed.shape == (15, 12, 64)
        assert view.channel_mask.any(dim=1).all()
        absent = ~view.channel_mask
        for values in (view.waveforms, view.positions, view.clean_compressed, view.aligned_compressed):
            assert torch.isfinite(values).all() and (values[absent] == 0).all()
        assert (view.positions.norm(dim=-1) <= 120.001).all()


def test_views_are_seeded_and_touch_no_global_state(source):
    state = torch.random.get_rng_state()
    first = draw_pair(source, 2, 4, ViewConfig(), make_generator(3))
    again = draw_pair(source, 2, 4, ViewConfig(), make_generator(3))
    other = draw_pair(source, 2, 4, ViewConfig(), make_generator(4))
    assert torch.equal(first[0].waveforms, again[0].waveforms)
    assert torch.equal(first[1].waveforms, again[1].waveforms)
    assert not torch.equal(first[0].waveforms, other[0].waveforms)
    assert not torch.equal(first[0].waveforms, first[1].waveforms)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_existing_channels_come_first_and_nearest_first(source):
    view, _ = draw_pair(source, 4, 4, ViewConfig(), make_generator())
    n_channels = view.channel_mask.sum(dim=1, keepdim=True)
    assert torch.equal(view.channel_mask, torch.arange(12) < n_channels)
    distance = view.positions.norm(dim=-1).masked_fill(~view.channel_mask, torch.inf)
    assert (distance[:, 0] == 0).all() and (distance[:, 1:] >= distance[:, :-1] - 1e-3).all()


def test_aligned_waveform_has_its_peak_at_the_right_sample_and_size(source):
    config = ViewConfig(**STILL)
    scene = draw_scene(source, 6, 5, config, make_generator(1))
    view = draw_view(scene, config, make_generator(2))
    centre = expand_amplitude(view.aligned_compressed)[:, 0]
    peak = torch.maximum((-centre).amax(dim=1), centre.abs()[:, 24])
    torch.testing.assert_close(centre[:, 24].abs(), peak)
    torch.testing.assert_close(centre[:, 24].abs(), scene.amplitudes, rtol=1e-3, atol=1e-2)


def test_noise_has_unit_sd_and_stays_in_the_band(source):
    config = ViewConfig(noise_correlation=0.0)
    scene = draw_scene(source, 8, 16, config, make_generator())
    noise = _simulate_noise(scene, torch.zeros(128, 12, 2), config, make_generator(1))
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    filters, noise_shape = draw_filters(50, config, DEFAULT_WINDOW, make_generator())
    assert filters.shape == noise_shape.shape == (50, DEFAULT_WINDOW.n_bins)
    assert (filters[:, 0] == 0).all() and filters[:, -10:].abs().max() < 1e-6


def test_view_without_collisions_is_clean_plus_noise(source):
    config = ViewConfig(**STILL)
    view, _ = draw_pair(source, 6, 16, config, make_generator())
    residual = view.waveforms - expand_amplitude(view.clean_compressed)
    assert residual[view.channel_mask].std().item() == pytest.approx(1, abs=0.05)


def test_views_in_a_longer_window():
    long_source = make_source(None, n_sites=20, fraction_real=0.0, seed=0, window=Window(n_samples=121, n_before=42))
    view, _ = draw_pair(long_source, 4, 8, ViewConfig(**STILL), make_generator())
    assert view.waveforms.shape == view.clean_compressed.shape == view.aligned_compressed.shape == (32, 12, 121)
    trough = view.aligned_compressed[:, 0].abs().argmax(dim=1)
    assert (trough == 42).float().mean() > 0.9  # a unit centred on its second largest peak may have another
    assert view.clean_compressed[:, 0, -5:].abs().max() < 0.2 * view.clean_compressed.abs().max()  # nothing comes round


@pytest.mark.parametrize("window", [DEFAULT_WINDOW, Window(n_samples=121, n_before=42)])
def test_shift_and_crop_equals_a_roll(window):
    long = torch.randn(2, 3, window.n_fft, generator=make_generator())
    spectra = torch.fft.rfft(long)
    spectra[..., -1] = 0  # the Nyquist bin has no defined phase
    long = torch.fft.irfft(spectra, n=window.n_fft)
    found = shift_and_crop(spectra, torch.tensor([0.0, 5.0]), window)
    start = window.origin - window.n_before
    torch.testing.assert_close(found[0], long[0, :, start : start + window.n_samples], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], long[1, :, start - 5 : start - 5 + window.n_samples], atol=1e-5, rtol=0)


def test_whitening_whitens():
    rng = np.random.default_rng(0)
    for _ in range(20):
        positions = draw_probe(rng)[:48]
        covariance = draw_noise_covariance(positions, rng)
        whitening = compute_whitening(covariance)
        assert np.isfinite(whitening).all()
        if np.linalg.eigvalsh(covariance).min() > 0:
            whitened = whitening @ covariance @ whitening.T
            np.testing.assert_allclose(np.diag(whitened), 1, atol=1e-6)
            correlation = np.abs(covariance - np.eye(len(covariance))).sum()
            assert np.abs(whitened - np.eye(len(whitened))).sum() <= 0.5 * correlation + 1e-6


def test_site_starts_with_its_centre():
    for seed in range(10):
        positions, whitening, mask = draw_site(np.random.default_rng(seed))
        assert mask[0] and (positions[0] == 0).all()
        assert (whitening[~mask] == 0).all() and np.isfinite(whitening).all()


def test_slow_recordings_hold_nothing_above_their_band():
    config = ViewConfig(low_rate_probability=1.0)
    filters, noise_shape = draw_filters(50, config, DEFAULT_WINDOW, make_generator())
    frequencies_hz = np.arange(DEFAULT_WINDOW.n_bins) * (30000 / DEFAULT_WINDOW.n_fft)
    for values in (filters, noise_shape):
        assert (values[:, frequencies_hz >= 9000] == 0).all() and (values[:, frequencies_hz == 3750] > 0).all()
    assert (filters[:, (frequencies_hz > 4500) & (frequencies_hz < 9000)] == 0).any()
