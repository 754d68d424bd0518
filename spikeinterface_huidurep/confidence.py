"""
Confidence: how probable it is that a spike belongs to its unit, and to which it belongs if that is another one.

Matching takes the templates of large spikes away one by one, as if noise were white. Where spikes overlap, or units are
alike, what is left around a spike may show that another unit fits it better, when it is seen through the filter that
tells the two best from noise. The spike is given to that unit then.

It may also be none of any unit: noise that is like the template, or a neuron too small to be found. Such spikes are
small, so it counts how small a spike is and how far that is from what is usual in its unit. And it may be what a larger
spike left over.
"""

from functools import partial

import numpy as np
from scipy.stats import median_abs_deviation
from scipy.stats import t as student

from spikeinterface_huidurep.matching import MAX_COINCIDENCE_MS, concatenate_segments, find_coincidences
from spikeinterface_huidurep.merging import find_lag, shift_waveforms, thin
from spikeinterface_huidurep.residuals import NOISE_SIZE, make_filters, multiply
from spikeinterface_huidurep.splitting import remove_running_mean

N_AROUND = 20  # spikes whose mean is what drift has made of the template
MIN_PROBABILITY = 0.6  # that a spike is of another unit, to be given to it: matching has chosen its own
MIN_SHARE_SEEN = 0.5  # of the energy of the template of another unit, on the channels of what is left of a spike
MIN_FREEDOM, MAX_FREEDOM = 5.0, 30.0  # degrees of freedom of what is left of spikes along a difference: spikes overlap
FAR_OUT = 4.0  # scales: deviations that say how many degrees there are
N_TYPICAL = 100  # spikes as MIN_FREEDOM has them, added to those of each unit
MAX_SPIKES = 4000  # of one unit; more do not show better how they vary
SIZE_FREEDOM = 20  # of the sizes of the spikes of a unit
NOISE_RATE = 0.086  # per s and noise SD: spikes of NOISE_SIZE that are of no unit and that a template takes for its own
NOISE_DECAY = 0.84  # per noise SD: with it the logarithm of their rate falls
VARIATION = 0.03  # of the size of the spikes of a neuron, in multiples of it
OTHER_ODDS = 0.0003  # of what nothing here tells
CAUTION = 1.6  # times the odds of all else as they are found here: in the benchmark they are too small by about as much
MIN_MEAN_POSTERIOR = 0.65  # of the spikes of a unit; the least of the true units of 64 sortings had 0.67
MAX_ODDS = 4.0  # of all else against the unit of a spike, however well it fits what is compared here


def assign_spikes(sorting, residuals, neurons, shares, duration_s):
    """
    Give spikes to the units that they most probably belong to, and say how probable that is.

    Parameters
    ----------
    sorting : NumpySorting
        What matching found.
    residuals : Residuals
        Of its spikes.
    neurons : np.ndarray, int64, shape (n_units,)
        See `linking.link_fragments`; fragments of one neuron are no rivals of each other.
    shares : np.ndarray, float, shape (n_spikes,)
        Probability that each spike is no leftover, see `leftovers.find_true_shares`.
    duration_s : float
        Of the recording.

    Returns
    -------
    spikes : np.ndarray, structured, shape (n_spikes,)
        `sorting.to_spike_vector()`, row by row, where spikes that are another unit's have its index and time.
    posteriors : np.ndarray, float32, shape (n_spikes,)
        Probability that each spike belongs to the unit it has now.
    is_repeated : np.ndarray, bool, shape (n_spikes,)
        True for spikes given to a neuron that has a spike there already.
    """
    unit_indices = sorting.to_spike_vector()["unit_index"]
    spikes = sorting.to_spike_vector().copy()
    counts = np.bincount(neurons[unit_indices], minlength=len(neurons))[neurons]
    all_odds = OTHER_ODDS + 1 / np.maximum(shares, 1e-6) - 1  # of all else, to the unit
    rivals_of_units = find_rivals(residuals, neurons)
    variations = measure_variations(residuals, unit_indices, rivals_of_units)
    for unit_index, rivals in enumerate(rivals_of_units):
        rows = np.flatnonzero(unit_indices == unit_index)
        if len(rows) == 0:
            continue
        sizes, deviations = measure_sizes(residuals, rows, unit_index)
        odds, lags = compare_units(residuals, rows, unit_index, rivals, counts, variations)
        odds = keep_likeliest(odds)
        candidates, lags, odds = np.r_[unit_index, rivals], np.r_[0, lags], np.c_[np.ones(len(rows)), odds]
        total = odds.sum(axis=1) + weigh_noise(sizes, deviations, len(rows) / duration_s) + all_odds[rows]
        chosen = np.where(odds.max(axis=1) > MIN_PROBABILITY * total, odds.argmax(axis=1), 0)
        spikes["unit_index"][rows] = candidates[chosen]
        spikes["sample_index"][rows] -= lags[chosen]
        all_odds[rows] = np.maximum(total / odds[np.arange(len(rows)), chosen] - 1, OTHER_ODDS)
    is_repeated = find_repeated(spikes, spikes["unit_index"] != unit_indices, neurons, sorting.sampling_frequency)
    return spikes, (1 / (1 + limit_odds(all_odds))).astype("float32"), is_repeated


