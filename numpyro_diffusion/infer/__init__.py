"""Inference in NumPyro models with diffusion sites."""

from .reparam import DiffusionReparam as DiffusionReparam
