"""Views of clean units as the sorter would see them: filtered, scaled, moved, collided, noisy.

Everything is computed on batches, and in the frequency domain where that saves a loop.
"""

from dataclasses import dataclass, replace

import torch

from ..model import MODEL_HZ
from ..model.encoder import compress_amplitude
from ..waveforms import MAX_CHANNELS
from .units import Window, draw_uniform

RADIUS_UM = 120.0
PEAK_WINDOW = (-20, 28)  # samples from the origin: where the trough of a filtered unit may lie
MAX_BAND = 0.9  # of the Nyquist frequency: what the anti-aliasing of a slow recording leaves
FAR_UM = 5e3  # further than any channel of a site


@dataclass(frozen=True)
class ViewConfig:
    """Strength of the views."""

    amplitude_sd: float = 0.04
    """SD of the relative amplitude of spikes at most sites."""
    amplitude_sd_bursting: float = 0.08
    """The same for the `bursting_probability` others; always within 0.85 to 1.15."""
    bursting_probability: float = 0.3
    """Part of the sites with larger changes of amplitude."""
    drift_um: float = 1.0
    """A unit moves by up to +- this along the probe at most sites."""
    drift_max_um: float = 6.0
    """Up to +- this at the `drift_probability` others: two views differ by up to twice of it."""
    drift_probability: float = 0.3
    """Part of the sites with larger drift."""
    collision_probability: float = 0.3
    """Part of the views with a second spike."""
    collision_min_shift: float = 8.0
    """Samples between the two spikes, at least."""
    collision_max_shift: float = 45.0
    """Samples between the two spikes, at most."""
    collision_spread_um: float = 60.0
    """The second spike comes from up to this far along both axes."""
    other_centre_probability: float = 0.1
    """Part of the views centred on another strong channel."""
    dropout_probability: float = 0.2
    """Part of the views with missing channels."""
    few_channels_probability: float = 0.15
    """Part of the sites that keep only their 1 to 11 nearest channels."""
    jitter: float = 0.5
    """Samples: sub-sample part of the alignment error."""
    no_temporal_whitening_probability: float = 0.15
    """Part of the sites that are not whitened in time."""
    low_rate_probability: float = 0.0
    """Part of the sites recorded at 10 to 20 kHz and resampled: nothing is left above their Nyquist frequency."""
    noise_correlation: float = 0.25
    """Largest correlation of the noise that whitening leaves between neighbours."""


def make_static(config, collision_probability=0.0):
    """The views of a recording in which nothing moves and no channel is missing."""
    return replace(
        config,
        drift_probability=0.0,
        drift_um=0.0,
        bursting_probability=0.0,
        dropout_probability=0.0,
        few_channels_probability=0.0,
        other_centre_probability=0.0,
        collision_probability=collision_probability,
    )


@dataclass
class Views:
    """A batch of spikes. Leading dimension: units."""

    waveforms: torch.Tensor
    """float32 (b, 12, n_samples): noise SD."""
    positions: torch.Tensor
    """float32 (b, 12, 2): um relative to the centre channel."""
    channel_mask: torch.Tensor
    """bool (b, 12)."""
    clean_compressed: torch.Tensor
    """float32 (b, 12, n_samples): the spike alone, compressed."""
    aligned_compressed: torch.Tensor
    """float32 (b, 12, n_samples): the same without the alignment error."""


@dataclass
class Scene:
    """What the views of a batch share. Leading dimension: units."""

    window: Window
    groups: list
    """of Units."""
    n_units: int
    """Units a site."""
    filters: torch.Tensor
    """float32 (b, 1, n_bins): applied to the units."""
    noise_shape: torch.Tensor
    """float32 (b, 1, n_bins): amplitude spectrum of the noise, unit SD."""
    positions: torch.Tensor
    channel_mask: torch.Tensor
    scale: torch.Tensor
    """float32 (b,): from source units to noise SD."""
    amplitudes: torch.Tensor
    """float32 (b,): peak in noise SD."""
    strength: torch.Tensor
    """float32 (b, c): peak on every channel, relative to the centre."""
    trough: torch.Tensor
    """int64 (b, c): its sample."""
    centre: torch.Tensor
    """int64 (b,): channel on which the units are centred."""
    drift_um: torch.Tensor
    amplitude_sd: torch.Tensor
    max_channels: torch.Tensor
    """(b,): what the views of a unit may do, see `ViewConfig`."""

    def compute_spectra(self, offset_um):
        """Spectra of all units moved by `offset_um` (b, 2): (b, c, n_bins)."""
        sizes = [len(group.amplitudes) for group in self.groups]
        parts = [group.compute_spectra(part) for group, part in zip(self.groups, offset_um.split(sizes), strict=True)]
        return torch.cat(parts)


