"""Clean units for training: synthetic neurons next to random probes, and real mean waveforms.

A source draws units in groups ("sites"): the units of a site share probe, place and whitening, and have their peak
near the same channel, because those are the units that the sorter asks the encoder to tell apart.
"""

import logging
import math
from pathlib import Path

import numpy as np
import torch

from ..model import MODEL_HZ
from .probes import N_SITE_CHANNELS, draw_site, make_neuropixels_1, measure_correlation
from .real import RealSource
from .units import DEFAULT_WINDOW, Units, draw_amplitudes, draw_uniform

logger = logging.getLogger(__name__)

N_PARTS = 7  # soma and dendritic parts of a synthetic neuron


class SyntheticSource:
    """
    Parametric neurons beside random probes.

    A neuron is a chain of current sources: a soma with a biphasic or triphasic waveform and a dendrite or axon along
    which the spike travels, later, broader and weaker. Every part reaches a channel with a weight that decays with
    distance.

    Parameters
    ----------
    n_sites : int
        Places on probes prepared once; units are drawn afresh at every call.
    seed : int
    measured : tuple of np.ndarray | None, default: None
        Correlation of real noise against distance (`measure_correlation`).
    window : Window
    """

    def __init__(self, n_sites, seed, measured=None, window=DEFAULT_WINDOW):
        self.window = window
        rng = np.random.default_rng(seed)
        sites = [draw_site(rng, measured) for _ in range(n_sites)]
        as_tensor = lambda values: torch.as_tensor(np.stack(values))  # noqa: E731
        self.contacts = as_tensor([site[0] for site in sites]).float()
        self.whitening = as_tensor([site[1] for site in sites]).float()
        self.channel_mask = as_tensor([site[2] for site in sites])

    def draw(self, n_sites, n_units, generator):
        """`n_sites` random sites with `n_units` new neurons each, as `Units`."""
        site = torch.randint(len(self.contacts), (n_sites,), generator=generator).repeat_interleave(n_units)
        n_total = len(site)
        places = self._draw_places(n_sites, n_units, site, generator)
        decay_um = draw_uniform((n_total, 1, 1), 15, 70, generator)
        power = draw_uniform((n_total, 1, 1), 1.5, 3.0, generator)
        contacts, whitening = self.contacts[site], self.whitening[site]

        def mix(offset_um):
            moved = places.clone()
            moved[..., :2] += offset_um.unsqueeze(1)
            plane = (contacts.unsqueeze(2) - moved[:, None, :, :2]).square().sum(-1)
            distance = (plane + moved[:, None, :, 2].square()).sqrt()
            return whitening @ (1 / (1 + (distance / decay_um) ** power))

        return Units(
            waves=draw_neuron_spectra(n_total, self.window, generator),
            positions=contacts[:, :N_SITE_CHANNELS],
            channel_mask=self.channel_mask[site],
            amplitudes=draw_amplitudes(n_total, generator),
            mix=mix,
        )

    def _draw_places(self, n_sites, n_units, site, generator):
        """Places of the parts of every neuron, (b, N_PARTS, 3) um; somata near the main channel."""
        n_total = n_sites * n_units
        nearest = self.contacts[:, 1:].norm(dim=-1).amin(dim=1).clamp(10, 40)[site]
        soma = torch.randn(n_total, 3, generator=generator) * (0.5 * nearest.unsqueeze(1))
        soma[:, 2] = draw_uniform((n_total,), 8, 40, generator)
        direction = torch.randn(n_total, 3, generator=generator)
        # dendrites of a piece of tissue point alike: half of the direction is common to the site
        common = torch.randn(n_sites, 3, generator=generator).repeat_interleave(n_units, dim=0)
        direction = torch.nn.functional.normalize(direction + common, dim=1)
        spacing_um = draw_uniform((n_total, 1, 1), 8, 30, generator)
        steps = torch.arange(-1, N_PARTS - 1).clamp(min=-1).float().reshape(1, -1, 1)
        return soma.unsqueeze(1) + direction.unsqueeze(1) * spacing_um * steps


