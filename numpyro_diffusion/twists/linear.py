"""Twists for Gaussian observations: how uncertain x_0 still is at level t goes into ψ_t.

For y = A x_0 plus noise of covariance Σ_y, E[r(x_0) | x_t] is N(y; A E[x_0 | x_t], Σ_y + A V_t Aᵀ) if x_0 given x_t is
normal with covariance V_t. `PseudoInverse` takes V_t = (1 − ᾱ_t) c² I (ΠGDM; Song et al. 2023), `MomentMatched` the
Jacobian of the denoiser's mean times (1 − ᾱ_t) c²/√ᾱ_t, which is Cov[x_0 | x_t] for an exact denoiser (Boys et al.
2023; Rozet et al. 2024). *Exact* where x_0 given x_t is normal and V_t its covariance; *approximate* elsewhere, where
weights make up for it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from .. import laws
from .._checks import check_choice, check_count
from .._products import dot
from .._shapes import Example, Time
from ..diffusions import GaussianDiffusion, require_gaussian
from ..factors import AbstractFactor, Delta, Gaussian, LinearGaussian, Product, factors_of
from ..factors.linear import condition, stack
from ..laws import LoweredNormal, elements, normal
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep
from .tweedie import covariance_factor, jacobian_shift, shifted

Covariance = Literal["auto", "exact", "diagonal", "iterative"]


# How much of what an observation takes from a kernel's variance is taken from the proposal's, unless x_0 given x_t is
# exactly normal. The step's target has more than one mode where x_0 has, and a proposal as narrow as one of them misses
# the others, without a trace in the weights: log Z was .05 to .34 nats low for a mixture of three in 16 steps.
NARROWING = 0.75


class Spectrum(NamedTuple):
    """A linear observation in the basis where its noise is white and A Aᵀ diagonal; computed once."""

    whiten: Float[Array, "m m"]  # from a residual to white noise
    squares: Float[Array, " m"]  # eigenvalues of A Aᵀ there
    log_det: Float[Array, ""]  # of the noise


def spectrum(factor: LinearGaussian, event_shape: tuple[int, ...]) -> Spectrum:
    """Diagonalise noise and A Aᵀ together."""
    rows = factor.rows(event_shape).reshape(factor.num_observed, -1)
    lower = jnp.linalg.cholesky(factor.covariance())
    white = solve_triangular(lower, rows, lower=True)
    squares, basis = jnp.linalg.eigh(dot(white, white.T))
    whiten = solve_triangular(lower, basis, lower=True, trans=1).T
    return Spectrum(whiten, jnp.clip(squares, 0.0), 2 * jnp.sum(jnp.log(jnp.diagonal(lower))))


def as_linear(process: ReverseProcess, factor: Any) -> LinearGaussian:
    """The factor as a linear observation; known coordinates as observed with little noise, which a twist may do."""
    if isinstance(factor, Product):
        return stack(tuple(as_linear(process, part) for part in factor.factors))
    if isinstance(factor, Delta):
        diffusion: Any = process.diffusion
        noise = jnp.broadcast_to(1e-3 * diffusion.scale, process.event_shape)
        factor = Gaussian(jnp.where(factor.mask, factor.values, 0.0), jnp.where(factor.mask, noise, jnp.inf))
    return factor.linear(process.event_shape)


class PseudoInverse(AbstractTwist):
    """ψ_t(x_t) = N(y; A E[x_0|x_t], Σ_y + v_t A Aᵀ) with v_t = (1 − ᾱ_t)c² (ΠGDM, Song et al. 2023).

    v_t is what x_0 given x_t has for data of the noise law; for a `LinearGaussian`, the largest of its elements. One
    gradient through the denoiser a step, and for a linear operator one eigendecomposition in all. In a product, factors
    other than `Gaussian`, `LinearGaussian` and `Delta` are taken at E[x_0|x_t], as `Tweedie` does.
    """

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Only for Gaussian diffusions."""
        require_gaussian(process.diffusion, "twist: PseudoInverse is for a GaussianDiffusion")

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """The spectrum of every linear operator."""
        parts = factors_of(factor)
        return [spectrum(part, process.event_shape) if isinstance(part, LinearGaussian) else None for part in parts]

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s led by the gradient of log ψ_t."""
        diffusion: Any = process.diffusion
        variance = diffusion.schedule.noise_variance(t) * diffusion.scale**2

        def predict(x: Array) -> tuple[Array, Any]:
            posterior, kernel = process.denoiser.denoise(diffusion, x, t, s)
            return posterior.mean, kernel

        def log_psi(mean: Array) -> Array:
            parts = zip(factors_of(factor), shared, strict=True)
            return sum((_inflated(part, known, mean, variance) for part, known in parts), jnp.zeros(()))

        mean, pull, kernel = jax.vjp(predict, x_t, has_aux=True)
        value, outer = jax.value_and_grad(log_psi)(mean)
        (gradient,) = pull(outer)
        shift = jacobian_shift(process, gradient, variance * outer, t)
        return TwistedStep(value, kernel, shifted(process, kernel, shift, t, s))


def _inflated(factor: AbstractFactor, known: Any, mean: Array, variance: Array) -> Array:
    """log ∫ r(x) N(x; mean, variance) dx where r is a Gaussian observation, log r(mean) where it is another factor."""
    if isinstance(factor, LinearGaussian):
        white = dot(known.whiten, factor.residual(mean))
        widened = 1 + jnp.max(variance) * known.squares
        return factor.log_density(jnp.sum(white**2 / widened), known.log_det + jnp.sum(jnp.log(widened)))
    if isinstance(factor, Gaussian | Delta):
        return _closed(factor, normal(mean, variance))[0]
    return factor.log_r(mean)


class MomentMatched(AbstractTwist):
    r"""ψ_t(x_t) = ∫ r(x_0) N(x_0; E[x_0|x_t], V_t) dx_0, V_t = Cov[x_0|x_t] by Jacobian-vector products.

    :math:`V_t = (1-\bar\alpha_t)c^2/\sqrt{\bar\alpha_t}\;\partial E[x_0|x_t]/\partial x_t` (Boys et al. 2023; as a
    likelihood Rozet et al. 2024). It is E[r(x_0) | x_t] itself when x_0 given x_t is Gaussian; where the denoiser says
    so, the proposal is p(x_s | x_t, r) too, and no weight changes. Otherwise it is made narrower by three quarters of
    what that would be, since the step's target may have several modes. For bits, x_0 given x_t is taken to be the
    denoiser's independent bits.

    Args:
        covariance: how V_t is taken for real numbers. ``"exact"``: one Jacobian-vector product for each element of y.
            ``"diagonal"``: only its diagonal, taken to be V_t's row sums; one product (Boys et al. 2023).
            ``"iterative"``: `iterations` products in a conjugate-gradient solve; the log determinant in ψ_t is then
            `PseudoInverse`'s, and the proposal keeps the kernel's variance. ``"auto"``: ``"exact"`` for up to
            `max_exact` elements of y, else ``"iterative"``; ``"diagonal"`` for factors that are not linear, and bits.
        max_exact: see ``"auto"``.
        iterations: of the conjugate gradients.
    """

    covariance: Covariance = eqx.field(static=True)
    max_exact: int = eqx.field(static=True)
    iterations: int = eqx.field(static=True)

    def __init__(self, covariance: Covariance = "auto", *, max_exact: int = 16, iterations: int = 8) -> None:
        choices: tuple[Covariance, ...] = ("auto", "exact", "diagonal", "iterative")
        self.covariance = check_choice("covariance", covariance, choices)
        self.max_exact = check_count("max_exact", max_exact, 0)
        self.iterations = check_count("iterations", iterations)

    def how(self, process: ReverseProcess, factor: AbstractFactor) -> str:
        """The `covariance` used for a factor."""
        if self.covariance != "auto":
            return self.covariance
        size = factor.observation_size(process.event_shape)
        if not process.diffusion.is_gaussian or size is None:
            return "diagonal"
        return "exact" if size <= self.max_exact else "iterative"

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Only for linear-Gaussian factors, known elements, and what multiplies a factorised law in closed form."""
        linear = factor.observation_size(process.event_shape) is not None
        if self.how(process, factor) != "diagonal" and linear:
            return
        law = jax.eval_shape(lambda: process.terminal())
        if jax.eval_shape(lambda: factor.multiply(process.terminal())) is None:
            raise ValueError(
                f"twist: MomentMatched needs a factor that multiplies a {type(elements(law)).__name__} in closed form, "
                f"got {type(factor).__name__}; Tweedie takes any"
            )
        if self.how(process, factor) != "diagonal":
            kind = type(factor).__name__
            raise ValueError(f"covariance: {self.covariance!r} is for linear-Gaussian factors, got {kind}")

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """The observation as a linear one, with its rows or its spectrum."""
        how = self.how(process, factor)
        if how == "diagonal" or not process.diffusion.is_gaussian:
            return None
        linear = as_linear(process, factor)
        return linear, (linear.rows if how == "exact" else partial(spectrum, linear))(process.event_shape)

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t) and the product of p(x_s | x_t) with it."""
        diffusion: Any = process.diffusion
        if not diffusion.is_gaussian:
            posterior, kernel = process.denoiser.denoise(diffusion, x_t, t, s)
            log_psi, tilted = _closed(factor, posterior)
            return TwistedStep(log_psi, kernel, diffusion.average_bridge(x_t, tilted, t, s))

        def predict(x: Array) -> tuple[Array, Any]:
            posterior, kernel = process.denoiser.denoise(diffusion, x, t, s)
            return posterior.mean, kernel

        mean, push, kernel = jax.linearize(predict, x_t, has_aux=True)
        covariance = lambda v: covariance_factor(diffusion, t) * push(diffusion.scale**2 * v)
        how = self.how(process, factor)
        linear, shared = (factor, None) if how == "diagonal" else shared
        view = _View(diffusion, linear, shared, x_t, mean, covariance, kernel, t, s)
        if how == "exact":
            return _exact(view, 1.0 if process.denoiser.is_gaussian else NARROWING)
        return _diagonal(view) if how == "diagonal" else _iterative(view, self.iterations)


class _View(NamedTuple):
    """What the denoiser says at one x_t, and what it is asked for."""

    diffusion: GaussianDiffusion
    factor: Any
    shared: Any
    x_t: Array
    mean: Array  # E[x_0 | x_t]
    covariance: Callable[[Array], Array]  # v ↦ Cov[x_0 | x_t] v
    kernel: Distribution  # p(x_s | x_t)
    t: Array
    s: Array

    @property
    def from_data(self) -> Float[Array, ""]:
        """Weight of x_0 in the mean of x_s."""
        return self.diffusion.bridge_coefficients(self.t, self.s)[0]

    @property
    def noise_like(self) -> Float[Array, "..."]:
        """Var[x_0 | x_t] of data of the noise law."""
        return self.diffusion.schedule.noise_variance(self.t) * self.diffusion.scale**2


def _iterative(view: _View, iterations: int) -> TwistedStep:
    """A conjugate-gradient solve with Σ_y + A V Aᵀ in the spectrum's white basis."""
    factor, shared, kernel = view.factor, view.shared, view.kernel
    lift = lambda u: factor.transpose(dot(shared.whiten.T, u), view.x_t.shape)
    matvec = lambda u: u + dot(shared.whiten, factor.apply(view.covariance(lift(u))))
    white = dot(shared.whiten, factor.residual(view.mean))
    variance = jnp.max(view.noise_like)
    solved = conjugate_gradients(matvec, white, 1 + variance * shared.squares, iterations)
    # The solve is no exact quadratic form when cut short; below 0 it would make ψ grow with the misfit.
    square = jnp.maximum(dot(white, solved), 0.0)
    log_det = shared.log_det + jnp.sum(jnp.log1p(variance * shared.squares))
    shift = view.from_data * view.covariance(lift(solved))
    return TwistedStep(factor.log_density(square, log_det), kernel, normal(kernel.mean + shift, laws.variance(kernel)))