def draw_filters(n_sites, config, window, generator):
    """
    Random whitening filters in time and the spectrum of the noise after them.

    The band-pass of a site is 200-450 Hz to 3.5-7 kHz. Raw noise falls as a power law with 1 to 12 times more power at
    1 kHz than at 5 kHz; a whitened site has that undone inside the band. A site recorded at a low rate holds nothing
    above 0.45 of it.

    Returns
    -------
    filters, noise_shape : torch.Tensor, float32, shape (n_sites, n_bins)
        Amplitude responses; `noise_shape` gives noise of unit SD.
    """
    column = lambda low, high: draw_uniform((n_sites, 1), low, high, generator)  # noqa: E731
    frequency = (torch.arange(window.n_bins) * (MODEL_HZ / window.n_fft)).clamp(min=1.0)
    low_hz, high_hz, roll_off_hz = column(200, 450), column(3500, 7000), column(400, 1500)
    band = (1 + (low_hz / frequency) ** 8) ** -0.5
    band = band * (0.5 + 0.5 * torch.cos(torch.pi * ((frequency - high_hz) / roll_off_hz).clamp(0, 1)))
    band[:, 0] = 0
    if config.low_rate_probability > 0:
        nyquist_hz = column(5000, 10000)
        is_slow = column(0, 1) < config.low_rate_probability
        band = band * (~is_slow | (frequency < MAX_BAND * nyquist_hz))
    slope = column(0, 1) * torch.log(torch.tensor(12.0)) / torch.log(torch.tensor(5.0))
    octaves = torch.log2(frequency / 1000)
    bumps = column(-0.25, 0.25) * torch.sin(octaves * column(0.7, 2.0) + column(0, 6.3))
    raw_log_power = -slope * octaves * torch.log(torch.tensor(2.0)) + bumps
    is_plain = torch.rand(n_sites, 1, generator=generator) < config.no_temporal_whitening_probability
    whitening = torch.where(is_plain, torch.zeros(1), column(0.7, 1.05))
    filters = band * torch.exp(-0.5 * whitening * raw_log_power)
    noise_shape = band * torch.exp(0.5 * (1 - whitening) * raw_log_power)
    power = (
        (noise_shape**2).sum(dim=1, keepdim=True) * 2 / window.n_fft**2
    )  # variance after irfft of unit complex noise
    return filters, noise_shape / power.sqrt()


