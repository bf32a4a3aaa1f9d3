"""Samplers of the reverse process, and of its product with a factor."""

from .ancestral import Ancestral as Ancestral
from .base import AbstractPosteriorSampler as AbstractPosteriorSampler
from .base import AbstractSampler as AbstractSampler
from .chain import chain_of_noise as chain_of_noise
from .chain import noise_of_chain as noise_of_chain
from .ddim import DDIM as DDIM
from .interpolation import interpolate as interpolate
from .moments import having_moments as having_moments
from .moments import with_moments as with_moments
from .particle_gibbs import ParticleGibbs as ParticleGibbs
from .particle_gibbs import Path as Path
from .perturbed import Guided as Guided
from .perturbed import Perturbed as Perturbed
from .perturbed import Replacement as Replacement
from .reliability import Reliability as Reliability
from .reliability import ReliabilityWarning as ReliabilityWarning
from .reliability import reliability as reliability
from .resampling import effective_size as effective_size
from .resampling import systematic as systematic
from .sde import SDE as SDE
from .smc import Particles as Particles
from .smc import TwistedSMC as TwistedSMC
