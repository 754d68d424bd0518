"""Self-supervised learning: MoCo-v3 contrast plus denoising (Chen, Xie, He 2021; Cao et al. 2025)."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from ..model.encoder import EncoderConfig, FourierFeatures


def info_nce(queries, keys, temperature=0.2):
    """
    Contrast of MoCo-v3: every query must find its own key among those of the batch.

    Parameters
    ----------
    queries, keys : torch.Tensor, shape (n_pairs, n_dims)
        Row i of both comes from the same unit; normalised here.
    temperature : float, default: 0.2

    Returns
    -------
    loss : torch.Tensor, scalar
        Cross-entropy of the similarities, times 2 * temperature; log(n_pairs) * 2T when all are alike.
    """
    similarities = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    labels = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(similarities, labels) * (2 * temperature)


def masked_mse(predicted, target, channel_mask):
    """Mean squared error over existing channels: (b, c, t), (b, c, t), (b, c) -> scalar."""
    squared = (predicted - target).square().mean(dim=-1)
    return (squared * channel_mask).sum() / channel_mask.sum().clamp(min=1)


def momentum_at(step, n_steps, base=0.99):
    """Momentum of the key encoder: `base` at step 0, 1 at `n_steps`, half a cosine between."""
    return 1.0 - (1.0 - base) * 0.5 * (1.0 + math.cos(math.pi * min(step / n_steps, 1.0)))


def learning_rate_at(step, n_steps, base, n_warmup):
    """Linear warm-up to `base` in `n_warmup` steps, then half a cosine down to 0 at `n_steps`."""
    if step < n_warmup:
        return base * (step + 1) / n_warmup
    progress = (step - n_warmup) / max(n_steps - n_warmup, 1)
    return base * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def learning_rate_with_frozen_start(step, config):
    """`frozen_learning_rate` while the encoder is frozen, then `learning_rate_at` over the other steps."""
    if step < config.n_frozen:
        return config.frozen_learning_rate
    n_frozen = config.n_frozen
    return learning_rate_at(step - n_frozen, config.n_steps - n_frozen, config.learning_rate, config.n_warmup)


def build_mlp(sizes, affine_end):
    """Linear layers with batch norm and ReLU between; the last batch norm without scale unless `affine_end`."""
    layers = []
    for index in range(len(sizes) - 1):
        is_last = index == len(sizes) - 2
        layers.append(nn.Linear(sizes[index], sizes[index + 1], bias=False))
        layers.append(nn.BatchNorm1d(sizes[index + 1], affine=affine_end if is_last else True))
        if not is_last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def run_in_buckets(encode, view, n_buckets=4):
    """
    Run an encoder without computing much padding: spikes with few channels go together.

    Parameters
    ----------
    encode : callable
        `encode` or `encode_and_decode` of an encoder.
    view : Views
        The existing channels of a spike come before the missing ones.
    n_buckets : int, default: 4

    Returns
    -------
    results : tuple of torch.Tensor
        As of one call on the whole batch, which the encoder's independence of padding guarantees.
    """
    n_channels = view.channel_mask.sum(dim=1)
    order = n_channels.argsort(stable=True)
    results = []
    for indices in order.tensor_split(n_buckets):
        used = max(int(n_channels[indices].max()), 1) if len(indices) else 1
        inputs = (view.waveforms, view.positions, view.channel_mask)
        outputs = encode(*(values[indices, :used] for values in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        n_missing = view.channel_mask.shape[1] - used
        results.append([F.pad(value, (0, 0, 0, n_missing)) if value.ndim == 3 else value for value in outputs])
    back = order.argsort()
    return tuple(torch.cat(values)[back] for values in zip(*results, strict=True))


class WaveformReader(nn.Module):
    """Read the aligned clean waveform at a position out of an embedding (only used in training).

    It keeps in the embedding what contrast alone may drop: amplitude and place.
    (b, n_dims), (b, c, 2) um -> (b, c, n_samples), compressed scale.
    """

    def __init__(self, config, hidden):
        super().__init__()
        self.fourier = FourierFeatures(config if isinstance(config, EncoderConfig) else EncoderConfig())
        self.from_embedding = nn.Linear(config.n_dims, hidden)
        self.from_position = nn.Linear(self.fourier.n_features, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, config.n_samples)

    def forward(self, embeddings, positions):
        at_position = self.from_position(self.fourier(positions))
        hidden = F.gelu(self.from_embedding(embeddings).unsqueeze(1) + at_position)
        return self.output(F.gelu(self.hidden(hidden)))


class MomentumContrast(nn.Module):
    """
    Query encoder, projector and predictor, with a momentum copy of encoder and projector for the keys.

    Parameters
    ----------
    encoder : SpikeEncoder | PaperEncoder
    hidden : int, default: 256
        Hidden dimensions of projector, predictor and waveform reader.
    n_projected : int, default: 128
        Dimensions in which pairs are compared.
    temperature : float, default: 0.2
    contrast : float, default: 1.0
        Weight of the contrast.
    alpha : float, default: 1.0
        Weight of the denoising error of the channel decoder.
    beta : float, default: 1.0
        Weight of the error of the waveform read from the embedding.
    """

    def __init__(self, encoder, *, hidden=256, n_projected=128, temperature=0.2, contrast=1.0, alpha=1.0, beta=1.0):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        n_dims = encoder.config.n_dims
        self.temperature, self.contrast, self.alpha, self.beta = temperature, contrast, alpha, beta
        self.encoder = encoder
        self.projector = build_mlp([n_dims, hidden, n_projected], affine_end=False)
        self.predictor = build_mlp([n_projected, hidden, n_projected], affine_end=False)
        self.reader = WaveformReader(encoder.config, hidden)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        # squared error in the compressed scale -> about squared noise SD for values below the compression
        self.error_scale = encoder.config.compression_sd**2

    @torch.no_grad()
    def update_keys(self, momentum):
        """Move the key network: key <- momentum * key + (1 - momentum) * query."""
        pairs = ((self.key_encoder, self.encoder), (self.key_projector, self.projector))
        for key_network, network in pairs:
            for key_value, value in zip(key_network.parameters(), network.parameters(), strict=True):
                key_value.lerp_(value, 1.0 - momentum)

    def forward(self, first, second):
        """
        Loss of one batch of pairs.

        Parameters
        ----------
        first, second : Views
            Two views of the same units, row by row.

        Returns
        -------
        loss : torch.Tensor, scalar
        parts : dict of str to float
            contrastive, dae, read, embedding_sd, positive and negative similarity.
        """
        results = [self._run_queries(view) for view in (first, second)]
        keys = [self._run_keys(view) for view in (first, second)]
        contrastive = info_nce(results[0]["query"], keys[1], self.temperature)
        contrastive = contrastive + info_nce(results[1]["query"], keys[0], self.temperature)
        dae = 0.5 * (results[0]["dae"] + results[1]["dae"])
        read = 0.5 * (results[0]["read"] + results[1]["read"])
        loss = self.contrast * contrastive + self.alpha * dae + self.beta * read
        parts = self._summarise(results[0], keys[1])
        parts.update(loss=loss.item(), contrastive=contrastive.item(), dae=dae.item(), read=read.item())
        return loss, parts

    def _run_queries(self, view):
        embeddings, denoised = run_in_buckets(self.encoder.encode_and_decode, view)
        aligned = self.reader(embeddings, view.positions)
        return dict(
            embeddings=embeddings,
            query=self.predictor(self.projector(embeddings)),
            dae=self.error_scale * masked_mse(denoised, view.clean_compressed, view.channel_mask),
            read=self.error_scale * masked_mse(aligned, view.aligned_compressed, view.channel_mask),
        )

    @torch.no_grad()
    def _run_keys(self, view):
        return self.key_projector(run_in_buckets(self.key_encoder.encode, view)[0])

    @torch.no_grad()
    def _summarise(self, result, keys):
        similarities = F.normalize(result["query"], dim=1) @ F.normalize(keys, dim=1).T
        n_pairs = len(keys)
        positive = similarities.diagonal().mean()
        negative = (similarities.sum() - similarities.diagonal().sum()) / max(n_pairs * (n_pairs - 1), 1)
        return dict(
            embedding_sd=result["embeddings"].std(dim=0).mean().item(),
            positive_similarity=positive.item(),
            negative_similarity=negative.item(),
        )
