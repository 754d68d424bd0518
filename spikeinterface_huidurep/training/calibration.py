"""Express the embedding in units of its own noise."""

import copy

import torch

from .ssl import run_in_buckets
from .views import draw_pair, make_static

RIDGE = 0.002  # of the mean variance, so that no dimension is blown up without limit


def calibrate_encoder(encoder, source, view_config, *, n_batches, n_sites, n_units, seed, whiten=True):
    """
    Whiten the embedding by the noise between spikes of one unit; the transform goes into the encoder's head.

    Contrast leaves the scale of the dimensions open: some vary much from spike to spike of one unit, some little, and
    distances are ruled by the former. Afterwards the noise has, over training units, the same size in all directions
    and a variance of 1: what is left in distances and principal components is signal. Every unit counts the same,
    however noisy it is.

    Parameters
    ----------
    encoder : SpikeEncoder | PaperEncoder
        Left as it is.
    source : MixedSource
    view_config : ViewConfig
    n_batches, n_sites, n_units : int
        Pairs of spikes to measure the noise on: their product.
    seed : int
    whiten : bool, default: True
        False leaves the directions as they are and brings the variance of the noise to 1 on average.

    Returns
    -------
    calibrated : SpikeEncoder | PaperEncoder
        A copy in evaluation mode.
    """
    calibrated = copy.deepcopy(encoder).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    differences, means = [], []
    with torch.inference_mode():
        for _ in range(n_batches):
            pair = draw_pair(source, n_sites, n_units, make_static(view_config), generator)
            first, second = (run_in_buckets(calibrated.encode, view)[0].double() for view in pair)
            differences.append((first - second) / 2**0.5)
            means.append(0.5 * (first + second).mean(dim=0))
    differences, mean = torch.cat(differences), torch.stack(means).mean(dim=0)
    whitening = torch.eye(differences.shape[1], dtype=torch.float64)
    if whiten:
        directions = torch.nn.functional.normalize(differences, dim=1)
        whitening = compute_inverse_root(directions.T @ directions / len(directions), RIDGE)
    whitening = whitening / (differences @ whitening).square().mean().sqrt()
    head = calibrated.head
    with torch.no_grad():
        head.bias.copy_((whitening @ (head.bias.double() - mean)).float())
        head.weight.copy_((whitening @ head.weight.double()).float())
    return calibrated


def compute_inverse_root(covariance, ridge):
    """(covariance + ridge * mean variance)^(-1/2), symmetric."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    values = values + ridge * values.mean().clamp(min=1e-12)
    return (vectors / values.sqrt()) @ vectors.T
