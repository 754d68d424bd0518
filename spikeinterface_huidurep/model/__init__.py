"""Encoders and their weights. Importing this package imports no torch."""

from .weights import load_encoder, save_encoder, weights_version

__all__ = ["MODEL_HZ", "load_encoder", "save_encoder", "weights_version"]

MODEL_HZ = 30_000.0
"""Rate of the waveforms that encoders are given, whatever the recording has."""
