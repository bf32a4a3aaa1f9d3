"""Particle Gibbs as a NumPyro kernel for one diffusion site.

Given everything else in a model, a diffusion site has the law p(x) r(x)/Z, with the factor that `extract_factor` reads.
One step of conditional SMC with ancestor sampling on its chain leaves that law *exactly* invariant for 2 particles or
more (Andrieu, Doucet and Holenstein 2010; Lindsten, Jordan and Schön 2014). The target is the chain's own law, never
the bound K. As the state is a whole chain, other blocks of `Gibbs` can be given its density, which is a closed form.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from .. import samplers
from .._checks import check_callable, check_site
from .._compiled import compiled
from .._display import Described, model_name
from ..samplers.base import following
from ..twists import AbstractTwist
from .extract import Latent, extract, over_batch
from .handed import data_of
from .several import one_site, parents_by_site, values_by_site
from .shorthand import sampler_of
from .sites import Site, find_site


class ParticleGibbsState(NamedTuple):
    """State of the kernel; all fields can be asked for in ``extra_fields``.

    Attributes:
        z: the site's value, by name; in a block of `nd.infer.Gibbs` its chain, shape (*plates, steps + 1, *event).
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


class ParticleGibbs(Described, MCMCKernel):
    """Draws a diffusion site given everything else in the model; *exactly* invariant for 2 particles or more.

    An `MCMCKernel`: alone in `numpyro.infer.MCMC` where the site is the model's only latent one, and as a block of
    ``nd.infer.Gibbs([(ParticleGibbs(model), ["x"]), (NUTS(model), None)])``. The target is the reverse chain's own
    law (no bound) times what the rest of the model says about the site, which `extract_factor` reads. A site in plates
    has one chain for each of the batch. Nothing adapts in warm-up. The first chain comes from an SMC run given the
    other sites; `init_params` are not used. In ``numpyro.infer.Gibbs``, whose other blocks see x_0 alone, it is right
    where the prior depends on none of their sites, and refused where it does.

    Args:
        model: the NumPyro model.
        site: name of the diffusion site; None for the only one, which is found when a run begins, or for several, of
            different priors with one schedule, which are then one state (in a block of ``numpyro.infer.Gibbs`` too).
        num_particles: at least 2; more mix faster at proportional cost; 16 unless given.
        twist: like `num_particles`, `num_steps`, `threshold` and `chunk` an argument of `nd.samplers.ParticleGibbs`,
            which says what they are: shorthand for a `sampler`, and not to be given along with one.
        num_steps: see `twist`.
        threshold: see `twist`.
        chunk: see `twist`.
        sampler: the Markov kernel on chains, ``nd.samplers.ParticleGibbs(16)`` unless given; where it names no steps,
            the prior's own sampler does.

    Example:
        >>> prior = nd.load("digits")
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("x", prior).sum(), 1.0), obs=y)  # the sum of 64 pixels
        >>> kernel = nd.infer.ParticleGibbs(model, num_particles=4, num_steps=10)
        >>> mcmc = numpyro.infer.MCMC(kernel, num_warmup=0, num_samples=5, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), 19.0)
        >>> mcmc.get_samples()["x"].shape
        (5, 8, 8)

    Raises:
        TypeError: a `sampler` that is no `nd.samplers.ParticleGibbs`.
        ValueError: fewer than 2 particles; a sampler along with keywords that make one; when run, what `extract_factor`
            raises, and a prior that depends on another block's site without `nd.infer.Gibbs`.
    """

    _hands_over_chains = False

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

    def _facts(self) -> dict[str, object]:
        twist = "by rule" if self.sampler.twist is None else self.sampler.twist
        site = "found when it is run" if self.site is None else self.site
        return {
            "model": model_name(self.model),
            "site": site,
            "num_particles": self.sampler.num_particles,
            "twist": twist,
        }

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
        if not self._hands_over_chains:
            self._check_parents(model_args, model_kwargs or {})
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
        new = copy.copy(self)
        new._model = wrapper(self._model)
        return new

    def handing_over_chains(self) -> "ParticleGibbs":
        """The same kernel, whose state's `z` is the chain: what `nd.infer.Gibbs` gives to the other blocks."""
        new = copy.copy(self)
        new._hands_over_chains = True
        return new

    def found(self, model_args: Any, model_kwargs: Any) -> Site:
        """The site, given the other blocks' values."""
        return find_site(self._model, self.site, model_args, model_kwargs or {})

    def chain_steps(self, site: Site) -> int | None:
        """How many steps of the prior's chain are taken; None for all."""
        found: list[int | None] = []  # of one element of the batch, whose arrays have their own shapes

        def check(module: Any, x: Array) -> Array:
            found.append(following(self.sampler, module.sampler, module.process).num_steps)
            return x

        jax.eval_shape(lambda x: site.prior.map_batch(check, x), jnp.zeros(site.law.batch_shape))
        return found[0]

    def at_chain(self, state: ParticleGibbsState, chain: Array, batch_ndims: int) -> ParticleGibbsState:
        """The state at another chain, of the shape of `z`, for a site with so many batch dimensions."""
        lead = state.changed.ndim
        return state._replace(z={self.site: chain}, path=jnp.moveaxis(chain, batch_ndims, lead))

    def data(self, state: ParticleGibbsState, model_args: Any, model_kwargs: Any) -> Array:
        """The site's value, made of the chain in `z`."""
        return data_of(self.found(model_args, model_kwargs).law, state.z[self.site])

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

        path, moments = over_batch(start, self.sampler, first, found)
        state = self._state(key, found, path, moments, model_args, model_kwargs)
        return self._handed(state, model_args, model_kwargs)

    def _sample(self, state: ParticleGibbsState, model_args: Any, model_kwargs: Any) -> ParticleGibbsState:
        found = self._extract(model_args, model_kwargs)
        move, key = jax.random.split(state.rng_key)

        def step(sampler: Any, key: Array, module: Any, factor: Any, path: Array, moments: Any) -> samplers.Path:
            return sampler.step(key, samplers.having_moments(module.process, moments), factor, path)

        path = over_batch(step, self.sampler, move, found, state.path, state.moments)
        state = self._state(key, found, path, state.moments, model_args, model_kwargs)
        return self._handed(state, model_args, model_kwargs)

    def _extract(self, model_args: Any, model_kwargs: Any) -> Latent:
        model, site = self._target(model_args, model_kwargs)
        return extract(model, site, model_args, model_kwargs or {}).in_latent()

    def _target(self, model_args: Any, model_kwargs: Any) -> tuple[Callable[..., Any], str]:
        """The model with one diffusion site, of which several are parts if so, and its name."""
        model, site = one_site(self._model, self.site, model_args, model_kwargs or {})
        if model is self._model:  # also in a kernel that goes on from a state that was read from a file
            self.site = site
        return model, site

    def _handed(self, state: ParticleGibbsState, model_args: Any, model_kwargs: Any) -> ParticleGibbsState:
        """With the chain in `z`, the plates' and other batch dimensions first, if other blocks are to see it."""
        if not self._hands_over_chains:
            return state
        batch = len(self.found(model_args, model_kwargs).law.batch_shape)
        return state._replace(z={self.site: jnp.moveaxis(state.path, state.changed.ndim, batch)})

    def _check_parents(self, model_args: Any, model_kwargs: Any) -> None:
        values = model_kwargs.get(GIBBS_SITES_KWARG, {})
        for name, parents in parents_by_site(self._model, self.site, model_args, model_kwargs, values).items():
            if parents:
                raise ValueError(
                    f"model: expected a prior of {name!r} that depends on no other latent site, got one of "
                    f"{sorted(parents)}, which must be drawn given the whole chain: use nd.infer.Gibbs in place of "
                    "numpyro.infer.Gibbs"
                )

    def _state(
        self, key: Array, found: Latent, path: samplers.Path, moments: Any, model_args: Any, model_kwargs: Any
    ) -> ParticleGibbsState:
        batch = path.changed.ndim
        x_0 = found.to_data(path.x[(slice(None),) * batch + (0,)])
        model, site = self._target(model_args, model_kwargs)
        z = values_by_site(model, site, x_0, model_args, model_kwargs or {})
        return ParticleGibbsState(z, path.x, path.effective_size, path.changed, key, moments)


@compiled
def _start(kernel: ParticleGibbs, rng_key: Array, model_args: Any, model_kwargs: Any) -> ParticleGibbsState:
    if not is_prng_key(rng_key):
        return jax.vmap(lambda key: kernel._init(key, model_args, model_kwargs))(rng_key)
    return kernel._init(rng_key, model_args, model_kwargs)