def keep_likeliest(odds):
    """
    Odds 0 of all units but the likeliest.

    What is left of a spike that drift or an overlap changed lies along the differences to all of them.

    Parameters
    ----------
    odds : np.ndarray, float, shape (n_spikes, n_rivals)

    Returns
    -------
    odds : np.ndarray, float, shape (n_spikes, n_rivals)
    """
    return np.where(odds == odds.max(axis=1, keepdims=True, initial=0), odds, 0)


def keep_certain_units(labels, posteriors):
    """
    Take the label from units whose spikes are probably of others, or none: what overlaps or drift made of a neuron.

    Parameters
    ----------
    labels : np.ndarray, int64, shape (n_spikes,)
        -1 for none.
    posteriors : np.ndarray, float32, shape (n_spikes,)
        Of `assign_spikes`.

    Returns
    -------
    labels : np.ndarray, int64, shape (n_spikes,)
    """
    counts, totals = (np.bincount(labels + 1, weights)[1:] for weights in (None, posteriors))
    uncertain = np.flatnonzero(totals < MIN_MEAN_POSTERIOR * counts)
    return np.where(np.isin(labels, uncertain), -1, labels)


def limit_odds(odds):
    """Odds below MAX_ODDS, and CAUTION times as large where they are small."""
    return 1 / (1 / (CAUTION * odds) + 1 / MAX_ODDS)


def measure_sizes(residuals, rows, unit_index):
    """
    Size of the spikes of a unit, seen through the filter that tells its template best from noise.

    Parameters
    ----------
    residuals : Residuals
    rows : np.ndarray, int64, shape (n_spikes,)
        In the order of time.
    unit_index : int

    Returns
    -------
    sizes : np.ndarray, float, shape (n_spikes,)
        In noise SD.
    deviations : np.ndarray, float, shape (n_spikes,)
        From what is usual in the unit, without what drift makes of it.
    """
    left, norms = filter_residuals(
        residuals, rows, unit_index, [unit_index], lambda block: residuals.get_template(unit_index, block)[None]
    )
    deviations = remove_drift(left)[:, 0]
    return (norms + left)[:, 0], deviations - np.median(deviations)


def weigh_noise(sizes, deviations, rate):
    """
    Odds that spikes are of no unit, to their own.

    Parameters
    ----------
    sizes, deviations : np.ndarray, float, shape (n_spikes,)
        See `measure_sizes`.
    rate : float
        Spikes of the unit per s.

    Returns
    -------
    odds : np.ndarray, float, shape (n_spikes,)
    """
    spread = max(1.0, median_abs_deviation(deviations, scale="normal"))
    spread = np.hypot(spread, VARIATION * (sizes - deviations))
    of_noise = NOISE_RATE * np.exp(-NOISE_DECAY * (sizes - NOISE_SIZE))
    of_unit = rate * student.pdf(deviations / spread, SIZE_FREEDOM) / spread
    return of_noise / np.maximum(of_unit, 1e-12)


def find_rivals(residuals, neurons):
    """
    The units that the spikes of each unit may be of instead, as far as what is left of them can show it.

    Parameters
    ----------
    residuals : Residuals
    neurons : np.ndarray, int64, shape (n_units,)

    Returns
    -------
    rivals : list of np.ndarray, int64, shape (n_rivals,)
        For each unit those of other neurons that have most of their template on its channels.
    """
    energies = np.sum(residuals.waveforms**2, axis=1)  # (u, c)
    is_seen = residuals.neighborhoods.make_sparsity_mask()[residuals.main_channels]  # (u, c)
    shares = is_seen @ energies.T / energies.sum(axis=1)
    is_rival = (shares >= MIN_SHARE_SEEN) & (neurons != neurons[:, None])
    return [np.flatnonzero(row) for row in is_rival]


