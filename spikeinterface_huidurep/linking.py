"""
Link the fragments of a neuron.

Drift takes a neuron from one cluster to the next: its waveform changes a little, and while one fragment fires the other
is silent. Two neurons fire together as often as chance has it, however alike they are. So two units are linked when
their templates are alike and their spikes fall into the same stretches of time much less often than chance. They are
also linked when they fire together, but hardly ever one within the refractory period of the other. Bursts show it best:
their later spikes are smaller, so that a neuron is split, and follow the first ones within milliseconds. Even few
spikes tell that, if they come after those of the other unit and not before them. Units with nearly the same template
may overlap more, the more the closer, as a neuron that drift takes not quite to the next cluster, and may take turns of
seconds, as what is left of drift after its correction has it; less like ones may, too, where other units change with
them. Where the displacement of the probe is known, units may also share it among them, one firing where the other does
not. Units whose templates hardly differ are one, unless they fire within the refractory period: a neuron whose waveform
has two forms was split. So are a unit and one beside it that is hardly another neuron (`joining.py`). That two do not
fire within it shows nothing where they hardly fire together at all. Units whose templates differ more than those of
most fragments may hardly coincide. Stretches in which all others are silent do not count, or two fragments would seem
to fire together because both do in the rest. The pair with the closest templates goes first, and the times of linked
units are taken together: a neuron that is complete links to nothing, and a fragment may link to one that has more of
its fragments, though it fired with the first of them. Behaviour makes neurons fire at different times, too. Where other
units stay exactly as they are between the times of two, these are not linked for their times (`steadiness.py`).
"""

import numpy as np
from scipy.stats import poisson

from spikeinterface_huidurep.changes import MIN_SPIKES, NO_CHANGES, find_block
from spikeinterface_huidurep.matching import make_sorting
from spikeinterface_huidurep.merging import MAX_LAG, find_centres, find_lag
from spikeinterface_huidurep.residuals import change_templates
from spikeinterface_huidurep.trains import (
    AROUND_S,
    BURST_S,
    MAX_PROBABILITY,
    MAX_REFRACTORY,
    REFRACTORY_S,
    avoid_each_other,
    count_pairs,
    expect_pairs,
    follow_in_bursts,
)
from spikeinterface_huidurep.waveforms import resample_templates

MIN_BIN_S = 10.0  # a neuron may pause; drift takes longer
MIN_BINS, MAX_BINS = 6, 30  # in a long recording behaviour, too, silences one neuron and not another for many seconds
SILENT_SHARE = 0.25  # of the mean rate of other units; where they fire less, time does not count
MIN_OTHERS = 20  # spikes of other units in a stretch, in the mean; with fewer nothing is known of silence
MIN_CHANCE_COINCIDENCES = 300  # pairs of spikes in the same bin that chance would give; with fewer little is known
MAX_COINCIDENCE = 0.6  # share of what chance would give
MAX_COINCIDENCE_OF_SAME = 0.95  # of the same template; in between it falls with the difference of the templates
TURN_S = 2.0  # what motion correction leaves of drift, as between two sites, takes a neuron to and fro within seconds
MAX_COINCIDENCE_IN_TURN = 0.35
MAX_COINCIDENCE_IN_PLACE = 0.45  # at the same displacements of the probe
MAX_DIFFERENCE_OF_LIKE = 0.15  # from there on fragments may coincide no more than MAX_COINCIDENCE
MAX_DIFFERENCE_OF_SAME = 0.1  # of the energy; behaviour, too, lets neurons take turns
MAX_DIFFERENCE_OF_ONE = 0.05  # of the energy; closer templates are one neuron if nothing speaks against it
MAX_DIFFERENCE = 0.45  # of the energy of the larger template: between sites a sharp waveform loses up to half of it
MAX_DIFFERENCE_OF_APART = 0.6  # sharp waveforms under large drift lose more
MAX_COINCIDENCE_OF_APART = 0.2  # there; from MAX_DIFFERENCE on the limit falls to it
MAX_DISTANCE_UM = 60.0  # between the centres of two templates
MIN_CHANGE_IN_TURN = 0.1  # of others; with it those that take turns may differ by MAX_DIFFERENCE
MIN_CHANGE = 0.015  # of others, as a share of that of two units; where drift made fragments it is 0.02 or more


