"""Clean units of a training batch, kept as spectra so that jitter and filters are multiplications."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

MAX_SHIFT = 45  # samples: room for collisions, after what is cut out
ROOM_BEFORE = 24  # samples, before what is cut out


@dataclass(frozen=True)
class Window:
    """What an encoder sees of a spike, and the long waveforms from which it is cut."""

    n_samples: int = 64
    """Samples that are cut out."""
    n_before: int = 24
    """Of them, before the trough."""

    @property
    def n_fft(self):
        """Samples of a long waveform: a power of two with room for shifts."""
        return 2 ** math.ceil(math.log2(self.n_samples + MAX_SHIFT))

    @property
    def n_bins(self):
        """Frequencies of its spectrum."""
        return self.n_fft // 2 + 1

    @property
    def origin(self):
        """Sample of the trough in a long waveform."""
        return self.n_before + ROOM_BEFORE

    def crop(self, long):
        """Cut the window out of long waveforms (..., n_fft)."""
        return long[..., ROOM_BEFORE : ROOM_BEFORE + self.n_samples]


DEFAULT_WINDOW = Window()


@dataclass
class Units:
    """Clean units of one batch, grouped by site. Leading dimension of all: units."""

    waves: torch.Tensor
    """complex64 (b, k, n_bins): spectra of the parts a unit is made of."""
    positions: torch.Tensor
    """float32 (b, N_SITE_CHANNELS, 2): um relative to the main channel of the site."""
    channel_mask: torch.Tensor
    """bool (b, N_SITE_CHANNELS)."""
    amplitudes: torch.Tensor
    """float32 (b,): wanted peak in noise SD."""
    mix: Callable
    """(offset_um (b, 2)) -> float32 (b, N_SITE_CHANNELS, k): whitened weight of every part on every channel."""
    draw_noise: Callable | None = None
    """(channels (b, 12), generator) -> float32 (b, 12, n_samples): noise of the recording that the waves come from,
    on channels of the site; None where filters and noise are to be simulated."""

    def compute_spectra(self, offset_um):
        """Spectra on every channel with the unit moved by `offset_um` (b, 2): complex64 (b, c, n_bins)."""
        weights = self.mix(offset_um)
        return torch.complex(weights @ self.waves.real, weights @ self.waves.imag)


def clean_mean_waveforms(waveforms, rank):
    """Remove noise from mean waveforms (n, c, t): the first `rank` singular vectors of each are kept."""
    left, values, right = np.linalg.svd(waveforms, full_matrices=False)
    return (left[..., :rank] * values[:, None, :rank]) @ right[:, :rank]


def compute_faded_spectra(waveforms, n_before, window):
    """Spectra (n, c, n_bins) of waveforms (n, c, t) with the trough at `n_before`, their ends faded out."""
    n_samples = waveforms.shape[-1]
    edge = np.minimum(np.arange(n_samples), np.arange(n_samples)[::-1])
    taper = np.sin(0.5 * np.pi * np.minimum((edge + 0.5) / 5, 1)) ** 2
    long = np.zeros((*waveforms.shape[:2], window.n_fft), dtype=np.float32)
    start = window.origin - n_before
    long[..., start : start + n_samples] = waveforms * taper
    return torch.fft.rfft(torch.as_tensor(long), dim=-1)


def draw_uniform(shape, low, high, generator):
    """Uniform float32 numbers in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def draw_amplitudes(n_units, generator, low=4.0, high=60.0):
    """Peaks in noise SD between `low` and `high`, denser at small values (log-uniform to the power 1.6)."""
    fraction = torch.rand(n_units, generator=generator) ** 1.6
    return low * torch.exp(fraction * math.log(high / low))