def measure_variations(residuals, unit_indices, rivals_of_units):
    """
    How much spikes vary along the differences between the templates of two units.

    It is measured on the spikes of the unit that has more of them: a rare one beside it may have taken some of its. Of
    each unit MAX_SPIKES are enough: to keep what is left of all spikes along all differences would take much memory.

    Parameters
    ----------
    residuals : Residuals
    unit_indices : np.ndarray, int64, shape (n_spikes,)
    rivals_of_units : list of np.ndarray, int64, shape (n_rivals,)
        See `find_rivals`.

    Returns
    -------
    scales, freedoms : np.ndarray, float, shape (n_units, n_units)
        Symmetric, see `fit_student`; of units that are no rivals nothing is known.
    """
    n_units = len(rivals_of_units)
    n_spikes, scales, freedoms = np.zeros((3, n_units, n_units))
    for unit_index, rivals in enumerate(rivals_of_units):
        rows = np.flatnonzero(unit_indices == unit_index)
        if len(rows) == 0:
            continue
        n_spikes[unit_index, rivals] = len(rows)
        along, _, _ = project_residuals(residuals, thin(rows, MAX_SPIKES), unit_index, rivals)
        scales[unit_index, rivals], freedoms[unit_index, rivals] = fit_student(along)
    is_better_known = n_spikes.T > n_spikes
    return tuple(np.where(is_better_known, values.T, values) for values in (scales, freedoms))


def fit_student(deviations):
    """
    Scale and degrees of freedom of Student's distribution, from the median deviation and from how many are far out.

    Parameters
    ----------
    deviations : np.ndarray, float, shape (n_spikes, n)

    Returns
    -------
    scales : np.ndarray, float, shape (n,)
        At least 1.
    freedoms : np.ndarray, float, shape (n,)
        Between MIN_FREEDOM and MAX_FREEDOM. Of few spikes none can be far out: they are mixed with N_TYPICAL that are
        distributed as MIN_FREEDOM has it.
    """
    scales = np.maximum(median_abs_deviation(deviations, axis=0, scale="normal"), 1)
    candidates = np.linspace(MAX_FREEDOM, MIN_FREEDOM, 51)
    expected = 2 * student.sf(FAR_OUT, candidates)
    n_far = 2 * np.maximum(*(np.sum(sign * deviations > FAR_OUT * scales, axis=0) for sign in (1, -1)))
    shares = (n_far + N_TYPICAL * expected[-1]) / (len(deviations) + N_TYPICAL)
    return scales, np.interp(shares, expected, candidates)


def project_residuals(residuals, rows, unit_index, rivals):
    """
    What is left of spikes along the differences between the templates of other units and theirs.

    Parameters
    ----------
    residuals : Residuals
    rows : np.ndarray, int64, shape (n_spikes,)
        Of the unit, in the order of time.
    unit_index : int
    rivals : np.ndarray, int64, shape (n_rivals,)

    Returns
    -------
    along : np.ndarray, float, shape (n_spikes, n_rivals)
        In noise SD, without what drift makes of it.
    norms : np.ndarray, float, shape (n_spikes, n_rivals)
        Of the differences at the times of the spikes, in noise SD.
    lags : np.ndarray, int64, shape (n_rivals,)
        A spike of the rival is that many samples earlier.
    """
    if len(rivals) == 0:
        return *np.zeros((2, len(rows), 0)), np.zeros(0, dtype="int64")
    channels = residuals.find_channels(unit_index)
    units = [unit_index, *rivals.tolist()]
    own, *others = (residuals.get_waveform(index, channels) for index in units)
    lags = np.array([find_lag(own, other)[0] for other in others])

    def find_differences(block):
        own, *others = (residuals.get_waveform(index, channels, block) for index in units)
        moved = np.stack([shift_waveforms(other, lag) for other, lag in zip(others, lags, strict=True)])
        return (moved - own)[:, :, residuals.window]

    along, norms = filter_residuals(residuals, rows, unit_index, units, find_differences)
    return remove_drift(along), norms, lags