def link_fragments(
    sorting, templates, duration_s, displacement_um=None, steadiness=None, doubtful=(), changes=NO_CHANGES
):
    """
    Find the units that are fragments of one neuron.

    Parameters
    ----------
    sorting : NumpySorting
        One unit a template.
    templates : spikeinterface.core.Templates
    duration_s : list of float
        Of every segment.
    displacement_um : None | sequence of float, shape (n_stretches,), default: None
        Of the probe in stretches of the recording of the same length, if it is known.
    steadiness : None | Steadiness, default: None
        Of the same units, if it is known.
    doubtful : set of (int, int), default: empty
        Pairs of units that are probably one neuron, see `joining.find_doubtful_units`.
    changes : Changes, default: NO_CHANGES
        Of the waveforms, which are compared as they are at the same times.

    Returns
    -------
    neurons : np.ndarray, int64, shape (n_units,)
        Index of the neuron of every unit: the index of the fragment with most spikes.
    """
    times_s, total_s = concatenate_times(sorting, duration_s), sum(duration_s)
    n_stretches = max(1, int(total_s / MIN_BIN_S))
    counts = np.array([np.histogram(times, n_stretches, range=(0, total_s))[0] for times in times_s])
    neurons = np.arange(len(times_s))
    pairs = sorted(find_alike_templates(templates, sorting, changes))
    before = None
    while not np.array_equal(before, neurons):
        before = neurons.copy()
        for difference, first, second in pairs:
            if neurons[first] == neurons[second]:
                continue
            parts = [np.flatnonzero(neurons == neurons[unit]) for unit in (first, second)]
            trains = [np.concatenate([times_s[unit] for unit in part]) for part in parts]
            together = np.concatenate(parts)
            n_others = np.delete(counts, together, axis=0).sum(axis=0)
            is_doubtful = (first, second) in doubtful
            if respect_refractory_period(*trains, difference, is_doubtful) or drift_made_apart(
                *trains, together, difference, n_others, displacement_um, total_s, steadiness
            ):
                neurons[together] = together[np.argmax([len(times_s[unit]) for unit in together])]
    return neurons


def drift_made_apart(first_s, second_s, units, difference, n_others, displacement_um, duration_s, steadiness=None):
    """
    Whether two trains fire at different times because drift changes their waveforms, not for what the animal does.

    Parameters
    ----------
    first_s, second_s : np.ndarray, float, shape (n_first,), (n_second,)
        Times in s.
    units : np.ndarray, int
        Indices of the units that the two are made of.
    difference : float
        Of their templates, as a share of the energy.
    n_others : np.ndarray, int, shape (n_stretches,)
        Spikes of other units in stretches of the recording of the same length.
    displacement_um, steadiness
        As for `link_fragments`.
    duration_s : float

    Returns
    -------
    did_drift : bool
    """
    trains = first_s, second_s, difference, n_others, displacement_um, duration_s
    if not fire_apart(*trains, max_difference_in_turn=MAX_DIFFERENCE):
        return False
    change = np.inf if steadiness is None else steadiness.measure_change(first_s, second_s, units, difference)
    if MIN_CHANGE_IN_TURN <= change < np.inf:
        return True
    return change >= MIN_CHANGE and fire_apart(*trains)


def fire_apart(
    first_s, second_s, difference, n_others, displacement_um, duration_s, max_difference_in_turn=MAX_DIFFERENCE_OF_SAME
):
    """
    Whether two trains fire at different times, or displacements of the probe, as fragments do that drift made.

    Parameters
    ----------
    first_s, second_s, difference, n_others, displacement_um, duration_s
        As for `drift_made_apart`.
    max_difference_in_turn : float, default: MAX_DIFFERENCE_OF_SAME
        From there on it does not count that they take turns.

    Returns
    -------
    fire_apart : bool
    """
    active = leave_out_silence(first_s, second_s, n_others, duration_s)
    return (
        coincidence(*active) < limit_coincidence(difference)
        or (difference <= max_difference_in_turn and fire_in_turn(*active))
        or (difference <= MAX_DIFFERENCE and share_displacement(first_s, second_s, displacement_um, duration_s))
    )


def leave_out_silence(first_s, second_s, n_others, duration_s):
    """
    Times of two trains, and the duration, without the stretches in which the other units are silent.

    Parameters are those of `fire_apart`.

    Returns
    -------
    first_s, second_s : np.ndarray, float, shape (n_first,), (n_second,)
    duration_s : float
    """
    is_active = n_others >= SILENT_SHARE * n_others.mean()
    if is_active.all() or n_others.mean() < MIN_OTHERS:
        return first_s, second_s, duration_s
    edges_s = np.linspace(0, duration_s, len(n_others) + 1)
    elapsed_s = np.r_[0, np.cumsum(is_active * np.diff(edges_s))]
    return np.interp(first_s, edges_s, elapsed_s), np.interp(second_s, edges_s, elapsed_s), float(elapsed_s[-1])