def draw_scene(source, n_sites, n_units, config, generator):
    """Draw units and everything that their views share."""
    window = source.window
    groups = source.draw(n_sites, n_units, generator)
    repeat = lambda values: values.repeat_interleave(n_units, dim=0)  # noqa: E731
    site = lambda low, high: draw_uniform((n_sites,), low, high, generator)  # noqa: E731
    filters, noise_shape = (repeat(values).unsqueeze(1) for values in draw_filters(n_sites, config, window, generator))
    is_recorded = torch.cat([torch.full(group.amplitudes.shape, group.draw_noise is not None) for group in groups])
    filters = filters.masked_fill(is_recorded[:, None, None], 1.0)  # as they were recorded
    positions = torch.cat([group.positions for group in groups])
    channel_mask = torch.cat([group.channel_mask for group in groups])
    amplitudes = torch.cat([group.amplitudes for group in groups])

    spectra = torch.cat([group.compute_spectra(torch.zeros(len(group.amplitudes), 2)) for group in groups])
    first, stop = (window.origin + offset for offset in PEAK_WINDOW)
    waveforms = torch.fft.irfft(spectra * filters, n=window.n_fft)[..., first:stop]
    is_negative = repeat(torch.rand(n_sites, generator=generator) < 0.8)[:, None, None]
    strength, trough = torch.where(is_negative, -waveforms, waveforms.abs()).max(dim=-1)
    strength = strength.clamp(min=1e-6).masked_fill(~channel_mask, 0.0)
    main = positions.norm(dim=-1).argmin(dim=1)
    best, strongest = strength.max(dim=1)
    is_main = strength.gather(1, main.unsqueeze(1)).squeeze(1) >= 0.7 * best
    centre = torch.where(is_main, main, strongest)
    peak = strength.gather(1, centre.unsqueeze(1)).squeeze(1)

    is_bursting, is_drifting = site(0, 1) < config.bursting_probability, site(0, 1) < config.drift_probability
    is_small = site(0, 1) < config.few_channels_probability
    return Scene(
        window=window,
        groups=groups,
        n_units=n_units,
        filters=filters,
        noise_shape=noise_shape,
        positions=positions,
        channel_mask=channel_mask,
        scale=amplitudes / peak,
        amplitudes=amplitudes,
        strength=strength / peak.unsqueeze(1),
        trough=trough + first,
        centre=centre,
        drift_um=repeat(torch.where(is_drifting, site(0, 1) * config.drift_max_um, torch.tensor(config.drift_um))),
        amplitude_sd=repeat(
            torch.where(is_bursting, config.amplitude_sd_bursting, config.amplitude_sd).to(torch.float32)
        ),
        max_channels=repeat(torch.where(is_small, site(1, MAX_CHANNELS), torch.tensor(float(MAX_CHANNELS))).long()),
    )


def draw_view(scene, config, generator):
    """
    One spike of every unit of a scene.

    Returns
    -------
    view : Views
    """
    n_total = len(scene.amplitudes)
    row = lambda low, high: draw_uniform((n_total,), low, high, generator)  # noqa: E731
    centre = _draw_centres(scene, config, generator)
    channels, positions, channel_mask = _select_channels(scene, centre, config, generator)

    offset_um = torch.stack([0.2 * row(-1, 1), row(-1, 1)], dim=1) * scene.drift_um.unsqueeze(1)
    relative = torch.randn(n_total, generator=generator) * scene.amplitude_sd
    gain = scene.scale * (1 + relative).clamp(0.85, 1.15)
    alignment = (scene.window.origin - scene.trough.gather(1, centre.unsqueeze(1)).squeeze(1)).float()
    jitter_sd = 0.2 + 3.0 / scene.amplitudes  # noise moves the extremum of small spikes
    whole = (torch.randn(n_total, generator=generator) * jitter_sd).round().clamp(-2, 2)
    jitter = whole + row(-config.jitter, config.jitter)

    spectra = _gather_channels(scene.compute_spectra(offset_um) * scene.filters, channels) * gain[:, None, None]
    clean = shift_and_crop(spectra, alignment + jitter, scene.window)
    aligned = shift_and_crop(spectra, alignment, scene.window)
    waveforms = clean + _draw_collisions(scene, channels, config, generator)
    waveforms = waveforms + _draw_noise(scene, channels, positions, config, generator)
    absent = ~channel_mask.unsqueeze(-1)
    return Views(
        waveforms=waveforms.masked_fill(absent, 0.0),
        positions=positions.masked_fill(absent, 0.0),
        channel_mask=channel_mask,
        clean_compressed=compress_amplitude(clean.masked_fill(absent, 0.0)),
        aligned_compressed=compress_amplitude(aligned.masked_fill(absent, 0.0)),
    )


def draw_pair(source, n_sites, n_units, config, generator):
    """Two views of `n_sites * n_units` units: a batch for the contrast."""
    scene = draw_scene(source, n_sites, n_units, config, generator)
    return draw_view(scene, config, generator), draw_view(scene, config, generator)


def shift_and_crop(spectra, shift, window):
    """Delay spectra (b, c, n_bins) by `shift` (b,) samples and cut the window out: (b, c, n_samples)."""
    phase = -2 * torch.pi / window.n_fft * shift[:, None, None] * torch.arange(window.n_bins)
    return window.crop(torch.fft.irfft(spectra * torch.polar(torch.ones_like(phase), phase), n=window.n_fft))


