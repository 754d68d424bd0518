"""
Tell the neurons in one unit apart, by what is left of its spikes when all templates are taken away.

Two neurons leave two modes, whatever else the spikes do. They may also change in amplitude and in time, which moves
them along the template and its derivatives, and change slowly while the probe drifts, which moves neighbours in time
alike; both are taken out before the modes are counted. So is the colour of the noise, which hides small differences. A
mode of few spikes may be a neuron that fires rarely. It is none if its spikes are less alike than the others, as
collisions are.

In a unit of fewer spikes than dimensions there is more noise in all of these than difference in one. Neurons differ in
few: on each channel they are made of the shapes in time that all templates are made of. Among these two neurons show
that do not in all dimensions. Where nothing drifts nothing else of a weak unit does, for which a smaller gap is enough.

A neuron that leaves the probe may look like another one for a while. The mean of their spikes moves then, and takes the
other neuron with it: what is one mode has two, and the gap between the neurons fills. So where the mean moves, modes
are counted as they are first; but they have to be apart at the times when both fire.
"""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from spikeinterface_huidurep.clustering import MIN_SPIKES, fit_mixture
from spikeinterface_huidurep.merging import (
    MAX_SEPARATION,
    MAX_TESTED_SPIKES,
    dip_score,
    project_on_difference,
    separation,
    thin,
)

N_DIMS = 3  # two neurons differ in one direction, three in two; more dimensions hide weak ones
MAX_PARTS, N_STARTS = 6, 5
N_SHARPENINGS = 4
MIN_SHARE = 0.1  # of the spikes of two parts; a smaller part has to show that it is a neuron
RAREST_NEURON = (10, 1.3, 10.0)  # spikes, times the others' spread, SD from them
RARE_NEURONS = (RAREST_NEURON, (20, 1.1, 4.85), (40, 1.02, 0.0), (100, 1.08, 4.4))
MAX_SPREAD = 1.1  # times that of the largest part; parts beyond are collisions that matching did not resolve
MAX_SPREAD_OF_FAR = 1.6  # of FAR_PARTS, where collisions are not: larger spikes vary more
FAR_PARTS = ((60, MAX_SEPARATION), (MIN_SPIKES, 6.0))  # spikes, SD from the largest; few are far away by chance
N_AROUND = 60  # spikes whose mean is what drift has made of the template; fewer follow which neuron fires
MIN_MOVEMENT = 2.0  # of that mean, times what noise does to it
N_NEIGHBORS = 10  # spikes before one, and after it, that tell whether two parts fire at the same time
MIN_SHARE_OF_NEIGHBORS = 0.2  # of these are of each part
MAX_NORM_OF_WEAK = 20.0  # noise SD; below it other changes of a waveform than those taken out are less than noise
MAX_SEPARATION_OF_WEAK = 3.6  # SD; as MAX_SEPARATION; the halves of a uniform distribution are 3.5 apart
MIN_SEPARATION = 2.7  # SD; the distance of the halves of one Gaussian: closer modes are one