def limit_coincidence(difference):
    """Coincidence below which two units are linked whose templates differ by this share of the energy."""
    differences = 0, MAX_DIFFERENCE_OF_LIKE, MAX_DIFFERENCE, MAX_DIFFERENCE_OF_APART
    limits = MAX_COINCIDENCE_OF_SAME, MAX_COINCIDENCE, MAX_COINCIDENCE, MAX_COINCIDENCE_OF_APART
    return float(np.interp(difference, differences, limits))


def find_alike_templates(templates, sorting=None, changes=NO_CHANGES):
    """
    Pairs of close templates; where both change and fire in the same blocks, as they are there in the mean.

    Parameters
    ----------
    templates : spikeinterface.core.Templates
    sorting : None | NumpySorting, default: None
        Of their units; not needed if none changes.
    changes : Changes, default: NO_CHANGES

    Returns
    -------
    pairs : list of (float, int, int)
        Difference as a share of the energy, first, second.
    """
    waveforms = pad_waveforms(templates)
    of_blocks = [pad_waveforms(change_templates(templates, of_block)) for of_block in changes.of_block]
    counts = [count_spikes(sorting, block) for block in changes.blocks]
    locations_um = locate_templates(templates)
    pairs = []
    for first in range(len(waveforms)):
        distances_um = np.linalg.norm(locations_um[first + 1 :] - locations_um[first], axis=1)
        for second in (first + 1 + np.flatnonzero(distances_um <= MAX_DISTANCE_UM)).tolist():
            pair = [first, second]
            both_fire = [block for block, of_block in enumerate(counts) if min(of_block[pair]) >= MIN_SPIKES]
            if both_fire:
                shares = [compare_waveforms(*of_blocks[block][pair]) for block in both_fire]
                share = float(np.average(shares, weights=[min(counts[block][pair]) for block in both_fire]))
            else:
                share = compare_waveforms(*waveforms[pair])
            if share <= MAX_DIFFERENCE_OF_APART:
                pairs.append((share, first, second))
    return pairs


def pad_waveforms(templates):
    """Templates with room for any lag, shape (n_units, n_channels, n_samples)."""
    return np.pad(resample_templates(templates), ((0, 0), (0, 0), (MAX_LAG, MAX_LAG)))


def count_spikes(sorting, block):
    """Spikes of each unit in a block, int (n_units,)."""
    spikes = sorting.to_spike_vector()
    return np.bincount(spikes["unit_index"][find_block(spikes, block)], minlength=len(sorting.unit_ids))


def compare_waveforms(first, second):
    """Energy of the difference of two waveforms (n_channels, n_samples), as a share of that of the larger."""
    return find_lag(first, second)[1] / max(np.sum(first**2), np.sum(second**2))


def join_fragments(spikes, posteriors, neuron_ids, sampling_frequency):
    """
    Give the spikes of all fragments to their neuron.

    Parameters
    ----------
    spikes : np.ndarray, structured (sample_index, unit_index, segment_index), shape (n_spikes,)
        In any order.
    posteriors : np.ndarray, float32, shape (n_spikes,)
    neuron_ids : np.ndarray, int64, shape (n_units,)
        Of each unit.
    sampling_frequency : float

    Returns
    -------
    sorting : NumpySorting
        Unit ids are those of the neurons.
    posteriors : np.ndarray, float32, shape (n_spikes,)
        In the order of `sorting.to_spike_vector()`.
    """
    labels = neuron_ids[spikes["unit_index"]]
    sorting, order = make_sorting(spikes["sample_index"], labels, spikes["segment_index"], sampling_frequency)
    return sorting, posteriors[order]


def coincidence(first_s, second_s, duration_s, bin_s=MIN_BIN_S, max_bins=MAX_BINS):
    """
    How often two trains fire in the same stretch of time: 0 never, 1 as chance has it.

    Parameters
    ----------
    first_s, second_s : np.ndarray, float, shape (n_first,), (n_second,)
        Times in s.
    duration_s : float
    bin_s : float, default: MIN_BIN_S
        Length of a stretch; longer with few spikes.
    max_bins : float, default: MAX_BINS
        Number of stretches at most.

    Returns
    -------
    coincidence : float
        1 where there are too few spikes to tell.
    """
    n_pairs = len(first_s) * len(second_s)
    n_bins = int(min(duration_s / bin_s, n_pairs / MIN_CHANCE_COINCIDENCES, max_bins))
    if n_bins < MIN_BINS:
        return 1.0
    counts = [np.histogram(times, n_bins, range=(0, duration_s))[0] for times in (first_s, second_s)]
    return float(n_bins * np.sum(counts[0] * counts[1]) / n_pairs)


