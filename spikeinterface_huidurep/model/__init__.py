"""Encoders and their weights. Importing this package imports no torch."""

from .weights import load_encoder, save_encoder, weights_version

__all__ = ["load_encoder", "save_encoder", "weights_version"]
