"""How the waveforms of units differ from their templates in some blocks of a recording."""

from dataclasses import dataclass

import numpy as np


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
