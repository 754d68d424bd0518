"""
Whether other units change between the times of two units.

Two units that fire at different times may be one neuron, which drift took from one waveform to another, or two neurons
that behaviour makes fire in turn, as place cells do. Drift moves all neurons: the waveforms of others differ, too,
between the times of the first and those of the second. Behaviour leaves them as they are.
"""

import numpy as np

from spikeinterface_huidurep.changes import measure_chance
from spikeinterface_huidurep.merging import thin

STRETCHES_S = 2.0, 10.0  # drift may be as fast as the first; the second where it tells nothing
MIN_RATIO = 4.0  # of the shares of their spikes that two units fire in a stretch; it is the time of the first, then
MIN_SPIKES = 20  # at the times of each
MAX_SPIKES = 200
MAX_UNITS = 12  # compared, those with the largest templates
MAX_DISTANCE_UM = 200.0  # beyond it drift may be another
MAX_CHANCE = 0.2  # of the difference looked for; units of which chance makes more tell nothing
CHANCE = 1.5  # times what chance makes in the mean; more is change


class Steadiness:
    """
    Changes of the waveforms of all units of a sorting.

    Parameters
    ----------
    sorting : NumpySorting
    residuals : Residuals
        Of its spikes.
    times_s : list of np.ndarray, float
        Of the spikes of every unit, the segments one after the other.
    """

    def __init__(self, sorting, residuals, times_s):
        unit_indices = sorting.to_spike_vector()["unit_index"]
        self.rows = [np.flatnonzero(unit_indices == index) for index in range(len(sorting.unit_ids))]
        self.residuals = residuals
        self.times_s = times_s
        self.energies = residuals.measure_norms() ** 2
        self.locations_um = residuals.locate_templates()

    def measure_change(self, first_s, second_s, units, difference):
        """
        How much the other units change between the times of two, as a share of the difference between these.

        Parameters
        ----------
        first_s, second_s : np.ndarray, float, shape (n_first,), (n_second,)
            Times of the two in s.
        units : np.ndarray, int
            Indices of the units that the two are made of.
        difference : float
            Of the templates of the two, as a share of the energy.

        Returns
        -------
        change : float
            About 1 where all change as much; infinite where no unit fires enough at the times of both.
        """
        for stretch_s in STRETCHES_S:
            own_stretches = find_own_stretches(first_s, second_s, stretch_s)
            changed, energy = self._sum_changes(own_stretches, stretch_s, units, difference)
            if energy > 0:
                return changed / (energy * difference)
        return np.inf

    def _sum_changes(self, own_stretches, stretch_s, units, difference):
        """Energy of the changes of the other units between stretches of two kinds, and that of their templates."""
        changed = energy = 0.0
        for unit, *groups in self._find_others(own_stretches, stretch_s, units)[:MAX_UNITS]:
            change, by_chance = measure_difference(
                *(self.residuals.read(thin(group, MAX_SPIKES), unit) for group in groups)
            )
            largest = difference * self.energies[unit]
            if by_chance <= MAX_CHANCE * largest:
                changed += min(change, largest)  # one that changes more holds two neurons that behaviour parts
                energy += self.energies[unit]
        return changed, energy

    def _find_others(self, own_stretches, stretch_s, units):
        """Units near the first of some that fire in stretches of both kinds, and their spikes there; largest first."""
        distances_um = np.linalg.norm(self.locations_um - self.locations_um[units[0]], axis=1)
        near = np.setdiff1d(np.flatnonzero(distances_um <= MAX_DISTANCE_UM), units)
        others = []
        for unit in near[np.argsort(-self.energies[near], kind="stable")].tolist():
            stretches = np.minimum(self.times_s[unit] // stretch_s, len(own_stretches[0]) - 1).astype(int)
            groups = [self.rows[unit][is_own[stretches]] for is_own in own_stretches]
            if min(len(group) for group in groups) >= MIN_SPIKES:
                others.append((unit, *groups))
        return others


def find_own_stretches(first_s, second_s, stretch_s):
    """
    Stretches of time in which one of two trains fires and the other hardly.

    Parameters
    ----------
    first_s, second_s : np.ndarray, float, shape (n_first,), (n_second,)
        Times in s.
    stretch_s : float

    Returns
    -------
    first, second : np.ndarray, bool, shape (n_stretches + 1,)
        The last is False, for any later time.
    """
    edges_s = np.arange(0, max(first_s.max(), second_s.max()) + 2 * stretch_s, stretch_s)
    shares = [np.append(np.histogram(times_s, edges_s)[0], 0) / len(times_s) for times_s in (first_s, second_s)]
    return shares[0] > MIN_RATIO * shares[1], shares[1] > MIN_RATIO * shares[0]


def measure_difference(first, second):
    """
    Energy of the difference between two means, beyond what chance may make of it.

    Parameters
    ----------
    first, second : np.ndarray, float32, shape (n_first, ...), (n_second, ...)
        More than one of each.

    Returns
    -------
    difference, by_chance : float
        Energy of the difference without CHANCE times that by chance (it may be below 0), and that by chance.
    """
    by_chance = float(measure_chance(first) + measure_chance(second))
    difference = float(np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2))
    return difference - CHANCE * by_chance, by_chance
