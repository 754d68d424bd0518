"""Configuration of a training run."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from ..model.layouts import DEFAULT_LAYOUT, find_config_class
from .views import ViewConfig

CONFIG_FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    seed: int = 0
    """Of everything: weights, sites, units, views."""
    n_steps: int = 100
    """Optimisation steps."""
    sites_per_batch: int = 8
    """Places on probes in a batch."""
    units_per_site: int = 32
    """Units that share a place: the negatives that are hard to tell apart."""
    n_sites: int = 600
    """Synthetic places prepared at the start."""
    fraction_real: float = 0.0
    """Part of the places of a batch with real mean waveforms; 0 where the data are absent."""
    learning_rate: float = 1e-3
    """Peak of the cosine."""
    n_warmup: int = 20
    """Steps of linear warm-up."""
    n_frozen: int = 0
    """Steps at the start in which only the heads learn: for an encoder that was trained before."""
    frozen_learning_rate: float = 1.5e-3
    """Of the heads in these steps."""
    weight_decay: float = 0.05
    """AdamW, on matrices only."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    momentum: float = 0.99
    """Of the key encoder at step 0; 1 at the end."""
    temperature: float = 0.2
    """Of the contrast."""
    contrast: float = 1.0
    """Weight of the contrast."""
    alpha: float = 1.0
    """Weight of the denoising error."""
    beta: float = 1.0
    """Weight of the error of the waveform read from the embedding."""
    hidden: int = 256
    """Hidden dimensions of projector, predictor and reader."""
    n_projected: int = 128
    """Dimensions in which pairs are compared."""
    log_every: int = 20
    """Steps between rows of log.csv (means over these steps)."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    validate_every: int = 500
    """Steps between validations; 0 for one at the end only."""
    validation_sites: int = 24
    """Places in the validation, six units each."""
    validation_spikes: int = 100
    """Spikes of a unit in the validation."""
    calibration_batches: int = 12
    """Batches on which the noise of the embedding is measured."""
    whiten_embedding: bool = True
    """Bring the noise of the embedding to the same size in all directions; False: only to unit size on average."""
    num_threads: int = 1
    """Threads of torch; 0 leaves torch's default."""


def load_config(name, changes=None):
    """
    Read a toml file with the tables [train], [views] and [encoder].

    `layout` in [encoder] says which encoder the other fields of that table describe: "channels" (the default) or
    "paper".

    Parameters
    ----------
    name : str
        Of a file in training/configs, or the path of a toml file.
    changes : dict of "table.field" -> value | None, default: None
        Fields to set otherwise than the file does.

    Returns
    -------
    train, views, encoder : TrainConfig, ViewConfig, EncoderConfig | PaperConfig

    Raises
    ------
    ValueError
        If there is no such file, table, field or layout.
    """
    path = Path(name) if str(name).endswith(".toml") else CONFIG_FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIG_FOLDER.glob("*.toml")))
        raise ValueError(f"no configuration at {path}; shipped ones: {known}")
    tables = tomllib.loads(path.read_text())
    for field_name, value in (changes or {}).items():
        table, _, field = field_name.partition(".")
        tables.setdefault(table, {})[field] = value
    layout = tables.get("encoder", {}).pop("layout", DEFAULT_LAYOUT)
    kinds = {"train": TrainConfig, "views": ViewConfig, "encoder": find_config_class(layout)}
    for table, values in tables.items():
        if table not in kinds:
            raise ValueError(f"{path}: unknown table [{table}], wanted {', '.join(kinds)}")
        unknown = set(values) - {field.name for field in fields(kinds[table])}
        if unknown:
            raise ValueError(f"{path}: unknown fields in [{table}]: {', '.join(sorted(unknown))}")
    return tuple(kind(**tables.get(table, {})) for table, kind in kinds.items())
