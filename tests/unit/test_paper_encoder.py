"""The paper's layout: its network against a slow reference, the authors' file, and any probe as 11 channels."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from spikeinterface_huidurep.embedding import denoise_waveforms, embed_waveforms  # noqa: E402
from spikeinterface_huidurep.features import compute_features, find_window  # noqa: E402
from spikeinterface_huidurep.model import load_encoder, save_encoder  # noqa: E402
from spikeinterface_huidurep.model.paper_encoder import (  # noqa: E402
    PaperConfig,
    PaperEncoder,
    assign_slots,
    fill_slots,
    read_slots,
)
from spikeinterface_huidurep.params import SorterParams  # noqa: E402
from spikeinterface_huidurep.waveforms import Neighborhoods  # noqa: E402

REFERENCE_VARIABLE = "HUIDUREP_REFERENCE"  # folder with huidurep_v1_random.pt and .npz
LINE_UM = 20.0 * (np.arange(11) - 5)  # 11 channels of a line, the sixth in the centre
# first numbers of the slow reference below for the file of seed 0
PINNED_WITH_DENOISER = [-0.69159, -0.91778, 0.38697, 0.96386]
PINNED_WITHOUT_DENOISER = [-0.68785, -1.05946, 0.39451, 0.98094]
SMALL = PaperConfig(num_layers=2, width=16, n_heads=2, feed_forward=16, n_dims=8)


# --- a file as the authors write it, and its network in plain numpy ---


def make_authors_state(num_layers, seed=0):
    """Random tensors with the names and shapes of the authors' file, float32; with some that are not needed."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv_embedding.block.0.weight": (64, 11, 5),
        "conv_embedding.block.0.bias": (64,),
        "conv_embedding.block.2.weight": (64, 64, 3),
        "conv_embedding.block.2.bias": (64,),
        "conv_embedding.shortcut.weight": (11, 11, 1),
        "encoder_q.embedding.weight": (64, 11),
        "spike_decoder.proj.weight": (11, 64),
        "spike_decoder.proj.bias": (11,),
        "reduce_q.projection.0.weight": (32, 64),
        "reduce_q.projection.0.bias": (32,),
        "reduce_k.projection.0.weight": (32, 64),
    }
    n_layers = {
        "encoder_q.transformer": num_layers + 12,
        "encoder_k.transformer": num_layers + 12,
        "feature_decoder.decoder": num_layers - 2,
        "spike_decoder.decoder": num_layers,
    }
    of_layer = {
        "self_attn.in_proj_weight": (192, 64),
        "self_attn.in_proj_bias": (192,),
        "self_attn.out_proj.weight": (64, 64),
        "self_attn.out_proj.bias": (64,),
        "linear1.weight": (128, 64),
        "linear1.bias": (128,),
        "linear2.weight": (64, 128),
        "linear2.bias": (64,),
        "norm1.weight": (64,),
        "norm1.bias": (64,),
        "norm2.weight": (64,),
        "norm2.bias": (64,),
    }
    for stack, n in n_layers.items():
        for index in range(n):
            shapes.update({f"{stack}.layers.{index}.{name}": shape for name, shape in of_layer.items()})
    state = {}
    for name, shape in shapes.items():
        # small sums: after many random layers all spikes would have nearly the same embedding
        scale = 0.1 if name.endswith(("out_proj.weight", "linear2.weight")) else 1.0
        values = scale * rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        if name.endswith("bias"):
            values *= 0.1
        if ".norm" in name and name.endswith("weight"):
            values += 1
        state[name] = torch.from_numpy(values.astype("float32"))
    return state


