"""Read the torch file of the HuiduRep paper's authors into a `PaperEncoder`."""

import re

import torch

from .paper_encoder import N_EXTRA_LAYERS, N_FEWER_LAYERS, PaperConfig, PaperEncoder

# Names in the authors' file -> names in `PaperEncoder`. The file also holds the momentum encoder, projectors, the
# predictor, an unused attention over channels and positional encodings: not needed to embed or denoise.
NAMES = {
    "conv_embedding.block": "stem",
    "encoder_q.transformer.layers": "encoder_layers",
    "feature_decoder.decoder.layers": "denoiser_layers",
    "spike_decoder.decoder.layers": "decoder_layers",
    "spike_decoder.proj": "decoder",
    "reduce_q.projection.0": "head",
}
FIRST_TENSOR = "conv_embedding.block.0.weight"  # what comes before this name is a prefix of all
WRAPPERS = {"module", "_orig_mod"}  # parts of names that data-parallel and compiled modules add


def read_paper_weights(path):
    """
    Load a network in the layout of the paper, with its denoiser.

    Tensors are read with `weights_only=True`: no code in the file is run. `num_layers` is derived from the tensors.
    The state dict may be inside other dictionaries, and its names may have prefixes such as `module.`.

    Parameters
    ----------
    path : str | Path

    Returns
    -------
    encoder : PaperEncoder

    Raises
    ------
    ValueError
        If the file is truncated or not of this layout: says what is wrong.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for bytes that it cannot read
        raise ValueError(
            f"{path} is not a complete torch file of tensors; download it again, or save the state_dict of the model "
            f"({type(error).__name__}: {error})"
        ) from error
    state = _find_state(content)
    if state is None:
        raise ValueError(f"{path} is not in the layout of the HuiduRep paper: it holds no tensor {FIRST_TENSOR!r}")
    state = _translate_names(state)
    try:
        encoder = PaperEncoder(PaperConfig(num_layers=_find_num_layers(state)))
        encoder.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the tensors in {path} do not fit the layout of the HuiduRep paper: {error}") from error
    return encoder


def _find_state(content):
    """The dictionary with the network's tensors, wherever in `content` it is, with clean names; None without one."""
    if not isinstance(content, dict):
        return None
    clean = {".".join(part for part in str(name).split(".") if part not in WRAPPERS): name for name in content}
    first = min((name for name in clean if name.endswith(FIRST_TENSOR)), key=len, default=None)
    if first is not None:
        prefix = first.removesuffix(FIRST_TENSOR)
        return {name.removeprefix(prefix): content[key] for name, key in clean.items() if name.startswith(prefix)}
    found = (_find_state(value) for value in content.values())
    return next((state for state in found if state is not None), None)


def _translate_names(state):
    translated = {}
    for theirs, ours in NAMES.items():
        for name, value in state.items():
            if name.startswith(theirs + "."):
                rest = name.removeprefix(theirs).replace("self_attn.", "").replace("in_proj_", "in_proj.")
                translated[ours + rest] = value
    return translated


def _find_num_layers(state):
    counts = {}
    for group in ("encoder_layers", "denoiser_layers", "decoder_layers"):
        matches = (re.match(rf"{group}\.(\d+)\.", name) for name in state)
        counts[group] = 1 + max((int(match[1]) for match in matches if match), default=-1)
    num_layers = counts["encoder_layers"] - N_EXTRA_LAYERS
    wanted = {"denoiser_layers": num_layers - N_FEWER_LAYERS, "decoder_layers": num_layers}
    if num_layers < N_FEWER_LAYERS or any(counts[group] != number for group, number in wanted.items()):
        raise ValueError(
            f"the numbers of layers are {counts}; wanted num_layers + {N_EXTRA_LAYERS} in the encoder, num_layers - "
            f"{N_FEWER_LAYERS} in the denoiser and num_layers in the decoder"
        )
    return num_layers
