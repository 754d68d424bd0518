"""
Spike sorting with contrastive spike embeddings, as a SpikeInterface plugin: `run_sorter("huidurep", recording)`.

Importing this package loads nothing heavy (a start-up hook imports it in every Python process of the environment):
public names are loaded when they are first used.
"""

import importlib

from spikeinterface_huidurep import _startup

__version__ = "0.1.0"

_HOME_OF = {
    "HuiduRepSorter": "sorter",
    "SorterParams": "params",
    "TemporalWhitenRecording": "whitening",
    "denoise_waveforms": "embedding",
    "embed_waveforms": "embedding",
    "finetune_encoder": "training.finetune",
    "load_encoder": "model.weights",
    "register": "registration",
    "temporal_whiten": "whitening",
}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME_OF})


_startup.install()
