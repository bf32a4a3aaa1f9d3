"""Inference in NumPyro models with diffusion sites."""

from .compare import PriorComparison as PriorComparison
from .compare import compare_priors as compare_priors
from .extract import extract_factor as extract_factor
from .particle_gibbs import ParticleGibbs as ParticleGibbs
from .particle_gibbs import ParticleGibbsState as ParticleGibbsState
from .reparam import DiffusionReparam as DiffusionReparam
from .smc import SMC as SMC
from .tempered import TemperedSMC as TemperedSMC
