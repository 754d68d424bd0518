"""Self-supervised training of the encoder."""
