"""Units and noise of one recording, as the sorter's first pass finds them: training data without labels."""

import logging
import shutil
from dataclasses import dataclass, fields

import numpy as np
import torch
from spikeinterface.sortingcomponents.tools import clean_cache_preprocessing

from ..features import find_window
from ..pipeline import Clock, find_clusters, split_groups, widen_radii
from ..preprocessing import preprocess, remove_dead_channels
from ..waveforms import MAX_CHANNELS, N_SHIFTS, resampling_matrices
from ..whitening import read_random_chunks
from .probes import N_SITE_CHANNELS, compute_distances
from .units import DEFAULT_WINDOW, Units, clean_mean_waveforms, compute_faded_spectra, draw_uniform

logger = logging.getLogger(__name__)

ABSENT_UM = 1e4  # position of a channel that does not exist
MIN_SPIKES = 50  # of a cluster on its centre channel: the mean of fewer holds too much noise
MIN_UNITS = 2  # in the recording: contrast needs something to tell apart
MIN_NOISE_WINDOWS = 50  # without a spike at a site
MAX_NOISE_WINDOWS = 400  # kept for a site
N_TRIED_WINDOWS = 2400  # of the whole probe


@dataclass
class Site:
    """A centre channel of a recording: its units, its noise and the channels around it, nearest first."""

    waveforms: np.ndarray
    """float32 (n_units, MAX_CHANNELS, n_samples): mean waveforms of clusters, noise SD."""
    noise: np.ndarray
    """float16 (n_windows, MAX_CHANNELS, n_samples): traces without a spike."""
    positions: np.ndarray
    """float32 (MAX_CHANNELS, 2): um relative to the centre channel; far away where there is no channel."""
    channel_mask: np.ndarray
    """bool (MAX_CHANNELS,)."""


def gather_sites(recording, params, folder, job_kwargs):
    """
    Run the sorter up to its merged clusters and keep their mean waveforms, and noise around them.

    Parameters
    ----------
    recording : BaseRecording
        With a probe, see `checks.check_recording`.
    params : SorterParams
        Those the recording will be sorted with.
    folder : Path
        Existing folder for temporary files.
    job_kwargs : dict

    Returns
    -------
    sites : list of Site

    Raises
    ------
    ValueError
        If there are too few spikes to learn from: says how many there are and what to do.
    """
    sites, n_peaks = [], 0
    for group, recording_of_group in split_groups(remove_dead_channels(recording)).items():
        folder_of_group = folder / f"group_{group}"
        folder_of_group.mkdir()
        clock = Clock()
        widened = widen_radii(params, recording_of_group.get_channel_locations()[:, :2])
        traces, cache_info = preprocess(recording_of_group, widened, folder_of_group, job_kwargs)
        clock.log("preprocess", f"{traces.get_num_channels()} channels, {traces.get_total_duration():.1f} s")
        clusters = find_clusters(traces, widened, folder_of_group, job_kwargs, clock)
        if clusters is not None:
            n_peaks += len(clusters.peaks)
            sites += make_sites(traces, clusters, widened)
        del traces, clusters  # before the files that they map are removed
        clean_cache_preprocessing(cache_info)
        shutil.rmtree(folder_of_group)
    n_units = sum(len(site.waveforms) for site in sites)
    if n_units < MIN_UNITS:
        raise ValueError(
            f"too few spikes to fine-tune on: {n_peaks} spikes form {n_units} clusters of {MIN_SPIKES} spikes or more, "
            f"{MIN_UNITS} are needed; take a longer recording, lower detect_threshold, or sort with the shipped "
            "weights"
        )
    logger.info("%d units at %d places of the recording", n_units, len(sites))
    return sites