def compare_units(residuals, rows, unit_index, rivals, counts, variations):
    """
    Odds that spikes are of other units, to their own.

    What is left around a spike is compared with what would be left if the spike were of another unit.

    Parameters
    ----------
    residuals, rows, unit_index, rivals
        As for `project_residuals`.
    counts : np.ndarray, int64, shape (n_units,)
        Spikes of the neuron of each unit.
    variations : tuple of np.ndarray, float, shape (n_units, n_units)
        Scales and degrees of freedom, see `measure_variations`.

    Returns
    -------
    odds : np.ndarray, float, shape (n_spikes, n_rivals)
    lags : np.ndarray, int64, shape (n_rivals,)
        See `project_residuals`.
    """
    along, norms, lags = project_residuals(residuals, rows, unit_index, rivals)
    scales, freedoms = (values[unit_index, rivals] for values in variations)
    return counts[rivals] / counts[unit_index] * weigh_rivals(along, norms, scales, freedoms), lags


def weigh_rivals(along, norms, scales, freedoms):
    """
    Likelihood of another template, to that of the one that was taken away.

    Parameters
    ----------
    along : np.ndarray, float, shape (n_spikes, n_others)
        What is left of the spikes along the difference between each other template and theirs.
    norms : np.ndarray, float, shape (n_spikes, n_others)
        Of these differences at the times of the spikes, in noise SD.
    scales, freedoms : np.ndarray, float, shape (n_others,)
        Of Student's distribution: so the spikes of both vary along the differences.

    Returns
    -------
    ratios : np.ndarray, float, shape (n_spikes, n_others)
    """
    of_others, of_own = (student.pdf(values / scales, freedoms) for values in (along - norms, along))
    return of_others / of_own


def filter_residuals(residuals, rows, unit_index, changing, find_waveforms):
    """
    What is left of spikes, seen through the filters that tell waveforms as they are at the time best from noise.

    Parameters
    ----------
    residuals : Residuals
    rows : np.ndarray, int64, shape (n_spikes,)
        Of one unit.
    unit_index : int
    changing : list of int
        Indices of the units on which the waveforms depend.
    find_waveforms : Callable
        Of a block, or None: np.ndarray, float32, shape (n_waveforms, n_channels, n_samples), on the channels of the
        unit.

    Returns
    -------
    left : np.ndarray, float, shape (n_spikes, n_waveforms)
        In noise SD.
    norms : np.ndarray, float, shape (n_spikes, n_waveforms)
        What the filters make of the waveforms.
    """
    parts = residuals.divide(rows, changing)
    channels = residuals.find_channels(unit_index)
    left, norms = [], []
    for members, block in parts:
        waveforms = find_waveforms(block)
        filters, norms_of_part = make_filters(waveforms, residuals.noise.make_whitener(channels, waveforms.shape[2]))
        left.append(residuals.apply(partial(multiply, others=filters), rows[members], unit_index, has_followed=True))
        norms.append(np.broadcast_to(norms_of_part, left[-1].shape))
    order = np.argsort(np.concatenate([members for members, _ in parts]))
    return np.concatenate(left)[order], np.concatenate(norms)[order]


def remove_drift(values):
    """Values (n_spikes, n) in the order of time without their running mean, if there are enough to tell it."""
    return remove_running_mean(values, N_AROUND) if len(values) > N_AROUND else values


def find_repeated(spikes, is_moved, neurons, sampling_frequency):
    """
    Which of the moved spikes are at a spike that their neuron has already.

    Parameters
    ----------
    spikes : np.ndarray, structured, shape (n_spikes,)
        Of `assign_spikes`.
    is_moved : np.ndarray, bool, shape (n_spikes,)
    neurons : np.ndarray, int64, shape (n_units,)
        Of each unit.
    sampling_frequency : float

    Returns
    -------
    is_repeated : np.ndarray, bool, shape (n_spikes,)
    """
    tolerance = round(MAX_COINCIDENCE_MS * 1e-3 * sampling_frequency)
    times, labels = concatenate_segments(spikes, tolerance), neurons[spikes["unit_index"]]
    is_repeated = np.zeros(len(spikes), dtype=bool)
    for label in np.unique(labels[is_moved]):
        rows = np.flatnonzero(is_moved & (labels == label))
        is_repeated[rows] = find_coincidences(times[rows], times[~is_moved & (labels == label)], tolerance)
    return is_repeated
