"""DDIM: strided chains, from deterministic to ancestral, without retraining.

Song, Meng and Ermon (2021, eqs. 12 and 16) give a family of chains with one and the same marginals q(x_t | x_0), from a
deterministic one (η = 0) to that of variance β̃ (η = 1), so that one denoiser serves all of them. *Approximate*: x̂_0
stands for x_0 in each step, the less wrongly the shorter the step. With η = 0 the steps are those of the probability
flow, `SDE`'s exponential ones at λ = 0.
"""

import equinox as eqx
import jax.numpy as jnp

from .._checks import check_count
from ..process import ReverseProcess
from .ancestral import Ancestral
from .sde import check_share
from .smooth import AbstractSmoothSampler, Level, Move, Noise, Predict, State, mixed


class DDIM(AbstractSmoothSampler):
    """x_s = √ᾱ_s x̂_0 + √(1−ᾱ_s−σ²) ε̂ + σ ε with σ² = η² β̃_{t|s}.

    *Approximate* for the data and for the model: every η has the forward marginals if x̂_0 is known, so one network
    serves them all, and few steps. η = 1 is the ancestral chain of variance β̃, η = 0 `SDE`'s exponential step at λ =
    0; in the limit of many steps η is λ. The steps are whole ones, as `Ancestral` takes them, and the process's own
    last step leads from x_1 to the data. With η = 0 a draw is a smooth function of two noises. Source: Song et al.
    2021, eqs. 12 and 16.

    Args:
        num_steps: how many steps, spread evenly over 1 … T; T unless given.
        eta: η in [0, 1].

    Raises:
        ValueError: `num_steps` below 2 (or above T, when called), η outside [0, 1], or a process of bits (when called).
    """

    num_steps: int | None = eqx.field(static=True)
    eta: float = eqx.field(static=True)

    def __init__(self, num_steps: int | None = None, eta: float = 0.0) -> None:
        self.num_steps = None if num_steps is None else check_count("num_steps", num_steps, 2)
        self.eta = check_share("eta", eta, 1.0)

    def chain_steps(self, process: ReverseProcess) -> int | None:
        """Its own number of steps, as far as the chain has so many."""
        return None if self.num_steps is None else min(self.num_steps, process.num_steps)

    def check(self, process: ReverseProcess) -> None:
        """The chain must have as many steps."""
        Ancestral(self.num_steps).times(process)

    @property
    def is_deterministic(self) -> bool:
        """Whether η = 0."""
        return self.eta == 0

    def levels(self, process: ReverseProcess, start: float | None = None) -> Level:
        """The whole steps that are visited, from `start` (T unless given) down to 1; shape (steps,)."""
        schedule = process.diffusion.schedule
        t = jnp.asarray(Ancestral(self.num_steps).times(process, start), dtype=schedule.times.dtype)
        return Level(t, schedule.log_snr(t))

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        """One step down."""
        # β̃/(1−ᾱ_s) = 1 − SNR_t/SNR_s, which is well defined where nothing of the signal is left too.
        share = -jnp.expm1(move.now.log_snr - move.to.log_snr)
        fresh = None if self.is_deterministic else self.eta**2 * share
        return State(mixed(state.z, predict(state.z, move.now), move, noise, fresh), None)
