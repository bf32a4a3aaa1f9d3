"""The twist whose approximation fits a prior and a factor.

This is the rule of `default_twist` before tempering. A closed form is taken where one fits: for a mixture by its
components, for a normal law by its covariance. Elsewhere the prior's own covariance, or the denoiser's Jacobian, stands
for the covariance of x_0 given x_t. Which of them is affordable depends on the numbers of elements, observations,
components and particles; the constants here set the limits.
"""

import math

from ..factors import AbstractFactor, factors_of
from ..process import ReverseProcess
from .averaged import Averaged
from .base import AbstractTwist
from .flat import Flat
from .laplace import Laplace
from .linear import MomentMatched, PseudoInverse
from .linearized import Linearized, observations
from .mixture import MixtureMatched

# Of exact laws that are seen by so few, but not known as mixtures, a tempered `Laplace` is far nearer than
# `MomentMatched` where data are far out, and a little farther elsewhere (tests/twists/test_far_observations.py).
LARGEST_EXACT = 16
# Seen by more, examples of more elements find too late which mode the observations are of with a tempered `Laplace`
# (examples/benchmarks/many_observations.py); those of fewer have more effective particles than by the iterative way.
LARGEST_TEMPERED = 128

# Of a kernel density or as many components it would cost many times what the denoiser does.
MOST_COMPONENTS = 64
# So many are integrated over one by one where r is not Gaussian; with more, `Laplace` is far cheaper, and tried first.
MOST_INTEGRATED = 4
# Numbers that `MixtureMatched` computes for each particle and for all of them, in a step, for all components; and
# `Linearized` for each particle, which then takes some three times as long as `Laplace` does for 30 elements.
LARGEST_OWN, LARGEST_SHARED, LARGEST_LINEARIZED = 1_000_000, 100_000_000, 500_000


def fitting_twist(process: ReverseProcess, factor: AbstractFactor, num_particles: int | None = None) -> AbstractTwist:
    """The twist of `default_twist`, untempered."""
    parts = factors_of(factor)
    if not parts:
        return Flat()
    if not process.diffusion.is_gaussian:
        return MomentMatched() if all(part.is_elementwise for part in parts) else Averaged()
    whole, exact, known = process.has_whole_covariance, process.denoiser.is_exact, factor.fixes_elements
    shape, elements = process.event_shape, math.prod(process.event_shape)
    size = factor.observation_size(shape)
    # The matrices of `Laplace` and of components are shared by all particles: few of them do not pay for these.
    few = num_particles is not None and num_particles < elements
    many = size is not None and size > LARGEST_EXACT and not known
    worthwhile = exact or (_has_several(process) and not (few and many))
    if size is not None and worthwhile and has_few_components(process, size):
        return MixtureMatched()
    if size is None and _may_be_linearized(process, factor):
        return Linearized()
    if size is None and (exact or _has_several(process)) and _may_be_integrated(process):
        return MixtureMatched()
    if exact and size is not None:
        seen_by_few = size <= LARGEST_EXACT
        fits = not seen_by_few if process.denoiser.is_gaussian else seen_by_few or known or elements <= LARGEST_TEMPERED
        if not (whole and fits):
            return MomentMatched("exact" if seen_by_few else "iterative")
    none_observed = all(part.observation_size(shape) is None for part in parts)
    if none_observed or (whole and exact):
        return Laplace()
    return PseudoInverse() if not whole or (few and many) else Laplace()


def _has_several(process: ReverseProcess) -> bool:
    """Whether a network's baseline has modes: with one component `Laplace` has the same law of x_0 given x_t."""
    parts = process.denoiser.components
    return parts is not None and len(parts.weights) > 1


def has_few_components(process: ReverseProcess, size: int) -> bool:
    """Whether there are components, and the work that they make of so many observed elements is no burden."""
    parts, elements = process.denoiser.components, math.prod(process.event_shape)
    if parts is None:
        return False
    count, turned = len(parts.weights), 0 if parts.bases is None else elements
    own, shared = size * (size + elements) + elements * turned, size * (size + elements + turned) * max(size, turned)
    return count <= MOST_COMPONENTS and count * own <= LARGEST_OWN and count * shared <= LARGEST_SHARED


def _may_be_integrated(process: ReverseProcess) -> bool:
    """Whether there are components, and few enough for a search of the mode in each."""
    parts = process.denoiser.components
    return parts is not None and len(parts.weights) <= MOST_INTEGRATED and has_few_components(process, 0)


def _may_be_linearized(process: ReverseProcess, factor: AbstractFactor) -> bool:
    """Whether it consists of Gaussian observations of transformed elements, and components make them no burden."""
    parts, seen, elements = process.denoiser.components, observations(process, factor), math.prod(process.event_shape)
    if parts is None or seen is None:
        return False
    size, count = sum(each.linear.num_observed for each in seen), len(parts.weights)
    return count <= MOST_COMPONENTS and count * size * elements * (size + elements) <= LARGEST_LINEARIZED
