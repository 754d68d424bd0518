"""The spike encoder: a small transformer over the channels around one spike."""

import math
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from . import MODEL_HZ

# |log| above which the inverse compression is clipped: 8 * (exp(6) - 1) = 3200 noise SD, no spike is that large.
MAX_COMPRESSED = 6.0


@dataclass(frozen=True)
class EncoderConfig:
    """Architecture of a `SpikeEncoder`; stored with its weights."""

    layout: ClassVar[str] = "channels"

    max_channels: int = 12
    """Largest number of channels of one spike; fewer are always accepted."""
    n_samples: int = 64
    """Samples of one waveform at `sampling_frequency`."""
    n_before: int = 24
    """Sample of the trough on the centre channel."""
    sampling_frequency: float = MODEL_HZ
    """Hz. Waveforms of other recordings are resampled to it."""
    width: int = 96
    """Dimensions of a token."""
    n_layers: int = 4
    """Transformer layers."""
    n_heads: int = 4
    """Attention heads; divides `width`."""
    feed_forward: int = 192
    """Hidden dimensions of the feed-forward part of a layer."""
    n_class_tokens: int = 4
    """Tokens that collect the spike; more of them look at the channels in more ways."""
    n_dims: int = 32
    """Dimensions of the embedding."""
    stem_kernel: int = 8
    """Samples seen by one position of the convolution stem."""
    stem_stride: int = 4
    """Samples between two positions of the convolution stem."""
    stem_filters: int = 16
    """Filters of the convolution stem."""
    n_wavelengths: int = 6
    """Fourier features of the position, per axis."""
    min_wavelength_um: float = 20.0
    """Shortest wavelength of the position features."""
    max_wavelength_um: float = 400.0
    """Longest wavelength of the position features."""
    pool_positions: int = 12
    """Learned functions of the position in the bilinear summary of a spike."""
    pool_waveforms: int = 16
    """Learned linear features of the waveform in the bilinear summary of a spike."""
    compression_sd: float = 8.0
    """Amplitude (noise SD) where the input turns from linear to logarithmic."""

    def __post_init__(self):
        check_config(self)

    def to_dict(self):
        """Plain dictionary, JSON-simple."""
        return asdict(self)


def check_config(config):
    """Raise ValueError if the fields that all encoders have cannot be: width, n_heads, n_samples, n_before and rate."""
    if config.width % config.n_heads != 0:
        raise ValueError(f"width must be a multiple of n_heads, got width={config.width}, n_heads={config.n_heads}")
    if not 0 <= config.n_before < config.n_samples:
        raise ValueError(f"n_before must be in [0, n_samples), got {config.n_before} of {config.n_samples}")
    if config.sampling_frequency != MODEL_HZ:
        raise ValueError(
            f"it wants waveforms at {config.sampling_frequency:g} Hz; spikes are embedded at {MODEL_HZ:g} Hz, whatever "
            "the recording has: train an encoder at that"
        )


def compress_amplitude(waveforms, compression_sd=8.0):
    """sign(x) log(1 + |x| / compression_sd): linear near the noise, logarithmic for large spikes."""
    return torch.sign(waveforms) * torch.log1p(waveforms.abs() / compression_sd)


def expand_amplitude(compressed, compression_sd=8.0):
    """Inverse of `compress_amplitude`, clipped at 3200 noise SD for a scale of 8."""
    magnitude = compressed.abs().clamp(max=MAX_COMPRESSED)
    return torch.sign(compressed) * torch.expm1(magnitude) * compression_sd


def check_shapes(config, waveforms, positions, channel_mask):
    """Raise ValueError if the arrays of `SpikeEncoder.encode` do not fit each other or the encoder."""
    n_spikes, n_channels = channel_mask.shape
    if tuple(waveforms.shape) != (n_spikes, n_channels, config.n_samples):
        raise ValueError(
            f"waveforms must have shape (n_spikes, n_channels, n_samples) = "
            f"({n_spikes}, {n_channels}, {config.n_samples}), got {tuple(waveforms.shape)}"
        )
    if tuple(positions.shape) != (n_spikes, n_channels, 2):
        raise ValueError(f"positions must have shape ({n_spikes}, {n_channels}, 2), got {tuple(positions.shape)}")
    if n_channels > config.max_channels:
        raise ValueError(f"the encoder takes at most {config.max_channels} channels, got {n_channels}")


