"""
The encoder in the layout of the HuiduRep paper (Cao, Feng, Zhang, Shi 2025, arXiv 2507.17224).

It takes 11 channels x 121 samples in channel order. Convolutions turn them into 121 tokens, a deep post-norm
transformer into features; their mean over time is reduced to the embedding. The denoiser estimates clean features,
which are appended to the tokens before these are encoded a second time.
"""

import math
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import MODEL_HZ
from .encoder import check_config, check_shapes, compress_amplitude, expand_amplitude

N_EXTRA_LAYERS = 12  # of the encoder, beyond `num_layers`
N_FEWER_LAYERS = 2  # of the denoiser, below `num_layers`


@dataclass(frozen=True)
class PaperConfig:
    """Architecture of a `PaperEncoder`; stored with its weights. The defaults are those of the paper."""

    layout: ClassVar[str] = "paper"

    num_layers: int = 4
    """The encoder has 12 more transformer layers, the denoiser 2 fewer, the decoder as many."""
    use_denoiser: bool = True
    """Append the denoised features to the tokens and encode twice; costs four times as much."""
    compress_input: bool = False
    """Compress the amplitude of the input as `SpikeEncoder` does. The paper does not."""
    compression_sd: float = 8.0
    """Amplitude (noise SD) where the compressed scale, also that of the training loss, turns logarithmic."""
    max_channels: int = 12
    """Largest number of channels of one spike that is accepted; `n_channels` of them are used."""
    n_channels: int = 11
    """Channels in the input of the network."""
    n_samples: int = 121
    """Samples of one waveform at `sampling_frequency`."""
    n_before: int = 42
    """Sample of the trough on the centre channel."""
    sampling_frequency: float = MODEL_HZ
    """Hz. Waveforms of other recordings are resampled to it."""
    width: int = 64
    """Dimensions of a token."""
    n_heads: int = 4
    """Attention heads; divides `width`."""
    feed_forward: int = 128
    """Hidden dimensions of the feed-forward part of a layer."""
    n_dims: int = 32
    """Dimensions of the embedding."""

    def __post_init__(self):
        if self.num_layers < N_FEWER_LAYERS:
            raise ValueError(f"num_layers must be at least {N_FEWER_LAYERS}, got {self.num_layers}")
        check_config(self)

    def to_dict(self):
        """Plain dictionary, JSON-simple."""
        return asdict(self)


def assign_slots(positions, channel_mask, n_slots):
    """
    Place of every channel in an input of `n_slots` channels in channel order.

    Channel order is that of a probe numbered from its tip: along the second axis, then along the first. The centre
    channel goes to the middle slot, the channels before and after it in this order to the slots before and after. A
    channel without a slot (too far from the centre in this order) is left out, a slot without a channel stays empty.

    Parameters
    ----------
    positions : torch.Tensor, float32, shape (n_spikes, n_channels, 2)
        In um, relative to the centre channel.
    channel_mask : torch.Tensor, bool, shape (n_spikes, n_channels)
    n_slots : int

    Returns
    -------
    slots : torch.Tensor, int64, shape (n_spikes, n_channels)
        From 0 to `n_slots` - 1; `n_slots` for a channel that is left out or does not exist.
    """
    x, y = positions.unbind(-1)
    order = x.argsort(dim=1, stable=True)
    by_row = y.masked_fill(~channel_mask, math.inf).gather(1, order).argsort(dim=1, stable=True)
    rank = order.gather(1, by_row).argsort(dim=1)  # channels that do not exist come last
    centre = (x.square() + y.square()).masked_fill(~channel_mask, math.inf).argmin(dim=1, keepdim=True)
    slots = n_slots // 2 + rank - rank.gather(1, centre)
    return slots.masked_fill(~channel_mask | (slots < 0) | (slots >= n_slots), n_slots)


def fill_slots(waveforms, slots, n_slots):
    """Waveforms (b, c, t) in the order of `assign_slots`, 0 in empty slots: (b, n_slots, t)."""
    filled = waveforms.new_zeros(len(waveforms), n_slots + 1, waveforms.shape[2])
    index = slots.unsqueeze(-1).expand_as(waveforms)
    return filled.scatter(1, index, waveforms)[:, :n_slots]


def read_slots(values, slots):
    """Inverse of `fill_slots`: (b, n_slots, t) back to the channels (b, c, t), 0 where a channel has no slot."""
    padded = F.pad(values, (0, 0, 0, 1))
    return padded.gather(1, slots.unsqueeze(-1).expand(-1, -1, values.shape[2]))


def make_positional_encoding(n_tokens, width):
    """Sines and cosines of the position (Vaswani et al. 2017), interleaved: (n_tokens, width)."""
    position = torch.arange(n_tokens).unsqueeze(1)
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([(position * frequencies).sin(), (position * frequencies).cos()], dim=-1).flatten(1)