class SlowReference:
    """The paper's network in float64 numpy on one spike (t, 11) at a time, from the authors' tensors."""

    def __init__(self, state):
        self.tensors = {name: value.double().numpy() for name, value in state.items()}

    def embed(self, waveform, use_denoiser):
        tokens = self.convolve(waveform)
        features = self.encode(tokens)
        if use_denoiser:
            denoised = self.run_layers(features + self.positions(len(features)), "feature_decoder.decoder")
            features = self.encode(np.concatenate([tokens, denoised]))
        return self.linear(features.mean(axis=0), "reduce_q.projection.0")

    def reconstruct(self, waveform):
        features = self.run_layers(self.encode(self.convolve(waveform)), "spike_decoder.decoder")
        return self.linear(features, "spike_decoder.proj")

    def convolve(self, waveform):
        for name in ("conv_embedding.block.0", "conv_embedding.block.2"):
            weight, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
            half = weight.shape[2] // 2
            padded = np.pad(waveform, ((half, half), (0, 0)))
            rows = [
                sum(weight[:, :, k] @ padded[time + k] for k in range(weight.shape[2])) + bias
                for time in range(len(waveform))
            ]
            waveform = np.maximum(rows, 0)
        return waveform

    def encode(self, tokens):
        return self.run_layers(tokens + self.positions(len(tokens)), "encoder_q.transformer")

    def positions(self, n_tokens):
        table = np.empty((n_tokens, 64))
        for time in range(n_tokens):
            for pair in range(32):
                angle = time / 10000 ** (2 * pair / 64)
                table[time, 2 * pair], table[time, 2 * pair + 1] = np.sin(angle), np.cos(angle)
        return table

    def run_layers(self, tokens, stack):
        index = 0
        while f"{stack}.layers.{index}.linear1.weight" in self.tensors:
            prefix = f"{stack}.layers.{index}."
            tokens = self.norm(tokens + self.attend(tokens, prefix), prefix + "norm1")
            hidden = np.maximum(self.linear(tokens, prefix + "linear1"), 0)
            tokens = self.norm(tokens + self.linear(hidden, prefix + "linear2"), prefix + "norm2")
            index += 1
        return tokens

    def attend(self, tokens, prefix):
        projected = tokens @ self.tensors[prefix + "self_attn.in_proj_weight"].T
        query, key, value = np.split(projected + self.tensors[prefix + "self_attn.in_proj_bias"], 3, axis=1)
        heads = []
        for head in range(4):
            part = slice(16 * head, 16 * head + 16)
            weights = np.exp(query[:, part] @ key[:, part].T / 4.0)
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, part])
        return self.linear(np.concatenate(heads, axis=1), prefix + "self_attn.out_proj")

    def norm(self, tokens, name):
        centred = tokens - tokens.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
        return scaled * self.tensors[name + ".weight"] + self.tensors[name + ".bias"]

    def linear(self, values, name):
        return values @ self.tensors[name + ".weight"].T + self.tensors[name + ".bias"]


def make_line(n_spikes):
    """Positions and mask of `n_spikes` spikes on 11 channels of a line: channel k goes to slot k."""
    positions = np.zeros((n_spikes, 11, 2), dtype="float32")
    positions[:, :, 1] = LINE_UM
    return positions, np.ones((n_spikes, 11), dtype=bool)


def without_denoiser(encoder):
    plain = PaperEncoder(replace(encoder.config, use_denoiser=False)).eval()
    plain.load_state_dict(encoder.state_dict())
    return plain


@pytest.fixture(scope="module")
def authors_state():
    return make_authors_state(num_layers=3)