def conjugate_gradients(
    matvec: Callable[[Float[Array, " m"]], Float[Array, " m"]],
    target: Float[Array, " m"],
    preconditioner: Float[Array, " m"],
    iterations: int,
) -> Float[Array, " m"]:
    """Solve with a positive definite matrix, approximately: a fixed number of steps from 0."""

    def step(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        solved, residual, direction, size = state
        image = matvec(direction)
        curvature = dot(direction, image)
        length = jnp.where(curvature > 0, size / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        solved, residual = solved + length * direction, residual - length * image
        new = dot(residual, residual / preconditioner)
        ratio = jnp.where(size > 0, new / jnp.where(size > 0, size, 1.0), 0.0)
        return solved, residual, residual / preconditioner + ratio * direction, new

    start = target / preconditioner
    state = (jnp.zeros_like(target), target, start, dot(target, start))
    return jax.lax.fori_loop(0, iterations, step, state)[0]


def _exact(view: _View, narrowing: float) -> TwistedStep:
    """Condition on y with Cov[y, x_0] = A V, one product with V for each row of A."""
    rows, factor, kernel = view.shared, view.factor, view.kernel
    covariances = jax.vmap(view.covariance)(rows)
    log_psi, shift, directions = condition(factor, factor.residual(view.mean), covariances, rows, project=True)
    scale = jnp.sqrt(kernel.variance)
    taken = narrowing**0.5 * view.from_data * directions / scale
    return TwistedStep(log_psi, kernel, LoweredNormal(kernel.mean + view.from_data * shift, scale, taken))


def _diagonal(view: _View) -> TwistedStep:
    """Condition element by element on V's row sums, at most the variance that a flat prior would leave."""
    alpha_bar = jnp.maximum(view.diffusion.schedule.alpha_bar(view.t), 1e-12)
    variance = jnp.clip(view.covariance(jnp.ones_like(view.mean)), 1e-3 * view.noise_like, view.noise_like / alpha_bar)
    log_psi, tilted = _closed(view.factor, normal(view.mean, variance))
    return TwistedStep(log_psi, view.kernel, view.diffusion.average_bridge(view.x_t, tilted, view.t, view.s))


def _closed(factor: AbstractFactor, law: Distribution) -> tuple[Array, Any]:
    product = factor.multiply(law)
    if product is None:
        kind = type(factor).__name__
        raise ValueError(f"factor: {kind} does not multiply this law in closed form; the Tweedie twist takes any")
    return product