def make_sites(traces, clusters, params):
    """Sites of one group of channels, list of Site. Spikes of a cluster away from its usual channel are left out."""
    neighborhoods, centres = clusters.neighborhoods, clusters.peaks["channel_index"]
    means = {}
    for label in np.unique(clusters.labels[clusters.labels >= 0]):
        members = np.flatnonzero(clusters.labels == label)
        centre = np.bincount(centres[members]).argmax()
        members = members[centres[members] == centre]
        if len(members) >= MIN_SPIKES:
            means.setdefault(centre, []).append(clusters.waveforms[members].mean(axis=0, dtype="float32"))
    windows = cut_windows(traces, *find_window(params), params.seed)
    is_quiet = np.abs(windows).max(axis=2) < params.detect_threshold
    sites = []
    for centre, waveforms in sorted(means.items()):
        mask, channels = neighborhoods.channel_mask[centre], neighborhoods.channel_indices[centre]
        quiet = np.flatnonzero(is_quiet[:, channels[mask]].all(axis=1))[:MAX_NOISE_WINDOWS]
        if len(quiet) < MIN_NOISE_WINDOWS:
            logger.warning("channel %s is never quiet: its units are left out", traces.channel_ids[centre])
            continue
        n_missing = MAX_CHANNELS - len(mask)
        positions = np.where(mask[:, None], neighborhoods.positions_um[centre], ABSENT_UM)
        pad = ((0, 0), (0, n_missing), (0, 0))
        sites.append(
            Site(
                waveforms=np.pad(np.stack(waveforms), pad),
                noise=np.pad((windows[quiet][:, channels] * mask[:, None]).astype("float16"), pad),
                positions=np.pad(positions, pad[1:], constant_values=ABSENT_UM).astype("float32"),
                channel_mask=np.pad(mask, (0, n_missing)),
            )
        )
    return sites


