"""How the waveforms of units differ from their templates in some blocks of a recording."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import median_abs_deviation

from spikeinterface_huidurep.merging import thin

MIN_SPIKES = 10  # in a block, to say how a waveform differs there
MAX_MEDIAN_SPIKES = 200  # in a block; the median of more takes longer and says the same
MIN_SHARE = 1 / 3  # of the energy of a change that is not chance; few reach it where nothing drifts, most where it does


@dataclass
class Change:
    """What a waveform is more than its template, for some time."""

    channels: np.ndarray
    """int (n_channels,)."""
    waveform: np.ndarray
    """float32 (n_channels, n_samples): the window of `Residuals.values`."""

    def add_to(self, waveform, channels, start):
        """
        Change a waveform where it is, as far as it reaches.

        Parameters
        ----------
        waveform : np.ndarray, float32, shape (n_channels or more, n_samples)
        channels : np.ndarray, int, shape (n_channels,)
            Of the first rows of the waveform.
        start : int
            Sample of the waveform at which the window of the change begins; may be negative.
        """
        _, own, changed = np.intersect1d(channels, self.channels, return_indices=True)
        first, last = max(0, start), min(waveform.shape[1], start + self.waveform.shape[1])
        waveform[own, first:last] += self.waveform[changed, first - start : last - start]


@dataclass
class Changes:
    """The changes of all units."""

    blocks: list
    """Of (int, int, int): segment, first sample and the sample after the last; in the order of time."""
    of_block: list
    """Of dict of unit id -> Change, one a block."""

    def find_units(self):
        """Ids of the units that change anywhere, set of int."""
        return set().union(*self.of_block)

    def find_blocks(self, spikes):
        """Index of the block of each spike of a spike vector, int64 (n_spikes,)."""
        blocks = np.zeros(len(spikes), dtype="int64")
        for index, block in enumerate(self.blocks):
            blocks[find_block(spikes, block)] = index
        return blocks

    def divide(self, spikes, members, unit_id):
        """
        The spikes of a unit, those with the same waveform together.

        Parameters
        ----------
        spikes : np.ndarray, structured, shape (n_all_spikes,)
            Spike vector of all units.
        members : np.ndarray, int64, shape (n_spikes,)
            Rows of the spikes of the unit, ascending.
        unit_id : int

        Returns
        -------
        parts : list of (np.ndarray, Change | None)
            Rows of each part, none of them empty, and what changes there.
        """
        own_spikes = spikes[members]
        parts, is_changed = [], np.zeros(len(members), dtype=bool)
        for block, changes in zip(self.blocks, self.of_block, strict=True):
            if unit_id not in changes:
                continue
            inside = find_block(own_spikes, block)
            if inside.start < inside.stop:
                parts.append((members[inside], changes[unit_id]))
                is_changed[inside] = True
        return parts if np.all(is_changed) else [*parts, (members[~is_changed], None)]


NO_CHANGES = Changes([], [])


def find_block(spikes, block):
    """The spikes in a block, slice of the rows of a spike vector."""
    segment, start, stop = block
    offset = np.searchsorted(spikes["segment_index"], segment)
    samples = spikes["sample_index"][spikes["segment_index"] == segment]
    return slice(*(offset + np.searchsorted(samples, [start, stop])).tolist())


def shrink_mean(values):
    """
    Mean over the first axis, smaller by the share of its energy that chance would give; 0 where that is most of it.

    Parameters
    ----------
    values : np.ndarray, float32, shape (n, ...)
        n > 1.

    Returns
    -------
    mean : np.ndarray, float32, shape (...)
    """
    mean = values.mean(axis=0)
    return shrink(mean, measure_chance(values))


def shrink_median(values):
    """`shrink_mean` for values of which some are not like the others: their median, of MAX_MEDIAN_SPIKES at most."""
    values = thin(values, MAX_MEDIAN_SPIKES)
    spread = median_abs_deviation(values, axis=0, scale="normal")
    return shrink(np.median(values, axis=0), np.pi / 2 * np.sum(spread**2) / len(values))


def shrink(average, chance):
    """An average, smaller by the share of its energy that chance gives it; 0 where that is most of it."""
    share = 1.0 - chance / max(np.sum(average**2), 1e-12)
    return average * (share if share >= MIN_SHARE else 0.0)


def measure_chance(values):
    """Energy that noise gives to the mean over the first axis of values of shape (n, ...), n > 1."""
    return np.sum((values - values.mean(axis=0)) ** 2) / (len(values) - 1) / len(values)
