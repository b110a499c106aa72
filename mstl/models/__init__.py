"""Backbones and the weights they start from."""
