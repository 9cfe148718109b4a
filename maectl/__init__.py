"""maectl: pretrain the standard masked autoencoder on your own images."""

__version__ = "0.1.0"
