"""Real mean waveforms as clean units for training."""

import logging
import math

import numpy as np
import torch

from .probes import (
    N_SITE_CHANNELS,
    compute_distances,
    compute_whitening,
    draw_noise_covariance,
    make_neuropixels_1,
)
from .units import DEFAULT_WINDOW, Units, clean_mean_waveforms, compute_faded_spectra, draw_uniform

logger = logging.getLogger(__name__)


class RealSource:
    """
    Real mean waveforms of chronic Neuropixels 1.0 recordings (Brody lab), moved by kriging.

    Units whose peak lies on the same place of the same layout form a group; a site is a draw from one group with one
    whitening.

    Parameters
    ----------
    path : str | Path
        brody_np1_templates_61.npz.
    seed : int
        Of whitenings.
    measured : tuple of np.ndarray | None
    held_out : bool, default: False
        True for the tenth of the units kept for validation, False for the others.
    window : Window
    """

    MIN_GROUP = 12  # units
    N_WHITENINGS = 16  # a group
    DECAY_UM = 30.0  # kriging kernel
    NUGGET = 0.02
    MAX_NOISE = 0.05  # RMS before the spike, relative to the peak: averages of too few spikes are left out
    RANK = 4  # of a mean waveform after its noise is removed

    def __init__(self, path, seed, measured=None, held_out=False, window=DEFAULT_WINDOW):
        self.window = window
        with np.load(path, allow_pickle=False) as data:
            waveforms, peak, electrode = (data[name] for name in ("templates", "peak_channel", "electrode"))
        is_mine = (np.arange(len(waveforms)) % 10 == 9) == held_out
        phase = (electrode.astype(int) - 1) % 4
        trough = waveforms[np.arange(len(waveforms)), peak].argmin(axis=1)
        is_good = is_mine & (np.ptp(waveforms, axis=2).max(axis=1) > 50) & (np.abs(trough - 15) < 5)
        is_good &= np.isfinite(waveforms).all(axis=(1, 2))
        is_good &= self._measure_noise(waveforms) < self.MAX_NOISE
        self.spectra = compute_faded_spectra(clean_mean_waveforms(waveforms, self.RANK), 15, window)
        self.peak_uv = torch.as_tensor(np.abs(waveforms).max(axis=(1, 2)))
        self.groups = []
        rng = np.random.default_rng(seed)
        for key in sorted(set(zip(phase[is_good], peak[is_good], strict=True))):
            members = np.flatnonzero(is_good & (phase == key[0]) & (peak == key[1]))
            if len(members) >= self.MIN_GROUP:
                self.groups.append(self._prepare_group(members, *key, rng, measured))
        self.group_weights = torch.tensor([len(group[0]) ** 0.5 for group in self.groups])
        logger.info("%d real units in %d groups", sum(len(group[0]) for group in self.groups), len(self.groups))

    @staticmethod
    def _measure_noise(waveforms):
        return np.sqrt(np.square(waveforms[..., :6]).mean(axis=(1, 2))) / np.abs(waveforms).max(axis=(1, 2))

    def _prepare_group(self, members, phase, peak, rng, measured):
        n_channels = self.spectra.shape[1]
        layout = make_neuropixels_1(96)
        main = 40 + phase  # any channel of the layout with this phase
        contacts = layout[main - peak : main - peak + n_channels] - layout[main]
        kernel = np.exp(-compute_distances(contacts) / self.DECAY_UM)
        inverse = np.linalg.inv(kernel + self.NUGGET * np.eye(n_channels))
        whitenings = [
            compute_whitening(draw_noise_covariance(contacts, rng, measured)) for _ in range(self.N_WHITENINGS)
        ]
        to_tensor = lambda values: torch.as_tensor(np.asarray(values)).float()  # noqa: E731
        return torch.as_tensor(members), to_tensor(contacts), to_tensor(inverse), to_tensor(np.stack(whitenings))

    def draw(self, n_sites, n_units, generator):
        """`n_sites` sites with `n_units` real units each, repeated where a group is small, as `Units`."""
        chosen = torch.multinomial(self.group_weights, n_sites, replacement=True, generator=generator)
        units, contacts, inverses, whitenings = [], [], [], []
        for index in chosen.tolist():
            members, group_contacts, inverse, group_whitenings = self.groups[index]
            order = torch.randperm(len(members), generator=generator)
            units.append(members[order.repeat(math.ceil(n_units / len(order)))[:n_units]])
            contacts.append(group_contacts)
            inverses.append(inverse)
            variant = torch.randint(len(group_whitenings), (1,), generator=generator).item()
            whitenings.append(group_whitenings[variant])
        units = torch.cat(units)
        expand = lambda values: torch.stack(values).repeat_interleave(n_units, dim=0)  # noqa: E731
        mirror = torch.randint(2, (n_sites, 1, 2), generator=generator).float() * 2 - 1
        noise_uv = draw_uniform((len(units),), 8, 30, generator)
        return self._assemble(
            units,
            expand(contacts),
            expand(inverses),
            expand(whitenings),
            mirror.repeat_interleave(n_units, dim=0),
            noise_uv,
        )

    def _assemble(self, units, contacts, inverses, whitenings, mirror, noise_uv):
        n_missing = N_SITE_CHANNELS - contacts.shape[1]

        def mix(offset_um):
            moved = contacts - (offset_um.unsqueeze(1) * mirror)
            kernel = torch.exp(-torch.cdist(moved, contacts) / self.DECAY_UM)
            weights = whitenings @ (kernel @ inverses)
            return torch.nn.functional.pad(weights, (0, 0, 0, n_missing))

        return Units(
            waves=self.spectra[units],
            positions=torch.nn.functional.pad(contacts * mirror, (0, 0, 0, n_missing), value=1e4),
            channel_mask=(torch.arange(N_SITE_CHANNELS) < contacts.shape[1]).expand(len(units), -1),
            amplitudes=(self.peak_uv[units] / noise_uv).clamp(4, 60),
            mix=mix,
        )