@pytest.fixture(scope="module")
def authors_file(authors_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("authors") / "HuiduRep.pt"
    torch.save(authors_state, path)
    return path


@pytest.fixture(scope="module")
def small_encoder():
    torch.manual_seed(0)
    return PaperEncoder(SMALL).eval()


# --- the network ---


@pytest.mark.parametrize("num_layers", [2, 3])
def test_network_equals_the_slow_reference(num_layers, tmp_path):
    state = make_authors_state(num_layers)
    torch.save(state, tmp_path / "HuiduRep.pt")
    encoder, slow = load_encoder(tmp_path / "HuiduRep.pt"), SlowReference(state)
    assert encoder.config == PaperConfig(num_layers=num_layers)
    waveforms = 3 * np.random.default_rng(1).normal(size=(2, 11, 121)).astype("float32")
    spikes = waveforms, *make_line(2)
    wanted = {use: np.array([slow.embed(waveform.T, use) for waveform in waveforms]) for use in (True, False)}
    np.testing.assert_allclose(embed_waveforms(*spikes, encoder), wanted[True], atol=1e-4)
    np.testing.assert_allclose(embed_waveforms(*spikes, without_denoiser(encoder)), wanted[False], atol=1e-4)
    assert min(np.abs(wanted[True] - wanted[False]).max(), np.abs(np.diff(wanted[True], axis=0)).max()) > 0.01
    wanted = [slow.reconstruct(waveform.T).T for waveform in waveforms]
    np.testing.assert_allclose(denoise_waveforms(*spikes, encoder), wanted, atol=1e-4)


def test_embeddings_of_a_known_file_are_pinned(authors_file):
    waveforms = np.sin(np.arange(11 * 121).reshape(1, 11, 121) ** 1.5).astype("float32")
    encoder = load_encoder(authors_file)
    found = embed_waveforms(waveforms, *make_line(1), encoder)[0, :4]
    np.testing.assert_allclose(found, PINNED_WITH_DENOISER, atol=1e-4)
    found = embed_waveforms(waveforms, *make_line(1), without_denoiser(encoder))[0, :4]
    np.testing.assert_allclose(found, PINNED_WITHOUT_DENOISER, atol=1e-4)


@pytest.mark.skipif(
    REFERENCE_VARIABLE not in os.environ,
    reason=f"set {REFERENCE_VARIABLE} to the folder of huidurep_v1_random.pt and .npz",
)
def test_reference_files_are_reproduced():
    path = Path(os.environ[REFERENCE_VARIABLE]) / "huidurep_v1_random.pt"
    encoder = load_encoder(path)
    assert encoder.config.num_layers == 4
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        wanted = dict(arrays)
    spikes = wanted["waveforms"].transpose(0, 2, 1), *make_line(len(wanted["waveforms"]))
    found = embed_waveforms(*spikes, encoder)
    np.testing.assert_allclose(found, wanted["embedding_with_denoiser"], atol=1e-4)
    found = embed_waveforms(*spikes, without_denoiser(encoder))
    np.testing.assert_allclose(found, wanted["embedding_without_denoiser"], atol=1e-4)
    n_reconstructed = len(wanted["reconstruction"])
    found = denoise_waveforms(*spikes, encoder)[:n_reconstructed].transpose(0, 2, 1)
    np.testing.assert_allclose(found, wanted["reconstruction"], atol=1e-4)
    slow = SlowReference(torch.load(path, weights_only=True))
    for waveform, embedding in zip(wanted["waveforms"], wanted["embedding_with_denoiser"], strict=True):
        np.testing.assert_allclose(slow.embed(waveform, use_denoiser=True), embedding, atol=1e-4)


def test_compressed_input_is_that_of_compressed_waveforms(small_encoder):
    compressing = PaperEncoder(replace(SMALL, compress_input=True)).eval()
    compressing.load_state_dict(small_encoder.state_dict())
    waveforms = 20 * np.random.default_rng(0).normal(size=(3, 11, 121)).astype("float32")
    compressed = (np.sign(waveforms) * np.log1p(np.abs(waveforms) / 8)).astype("float32")
    line = make_line(3)
    wanted = embed_waveforms(compressed, *line, small_encoder)
    np.testing.assert_allclose(embed_waveforms(waveforms, *line, compressing), wanted, atol=1e-5)
    wanted = denoise_waveforms(compressed, *line, small_encoder)
    wanted = np.sign(wanted) * 8 * np.expm1(np.abs(wanted))
    np.testing.assert_allclose(denoise_waveforms(waveforms, *line, compressing), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compress_input", [False, True])
def test_loss_is_computed_in_the_compressed_scale(compress_input):
    encoder = PaperEncoder(replace(SMALL, compress_input=compress_input)).eval()
    spikes = [torch.from_numpy(array) for array in (np.ones((2, 11, 121), "float32"), *make_line(2))]
    with torch.inference_mode():
        denoised, compressed = encoder(*spikes)[1], encoder.encode_and_decode(*spikes)[1]
    expected = denoised.sign() * torch.log1p(denoised.abs() / 8)
    torch.testing.assert_close(compressed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong, message", [({"num_layers": 1}, "num_layers"), ({"width": 30}, "width"), ({"n_before": 121}, "n_before")]
)
def test_config_is_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        PaperConfig(**wrong)


# --- the file ---


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
        lambda state: {f"model.{name}": value for name, value in state.items()},
        lambda state: {name.replace("_q.", "_q.module."): value for name, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"optimizer": {"state": {}}, "model": {f"module.{name}": state[name] for name in state}},
        lambda state: {"checkpoint": {"model_state_dict": state}},
        lambda state: {name: value.half() if "_k." in name else value for name, value in state.items()},
    ],
    ids=["module", "compiled", "model", "inner", "state_dict", "model dict", "nested", "half"],
)
def test_prefixes_and_wrappers(authors_state, authors_file, wrap, tmp_path):
    torch.save(wrap(authors_state), tmp_path / "wrapped.pt")
    found, wanted = load_encoder(tmp_path / "wrapped.pt"), load_encoder(authors_file)
    assert not found.training and not any(value.requires_grad for value in found.parameters())
    assert found.config == wanted.config
    for name, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(authors_file, part, tmp_path):
    content = authors_file.read_bytes()
    path = tmp_path / "HuiduRep.pt"
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="HuiduRep.pt is not a complete torch file"):
        load_encoder(path)


class Unknown:
    """Something that only running code could load."""


