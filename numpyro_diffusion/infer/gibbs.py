"""Gibbs sampling of a model with diffusion sites: other blocks condition on whole chains, and may move them.

A Gibbs sampler is *exact* if every block leaves one and the same law invariant. Other blocks condition on whole chains
x_0 … x_T, whose density given everything else is a closed form, and not on x_0, of whose density only the bound K is
known: all blocks then have the model with the prior's own chain for their target. A block may move once more, given the
noise that makes the chain in place of the chain: interweaving of two parametrisations (Yu and Meng 2011), which helps
where a chain ties the other sites tightly.
"""

# Over 300 lines: one sampler, with the second moves that it makes beside the first ones.

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpyro.infer
from jax import Array
from numpyro.infer import HMC
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, conditioned, prototype_trace, with_conditioning
from numpyro.infer.mcmc import MCMCKernel

from .._checks import check_choice
from .._display import Described, model_name
from ..samplers import chain_of_noise, noise_of_chain
from .handed import Handed, Handing, has_noise, prior_parents, tied_by_data
from .particle_gibbs import ParticleGibbs
from .shorthand import checked_blocks, named

Interweave = Literal["auto", "noise", "joint", "none"]


class GibbsState(NamedTuple):
    """State of `Gibbs`.

    Attributes:
        z: values of all latent sites, as numpyro.infer.Gibbs has them; of diffusion sites x_0.
        block_states: one for each block.
        rng_key: key of the next step.
        twin_states: of the kernels that move other sites and chains together.
    """

    z: Any
    block_states: tuple[Any, ...]
    rng_key: Array
    twin_states: tuple[Any, ...] = ()


class _Twin(NamedTuple):
    """The kernel of a block once more, on the model with the chains' noise in place of the chains."""

    block: int
    kernel: Any
    owned: tuple[str, ...]  # diffusion sites whose noise it moves too


