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
            inside = find_block(own_spikes, block)
            if unit_id in changes and inside.start < inside.stop:
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
