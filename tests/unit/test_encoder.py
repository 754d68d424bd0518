"""The encoder's invariances and its weights file."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spikeinterface_huidurep.model import load_encoder, save_encoder, weights_version  # noqa: E402
from spikeinterface_huidurep.model.encoder import (  # noqa: E402
    EncoderConfig,
    SpikeEncoder,
    compress_amplitude,
    expand_amplitude,
)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return SpikeEncoder(EncoderConfig(width=32, n_layers=2, feed_forward=64)).eval()


def make_spikes(n_spikes=7, n_channels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    waveforms = 5 * torch.randn(n_spikes, n_channels, 64, generator=generator)
    positions = 50 * torch.randn(n_spikes, n_channels, 2, generator=generator)
    return waveforms, positions, torch.ones(n_spikes, n_channels, dtype=torch.bool)


def test_shapes_and_encode_equals_forward(encoder):
    spikes = make_spikes()
    with torch.inference_mode():
        embeddings, denoised = encoder(*spikes)
        assert embeddings.shape == (7, 32) and denoised.shape == (7, 12, 64)
        torch.testing.assert_close(encoder.encode(*spikes), embeddings, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_channels", [1, 4, 12])
def test_padding_does_not_change_the_result(encoder, n_channels):
    waveforms, positions, mask = make_spikes()
    mask[:, n_channels:] = False
    padded = waveforms.clone(), positions.clone(), mask
    padded[0][:, n_channels:] = float("nan")
    padded[1][:, n_channels:] = float("inf")
    with torch.inference_mode():
        short = encoder(waveforms[:, :n_channels], positions[:, :n_channels], mask[:, :n_channels])
        long = encoder(*padded)
    torch.testing.assert_close(long[0], short[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(long[1][:, :n_channels], short[1], atol=1e-4, rtol=1e-4)
    assert (long[1][:, n_channels:] == 0).all()


def test_order_of_channels_does_not_matter(encoder):
    waveforms, positions, mask = make_spikes()
    mask[:, 9] = False
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embeddings, denoised = encoder(waveforms, positions, mask)
        permuted = encoder(waveforms[:, order], positions[:, order], mask[:, order])
    torch.testing.assert_close(permuted[0], embeddings, atol=1e-5, rtol=0)
    torch.testing.assert_close(permuted[1], denoised[:, order], atol=1e-4, rtol=1e-4)


def test_compression_is_undone():
    values = torch.tensor([-500.0, -8.0, -0.1, 0.0, 1.0, 60.0])
    torch.testing.assert_close(expand_amplitude(compress_amplitude(values)), values, rtol=1e-4, atol=1e-5)
    assert compress_amplitude(torch.tensor(8.0)).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((2, 3, 61), (2, 3, 2), (2, 3)), r"\(2, 3, 64\).*\(2, 3, 61\)"),
        (((2, 3, 64), (2, 3, 3), (2, 3)), r"positions"),
        (((2, 13, 64), (2, 13, 2), (2, 13)), r"at most 12 channels, got 13"),
    ],
)
def test_wrong_shapes_are_named(encoder, shapes, message):
    waveforms, positions, mask = shapes
    with pytest.raises(ValueError, match=message):
        encoder.encode(torch.zeros(waveforms), torch.zeros(positions), torch.ones(mask, dtype=torch.bool))


def test_config_is_checked():
    with pytest.raises(ValueError, match="width"):
        EncoderConfig(width=30, n_heads=4)
    with pytest.raises(ValueError, match="n_before"):
        EncoderConfig(n_before=64)
    with pytest.raises(ValueError, match="at 20000 Hz; spikes are embedded at 30000 Hz"):
        EncoderConfig(sampling_frequency=20_000.0)


def test_saved_weights_come_back(encoder, tmp_path):
    path = save_encoder(encoder, tmp_path / "mine.safetensors", {"seed": 3})
    loaded = load_encoder(path)
    assert loaded.config == encoder.config and not loaded.training
    spikes = make_spikes()
    with torch.inference_mode():
        torch.testing.assert_close(loaded.encode(*spikes), encoder.encode(*spikes), atol=1e-5, rtol=0)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["seed"] == 3 and weights_version(path) == f"mine-{card['sha256'][:8]}"


def test_bad_weights_are_refused(encoder, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="no weights file"):
        load_encoder(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="no weights file"):
        weights_version(tmp_path / "absent.safetensors")
    path = save_encoder(encoder, tmp_path / "whole.safetensors", {})
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_encoder(truncated)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not written by this package"):
        load_encoder(tmp_path / "foreign.safetensors")
    state = {name: value for name, value in encoder.state_dict().items() if name != "head.weight"}
    metadata = dict(format="spikeinterface_huidurep.encoder", format_version="1")
    metadata["config"] = json.dumps(encoder.config.to_dict())
    save_file(state, tmp_path / "partial.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="head.weight"):
        load_encoder(tmp_path / "partial.safetensors")
    save_file(state, tmp_path / "config.safetensors", metadata=dict(metadata, config='{"depth": 3}'))
    with pytest.raises(ValueError, match="no readable encoder configuration"):
        load_encoder(tmp_path / "config.safetensors")
    metadata["config"] = json.dumps(encoder.config.to_dict() | {"sampling_frequency": 20_000.0})
    save_file(encoder.state_dict(), tmp_path / "slow.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="at 20000 Hz; spikes are embedded at 30000 Hz"):
        load_encoder(tmp_path / "slow.safetensors")


def test_shipped_weights_load_and_fit_their_card():
    from spikeinterface_huidurep.model.weights import SHIPPED_WEIGHTS, hash_file

    card = json.loads(SHIPPED_WEIGHTS.with_suffix(".json").read_text())
    assert card["sha256"] == hash_file(SHIPPED_WEIGHTS)
    assert SHIPPED_WEIGHTS.stat().st_size < 10e6
    encoder = load_encoder()
    assert card["encoder_config"] == encoder.config.to_dict()
    assert weights_version() == f"v2-{card['sha256'][:8]}"
    with torch.inference_mode():
        assert torch.isfinite(encoder.encode(*make_spikes())).all()


def test_version_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; from spikeinterface_huidurep.model import weights_version; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