class ConvStem(nn.Module):
    """One waveform to one token: strided convolution, GELU, linear. (b, c, t) -> (b, c, width)."""

    def __init__(self, config):
        super().__init__()
        self.kernel, self.stride = config.stem_kernel, config.stem_stride
        n_positions = (config.n_samples - self.kernel) // self.stride + 1
        self.filters = nn.Linear(self.kernel, config.stem_filters)
        self.project = nn.Linear(n_positions * config.stem_filters, config.width)

    def forward(self, waveforms):
        windows = waveforms.unfold(-1, self.kernel, self.stride).contiguous()  # (b, c, positions, kernel)
        return self.project(F.gelu(self.filters(windows)).flatten(-2))


class FourierFeatures(nn.Module):
    """Waves over the probe, nothing learned: (b, c, 2) um -> (b, c, n_features)."""

    def __init__(self, config):
        super().__init__()
        wavelengths = torch.logspace(
            math.log10(config.min_wavelength_um), math.log10(config.max_wavelength_um), config.n_wavelengths
        )
        self.register_buffer("frequencies", 2 * math.pi / wavelengths, persistent=False)
        self.max_wavelength_um = config.max_wavelength_um
        self.n_features = 4 * config.n_wavelengths + 2

    def forward(self, positions):
        phase = (positions.unsqueeze(-1) * self.frequencies).flatten(-2)
        return torch.cat([phase.sin(), phase.cos(), positions * (4 / self.max_wavelength_um)], dim=-1)


class PositionFeatures(nn.Module):
    """Fourier features of channel positions, and their projection to tokens."""

    def __init__(self, config):
        super().__init__()
        self.fourier = FourierFeatures(config)
        self.project = nn.Linear(self.fourier.n_features, config.width)