def save_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<html>404</html>", "not a complete torch file"),
        (save_bytes({"model": Unknown()}), "not a complete torch file of tensors.*save the state_dict"),
        (save_bytes({"head.weight": torch.zeros(3)}), "not in the layout.*conv_embedding.block.0.weight"),
        (save_bytes(torch.zeros(3)), "not in the layout"),
    ],
    ids=["html", "pickled object", "other network", "tensor"],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "other.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "lost, message",
    [
        ("encoder_q.transformer.layers.14", "'encoder_layers': 14, 'denoiser_layers': 1, 'decoder_layers': 3.*wanted"),
        ("encoder_q.transformer", "'encoder_layers': 0"),
        ("feature_decoder", "'denoiser_layers': 0"),
        ("spike_decoder.decoder.layers.2", "'decoder_layers': 2"),
        ("encoder_q.transformer.layers.3", "encoder_layers.3.linear1.weight"),
        ("reduce_q", "head.weight"),
    ],
)
def test_incomplete_networks_are_refused(authors_state, lost, message, tmp_path):
    kept = {name: value for name, value in authors_state.items() if not name.startswith(lost + ".")}
    torch.save(kept, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path / "part.pt")


def test_other_sizes_are_refused(authors_state, tmp_path):
    name = "conv_embedding.block.0.weight"
    torch.save(dict(authors_state, **{name: authors_state[name][:, :4]}), tmp_path / "tetrode.pt")
    with pytest.raises(ValueError, match=r"(?s)do not fit the layout.*\[64, 4, 5\].*\[64, 11, 5\]"):
        load_encoder(tmp_path / "tetrode.pt")


def test_saved_encoder_comes_back_in_its_layout(small_encoder, tmp_path):
    loaded = load_encoder(save_encoder(small_encoder, tmp_path / "mine.safetensors", {}))
    assert isinstance(loaded, PaperEncoder) and loaded.config == SMALL
    spikes = np.ones((2, 11, 121), dtype="float32"), *make_line(2)
    np.testing.assert_array_equal(embed_waveforms(*spikes, loaded), embed_waveforms(*spikes, small_encoder))