def _gather_channels(values, channels):
    return values.gather(1, channels.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _draw_centres(scene, config, generator):
    n_total, n_channels = scene.strength.shape
    score = torch.rand(n_total, n_channels, generator=generator).masked_fill(scene.strength < 0.6, -1.0)
    is_other = torch.rand(n_total, generator=generator) < config.other_centre_probability
    return torch.where(is_other, score.argmax(dim=1), scene.centre)


def _select_channels(scene, centre, config, generator):
    """Nearest channels of every centre: indices (b, 12), positions (b, 12, 2), mask (b, 12)."""
    n_total = len(centre)
    rows = torch.arange(n_total)
    relative = scene.positions - scene.positions[rows, centre].unsqueeze(1)
    distance = relative.norm(dim=-1).masked_fill(~scene.channel_mask, FAR_UM)
    dropout = draw_uniform((n_total, 1), 0, 0.4, generator)
    is_thinned = torch.rand(n_total, 1, generator=generator) < config.dropout_probability
    is_dropped = (torch.rand(distance.shape, generator=generator) < dropout) & is_thinned
    is_dropped[rows, centre] = False
    distance = distance.masked_fill(is_dropped, FAR_UM)
    nearest, channels = distance.topk(MAX_CHANNELS, dim=1, largest=False)
    channel_mask = (nearest <= RADIUS_UM) & (torch.arange(MAX_CHANNELS) < scene.max_channels.unsqueeze(1))
    return channels, _gather_channels(relative, channels), channel_mask


def _draw_collisions(scene, channels, config, generator):
    """Spikes of other units of the site, before or after, some from elsewhere: (b, 12, n_samples)."""
    n_total = len(scene.amplitudes)
    row = lambda low, high: draw_uniform((n_total,), low, high, generator)  # noqa: E731
    offset_um = torch.stack([row(-1, 1), row(-1, 1)], dim=1) * config.collision_spread_um
    step = int(torch.randint(1, max(scene.n_units, 2), (1,), generator=generator))
    partner = torch.arange(n_total).reshape(-1, scene.n_units).roll(step, dims=1).flatten()
    gain = scene.scale * row(0.2, 1.0)
    spectra = (scene.compute_spectra(offset_um) * scene.filters * gain[:, None, None])[partner]
    sign = torch.where(row(0, 1) < 0.5, -1.0, 1.0)
    shift = sign * row(config.collision_min_shift, config.collision_max_shift)
    happens = (row(0, 1) < config.collision_probability).float()
    return shift_and_crop(_gather_channels(spectra, channels), shift, scene.window) * happens[:, None, None]


def _draw_noise(scene, channels, positions, config, generator):
    """Noise of every view, (b, 12, n_samples): simulated, or taken from the recording that the units are of."""
    noise = _simulate_noise(scene, positions, config, generator)
    first = 0
    for group in scene.groups:
        last = first + len(group.amplitudes)
        if group.draw_noise is not None:
            noise[first:last] = group.draw_noise(channels[first:last], generator)
        first = last
    return noise


def _simulate_noise(scene, positions, config, generator):
    """Noise of unit SD with the site's spectrum and a little correlation between neighbours: (b, 12, n_samples)."""
    n_total, n_channels = positions.shape[:2]
    white = torch.randn(n_total, n_channels, scene.window.n_bins, 2, generator=generator) * 0.5**0.5
    noise = scene.window.crop(torch.fft.irfft(torch.view_as_complex(white) * scene.noise_shape, n=scene.window.n_fft))
    n_sites = n_total // scene.n_units
    strength = draw_uniform((n_sites, 1, 1), 0, config.noise_correlation, generator)
    strength = strength.repeat_interleave(scene.n_units, dim=0)
    kernel = torch.exp(-torch.cdist(positions, positions) / 40.0)
    covariance = strength * kernel + (1.001 - strength) * torch.eye(n_channels)
    return torch.linalg.cholesky(covariance) @ noise