def draw_neuron_spectra(n_units, window, generator):
    """Spectra of the parts of random neurons: part 1 is the soma, part 0 the other side. (b, N_PARTS, n_bins)."""
    column = lambda low, high: draw_uniform((n_units, 1, 1), low, high, generator)  # noqa: E731
    milliseconds = ((torch.arange(window.n_fft) - window.origin) / (MODEL_HZ / 1000)).reshape(1, 1, -1)
    steps = torch.arange(-1, N_PARTS - 1).float().reshape(1, -1, 1)
    distance_steps = steps.abs()
    delay = distance_steps * torch.exp(column(math.log(0.01), math.log(0.12)))  # ms between neighbouring parts
    broadening = 1 + distance_steps * column(0, 0.25)
    width = torch.exp(column(math.log(0.06), math.log(0.22)))
    repolarisation, repolarisation_delay = column(0, 0.7), column(0.2, 0.8)
    repolarisation_width = repolarisation_delay * column(0.35, 0.7)
    capacitive, capacitive_delay = column(-0.1, 0.35), column(1.5, 3.0) * width

    def bump(centre, sd):
        return torch.exp(-0.5 * ((milliseconds - centre) / sd) ** 2)

    skew = torch.where(milliseconds > delay, 1 + column(0, 0.5), torch.ones(1))
    waves = -bump(delay, width * broadening * skew)
    waves = waves + repolarisation * bump(delay + repolarisation_delay * broadening, repolarisation_width * broadening)
    waves = waves + capacitive * bump(delay - capacitive_delay, width * broadening * 1.2)
    decay = column(0.25, 0.85) ** distance_steps
    returned = torch.where(steps == 0, torch.zeros(1), column(0, 0.4)) * decay * bump(0.0, width * 1.1)
    sign = torch.where(torch.rand(n_units, 1, 1, generator=generator) < 0.07, -1.0, 1.0)
    return torch.fft.rfft(sign * (decay * waves + returned), dim=-1)


class MixedSource:
    """Some sites of every batch from one source, the others from another."""

    def __init__(self, first, second, fraction_second):
        self.first, self.second, self.fraction_second = first, second, fraction_second
        self.window = first.window

    def draw(self, n_sites, n_units, generator):
        """A list of `Units`, `fraction_second` of the sites from the second source."""
        n_second = round(n_sites * self.fraction_second)
        drawn = [self.first.draw(n_sites - n_second, n_units, generator)]
        if n_second:
            drawn.append(self.second.draw(n_second, n_units, generator))
        return drawn


def load_noise_correlation(folder):
    """Correlation against distance of real Neuropixels 1.0 noise, or None (and a log line) without the data."""
    path = None if folder is None else Path(folder) / "ibl_noise" / "spatial_cov.npy"
    if path is None or not path.is_file():
        logger.info("no measured noise covariance (%s): parametric ones only", path)
        return None
    covariance = np.load(path, allow_pickle=False)
    return measure_correlation(covariance, make_neuropixels_1(len(covariance)))


def make_source(folder, *, n_sites, fraction_real, seed, held_out=False, window=DEFAULT_WINDOW):
    """
    Build the source a configuration asks for.

    Parameters
    ----------
    folder : str | Path | None
        Holds `brody_np1_templates` and `ibl_noise`; absent parts are skipped with a log line.
    n_sites : int
        Synthetic sites.
    fraction_real : float
        Sites of a batch that come from real waveforms.
    seed : int
    held_out : bool, default: False
        Real units kept for validation instead of those for training.
    window : Window
        Of the encoder.

    Returns
    -------
    source : MixedSource
    """
    measured = load_noise_correlation(folder)
    synthetic = SyntheticSource(n_sites, seed, measured, window)
    path = None if folder is None else Path(folder) / "brody_np1_templates" / "brody_np1_templates_61.npz"
    if path is None or not path.is_file() or fraction_real == 0:
        logger.info("no real waveforms (%s): synthetic neurons only", path)
        return MixedSource(synthetic, None, 0.0)
    return MixedSource(synthetic, RealSource(path, seed, measured, held_out, window), fraction_real)
