"""The layouts of encoders: what files and training configurations name."""

from .encoder import EncoderConfig, SpikeEncoder
from .paper_encoder import PaperConfig, PaperEncoder

LAYOUTS = {EncoderConfig.layout: (EncoderConfig, SpikeEncoder), PaperConfig.layout: (PaperConfig, PaperEncoder)}
DEFAULT_LAYOUT = EncoderConfig.layout


def find_config_class(layout):
    """
    Class of the configuration of a layout.

    Raises
    ------
    ValueError
        If there is no such layout: names those there are.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no encoder layout {layout!r}, wanted {' or '.join(map(repr, LAYOUTS))}")
    return LAYOUTS[layout][0]


def build_encoder(config):
    """Encoder with random weights for an `EncoderConfig` or a `PaperConfig`."""
    return LAYOUTS[config.layout][1](config)