def cut_windows(traces, n_samples, n_before, seed):
    """Random pieces of the traces as the encoder would see them, float32 (n_windows, n_channels, n_samples)."""
    _, matrices = resampling_matrices(traces.sampling_frequency, n_samples, n_before)
    matrix = matrices[N_SHIFTS // 2]
    rng = np.random.default_rng(seed)
    chunks = read_random_chunks(traces, seed)
    windows = []
    for chunk in chunks:
        starts = rng.integers(0, len(chunk) - len(matrix), -(-N_TRIED_WINDOWS // len(chunks)))
        windows.append(chunk[starts[:, None] + np.arange(len(matrix))].transpose(0, 2, 1) @ matrix)
    return rng.permutation(np.concatenate(windows))


def save_sites(sites, path):
    """Write sites to an npz file."""
    arrays = {f"{field.name}_{k}": getattr(site, field.name) for k, site in enumerate(sites) for field in fields(Site)}
    np.savez(path, **arrays)


def load_sites(path):
    """Sites written by `save_sites`, list of Site."""
    names = [field.name for field in fields(Site)]
    with np.load(path, allow_pickle=False) as arrays:
        n_sites = len(arrays.files) // len(names)
        return [Site(**{name: arrays[f"{name}_{k}"] for name in names}) for k in range(n_sites)]


class RecordingSource:
    """
    Units of a recording, and new ones made from them, in noise of that recording.

    A place has few units, and a batch with the same unit twice would push its two copies apart. So the first rows of a
    site are the units as they are, and the others are variants: moved, scaled, and blended with another unit of the
    place. Filters and whitening are those of the recording.

    Parameters
    ----------
    sites : list of Site
    window : Window
        Of the encoder.
    """

    DECAY_UM = 30.0  # kriging kernel
    NUGGET = 0.02
    RANK = 4  # of a mean waveform after its noise is removed
    SHIFT_UM = 15.0  # SD of the place of a variant, along each axis
    GAIN_SD = 0.4  # of the log amplitude of a variant
    MAX_SHARE = 0.5  # of the other unit in a blend
    BLEND_PROBABILITY = 0.5
    FRACTION_EXACT = 0.3  # rows of a site that are units as they are, at most
    MIN_PEAK, MAX_PEAK = 3.5, 150.0  # noise SD

    def __init__(self, sites, window=DEFAULT_WINDOW):
        self.window = window
        self.n_units = torch.tensor([len(site.waveforms) for site in sites])
        self.first_unit = self.n_units.cumsum(0) - self.n_units
        waveforms = clean_mean_waveforms(np.concatenate([site.waveforms for site in sites]), self.RANK)
        self.spectra = compute_faded_spectra(waveforms, window.n_before, window)
        self.peaks = torch.as_tensor(np.abs(waveforms).max(axis=(1, 2)))
        self.n_windows = torch.tensor([len(site.noise) for site in sites])
        self.first_window = self.n_windows.cumsum(0) - self.n_windows
        self.noise = torch.as_tensor(np.concatenate([site.noise for site in sites]))
        self.positions = torch.as_tensor(np.stack([site.positions for site in sites]))
        self.channel_mask = torch.as_tensor(np.stack([site.channel_mask for site in sites]))
        kernels = np.exp(-np.stack([compute_distances(site.positions) for site in sites]) / self.DECAY_UM)
        self.inverses = torch.as_tensor(np.linalg.inv(kernels + self.NUGGET * np.eye(MAX_CHANNELS))).float()

    def draw(self, n_sites, n_units, generator):
        """`n_sites` places of the recording with `n_units` units and variants of them each, a list of `Units`."""
        chosen = torch.multinomial(self.n_units.float().sqrt(), n_sites, replacement=True, generator=generator)
        site = chosen.repeat_interleave(n_units)
        n_total = len(site)
        row = torch.arange(n_total) % n_units
        is_exact = row < self.n_units[site].clamp(max=round(self.FRACTION_EXACT * n_units))
        unit = torch.where(is_exact, self.first_unit[site] + row, self._draw_units(site, generator))
        is_variant = (~is_exact).float()
        offset_um = self.SHIFT_UM * torch.randn(n_total, 2, generator=generator) * is_variant.unsqueeze(1)
        gain = torch.exp(self.GAIN_SD * torch.randn(n_total, generator=generator) * is_variant)
        n_missing = N_SITE_CHANNELS - MAX_CHANNELS
        units = Units(
            waves=self._blend(unit, self._draw_units(site, generator), is_variant, generator),
            positions=torch.nn.functional.pad(self.positions[site], (0, 0, 0, n_missing), value=ABSENT_UM),
            channel_mask=torch.nn.functional.pad(self.channel_mask[site], (0, n_missing)),
            amplitudes=(self.peaks[unit] * gain).clamp(self.MIN_PEAK, self.MAX_PEAK),
            mix=self._make_mix(site, offset_um),
            draw_noise=self._make_noise(site),
        )
        return [units]

    def _draw_units(self, site, generator):
        fraction = torch.rand(len(site), generator=generator)
        return self.first_unit[site] + (fraction * self.n_units[site]).long()

    def _blend(self, unit, other, is_variant, generator):
        """Spectra of units with a share of another one, as large as the first."""
        n_total = len(unit)
        is_blend = is_variant * (torch.rand(n_total, generator=generator) < self.BLEND_PROBABILITY)
        share = draw_uniform((n_total,), 0, self.MAX_SHARE, generator) * is_blend
        share_of_other = share * self.peaks[unit] / self.peaks[other]
        return self.spectra[unit] * (1 - share)[:, None, None] + self.spectra[other] * share_of_other[:, None, None]

    def _make_mix(self, site, variant_offset_um):
        contacts, inverses = self.positions[site], self.inverses[site]

        def mix(offset_um):
            total_um = offset_um + variant_offset_um
            kernel = torch.exp(-torch.cdist(contacts - total_um.unsqueeze(1), contacts) / self.DECAY_UM)
            is_still = (total_um == 0).all(dim=1)[:, None, None]
            weights = torch.where(is_still, torch.eye(MAX_CHANNELS), kernel @ inverses)
            return torch.nn.functional.pad(weights, (0, 0, 0, N_SITE_CHANNELS - MAX_CHANNELS))

        return mix

    def _make_noise(self, site):
        def draw_noise(channels, generator):
            n_total = len(channels)
            fraction = torch.rand(n_total, generator=generator)
            window = self.first_window[site] + (fraction * self.n_windows[site]).long()
            sign = torch.randint(2, (n_total, 1, 1), generator=generator) * 2.0 - 1
            # channels beyond the last one are masked in the view
            return sign * self.noise[window.unsqueeze(1), channels.clamp(max=MAX_CHANNELS - 1)].float()

        return draw_noise