def test_unknown_layout_is_refused(small_encoder, tmp_path):
    from safetensors.torch import save_file

    metadata = {"format": "spikeinterface_huidurep.encoder", "format_version": "1", "layout": "new", "config": "{}"}
    save_file(small_encoder.state_dict(), tmp_path / "new.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="no encoder layout 'new'"):
        load_encoder(tmp_path / "new.safetensors")


# --- from any probe to 11 channels ---


def find_slots(positions, mask=None, n_slots=11):
    """Slots of one spike, as a list."""
    positions = torch.tensor(positions, dtype=torch.float32)[None]
    mask = torch.ones(positions.shape[:2], dtype=torch.bool) if mask is None else torch.tensor(mask)[None]
    return assign_slots(positions, mask, n_slots)[0].tolist()


def test_slots_of_known_probes():
    assert find_slots([[0, 0]]) == [5]
    assert find_slots([[0, 0], [25, 0], [0, 25], [25, 25]]) == [5, 6, 7, 8]  # tetrode, first contact
    assert find_slots([[0, 0], [-25, 0], [0, 25], [-25, 25]]) == [5, 4, 7, 6]  # and its second
    staggered = [[0, 0], [32, 0], [16, 20], [-16, 20], [16, -20], [-16, -20], [0, 40], [0, -40]]
    assert find_slots(staggered) == [5, 6, 8, 7, 4, 3, 9, 2]


def test_channels_beyond_the_slots_are_left_out():
    end_of_line = [[0, 20.0 * k] for k in range(12)]
    assert find_slots(end_of_line) == [5, 6, 7, 8, 9, 10, 11, 11, 11, 11, 11, 11]
    assert find_slots(end_of_line, n_slots=3) == [1, 2] + 10 * [3]


def test_missing_channels_take_no_slot():
    positions = [[0, 0], [0, 20], [np.nan, np.inf], [0, -20]]
    assert find_slots(positions, [True, True, False, True]) == [5, 6, 11, 4]
    assert find_slots(positions, [False, False, False, False]) == [11, 11, 11, 11]


@settings(max_examples=60, deadline=None)
@given(n_channels=st.integers(1, 12), seed=st.integers(0, 10_000), n_slots=st.sampled_from([3, 11]))
def test_slots_against_a_slow_reference(n_channels, seed, n_slots):
    rng = np.random.default_rng(seed)
    grid = np.array([(16 * i, 20 * k) for i in range(-3, 4) for k in range(-3, 4) if (i, k) != (0, 0)])
    positions = np.concatenate([[(0, 0)], rng.permutation(grid)[: n_channels - 1]])
    mask = np.r_[True, rng.random(n_channels - 1) < 0.7]
    shuffled = rng.permutation(n_channels)
    positions, mask = positions[shuffled], mask[shuffled]
    existing = sorted((y, x) for (x, y), exists in zip(positions.tolist(), mask, strict=True) if exists)
    wanted = []
    for (x, y), exists in zip(positions.tolist(), mask, strict=True):
        slot = n_slots // 2 + existing.index((y, x)) - existing.index((0, 0)) if exists else n_slots
        wanted.append(slot if 0 <= slot < n_slots else n_slots)
    assert find_slots(positions.tolist(), mask.tolist(), n_slots) == wanted


def test_filled_slots_are_read_back():
    waveforms = torch.arange(1.0, 9.0).reshape(1, 4, 2)
    slots = torch.tensor([[2, 0, 3, 1]])  # the third channel is left out
    filled = fill_slots(waveforms, slots, 3)
    assert filled.tolist() == [[[3, 4], [7, 8], [1, 2]]]
    assert read_slots(filled, slots).tolist() == [[[1, 2], [3, 4], [0, 0], [7, 8]]]


@pytest.fixture(scope="module")
def spikes():
    rng = np.random.default_rng(0)
    waveforms = rng.normal(scale=5, size=(23, 12, 121)).astype("float32")
    positions = rng.normal(scale=50, size=(23, 12, 2)).astype("float32")
    positions[:, 6] = 0
    mask = rng.random((23, 12)) < 0.7
    mask[:, 6] = True
    return waveforms, positions, mask


def test_order_and_absent_channels_do_not_matter(small_encoder, spikes):
    waveforms, positions, mask = spikes
    embeddings, denoised = embed_waveforms(*spikes, small_encoder), denoise_waveforms(*spikes, small_encoder)
    assert (denoised[~mask] == 0).all() and embeddings.shape == (23, 8)
    order = np.random.default_rng(1).permutation(12)
    permuted = [array[:, order] for array in spikes]
    np.testing.assert_allclose(embed_waveforms(*permuted, small_encoder), embeddings, atol=1e-5)
    np.testing.assert_allclose(denoise_waveforms(*permuted, small_encoder), denoised[:, order], atol=1e-4)
    spoilt = [
        np.where(absent, np.nan, array)
        for array, absent in ((waveforms, ~mask[..., None]), (positions, ~mask[..., None]))
    ]
    np.testing.assert_allclose(embed_waveforms(*spoilt, mask, small_encoder), embeddings, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_does_not_matter(small_encoder, spikes, batch_size):
    wanted = embed_waveforms(*spikes, small_encoder)
    np.testing.assert_allclose(embed_waveforms(*spikes, small_encoder, batch_size=batch_size), wanted, atol=1e-5)


def test_wrong_window_is_named(small_encoder, spikes):
    waveforms, positions, mask = spikes
    with pytest.raises(ValueError, match=r"121 samples.*\(23, 12, 64\)"):
        embed_waveforms(waveforms[..., :64], positions, mask, small_encoder)
    with pytest.raises(ValueError, match=r"\(1, 1, 121\), got \(1, 1, 64\)"):
        small_encoder.encode(torch.zeros(1, 1, 64), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))


def test_features_of_the_sorter(small_encoder, tmp_path):
    path = save_encoder(small_encoder, tmp_path / "paper.safetensors", {})
    params = SorterParams(weights=str(path), torch_device="cpu")
    assert find_window(params) == (121, 42)
    assert find_window(SorterParams()) == find_window(SorterParams(features="pca")) == (64, 24)
    neighborhoods = Neighborhoods(np.c_[np.zeros(4), 20.0 * np.arange(4)], 30.0)
    waveforms = np.random.default_rng(0).normal(size=(9, 3, 121)).astype("float16")
    channels = np.arange(9) % 4
    found = compute_features(waveforms, channels, neighborhoods, params)
    wanted = np.zeros((9, 11, 121), dtype="float32")
    for spike, channel in enumerate(channels):
        for row, neighbor in enumerate(neighborhoods.channel_indices[channel]):
            if neighborhoods.channel_mask[channel, row]:
                wanted[spike, 5 + neighbor - channel] = waveforms[spike, row]
    np.testing.assert_allclose(found, embed_waveforms(wanted, *make_line(9), small_encoder), atol=1e-5)
