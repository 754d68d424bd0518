"""
Read and write encoder weights: safetensors, with the architecture in the file's metadata and a card beside it.

The torch file of the HuiduRep paper's authors can be read too, see `paper_weights`.
"""

import hashlib
import json
from pathlib import Path

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "v2.safetensors"
FORMAT_NAME = "spikeinterface_huidurep.encoder"
FORMAT_VERSION = "1"
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def hash_file(path):
    """sha256 of a file, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_version(path=None):
    """
    Name of a weights file that changes with its content; imports no torch.

    Parameters
    ----------
    path : str | Path | None, default: None
        None for the weights shipped with the package.

    Returns
    -------
    version : str
        File name without suffix and the first 8 digits of its sha256, e.g. "v2-0a1b2c3d".

    Raises
    ------
    ValueError
        If there is no such file.
    """
    path = _check_exists(path)
    return f"{path.stem}-{hash_file(path)[:8]}"


def load_encoder(path=None):
    """
    Load a trained encoder on the CPU, in evaluation mode.

    Parameters
    ----------
    path : str | Path | None, default: None
        A file written by `save_encoder`, or a torch file in the layout of the HuiduRep paper (`HuiduRep.pt` of its
        authors), of which tensors are read and no code is run; None for the weights shipped with the package.

    Returns
    -------
    encoder : SpikeEncoder | PaperEncoder

    Raises
    ------
    ValueError
        If the file is missing, truncated, or not such an encoder.
    """
    from safetensors import SafetensorError, safe_open

    from .layouts import build_encoder
    from .paper_weights import read_paper_weights

    path = _check_exists(path)
    if path.suffix.lower() in TORCH_SUFFIXES:
        return read_paper_weights(path).eval().requires_grad_(False)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); copy or train it again") from error
    encoder = build_encoder(_read_config(metadata, path))
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the tensors in {path} do not fit the architecture it names: {error}") from error
    return encoder.eval().requires_grad_(False)


def save_encoder(encoder, path, card):
    """
    Write an encoder and its card.

    Parameters
    ----------
    encoder : SpikeEncoder | PaperEncoder
    path : str | Path
        The safetensors file; the card goes beside it with suffix ".json".
    card : dict
        What the weights were trained on and how; `sha256`, `n_parameters`, `layout` and `encoder_config` are
        added.

    Returns
    -------
    path : Path
    """
    from safetensors.torch import save_file

    path = Path(path)
    metadata = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "layout": encoder.config.layout,
        "config": json.dumps(encoder.config.to_dict()),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    save_file(state, path, metadata=metadata)
    path.chmod(0o644)  # safetensors leaves it readable by its owner only
    card = dict(
        card,
        sha256=hash_file(path),
        n_parameters=sum(value.numel() for value in encoder.parameters()),
        layout=encoder.config.layout,
        encoder_config=encoder.config.to_dict(),
    )
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    return path


def _check_exists(path):
    path = SHIPPED_WEIGHTS if path is None else Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    return path


def _read_config(metadata, path):
    from .layouts import DEFAULT_LAYOUT, find_config_class

    if metadata.get("format") != FORMAT_NAME:
        raise ValueError(
            f"{path} was not written by this package: its format is {metadata.get('format')!r}, wanted {FORMAT_NAME!r}"
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {metadata.get('format_version')!r}, this package reads {FORMAT_VERSION!r}"
        )
    try:
        config_class = find_config_class(metadata.get("layout", DEFAULT_LAYOUT))
        return config_class(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no readable encoder configuration: {error}") from error