class Gibbs(Described, numpyro.infer.Gibbs):
    """`numpyro.infer.Gibbs` for blocks of which some are `ParticleGibbs`: *exact* where a prior depends on other sites.

    The other blocks are given the chain x_0 … x_T of a diffusion site, whose density given everything else is a closed
    form (`ReverseTrajectory`), and never a bound on log p(x_0). All blocks have one target: the model with the prior's
    own chain, strided where the prior or the kernel has fewer steps. A prior that depends on no other latent site, as
    the traced model shows, has a constant density. Plates, transforms, bits and `DiffusionPosterior` are treated alike.

    A chain may tie the sites on which its prior depends tightly. So each of their blocks then moves them a second time,
    given the noise that makes the chain, which follows them. For bits, grey levels and known elements (`Delta`), where
    no noise stands for the chain, there is no second move.

    Args:
        blocks: as for `numpyro.infer.Gibbs`: pairs of a kernel, all on one model, and the names of its sites, None for
            all others.
        interweave: ``"noise"`` for the second move where a prior depends on the block's sites; ``"joint"`` for one of
            the block's sites and all noise together, by HMC or NUTS as in `DiffusionReparam`, also where priors depend
            on nothing: for sites that the data tie to x; ``"none"``. ``"auto"`` is ``"joint"`` for blocks with a site
            that shares the location of some data with x, such as an amplitude, an offset or a shift, as the traced
            model shows, and ``"noise"`` for the others.

    Example:
        >>> prior = nd.load("digits")
        >>> def model(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     x = numpyro.sample("x", prior)
        ...     numpyro.sample("y", dist.Normal(x.sum(), scale), obs=y)
        >>> blocks = [(nd.infer.ParticleGibbs(model), ["x"]), (numpyro.infer.NUTS(model), None)]
        >>> mcmc = numpyro.infer.MCMC(nd.infer.Gibbs(blocks), num_warmup=100, num_samples=500)  # mcmc.run(key, y)

    Raises:
        TypeError: no sequence of pairs of a kernel and its sites.
        ValueError: what `numpyro.infer.Gibbs` raises; ``"joint"`` without a block of HMC or NUTS, or without a chain
            that noise makes (when run); as a block of another Gibbs, a prior that depends on the other's sites.
    """

    _state_cls: Any = GibbsState
    _model: Any
    _kernels: Any

    def __init__(self, blocks: Sequence[tuple[MCMCKernel, Any]], *, interweave: Interweave = "auto") -> None:
        with named("blocks"):
            super().__init__([(_handing_over(kernel), sites) for kernel, sites in checked_blocks(blocks)])
        self.interweave = check_choice("interweave", interweave, ("auto", "noise", "joint", "none"))
        self._plain, self._plain_kernels = self._model, self._kernels
        self._twins: tuple[_Twin, ...] = ()
        self._noisy: tuple[str, ...] = ()
        self._particle_blocks: dict[str, int] = {}

    def _facts(self) -> dict[str, object]:
        blocks = [
            (type(kernel).__name__, sites) for kernel, sites in zip(self._plain_kernels, self._specs, strict=True)
        ]
        said = [f"{name} of {'all others' if sites is None else sites}" for name, sites in blocks]
        return {"model": model_name(self.model), "blocks": "; ".join(said), "interweave": self.interweave}

    @property
    def model(self) -> Callable[..., Any]:
        """The user's model, in which diffusion sites are x_0, and not the one whose sites are chains."""
        return self._plain

    def init(self, rng_key: Array, num_warmup: int, init_params: Any, model_args: Any, model_kwargs: Any) -> Any:
        """The first state; see `numpyro.infer.Gibbs`."""
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        self._prepare(model_args, kwargs)
        state: Any = super().init(rng_key, num_warmup, init_params, model_args, kwargs)
        blocks = list(state.block_states)
        twins = []
        for twin, key in zip(self._twins, jax.random.split(state.rng_key, len(self._twins)), strict=True):
            noise = self._noise(blocks, model_args, kwargs)
            z, given = self._twin_position(twin, blocks, noise, model_args, kwargs)
            twins.append(twin.kernel.init(key, num_warmup, z, model_args, given))
        z = self._with_data(state.z, blocks, model_args, kwargs)
        return state._replace(z=z, twin_states=tuple(twins))

    def wrap_model(self, wrapper: Callable[[Any], Any]) -> "Gibbs":
        """The same on ``wrapper(model)``."""
        kernel: Any = super().wrap_model(wrapper)
        kernel._plain = wrapper(self._plain)
        wrap = lambda each: each.wrap_model(wrapper) if getattr(each, "model", None) is not None else each
        kernel._plain_kernels = tuple(map(wrap, self._plain_kernels))
        return kernel

    def postprocess_fn(self, model_args: Any, model_kwargs: Any) -> Callable[[Any], Any]:
        """Constrains a draw, and adds the model's deterministic sites."""
        plain = copy.copy(self)
        plain._model = self._plain
        return super(Gibbs, plain).postprocess_fn(model_args, model_kwargs)

    def _sample_one(self, state: Any, model_args: Any, model_kwargs: Any) -> Any:
        kwargs = {} if model_kwargs is None else model_kwargs
        new: Any = super()._sample_one(state, model_args, kwargs)
        blocks, twins = list(new.block_states), list(state.twin_states)
        for n, twin in enumerate(self._twins):
            noise = self._noise(blocks, model_args, kwargs)
            z, given = self._twin_position(twin, blocks, noise, model_args, kwargs)
            field = twin.kernel.sample_field
            moved = twin.kernel.refresh(twins[n]._replace(**{field: z}), model_args, given)
            twins[n] = twin.kernel.sample(moved, model_args, given)
            z = getattr(twins[n], field)
            own = {name: z[name] for name in self._sites[twin.block]}
            blocks[twin.block] = blocks[twin.block]._replace(**{field: own})
            self._follow(blocks, noise | {name: z[name] for name in twin.owned}, model_args, kwargs)
        if self._twins:
            for i, kernel in enumerate(self._kernels):
                blocks[i] = kernel.refresh(blocks[i], model_args, self._given(i, blocks, model_args, kwargs))
        z = self._with_data(self._merge_z(blocks), blocks, model_args, kwargs)
        return new._replace(z=z, block_states=tuple(blocks), twin_states=tuple(twins))

    def _prepare(self, args: Any, kwargs: dict[str, Any]) -> None:
        """Find which priors depend on what, and put chains in their sites' places."""
        shown = prototype_trace(conditioned(self._plain), jax.random.key(0), args, kwargs)
        owned = self._resolve_partition(shown, frozenset(kwargs.get(GIBBS_SITES_KWARG, {})))
        kernels = [_of_site(kernel, names) for kernel, names in zip(self._plain_kernels, owned, strict=True)]
        blocks = {names[0]: i for i, names in enumerate(owned) if _is_ours(kernels[i])}
        self._particle_blocks = {name: blocks[name] for name in shown if name in blocks}
        values = {name: shown[name]["value"] for names in owned for name in names}
        chains, smooth, parents, tied = {}, set(), {}, {}
        for name, block in self._particle_blocks.items():
            kernel: Any = kernels[block]
            others = {key: value for key, value in values.items() if key != name}
            site = kernel.found(args, with_conditioning(kwargs, others))
            chains[name], parents[name] = kernel.chain_steps(site), self._parents(name, args, kwargs, others)
            smooth |= {name} if has_noise(site.law) else set()
            tied[name] = self._tied(name, args, kwargs, values)
        free = frozenset(name for name in chains if not parents[name])
        moved = self.interweave != "none"
        self._noisy = tuple(name for name in chains if moved and name in smooth and (tied[name] or parents[name]))
        handing = Handing(chains, free)
        self._model = Handed(self._plain, handing)
        self._kernels = tuple(
            _wrapped(kernel, handing.without(names if _is_ours(kernel) else ()))
            for kernel, names in zip(kernels, owned, strict=True)
        )
        handing = handing._replace(noises=frozenset(self._noisy))
        self._twins = tuple(self._twins_of(owned, kernels, handing, parents, tied))
        if self.interweave == "joint" and not self._twins:
            raise ValueError(
                "interweave: expected a block of HMC or NUTS, and a prior of real numbers whose chain noise makes, for "
                "'joint', got none"
            )

    def _twins_of(
        self, owned: Any, kernels: Any, handing: Handing, parents: dict[str, Any], tied: dict[str, Any]
    ) -> Iterator[_Twin]:
        """A kernel for each block that noise moves with, or follows."""
        for i, (kernel, names) in enumerate(zip(kernels, owned, strict=True)):
            if _is_ours(kernel) or not names:
                continue
            together = tuple(name for name in self._noisy if isinstance(kernel, HMC) and tied[name] & set(names))
            follows = self.interweave != "joint" and any(parents[name] & set(names) for name in self._noisy)
            if together or follows:
                yield _Twin(i, _wrapped(kernel, handing), together)

    def _tied(self, name: str, args: Any, kwargs: dict[str, Any], values: dict[str, Any]) -> frozenset[str]:
        """The sites that are moved together with a chain's noise."""
        if self.interweave == "joint":
            return frozenset(values) - set(self._particle_blocks)
        if self.interweave != "auto":
            return frozenset()
        outer = kwargs.get(GIBBS_SITES_KWARG, {})
        return tied_by_data(conditioned(self._plain), name, args, kwargs, values | outer) - set(self._particle_blocks)

    def _parents(self, name: str, args: Any, kwargs: dict[str, Any], values: dict[str, Any]) -> frozenset[str]:
        """The sites on which a prior depends, once none of them is an outer Gibbs sampler's."""
        outer = kwargs.get(GIBBS_SITES_KWARG, {})
        found = prior_parents(conditioned(self._plain), name, args, kwargs, values | outer)
        if foreign := sorted(found & set(outer)):
            raise ValueError(
                f"blocks: expected a prior of {name!r} that depends on no site of an outer Gibbs, got {foreign}; "
                "put all blocks into one nd.infer.Gibbs"
            )
        return found

    def _constrained(self, blocks: Sequence[Any], args: Any, kwargs: dict[str, Any]) -> list[dict[str, Any]]:
        """The values of each block's sites, chains for diffusion sites."""
        parts = []
        for kernel, names, state in zip(self._kernels, self._sites, blocks, strict=True):
            values = kernel.get_constrain_fn(args, kwargs)(getattr(state, kernel.sample_field))
            parts.append({name: values[name] for name in names})
        return parts

    def _given(self, block: int, blocks: Sequence[Any], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments with the other blocks' values."""
        parts = self._constrained(blocks, args, kwargs)
        others = {name: value for i, part in enumerate(parts) if i != block for name, value in part.items()}
        return with_conditioning(kwargs, others)

    def _noise(self, blocks: Sequence[Any], args: Any, kwargs: dict[str, Any]) -> dict[str, Array]:
        """The noise of every chain that has some, at the blocks' values."""
        found = {}
        for name in self._noisy:
            block = self._particle_blocks[name]
            kernel: Any = self._kernels[block]
            site = kernel.found(args, self._given(block, blocks, args, kwargs))
            steps = kernel.chain_steps(site)
            back = lambda module, chain, steps=steps: noise_of_chain(module.process, chain, steps)
            found[name] = site.prior.map_batch(back, blocks[block].z[name])
        return found

    def _follow(self, blocks: list[Any], noise: dict[str, Array], args: Any, kwargs: dict[str, Any]) -> None:
        """Move the chains to where their noise leads at the blocks' values."""
        for name in self._noisy:  # in the model's order, as one prior may depend on another site's x
            block = self._particle_blocks[name]
            kernel: Any = self._kernels[block]
            site = kernel.found(args, self._given(block, blocks, args, kwargs))
            steps = kernel.chain_steps(site)
            there = lambda module, noise, steps=steps: chain_of_noise(module.process, noise, steps)
            chain = site.prior.map_batch(there, noise[name])
            blocks[block] = kernel.at_chain(blocks[block], chain, len(site.law.batch_shape))

    def _twin_position(
        self, twin: _Twin, blocks: Sequence[Any], noise: dict[str, Array], args: Any, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where a twin is, and the keyword arguments with all that it is given."""
        parts = self._constrained(blocks, args, kwargs)
        others = {name: value for i, part in enumerate(parts) if i != twin.block for name, value in part.items()}
        others |= noise
        given = {name: value for name, value in others.items() if name not in twin.owned}
        kernel = self._kernels[twin.block]
        z = getattr(blocks[twin.block], kernel.sample_field)
        return z | {name: noise[name] for name in twin.owned}, with_conditioning(kwargs, given)

    def _with_data(self, z: dict[str, Any], blocks: Sequence[Any], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """With x_0 in place of chains."""
        for name, block in self._particle_blocks.items():
            kernel: Any = self._kernels[block]
            z = z | {name: kernel.data(blocks[block], args, self._given(block, blocks, args, kwargs))}
        return z


def _is_ours(kernel: Any) -> bool:
    return isinstance(kernel, ParticleGibbs)


def _wrapped(kernel: Any, handing: Handing) -> Any:
    """The kernel on the model with chains or noise in place of diffusion sites; one without a model as it is."""
    if getattr(kernel, "model", None) is None:
        return kernel
    return kernel.wrap_model(partial(Handed, handing=handing))


def _of_site(kernel: Any, names: tuple[str, ...]) -> Any:
    """A particle Gibbs kernel with the name of its block's site; any other kernel as it is."""
    if not _is_ours(kernel):
        return kernel
    if len(names) != 1 or kernel.site not in (None, *names):
        own = "one site" if kernel.site is None else f"its own site {kernel.site!r}"
        raise ValueError(
            f"blocks: expected ParticleGibbs with {own} alone, got {list(names)}; numpyro.infer.Gibbs takes several "
            "sites as one state"
        )
    new = copy.copy(kernel)
    new.site = names[0]
    return new


def _handing_over(kernel: Any) -> Any:
    return kernel.handing_over_chains() if _is_ours(kernel) else kernel
