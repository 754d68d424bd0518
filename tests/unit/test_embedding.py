"""Batched inference: the result depends on nothing but the spike."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spikeinterface_huidurep.embedding import (  # noqa: E402
    denoise_waveforms,
    embed_waveforms,
    resolve_torch_device,
)
from spikeinterface_huidurep.model.encoder import EncoderConfig, SpikeEncoder  # noqa: E402


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return SpikeEncoder(EncoderConfig(width=32, n_layers=2, feed_forward=64)).eval()


@pytest.fixture(scope="module")
def spikes():
    rng = np.random.default_rng(0)
    waveforms = rng.normal(scale=5, size=(53, 12, 64)).astype(np.float32)
    positions = rng.normal(scale=50, size=(53, 12, 2)).astype(np.float32)
    mask = np.arange(12) < rng.integers(1, 13, size=53)[:, None]
    mask[0] = np.arange(12) >= 6  # the existing channels need not come first
    return waveforms, positions, mask


@pytest.mark.parametrize("batch_size", [1, 7, 53, 1000])
def test_batch_size_does_not_matter(encoder, spikes, batch_size):
    with torch.inference_mode():
        embeddings, denoised = encoder(*(torch.from_numpy(array) for array in spikes))
    found = embed_waveforms(*spikes, encoder, batch_size=batch_size)
    assert found.dtype == np.float32 and found.shape == (53, 32)
    np.testing.assert_allclose(found, embeddings.numpy(), atol=1e-5)
    found = denoise_waveforms(*spikes, encoder, batch_size=batch_size)
    np.testing.assert_allclose(found, denoised.numpy(), atol=1e-3, rtol=1e-3)
    assert (found[~spikes[2]] == 0).all()


def test_number_of_threads_does_not_matter(encoder, spikes):
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = embed_waveforms(*spikes, encoder, batch_size=5)
        torch.set_num_threads(3)
        three = embed_waveforms(*spikes, encoder, batch_size=5)
        again = embed_waveforms(*spikes, encoder, batch_size=5)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(n_threads)
    np.testing.assert_allclose(three, one, atol=1e-5)
    assert np.array_equal(three, again)


def test_error_in_a_thread_is_raised(encoder, spikes):
    failing = FailingEncoder(encoder.config)
    failing.limit = 0
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(MemoryError, match="single spike"):
            embed_waveforms(*spikes, failing, batch_size=5)
    finally:
        torch.set_num_threads(n_threads)


def test_documented_example():
    text = (Path(__file__).parents[2] / "docs" / "encoder.md").read_text(encoding="utf8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert names["embeddings"].shape == (1000, 32) and names["denoised"].shape == (1000, 4, 64)
    before, after = (np.square(names[name] - names["trough"]).mean() for name in ("waveforms", "denoised"))
    assert after < before


def test_public_names_import_no_torch():
    code = (
        "import sys; from spikeinterface_huidurep import denoise_waveforms, embed_waveforms, load_encoder; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("n_spikes", [0, 1])
def test_few_spikes(encoder, spikes, n_spikes):
    few = [array[:n_spikes] for array in spikes]
    assert embed_waveforms(*few, encoder).shape == (n_spikes, 32)
    assert denoise_waveforms(*few, encoder).shape == (n_spikes, 12, 64)


def test_single_channel_and_double_precision(encoder, spikes):
    few = spikes[0][:5, :1].astype(np.float64), spikes[1][:5, :1], spikes[2][1:6, :1]
    assert embed_waveforms(*few, encoder).shape == (5, 32)


class FailingEncoder(SpikeEncoder):
    """Runs out of memory above `limit` spikes."""

    limit = 10

    def encode(self, waveforms, positions, channel_mask):
        if len(waveforms) > self.limit:
            raise torch.OutOfMemoryError("no memory")
        return super().encode(waveforms, positions, channel_mask)


def test_out_of_memory_halves_the_batch(encoder, spikes):
    failing = FailingEncoder(encoder.config)
    failing.load_state_dict(encoder.state_dict())
    np.testing.assert_allclose(embed_waveforms(*spikes, failing), embed_waveforms(*spikes, encoder), atol=1e-5)
    failing.limit = 0
    with pytest.raises(MemoryError, match="single spike"):
        embed_waveforms(*spikes, failing)


def test_inputs_are_checked(encoder, spikes):
    waveforms, positions, mask = spikes
    with pytest.raises(ValueError, match=r"64 samples.*\(53, 12, 61\)"):
        embed_waveforms(waveforms[..., :61], positions, mask, encoder)
    with pytest.raises(ValueError, match="channel_mask"):
        embed_waveforms(waveforms, positions, mask[:, :3], encoder)
    with pytest.raises(ValueError, match="positions"):
        embed_waveforms(waveforms, positions[..., :1], mask, encoder)
    with pytest.raises(ValueError, match="batch_size"):
        embed_waveforms(waveforms, positions, mask, encoder, batch_size=0)


def test_training_mode_is_left_as_it_was(encoder, spikes):
    encoder.train()
    embed_waveforms(*spikes, encoder)
    assert encoder.training
    encoder.eval()


@pytest.mark.parametrize("has_cuda", [True, False])
def test_devices(monkeypatch, has_cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_torch_device("cpu").type == "cpu"
    assert resolve_torch_device("auto").type == ("cuda" if has_cuda else "cpu")
    for name in ("gpu", "cuda:99", "xpu", 3.5):
        with pytest.raises(ValueError, match="torch_device must be"):
            resolve_torch_device(name)
