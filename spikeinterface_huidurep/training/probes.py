"""Random probe geometries, noise covariances and spatial whitening matrices for training sites."""

import numpy as np

N_SITE_CHANNELS = 24  # channels of a training site; views take the nearest 12 of them
N_WHITENING_CHANNELS = 48  # channels that enter the whitening of a site, so that its edge is not the probe's edge
WHITENING_EPS = 0.02  # fraction of the mean noise variance added before inversion

NEUROPIXELS_1_X_UM = np.array([43.0, 11.0, 59.0, 27.0])


def make_grid(n_columns, n_rows, pitch_x_um, pitch_y_um, stagger_um=0.0):
    """Contacts on a grid, every other column shifted along y. Returns (n, 2) um."""
    column, row = np.meshgrid(np.arange(n_columns), np.arange(n_rows), indexing="ij")
    y = row * pitch_y_um + (column % 2) * stagger_um
    return np.stack([column.ravel() * pitch_x_um, y.ravel()], axis=1).astype(float)


def make_neuropixels_1(n_channels=96):
    """The staggered four-column layout of Neuropixels 1.0. Returns (n, 2) um."""
    channel = np.arange(n_channels)
    return np.stack([NEUROPIXELS_1_X_UM[channel % 4], 20.0 * (channel // 2)], axis=1)


def _draw_tetrode(rng):
    pitch_um = rng.uniform(10, 50)
    square = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=float) * pitch_um
    if rng.random() < 0.5:
        square = square @ np.array([[1, 1], [-1, 1]]) / np.sqrt(2)
    n_copies = rng.integers(1, 3)
    return np.concatenate([square + [0, 150.0 * copy] for copy in range(n_copies)])


def _draw_linear(rng):
    return make_grid(1, rng.integers(4, 33), 1.0, np.exp(rng.uniform(np.log(10), np.log(100))))


def _draw_mea(rng):
    pitch_um = rng.uniform(15, 60)
    side = rng.integers(4, 11)
    return make_grid(side, side, pitch_um, pitch_um)


def _draw_polytrode(rng):
    pitch_y_um = rng.uniform(15, 50)
    stagger_um = rng.choice([0.0, 0.5]) * pitch_y_um
    return make_grid(rng.integers(2, 5), rng.integers(6, 17), rng.uniform(12, 50), pitch_y_um, stagger_um)


GEOMETRIES = (
    # (probability, draw)
    (0.05, lambda rng: np.zeros((1, 2))),
    (0.22, _draw_tetrode),
    (0.13, _draw_linear),
    (0.20, lambda rng: make_neuropixels_1()),
    (0.12, lambda rng: make_grid(2, 32, 32.0, 15.0)),
    (0.13, _draw_mea),
    (0.15, _draw_polytrode),
)


def draw_probe(rng):
    """One random probe of a random family. Returns contacts (n, 2) um."""
    probability = np.array([row[0] for row in GEOMETRIES])
    family = rng.choice(len(GEOMETRIES), p=probability / probability.sum())
    positions = GEOMETRIES[family][1](rng)
    if rng.random() < 0.2:  # contacts that broke
        keep = rng.random(len(positions)) > rng.uniform(0, 0.3)
        keep[rng.integers(len(positions))] = True
        positions = positions[keep]
    return positions


def compute_distances(positions):
    """Distances between contacts: (n, 2) -> (n, n)."""
    return np.linalg.norm(positions[:, None] - positions[None], axis=-1)


def draw_noise_covariance(positions, rng, measured=None):
    """
    Random noise covariance with unit diagonal.

    Parameters
    ----------
    positions : np.ndarray, shape (n_channels, 2)
        In um.
    rng : np.random.Generator
    measured : tuple of (distances_um, correlations) | None, default: None
        Correlation of real noise as a function of distance; drawn in a quarter of the cases where given.

    Returns
    -------
    covariance : np.ndarray, shape (n_channels, n_channels)
    """
    distances = compute_distances(positions)
    kind = rng.choice(4 if measured is not None else 3)
    if kind == 0:
        correlation = np.exp(-distances / rng.uniform(10, 100))
    elif kind == 1:
        half_um = rng.uniform(5, 40)
        correlation = np.minimum(0.5 * half_um / np.maximum(distances, 1e-9), 0.9)
    elif kind == 2:
        correlation = np.exp(-0.5 * (distances / rng.uniform(15, 60)) ** 2)
    else:
        correlation = np.interp(distances, *measured)
    private = rng.uniform(0.05, 0.6) if kind != 3 else rng.uniform(0, 0.1)
    common = rng.choice([0.0, rng.uniform(0, 0.3)])
    covariance = (1 - private) * ((1 - common) * correlation + common)
    np.fill_diagonal(covariance, 1.0)
    return covariance


def compute_whitening(covariance):
    """Symmetric (ZCA) whitening matrix with a regularised inverse, rows scaled to noise of unit SD."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0)  # parametric covariances need not be positive
    whitening = (vectors / np.sqrt(values + WHITENING_EPS)) @ vectors.T
    noise_sd = np.sqrt(np.square(whitening @ (vectors * np.sqrt(values))).sum(axis=1))
    return whitening / np.maximum(noise_sd, 1e-6)[:, None]


def draw_site(rng, measured=None):
    """
    A random place on a random probe, with its whitening.

    Returns
    -------
    positions : np.ndarray, shape (N_WHITENING_CHANNELS, 2)
        In um relative to the centre channel, nearest first; far away where there is no channel.
    whitening : np.ndarray, shape (N_SITE_CHANNELS, N_WHITENING_CHANNELS)
        From raw channels to whitened ones, 0 where there is no channel.
    channel_mask : np.ndarray, bool, shape (N_SITE_CHANNELS,)
    """
    probe = draw_probe(rng)
    probe = probe - probe[rng.integers(len(probe))]
    probe = probe * rng.choice([-1.0, 1.0], size=2)
    nearest = np.argsort(np.linalg.norm(probe, axis=1), kind="stable")[:N_WHITENING_CHANNELS]
    matrix = compute_whitening(draw_noise_covariance(probe[nearest], rng, measured))
    n_channels = len(nearest)
    n_kept = min(n_channels, N_SITE_CHANNELS)
    positions = np.full((N_WHITENING_CHANNELS, 2), 1e4)
    positions[:n_channels] = probe[nearest]
    whitening = np.zeros((N_SITE_CHANNELS, N_WHITENING_CHANNELS))
    whitening[:n_kept, :n_channels] = matrix[:n_kept]
    return positions, whitening, np.arange(N_SITE_CHANNELS) < n_channels


def measure_correlation(covariance, positions):
    """Mean noise correlation against distance of a measured covariance: (distances_um, correlations)."""
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scale, scale)
    distances = compute_distances(positions)
    edges = np.array([1.0, 25.0, 35.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0])
    centres, means = [0.0], [1.0]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (distances >= low) & (distances < high)
        if inside.any():
            centres.append(0.5 * (low + high))
            means.append(correlation[inside].mean())
    return np.array(centres), np.array(means)
