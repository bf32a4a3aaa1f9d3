"""Samplers of the reverse process."""

from .ancestral import Ancestral as Ancestral
from .base import AbstractSampler as AbstractSampler