def split_unit(residuals, waveform, whitener, shapes, threshold, seed):
    """
    Tell the neurons in one unit apart.

    Parameters
    ----------
    residuals : np.ndarray, float32, shape (n_spikes, n_channels, n_samples)
        In the order of time.
    waveform : np.ndarray, float32, shape (n_channels, n_samples)
        The template that was taken away.
    whitener : np.ndarray, float32, shape (n_channels * n_samples, n_channels * n_samples)
        Makes the noise of waveforms white, see `noise.Noise.make_whitener`.
    shapes : np.ndarray | None, float32, shape (n_shapes, n_samples)
        What neurons are made of on each channel, see `Residuals.find_shapes`; None where waveforms change otherwise.
    threshold : float
        Dip score from which on there is a gap between two neurons.
    seed : int

    Returns
    -------
    parts : np.ndarray, int64, shape (n_spikes,)
        Counted from 0; all 0 where there is one neuron.
    """
    n_spikes = len(residuals)
    if n_spikes < 2 * MIN_SPIKES:
        return np.zeros(n_spikes, dtype="int64")
    vectors = remove_variation(residuals.reshape(n_spikes, -1) @ whitener, find_variation(waveform) @ whitener)
    n_around = min(N_AROUND, n_spikes // 2)
    steady = remove_running_mean(vectors, n_around)
    is_moving = n_around * np.sum((vectors - steady) ** 2) > MIN_MOVEMENT * np.sum(vectors**2)
    has_shapes = shapes is not None and n_spikes < waveform.size
    is_weak = has_shapes and np.linalg.norm(waveform) < MAX_NORM_OF_WEAK
    parts = np.zeros(n_spikes, dtype="int64")
    if is_moving:
        parts = tell_apart(vectors, threshold, MAX_SEPARATION, seed, at_same_time=True)
    if not is_weak and not parts.any():
        parts = tell_apart(steady, threshold, MAX_SEPARATION, seed)
    if has_shapes and not parts.any():
        max_separation = MAX_SEPARATION_OF_WEAK if is_weak else MAX_SEPARATION
        parts = tell_apart(steady @ find_differences(shapes, whitener), threshold, max_separation, seed)
    return parts


def tell_apart(vectors, threshold, max_separation, seed, at_same_time=False):
    """
    Parts of vectors between which there is a gap.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    threshold : float
        Dip score from which on there is a gap between two neurons.
    max_separation : float
        In SD; parts beyond it stay apart.
    seed : int
    at_same_time : bool, default: False
        Whether parts have to be apart at the times when both fire, see `find_mixed`.

    Returns
    -------
    parts : np.ndarray, int64, shape (n_spikes,)
        Counted from 0; all 0 where there is one.
    """
    responsibilities = find_parts(vectors, seed)
    parts = responsibilities.argmax(axis=1)
    likely = find_likely_neurons(vectors, parts, np.bincount(parts))
    if len(likely) < 2:
        return np.zeros(len(vectors), dtype="int64")
    parts = sharpen_parts(vectors, responsibilities[:, likely].argmax(axis=1))
    return join_parts(vectors, parts, threshold, max_separation, at_same_time)


def find_parts(vectors, seed):
    """
    Parts that vectors may be of, by a mixture in the few dimensions in which they vary most.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    seed : int

    Returns
    -------
    responsibilities : np.ndarray, float64, shape (n_spikes, n_parts)
        Probability that each is of each part.
    """
    features = PCA(N_DIMS, svd_solver="randomized", random_state=seed).fit_transform(vectors).astype("float64")
    with threadpool_limits(1):
        return fit_mixture(features, MAX_PARTS, seed, N_STARTS).predict_proba(features)


def find_differences(shapes, whitener):
    """
    Directions in which whitened waveforms of neurons differ.

    Parameters
    ----------
    shapes : np.ndarray, float32, shape (n_shapes, n_samples)
        Of neurons on any channel.
    whitener : np.ndarray, float32, shape (n_channels * n_samples, n_channels * n_samples)

    Returns
    -------
    directions : np.ndarray, float32, shape (n_channels * n_samples, n_channels * n_shapes)
        Orthonormal.
    """
    n_channels = len(whitener) // shapes.shape[1]
    directions, _ = np.linalg.qr((np.kron(np.eye(n_channels), shapes) @ whitener).T)
    return directions.astype("float32")


def find_likely_neurons(vectors, parts, counts):
    """
    Parts that may be neurons: those that are no more spread than the largest, or far away from it.

    Collisions are more spread, and around the mean of the others. Parts of few spikes have to be as RAREST_NEURON is.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    parts : np.ndarray, int64, shape (n_spikes,)
    counts : np.ndarray, int64, shape (n_parts,)

    Returns
    -------
    likely : np.ndarray, int64
        None where all have too few spikes.
    """
    frequent = np.flatnonzero(counts >= MIN_SPIKES)
    if len(frequent) == 0:
        return frequent
    members = [vectors[parts == part] for part in frequent]
    largest = counts[frequent].argmax()
    spreads = np.array([measure_spread(of_part) for of_part in members])
    is_far_away = [is_far(of_part, members[largest]) for of_part in members]
    likely = frequent[spreads <= np.where(is_far_away, MAX_SPREAD_OF_FAR, MAX_SPREAD) * spreads[largest]]
    fewer = np.flatnonzero((counts < MIN_SPIKES) & (counts >= RAREST_NEURON[0]))
    rarest = [part for part in fewer if is_one_of([RAREST_NEURON], vectors[parts == part], members[largest])]
    return np.sort(np.append(likely, rarest).astype("int64"))


def is_far(vectors, others):
    """
    Whether a part that is no small one is farther from the largest than collisions of its spikes are.

    Parameters
    ----------
    vectors, others : np.ndarray, float32, shape (n_spikes, n_dims), (n_others, n_dims)
        Of the part and of the largest.

    Returns
    -------
    is_far : bool
    """
    n_part = len(vectors)
    if n_part < MIN_SHARE * (n_part + len(others)):
        return False
    distance = separation(*project_on_difference(vectors, others))
    return any(n_part >= n_spikes and distance > min_distance for n_spikes, min_distance in FAR_PARTS)


def measure_spread(vectors):
    """
    Squared distance from the mean of the others, median over at least two vectors (n_vectors, n_dims).

    Not along the mean itself, which is where the amplitude of a neuron other than that of the template changes.
    """
    n_vectors, mean = len(vectors), vectors.mean(axis=0)
    deviations = vectors - mean
    along = deviations @ mean / (np.linalg.norm(mean) + 1e-9)
    return np.median(np.sum(deviations**2, axis=1) - along**2) * n_vectors / (n_vectors - 1)


def sharpen_parts(vectors, parts):
    """
    Draw the borders between the largest part and the others anew, each across the line through the two means.

    The few dimensions in which the parts were found hold but a share of the differences between them.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    parts : np.ndarray, int64, shape (n_spikes,)

    Returns
    -------
    parts : np.ndarray, int64, shape (n_spikes,)
        Those that are no neurons go to the largest.
    """
    parts = parts.copy()
    largest = np.bincount(parts).argmax()
    for part in np.setdiff1d(parts, largest):
        both = np.flatnonzero((parts == part) | (parts == largest))
        is_part = sharpen_part(vectors[both], parts[both] == part)
        parts[both] = np.where(is_part & is_neuron(vectors[both], is_part), part, largest)
    return parts


def is_neuron(vectors, is_part):
    """
    Whether a part beside a larger one may be a neuron.

    Many spikes may. Fewer must be about as alike as those of the larger part, which collisions are not, and the farther
    away the fewer and the less alike they are: at least as many, as alike and as far as one of RARE_NEURONS, and where
    the larger part has few spikes, too, as RAREST_NEURON.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
        Of both parts.
    is_part : np.ndarray, bool, shape (n_spikes,)

    Returns
    -------
    is_neuron : bool
    """
    n_part, share = is_part.sum(), is_part.mean()
    if share >= MIN_SHARE and n_part >= MIN_SPIKES:
        return True
    candidates = [RAREST_NEURON] if share >= MIN_SHARE else RARE_NEURONS
    return is_one_of(candidates, vectors[is_part], vectors[~is_part])


def is_one_of(rare_neurons, vectors, others):
    """
    Whether a part is as frequent, as alike and as far from the others as one of some rare neurons.

    Parameters
    ----------
    rare_neurons : sequence of (int, float, float)
        Rows of RARE_NEURONS.
    vectors, others : np.ndarray, float32, shape (n_spikes, n_dims), (n_others, n_dims)
        Of the part, and of the one beside it.

    Returns
    -------
    is_one : bool
    """
    if len(vectors) < min(n_spikes for n_spikes, _, _ in rare_neurons):
        return False
    spread = measure_spread(vectors) / measure_spread(others)
    distance = separation(*project_on_difference(vectors, others))
    return any(
        len(vectors) >= n_spikes and spread <= max_spread and distance >= min_distance
        for n_spikes, max_spread, min_distance in rare_neurons
    )


def sharpen_part(vectors, is_part):
    """Spikes on the side of a part, in a mixture of two Gaussians on the line through its mean and that of the rest."""
    for _ in range(N_SHARPENINGS):
        along = np.empty(len(vectors))
        along[is_part], along[~is_part] = project_on_difference(vectors[is_part], vectors[~is_part])
        labels = is_part.astype("int64")
        means = np.array([along[~is_part].mean(), along[is_part].mean()])
        variance = np.mean((along - means[labels]) ** 2) + 1e-9
        mixture = GaussianMixture(
            2,
            covariance_type="tied",
            weights_init=np.bincount(labels) / len(labels),
            means_init=means[:, None],
            precisions_init=[[1 / variance]],
        )
        before, is_part = is_part, mixture.fit_predict(along[:, None]) == 1
        if np.array_equal(before, is_part) or min(is_part.sum(), np.sum(~is_part)) < MIN_SPIKES:
            break
    return is_part


def join_parts(vectors, parts, threshold, max_separation=MAX_SEPARATION, at_same_time=False):
    """
    Join the parts between which there is no gap, those with the lowest dip score first.

    Parts that are farther apart than those of anything stay apart: the dip test is weak for few spikes. And what is
    joined is as far from another part as the closer of the two was, or farther: it is more spread, so that the gap
    beside it looks smaller.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    parts : np.ndarray, int64, shape (n_spikes,)
    threshold : float
        Dip score from which on there is a gap.
    max_separation : float, default: MAX_SEPARATION
        In SD; parts beyond it stay apart.
    at_same_time : bool, default: False
        Whether they have to be apart at the times when both fire; parts that hardly do are joined.

    Returns
    -------
    parts : np.ndarray, int64, shape (n_spikes,)
        Counted from 0.
    """
    parts = np.unique(parts, return_inverse=True)[1]
    scores = np.zeros((parts.max() + 1,) * 2)
    while len(scores) > 1:
        scores = np.maximum(scores, score_pairs(vectors, parts, max_separation, at_same_time))
        first, second = np.unravel_index(np.argmin(scores), scores.shape)
        if scores[first, second] >= threshold:
            break
        parts[parts == second] = first
        parts -= parts > second
        scores[first] = scores[:, first] = np.minimum(scores[first], scores[second])
        scores = np.delete(np.delete(scores, second, axis=0), second, axis=1)
    return parts


def score_pairs(vectors, parts, max_separation, at_same_time):
    """`score_pair` of all pairs of parts, symmetric, infinite for a part and itself: float (n_parts, n_parts)."""
    members = [np.flatnonzero(parts == part) for part in range(parts.max() + 1)]
    scores = np.full((len(members),) * 2, np.inf)
    for second in range(len(members)):
        for first in range(second):
            pair = members[first], members[second]
            if at_same_time:
                pair = find_mixed(*pair)
            sizes = [len(rows) for rows in pair]
            samples = [vectors[thin(rows, MAX_TESTED_SPIKES)] for rows in pair]
            is_known = not at_same_time or min(sizes) >= MIN_SPIKES
            score = score_pair(*samples, sizes, max_separation) if is_known else 0.0
            scores[first, second] = scores[second, first] = score
    return scores


def find_mixed(first, second):
    """
    Spikes of two parts at the times when both fire: enough of those before each are of either part, and of those after.

    Parameters
    ----------
    first, second : np.ndarray, int64, shape (n_first,), (n_second,)
        Rows of spikes in the order of time.

    Returns
    -------
    first, second : np.ndarray, int64
        Some of them.
    """
    rows = np.sort(np.concatenate([first, second]))
    sums = np.concatenate([[0], np.cumsum(np.isin(rows, second))])
    index, size = np.arange(len(rows)), min(N_NEIGHBORS, len(rows) - 1)
    is_mixed = (index >= size) & (index < len(rows) - size)
    for start in (index - size, index + 1):
        n_second = np.take(sums, start + size, mode="clip") - np.take(sums, start, mode="clip")
        is_mixed &= np.minimum(n_second, size - n_second) >= MIN_SHARE_OF_NEIGHBORS * size
    mixed = rows[is_mixed]
    return np.intersect1d(first, mixed), np.intersect1d(second, mixed)


def score_pair(first, second, sizes, max_separation=np.inf):
    """
    Dip score between two sets of vectors.

    Parameters
    ----------
    first, second : np.ndarray, float32, shape (n_first, n_dims), (n_second, n_dims)
    sizes : (int, int)
        Numbers of vectors that they were drawn from.
    max_separation : float, default: infinite
        In SD.

    Returns
    -------
    score : float
        0 where they are closer than the halves of one, infinite beyond the largest separation.
    """
    along = project_on_difference(first, second)
    distance = separation(*along)
    if distance > max_separation:
        return np.inf
    return 0.0 if distance < MIN_SEPARATION else dip_score(*along, sizes)


def find_variation(waveform):
    """
    Directions in which the spikes of one neuron vary with amplitude and time.

    Parameters
    ----------
    waveform : np.ndarray, float32, shape (n_channels, n_samples)

    Returns
    -------
    directions : np.ndarray, float32, shape (3, n_channels * n_samples)
        The waveform and its first two derivatives.
    """
    slope = np.gradient(waveform, axis=1)
    return np.stack([waveform, slope, np.gradient(slope, axis=1)]).reshape(3, -1)


def remove_variation(vectors, directions):
    """
    Take out what changes of amplitude and time do to the spikes of one neuron.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    directions : np.ndarray, float32, shape (n_directions, n_dims)

    Returns
    -------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
        Orthogonal to the directions.
    """
    basis, _ = np.linalg.qr(directions.T.astype("float64"))
    basis = basis.astype("float32")
    return vectors - (vectors @ basis) @ basis.T


def remove_running_mean(vectors, n_around):
    """
    Subtract from every vector the mean of those before and after it.

    Parameters
    ----------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    n_around : int
        Number of vectors in the mean, below n_spikes.

    Returns
    -------
    vectors : np.ndarray, float32, shape (n_spikes, n_dims)
    """
    n_spikes = len(vectors)
    sums = np.concatenate([np.zeros((1, vectors.shape[1])), np.cumsum(vectors, axis=0, dtype="float64")])
    start = np.clip(np.arange(n_spikes) - n_around // 2, 0, n_spikes - n_around - 1)
    mean = (sums[start + n_around + 1] - sums[start] - vectors) / n_around
    return (vectors - mean).astype("float32")