class BilinearPool(nn.Module):
    """
    Summary of a spike that is linear in its (compressed) waveforms: sum over channels of g(position) x h(waveform).

    It plays the part that principal components play for a fixed set of channels, on any set of channels.
    (b, c, t), (b, c, features) -> (b, pool_positions * pool_waveforms)
    """

    def __init__(self, config):
        super().__init__()
        self.position_hidden = nn.Linear(4 * config.n_wavelengths + 2, 32)
        self.position_output = nn.Linear(32, config.pool_positions)
        self.waveform = nn.Linear(config.n_samples, config.pool_waveforms, bias=False)

    def forward(self, waveforms, position_features):
        weights = self.position_output(F.gelu(self.position_hidden(position_features)))
        # a batched product of so small matrices is a loop over spikes on some builds of torch
        return (weights.unsqueeze(-1) * self.waveform(waveforms).unsqueeze(-2)).sum(dim=1).flatten(1)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer. Only the first `n_queries` tokens are updated and returned."""

    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.norm_attention = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.norm_feed_forward = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, config.feed_forward)
        self.contract = nn.Linear(config.feed_forward, config.width)

    def _split_heads(self, tokens):
        return tokens.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, tokens, attention_mask=None, n_queries=None):
        normed = self.norm_attention(tokens)
        tokens = tokens[:, :n_queries]
        query = self._split_heads(self.query(normed[:, :n_queries].contiguous()))
        key, value = (self._split_heads(part) for part in self.key_value(normed).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        tokens = tokens + self.output(attended.transpose(1, 2).flatten(-2))
        return tokens + self.contract(F.gelu(self.expand(self.norm_feed_forward(tokens))))


class SpikeEncoder(nn.Module):
    """
    Turn the waveforms of a spike into a vector, whatever the probe.

    One token a channel (waveform + position relative to the centre channel) and a few class tokens. The result does not
    depend on the order of the channels nor on the content of masked channels.

    Parameters
    ----------
    config : EncoderConfig | None, default: None
        None for the defaults.
    """

    def __init__(self, config=None):
        super().__init__()
        self.config = EncoderConfig() if config is None else config
        width = self.config.width
        self.stem = ConvStem(self.config)
        self.position_features = PositionFeatures(self.config)
        self.class_tokens = nn.Parameter(0.5 * torch.randn(self.config.n_class_tokens, width))
        self.pool = BilinearPool(self.config)
        n_pooled = self.config.pool_positions * self.config.pool_waveforms
        self.pool_to_class = nn.Linear(n_pooled, width, bias=False)
        self.layers = nn.ModuleList(TransformerLayer(self.config) for _ in range(self.config.n_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(self.config.n_class_tokens * width + n_pooled, self.config.n_dims)
        self.decoder = nn.Linear(width, self.config.n_samples)

    def encode(self, waveforms, positions, channel_mask):
        """
        Embed spikes without running the decoder.

        Parameters
        ----------
        waveforms : torch.Tensor, float32, shape (n_spikes, n_channels, n_samples)
            Whitened traces in multiples of the noise SD, trough of the centre channel at sample `config.n_before`.
        positions : torch.Tensor, float32, shape (n_spikes, n_channels, 2)
            In um, relative to the centre channel.
        channel_mask : torch.Tensor, bool, shape (n_spikes, n_channels)
            False where a channel does not exist.

        Returns
        -------
        embeddings : torch.Tensor, float32, shape (n_spikes, n_dims)

        Raises
        ------
        ValueError
            If shapes do not fit each other or the encoder.
        """
        tokens, pooled = self._run_layers(waveforms, positions, channel_mask, class_only=True)
        return self.head(torch.cat([self.norm(tokens).flatten(1), pooled], dim=1))

    def forward(self, waveforms, positions, channel_mask):
        """
        Embed and denoise spikes; same parameters as `encode`.

        Returns
        -------
        embeddings : torch.Tensor, float32, shape (n_spikes, n_dims)
        denoised : torch.Tensor, float32, shape (n_spikes, n_channels, n_samples)
            Estimate of the clean waveform in noise SD, 0 on masked channels.
        """
        embeddings, compressed = self.encode_and_decode(waveforms, positions, channel_mask)
        return embeddings, expand_amplitude(compressed, self.config.compression_sd)

    def encode_and_decode(self, waveforms, positions, channel_mask):
        """As `forward`, with the denoised waveforms left in the compressed scale, where the loss is computed."""
        tokens, pooled = self._run_layers(waveforms, positions, channel_mask, class_only=False)
        class_tokens, channels = self.norm(tokens).tensor_split([self.config.n_class_tokens], dim=1)
        denoised = self.decoder(channels).masked_fill(~channel_mask.unsqueeze(-1), 0.0)
        return self.head(torch.cat([class_tokens.flatten(1), pooled], dim=1)), denoised

    def _run_layers(self, waveforms, positions, channel_mask, class_only):
        check_shapes(self.config, waveforms, positions, channel_mask)
        absent = ~channel_mask.unsqueeze(-1)
        waveforms = compress_amplitude(waveforms.masked_fill(absent, 0.0), self.config.compression_sd)
        position_features = self.position_features.fourier(positions.masked_fill(absent, 0.0))
        channels = self.stem(waveforms) + self.position_features.project(position_features)
        pooled = self.pool(waveforms, position_features)
        class_tokens = self.class_tokens + self.pool_to_class(pooled).unsqueeze(1)
        tokens = torch.cat([class_tokens, channels], dim=1)
        n_class_tokens = self.config.n_class_tokens
        attention_mask = None
        if not bool(channel_mask.all()):
            attention_mask = F.pad(channel_mask, (n_class_tokens, 0), value=True)[:, None, None, :]
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            tokens = layer(tokens, attention_mask, n_queries=n_class_tokens if class_only and is_last else None)
        return tokens, pooled