def fire_in_turn(first_s, second_s, duration_s):
    """Whether two trains take turns of seconds."""
    return coincidence(first_s, second_s, duration_s, TURN_S, np.inf) < MAX_COINCIDENCE_IN_TURN


def share_displacement(first_s, second_s, displacement_um, duration_s):
    """
    Whether two trains share the displacements of the probe among them, so that one hardly fires where the other does.

    Drift may be as fast as behaviour, which makes neurons take turns, but hardly by displacement. The stretches of the
    recording are put in its order, and the trains compared there.

    Parameters
    ----------
    first_s, second_s : np.ndarray, float, shape (n_first,), (n_second,)
        Times in s.
    displacement_um : None | sequence of float
        As for `link_fragments`.
    duration_s : float

    Returns
    -------
    share : bool
        False where the displacement is not known.
    """
    if displacement_um is None:
        return False
    places = np.argsort(np.argsort(displacement_um, kind="stable"), kind="stable")
    stretch_s = duration_s / len(places)
    ordered = []
    for times_s in (first_s, second_s):
        stretches = np.minimum(times_s // stretch_s, len(places) - 1).astype(int)
        ordered.append(times_s + (places[stretches] - stretches) * stretch_s)
    return coincidence(*ordered, duration_s) < MAX_COINCIDENCE_IN_PLACE


def respect_refractory_period(first_s, second_s, difference, is_doubtful=False):
    """
    Whether two trains hardly ever fire one within the refractory period of the other, as those of one neuron.

    Parameters
    ----------
    first_s, second_s : np.ndarray, float, shape (n_first,), (n_second,)
        Times in s.
    difference : float
        Of their templates, as a share of the energy.
    is_doubtful : bool, default: False
        Whether they are probably one.

    Returns
    -------
    respect : bool
        Where there are too few spikes to tell, whether one train goes on with the bursts of the other, or they are
        doubtful, or their templates hardly differ; these not if they avoid each other, as neurons may that behaviour
        makes fire in turn.
    """
    if difference > MAX_DIFFERENCE and not is_doubtful:
        return False
    trains = np.sort(first_s), np.sort(second_s)
    found, chance = count_within_refractory_period(*trains)
    if found > max(MAX_REFRACTORY * chance, int(is_doubtful)):  # a spike of another neuron may be among few
        return False
    if poisson.cdf(found, chance) < MAX_PROBABILITY or follow_in_bursts(*trains) or follow_in_bursts(*trains[::-1]):
        return True
    return bool((is_doubtful or is_alike(*trains, difference)) and not avoid_each_other(*trains))


def is_alike(first_s, second_s, difference):
    """
    Whether two units may be one for their templates alone.

    Matching may take one of them for the other, just where both fire. So no two spikes of them may be as close.
    Parameters are those of `respect_refractory_period`, the times ascending.
    """
    if difference > MAX_DIFFERENCE_OF_ONE:
        return False
    both_s = np.sort(np.concatenate([first_s, second_s]))
    found, chance = count_within_refractory_period(both_s, both_s)
    return found <= MAX_REFRACTORY * chance


def count_within_refractory_period(first_s, second_s):
    """Number of pairs of two trains, ascending, within the refractory period, and what chance would give."""
    chance = expect_pairs(first_s, second_s, REFRACTORY_S, (BURST_S, AROUND_S))
    return count_pairs(first_s, second_s, *REFRACTORY_S), chance


def locate_templates(templates):
    """Centre of mass of the squared peak-to-peak amplitude of every template, shape (n_units, 2) in um."""
    return find_centres(templates.get_dense_templates(), templates.get_channel_locations()[:, :2])


def concatenate_times(sorting, duration_s):
    """Times of every unit in s, the segments one after the other."""
    spikes = sorting.to_spike_vector()
    starts_s = np.r_[0, np.cumsum(duration_s)]
    times_s = spikes["sample_index"] / sorting.sampling_frequency + starts_s[spikes["segment_index"]]
    return [times_s[spikes["unit_index"] == index] for index in range(len(sorting.unit_ids))]