class PostNormLayer(nn.Module):
    """
    Transformer layer with the norms after the sums, as torch's `TransformerEncoderLayer` without dropout.

    Written out because torch's own takes a path in inference that is up to twice as slow on a CPU, and because the
    random numbers of dropout could not be repeated by a resumed training. (b, n_tokens, width) -> the same.
    """

    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.in_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.feed_forward)
        self.linear2 = nn.Linear(config.feed_forward, config.width)
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, tokens):
        heads = self.in_proj(tokens).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
        tokens = self.norm1(tokens + self.out_proj(attended))
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))


class LayerStack(nn.Sequential):
    """Layers one after the other. With gradients each is run twice: a third of the memory for a third more time."""

    def forward(self, tokens):
        for layer in self:
            tokens = checkpoint(layer, tokens, use_reentrant=False) if torch.is_grad_enabled() else layer(tokens)
        return tokens


class PaperEncoder(nn.Module):
    """
    Turn the waveforms of a spike into a vector with the network of the HuiduRep paper.

    It is called like `SpikeEncoder`. Channels are put into the 11 of the network by `assign_slots`; the result depends
    on positions through the order of the channels only.

    Parameters
    ----------
    config : PaperConfig | None, default: None
        None for the defaults.
    """

    def __init__(self, config=None):
        super().__init__()
        self.config = PaperConfig() if config is None else config
        width, n_channels, num_layers = self.config.width, self.config.n_channels, self.config.num_layers
        self.stem = nn.Sequential(
            nn.Conv1d(n_channels, width, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, width, kernel_size=3, padding=1),
            nn.ReLU(),
        )
        self.encoder_layers = self._make_layers(num_layers + N_EXTRA_LAYERS)
        self.denoiser_layers = self._make_layers(num_layers - N_FEWER_LAYERS)
        self.decoder_layers = self._make_layers(num_layers)
        self.decoder = nn.Linear(width, n_channels)
        self.head = nn.Linear(width, self.config.n_dims)
        encoding = make_positional_encoding(2 * self.config.n_samples, width)
        self.register_buffer("positional_encoding", encoding, persistent=False)

    def _make_layers(self, n_layers):
        return LayerStack(*(PostNormLayer(self.config) for _ in range(n_layers)))

    def encode(self, waveforms, positions, channel_mask):
        """Embed spikes without running the decoder: parameters, result and errors of `SpikeEncoder.encode`."""
        convolved, features, _ = self._run_encoder(waveforms, positions, channel_mask)
        return self._embed(convolved, features)

    def forward(self, waveforms, positions, channel_mask):
        """
        Embed and denoise spikes; same parameters as `encode`.

        Returns
        -------
        embeddings : torch.Tensor, float32, shape (n_spikes, n_dims)
        denoised : torch.Tensor, float32, shape (n_spikes, n_channels, n_samples)
            Estimate of the clean waveform in noise SD, 0 on masked channels and on those left out by `assign_slots`.
        """
        embeddings, decoded = self._encode_and_decode(waveforms, positions, channel_mask)
        if self.config.compress_input:
            decoded = expand_amplitude(decoded, self.config.compression_sd)
        return embeddings, decoded

    def encode_and_decode(self, waveforms, positions, channel_mask):
        """As `forward`, with the denoised waveforms in the compressed scale, where the loss is computed."""
        embeddings, decoded = self._encode_and_decode(waveforms, positions, channel_mask)
        if not self.config.compress_input:
            decoded = compress_amplitude(decoded, self.config.compression_sd)
        return embeddings, decoded

    def encode_tokens(self, tokens):
        """Transformer of the encoder on (b, n_tokens, width), any number of tokens up to twice `n_samples`."""
        return self.encoder_layers(tokens + self.positional_encoding[: tokens.shape[1]])

    def denoise_features(self, features):
        """Features of the encoder (b, n_samples, width) to those of the clean waveform."""
        return self.denoiser_layers(features + self.positional_encoding[: features.shape[1]])

    def decode_features(self, features):
        """Features of the encoder (b, n_samples, width) to waveforms (b, 11, n_samples), in the scale of the input."""
        return self.decoder(self.decoder_layers(features)).transpose(1, 2)

    def _run_encoder(self, waveforms, positions, channel_mask):
        check_shapes(self.config, waveforms, positions, channel_mask)
        slots = assign_slots(positions, channel_mask, self.config.n_channels)
        if self.config.compress_input:
            waveforms = compress_amplitude(waveforms, self.config.compression_sd)
        convolved = self.stem(fill_slots(waveforms, slots, self.config.n_channels)).transpose(1, 2)
        return convolved, self.encode_tokens(convolved), slots

    def _embed(self, convolved, features):
        if self.config.use_denoiser:
            features = self.encode_tokens(torch.cat([convolved, self.denoise_features(features)], dim=1))
        return self.head(features.mean(dim=1))

    def _encode_and_decode(self, waveforms, positions, channel_mask):
        convolved, features, slots = self._run_encoder(waveforms, positions, channel_mask)
        return self._embed(convolved, features), read_slots(self.decode_features(features), slots)
