"""Particle Gibbs as a NumPyro kernel for one diffusion site."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from .. import samplers
from .._checks import check_callable, check_site
from ..twists import AbstractTwist
from .extract import Latent, extract, over_batch
from .shorthand import sampler_of
from .sites import only_site


class ParticleGibbsState(NamedTuple):
    """State of the kernel; all fields can be asked for in ``extra_fields``.

    Attributes:
        z: the site's value, by name.
        path: the chain, shape (*batch, steps + 1, *event); its first state is the value, or what the prior's transform
            makes it of.
        effective_size: the smallest effective number of particles at any step, shape (*batch,).
        changed: the share of the chain's states that are new, shape (*batch,).
        rng_key: key of the next step.
        moments: the prior's covariance, found once, which twists rely on; None where nothing needs it.
    """

    z: dict[str, Array]
    path: Array
    effective_size: Array
    changed: Array
    rng_key: Array
    moments: Any = None


class ParticleGibbs(MCMCKernel):
    """Draws a diffusion site given everything else in the model; *exactly* invariant for 2 particles or more.

    An `MCMCKernel`: alone in `numpyro.infer.MCMC` where the site is the model's only latent one, and as a block of
    ``numpyro.infer.Gibbs([(ParticleGibbs(model), ["x"]), (NUTS(model), None)])``. The target is the reverse chain's own
    law (no bound) times what the rest of the model says about the site, which `extract_factor` reads. A site in plates
    has one chain for each of the batch. Nothing adapts in warm-up. The first chain comes from an SMC run given the
    other sites; `init_params` are not used.

    Args:
        model: the NumPyro model.
        site: name of the diffusion site; None for the only one, which is found when a run begins.
        num_particles: at least 2; more mix faster at proportional cost; 16 unless given.
        twist: like `num_particles`, `num_steps`, `threshold` and `chunk` an argument of `nd.samplers.ParticleGibbs`,
            which says what they are: shorthand for a `sampler`, and not to be given along with one.
        num_steps: see `twist`.
        threshold: see `twist`.
        chunk: see `twist`.
        sampler: the Markov kernel on chains, ``nd.samplers.ParticleGibbs(16)`` unless given; where it names no steps,
            the prior's own sampler does.

    Raises:
        TypeError: a `sampler` that is no `nd.samplers.ParticleGibbs`.
        ValueError: fewer than 2 particles; a sampler along with keywords that make one; when run, what `extract_factor`
            raises.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        site: str | None = None,
        num_particles: int | None = None,
        twist: AbstractTwist | None = None,
        *,
        num_steps: int | None = None,
        threshold: float | None = None,
        chunk: int | None = None,
        sampler: samplers.ParticleGibbs | None = None,
    ) -> None:
        self._model = check_callable("model", model)
        self.site: Any = check_site(site)
        shorthand = {
            "num_particles": num_particles, "twist": twist, "num_steps": num_steps, "threshold": threshold,
            "chunk": chunk,
        }  # fmt: skip
        self.sampler = sampler_of(samplers.ParticleGibbs, sampler, shorthand, 16)

    @property
    def model(self) -> Callable[..., Any]:
        """The NumPyro model."""
        return self._model

    @property
    def sample_field(self) -> str:
        """The state's field with the draws."""
        return "z"

    def init(
        self, rng_key: Array, num_warmup: int, init_params: Any, model_args: Any, model_kwargs: Any
    ) -> ParticleGibbsState:
        """A first chain from SMC; for several chains at once, `rng_key` is an array of keys."""
        del num_warmup, init_params
        self._extract(model_args, model_kwargs)  # outside of compiled code, where values can be checked
        return _start(self, rng_key, model_args, model_kwargs)

    def sample(self, state: ParticleGibbsState, model_args: Any, model_kwargs: Any) -> ParticleGibbsState:
        """One step."""
        if not is_prng_key(state.rng_key):
            return jax.vmap(lambda state: self._sample(state, model_args, model_kwargs))(state)
        return self._sample(state, model_args, model_kwargs)

    def refresh(self, state: ParticleGibbsState, model_args: Any, model_kwargs: Any) -> ParticleGibbsState:
        """The state as it is: nothing in it depends on the other sites."""
        del model_args, model_kwargs
        return state

    def wrap_model(self, wrapper: Callable[[Any], Any]) -> "ParticleGibbs":
        """The same kernel on ``wrapper(model)``."""
        return ParticleGibbs(wrapper(self._model), self.site, sampler=self.sampler)

    def get_diagnostics_str(self, state: ParticleGibbsState) -> str:
        """What the progress bar shows."""
        return f"new states {float(jnp.mean(state.changed)):.0%}, least ESS {float(jnp.min(state.effective_size)):.1f}"

    def get_constrain_fn(self, model_args: Any, model_kwargs: Any) -> Callable[[Any], Any]:
        """Identity: the site's values are what they are."""
        del model_args, model_kwargs
        return lambda z: z

    def postprocess_fn(self, model_args: Any, model_kwargs: Any) -> Callable[[Any], Any]:
        """Adds the model's deterministic sites to a draw."""

        def with_deterministic(z: dict[str, Array]) -> dict[str, Array]:
            model = substitute(seed(self._model, jax.random.key(0)), data=z)
            sites = trace(model).get_trace(*model_args, **(model_kwargs or {}))
            return z | {name: site["value"] for name, site in sites.items() if site["type"] == "deterministic"}

        return with_deterministic

    def _init(self, key: Array, model_args: Any, model_kwargs: Any) -> ParticleGibbsState:
        found = self._extract(model_args, model_kwargs)
        first, key = jax.random.split(key)

        def start(sampler: Any, key: Array, module: Any, factor: Any) -> Any:
            process = samplers.with_moments(module.process)
            return sampler.init(key, process, factor), process.moments

        return self._state(key, found, *over_batch(start, self.sampler, first, found))

    def _sample(self, state: ParticleGibbsState, model_args: Any, model_kwargs: Any) -> ParticleGibbsState:
        found = self._extract(model_args, model_kwargs)
        move, key = jax.random.split(state.rng_key)

        def step(sampler: Any, key: Array, module: Any, factor: Any, path: Array, moments: Any) -> samplers.Path:
            return sampler.step(key, samplers.having_moments(module.process, moments), factor, path)

        path = over_batch(step, self.sampler, move, found, state.path, state.moments)
        return self._state(key, found, path, state.moments)

    def _extract(self, model_args: Any, model_kwargs: Any) -> Latent:
        if self.site is None:  # also in a kernel that goes on from a state that was read from a file
            self.site = only_site(self._model, model_args, model_kwargs or {})
        return extract(self._model, self.site, model_args, model_kwargs or {}).in_latent()

    def _state(self, key: Array, found: Latent, path: samplers.Path, moments: Any) -> ParticleGibbsState:
        batch = path.changed.ndim
        x_0 = found.to_data(path.x[(slice(None),) * batch + (0,)])
        return ParticleGibbsState({self.site: x_0}, path.x, path.effective_size, path.changed, key, moments)


@eqx.filter_jit
def _start(kernel: ParticleGibbs, rng_key: Array, model_args: Any, model_kwargs: Any) -> ParticleGibbsState:
    if not is_prng_key(rng_key):
        return jax.vmap(lambda key: kernel._init(key, model_args, model_kwargs))(rng_key)
    return kernel._init(rng_key, model_args, model_kwargs)
