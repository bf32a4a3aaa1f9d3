"""Inference in NumPyro models with diffusion sites."""

from .compare import PriorComparison as PriorComparison
from .compare import compare_priors as compare_priors
from .cross_check import CrossCheck as CrossCheck
from .extract import extract_factor as extract_factor
from .gibbs import Gibbs as Gibbs
from .gibbs import GibbsState as GibbsState
from .mixtures import Labels as Labels
from .particle_gibbs import ParticleGibbs as ParticleGibbs
from .particle_gibbs import ParticleGibbsState as ParticleGibbsState
from .reparam import DiffusionReparam as DiffusionReparam
from .resume import load_state as load_state
from .resume import save_state as save_state
from .smc import SMC as SMC
from .tempered import TemperedSMC as TemperedSMC
from .whole_run import WholeReliability as WholeReliability
