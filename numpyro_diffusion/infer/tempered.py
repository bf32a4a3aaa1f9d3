"""Tempered SMC for a NumPyro model, in the space of the diffusion prior's noise.

The likelihood to a power that grows from 0 to 1 leads from the prior to the posterior (Neal 2001; Del Moral, Doucet and
Jasra 2006). Particles are positions in the noise of the prior's chain, where the prior is standard normal, and are
weighted, resampled and moved. Draws and evidence are *consistent as particles grow*, for the prior's own chain; the
evidence is *not unbiased*, as temperatures and moves adapt to the particles. As nothing is shared with the twists of
`SMC`, the two check each other.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.diagnostics import print_summary
from tqdm.auto import tqdm

from .._checks import check_callable, check_choice, check_count, check_key
from .._display import Described, evidence_of, model_name
from ..samplers import ReliabilityWarning
from ..samplers.reliability import farthest_mean
from ..samplers.resampling import systematic
from .evidence import evidence_error
from .noise_model import check_model
from .noise_moves import Island, Move, Options, run_island
from .tempering import Settings, by_island

LOW_ACCEPTANCE = 0.05
APART = 1.0


class TemperedSMC(Described):
    """Draws of all unknowns of a model and its log evidence, by SMC from the prior to the posterior.

    *Consistent as particles grow*, for the prior's own chain: no bound, no twist and no approximation of the likelihood
    is involved, so that it is a second opinion on `SMC`, which shares none of its parts. Every diffusion site, also in
    plates, becomes the function of standard-normal noise that `DiffusionReparam` makes of it; other latent sites may
    stand beside it, and are moved without their constraints. Particles begin as draws of the prior.
    The likelihood counts with a power (temperature) that grows from 0 to 1: each step is as long as the effective size
    allows (Jasra et al. 2011; Zhou, Johansen and Aston 2016), particles are resampled, and Markov moves that leave the
    tempered posterior invariant draw them apart (Del Moral, Doucet and Jasra 2006). Moves go on until particles have
    forgotten where they were: until their values, and their likelihoods, correlate by at most 0.1.

    The evidence is the product of the mean incremental weights. As temperatures, moves and their step sizes are chosen
    from the same particles, the estimate is *not unbiased* at a finite number, unlike that of `SMC` for x alone: expect
    it too low where moves mix slowly. Between modes that the moves do not cross, their shares are what the first draws
    of the prior brought, and resampling wears them down. The independent runs, called islands, give the standard error
    and are the chains in ArviZ; they run one after the other, in one compiled program.

    A position has (steps + 1) × d elements of noise for a prior of d elements. The costs are those of the prior's
    chain, particles × moves for ``"pcn"``, times about 3 for the gradient and as many as there are rotations for
    ``"hmc"``. A prior with fewer steps, ``prior.with_(sampler=nd.samplers.Ancestral(25))``, is cheaper.

    Args:
        model: the NumPyro model.
        num_particles: in each island, at least 2.
        num_islands: independent runs; a standard error needs 2, and a good one 4.
        move: ``"hmc"``, Hamiltonian Monte Carlo that is exact for normal laws (Beskos et al. 2011), or ``"pcn"``, the
            preconditioned Crank-Nicolson step (Cotter et al. 2013), which needs no gradient and more moves.
        num_moves: at most so many moves at each temperature; 20 for ``"hmc"`` and 100 for ``"pcn"`` unless given.
        max_leapfrogs: at most so many rotations, each with one gradient, in a move of ``"hmc"``.
        ess: the effective share of particles that each temperature keeps, between 0 and 1; more make more temperatures.
        max_temperatures: after as many, the last step goes to 1 at once, with a warning.
        chunk: at most so many particles at a time go through the denoiser.
        progress_bar: whether to show one, over the islands.

    Raises:
        ValueError: settings out of their range; when run, a latent site that is not continuous (bits, grey levels,
            other discrete ones), masked, scaled or inside a scan, by name; a plate that subsamples; no latent site; a
            likelihood that is 0, or no number, at all particles.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8))
        >>> prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2))
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("x", prior).sum(), 0.5), obs=y)
        >>> smc = nd.infer.TemperedSMC(model, num_particles=32, num_islands=2, progress_bar=False)
        >>> smc.run(jax.random.key(0), 1.0).get_samples()["x"].shape
        (64, 2)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int = 512,
        num_islands: int = 4,
        *,
        move: Move = "hmc",
        num_moves: int | None = None,
        max_leapfrogs: int = 16,
        ess: float = 0.6,
        max_temperatures: int = 1000,
        chunk: int | None = None,
        progress_bar: bool = True,
    ) -> None:
        self.model, self.progress_bar = check_callable("model", model), progress_bar
        self.num_particles = check_count("num_particles", num_particles, 2)
        self.num_islands = check_count("num_islands", num_islands)
        check_choice("move", move, ("hmc", "pcn"))
        if not 0 < ess < 1:
            raise ValueError(f"ess: expected a fraction between 0 and 1, got {ess}")
        moves = (20 if move == "hmc" else 100) if num_moves is None else num_moves
        self._options = Options(
            self.num_particles,
            move,
            check_count("max_leapfrogs", max_leapfrogs),
            None if chunk is None else check_count("chunk", chunk),
            Settings(float(ess), check_count("num_moves", moves), check_count("max_temperatures", max_temperatures)),
        )
        self._result: Island | None = None
        self._key: Array | None = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def run(self, key: Array, *args: Any, **kwargs: Any) -> "TemperedSMC":
        """Run, with the model's arguments; returns itself."""
        key, self._key = jax.random.split(check_key("key", key))
        self.args, self.kwargs, self._result = args, kwargs, None
        check_model(self.model, args, kwargs)  # outside of any compiled code, where values can be checked
        islands = []
        for own in tqdm(jax.random.split(key, self.num_islands), "TemperedSMC", disable=not self.progress_bar):
            islands.append(jax.block_until_ready(run_island(self.model, self._options, own, args, kwargs)))
        result = jax.tree.map(lambda *leaves: jnp.stack(leaves), *islands)
        if not np.isfinite(np.asarray(result.log_evidence)).any():
            raise ValueError(
                f"model: expected a positive density of the observed sites somewhere, got 0 (or no number) at all "
                f"{self.num_particles} particles of every island"
            )
        self._result = result
        self._warn(result)
        return self

    def _facts(self) -> dict[str, object]:
        asked: dict[str, object] = {
            "model": model_name(self.model),
            "particles": f"{self.num_islands} × {self.num_particles}",
        }
        if self._result is None:
            return asked | {"log_evidence": "not run"}
        stages = max(len(each) for each in self.temperatures)
        moved = f"at least {self._least_acceptance():.2f}"
        return asked | evidence_of(self) | {"temperatures": stages, "acceptance": moved}

    @property
    def log_evidences(self) -> Float[Array, " islands"]:
        """Log evidence of every island, all observed sites counted, in nats, shape (num_islands,)."""
        return self._done().log_evidence

    @property
    def log_evidence(self) -> float:
        """Log of the islands' mean evidence, in nats."""
        return float(logsumexp(self.log_evidences) - jnp.log(float(self.num_islands)))

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence` from the variation between the islands, in nats; NaN from one island.

        *Approximate*, and without the bias: `numpyro_diffusion.infer.evidence.evidence_error` says how it is made.
        """
        return evidence_error(self.log_evidences)

    @property
    def temperatures(self) -> list[np.ndarray]:
        """The likelihood's powers in every island, growing to 1."""
        return self._records("temperatures")

    @property
    def acceptance_rates(self) -> list[np.ndarray]:
        """Mean acceptance probability of the moves at each of the temperatures, for every island."""
        return self._records("acceptance")

    @property
    def moves(self) -> list[np.ndarray]:
        """How many moves were made at each of the temperatures, for every island."""
        return self._records("moves")

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Array]:
        """Equally weighted draws, as many as particles.

        Args:
            group_by_chain: keep the islands apart, as they are. Otherwise all particles are resampled together,
                systematically, islands weighted by their evidence.

        Returns:
            The draws of every latent and deterministic site, without the noises, each of shape
            (num_islands, num_particles, *site) or with the first two as one.
        """
        values = self._done().values
        if group_by_chain:
            return dict(values)
        pick, mix = jax.random.split(_known(self._key))
        weight = jnp.repeat(self.log_evidences, self.num_particles)
        # The order of systematic resampling is that of the particles; mixed, draws are exchangeable.
        index = jax.random.permutation(mix, systematic(pick, weight))
        return {name: value.reshape((-1, *value.shape[2:]))[index] for name, value in values.items()}

    def print_summary(self, prob: float = 0.9) -> None:
        """Print the posterior's summary, the log evidence, and how the moves fared."""
        print_summary(self.get_samples(group_by_chain=True), prob=prob)
        print(f"log evidence {self.log_evidence:.3f} ± {self.log_evidence_error:.3f} nats")
        stages = ", ".join(str(len(each)) for each in self.temperatures)
        print(f"temperatures {stages}; acceptance at least {self._least_acceptance():.2f}")

    def _done(self) -> Island:
        if self._result is None:
            raise ValueError("TemperedSMC: expected a finished run; call run(key, …) first")
        return self._result

    def _records(self, name: str) -> list[np.ndarray]:
        return by_island(self._done().records, name)

    def _least_acceptance(self) -> float:
        return min(float(each.min()) for each in self.acceptance_rates if len(each))

    def _warn(self, result: Island) -> None:
        """Say, with numbers, what makes the result doubtful."""
        evidences = np.asarray(result.log_evidence, dtype=np.float64)
        found = []
        if (bad := int(result.records.undefined.sum())) > 0:
            total = self.num_islands * self.num_particles
            found.append(
                f"the model's density is no number at {bad} of {total} draws of the prior; it counts as 0 there"
            )
        if np.isfinite(evidences).sum() < len(evidences):
            found.append(f"{np.sum(~np.isfinite(evidences))} of {len(evidences)} islands found no positive likelihood")
        elif (apart := float(np.ptp(evidences))) > APART:
            found.append(f"the islands' log evidences are {apart:.3g} nats apart, more than {APART:g}")
        if far := farthest_mean(result.values).complaint:
            found.append(far)
        if (least := self._least_acceptance()) < LOW_ACCEPTANCE:
            found.append(f"moves were accepted with a mean probability of {least:.3g} at one temperature")
        if short := int(np.sum(~np.asarray(result.records.finished))):
            found.append(
                f"max_temperatures = {self._options.settings.max_temperatures} was too few for {short} islands"
            )
        if found:
            message = f"TemperedSMC: {'; '.join(found)}. More particles or moves may help"
            warnings.warn(message, ReliabilityWarning, stacklevel=3)


def _known(key: Array | None) -> Array:
    if key is None:
        raise ValueError("TemperedSMC: expected a finished run; call run(key, …) first")
    return key
