"""Clean units of a training batch, kept as spectra so that jitter and filters are multiplications."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

N_FFT = 128  # samples of a long waveform: 64 of the window and room for shifts of 45
ORIGIN = 48  # sample of the trough in a long waveform
N_BINS = N_FFT // 2 + 1
SAMPLING_FREQUENCY = 30000.0


@dataclass
class Units:
    """Clean units of one batch, grouped by site. Leading dimension of all: units."""

    waves: torch.Tensor
    """complex64 (b, k, N_BINS): spectra of the parts a unit is made of."""
    positions: torch.Tensor
    """float32 (b, N_SITE_CHANNELS, 2): um relative to the main channel of the site."""
    channel_mask: torch.Tensor
    """bool (b, N_SITE_CHANNELS)."""
    amplitudes: torch.Tensor
    """float32 (b,): wanted peak in noise SD."""
    mix: Callable
    """(offset_um (b, 2)) -> float32 (b, N_SITE_CHANNELS, k): whitened weight of every part on every channel."""

    def compute_spectra(self, offset_um):
        """Spectra on every channel with the unit moved by `offset_um` (b, 2): complex64 (b, c, N_BINS)."""
        weights = self.mix(offset_um)
        return torch.complex(weights @ self.waves.real, weights @ self.waves.imag)


def draw_uniform(shape, low, high, generator):
    """Uniform float32 numbers in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def draw_amplitudes(n_units, generator, low=4.0, high=60.0):
    """Peaks in noise SD between `low` and `high`, denser at small values (log-uniform to the power 1.6)."""
    fraction = torch.rand(n_units, generator=generator) ** 1.6
    return low * torch.exp(fraction * math.log(high / low))
