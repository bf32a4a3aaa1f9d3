"""What each head's output means, against kernels written out in numpy."""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from numpyro_diffusion import BinomialDiffusion, GaussianDiffusion, KBound, ReverseProcess, load, networks, schedules
from numpyro_diffusion.denoisers import Enumerated, Network
from numpyro_diffusion.samplers import Ancestral

BETA = np.array([0.02, 0.1, 0.3, 0.15, 0.5])
T = len(BETA)
KEPT = np.concatenate([[1.0], np.cumprod(1 - BETA)])
LOST = 1 - KEPT
LOC, SCALE = np.array([0.7, -3.0]), np.array([2.5, 0.3])
PAIRS = np.array([(t, s) for t in range(2, T + 1) for s in range(1, t)])
Z = np.array([0.8, -1.4])
X = LOC + SCALE * Z


def _diffusion() -> GaussianDiffusion:
    return GaussianDiffusion(schedules.from_beta(BETA), LOC, SCALE)


def _kernels(denoiser: Any, diffusion: Any = None, x: Any = X, pairs: Any = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the kernels at x for each pair of t and s, in standardised units."""
    diffusion = _diffusion() if diffusion is None else diffusion

    def moments(t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = denoiser.reverse(diffusion, jnp.asarray(x), t, s)
        return law.mean, law.variance

    mean, variance = jax.jit(jax.vmap(moments))(*np.asarray(pairs).T)
    if isinstance(diffusion, GaussianDiffusion):
        return (np.asarray(mean) - LOC) / SCALE, np.asarray(variance) / SCALE**2
    return np.asarray(mean), np.asarray(variance)


def _guess(z: Any, t: Any, np: Any = np) -> Any:
    """E[z_0 | z_t] for bits of size one, element by element: a true posterior mean."""
    kept = np.asarray(KEPT)[np.asarray(t, int)]
    return np.tanh(np.sqrt(kept) * z / (1 - kept))


def _noise_head(z: jax.Array, t: jax.Array) -> jax.Array:
    kept = jnp.asarray(KEPT)[jnp.asarray(t, int)]
    return (z - jnp.sqrt(kept) * _guess(z, t, jnp)) / jnp.sqrt(1 - kept)


def _velocity_head(z: jax.Array, t: jax.Array) -> jax.Array:
    kept = jnp.asarray(KEPT)[jnp.asarray(t, int)]
    return jnp.sqrt(kept) * _noise_head(z, t) - jnp.sqrt(1 - kept) * _guess(z, t, jnp)


HEADS = {"noise": _noise_head, "data": lambda z, t: _guess(z, t, jnp), "velocity": _velocity_head}


def _coefficients(t: int, s: int) -> tuple[float, float, float, float]:
    """Weights of z_0 and z_t in the bridge's mean, its variance, and the stride's beta."""
    beta = 1 - KEPT[t] / KEPT[s]
    return (
        np.sqrt(KEPT[s]) * beta / LOST[t],
        np.sqrt(1 - beta) * LOST[s] / LOST[t],
        beta * LOST[s] / LOST[t],
        beta,
    )


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "learned"])
@pytest.mark.parametrize("predicts", HEADS)
def test_heads_mean_the_same_kernel(predicts: str, variance: str, x64: None) -> None:
    """Noise, data and velocity of one posterior mean give one kernel; the variance is as named."""
    mix = np.array([0.4, -0.9])
    head = HEADS[predicts]
    fn = (lambda z, t: (head(z, t), jnp.asarray(mix))) if variance == "learned" else head
    mean, spread = _kernels(Network(fn, predicts, variance))
    for i, (t, s) in enumerate(PAIRS):
        data, noise, tilde, beta = _coefficients(t, s)
        np.testing.assert_allclose(mean[i], data * _guess(Z, t) + noise * Z, rtol=1e-9)
        share = {"beta": np.ones(2), "beta_tilde": np.zeros(2), "learned": (mix + 1) / 2}[variance]
        np.testing.assert_allclose(spread[i], np.exp(share * np.log(beta) + (1 - share) * np.log(tilde)), rtol=1e-9)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "learned"])
@pytest.mark.parametrize("predicts", HEADS)
def test_clipping_moves_the_prediction_and_the_mean_that_follows(predicts: str, variance: str, x64: None) -> None:
    """The prediction is moved into the range, in data units; kernels follow it, and their variance does not move."""
    low, high = 0.9, 1.3  # between the two elements of E[x_0 | x_t]: one is moved up, the other down
    head = HEADS[predicts]
    fn = (lambda z, t: (head(z, t), 0.2 * z)) if variance == "learned" else head
    free, clipped = (Network(fn, predicts, variance, clip) for clip in (None, (low, high)))
    (_, spread), (mean, same) = _kernels(free), _kernels(clipped)
    np.testing.assert_array_equal(same, spread)
    for i, (t, s) in enumerate(PAIRS):
        prediction = LOC + SCALE * _guess(Z, t)
        assert prediction[0] > high and prediction[1] < low
        data, noise, _, _ = _coefficients(t, s)
        np.testing.assert_allclose(mean[i], data * (np.array([high, low]) - LOC) / SCALE + noise * Z, rtol=1e-9)
    found = jax.jit(lambda x: clipped.posterior(_diffusion(), x, 3).mean)(jnp.asarray(X))
    np.testing.assert_allclose(found, [high, low], rtol=1e-12)


def test_ddpm_mean_by_its_own_formula(x64: None) -> None:
    """The noise head's mean is (x - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha)."""
    mean, _ = _kernels(Network(_noise_head), pairs=[(t, t - 1) for t in range(2, T + 1)])
    for i, t in enumerate(range(2, T + 1)):
        noise = (Z - np.sqrt(KEPT[t]) * _guess(Z, t)) / np.sqrt(LOST[t])
        expected = (Z - BETA[t - 1] / np.sqrt(LOST[t]) * noise) / np.sqrt(1 - BETA[t - 1])
        np.testing.assert_allclose(mean[i], expected, rtol=1e-9)


def test_learned_variance_ends_at_its_two_bounds(x64: None) -> None:
    """v = 1 is beta, v = -1 is beta-tilde; the last step, where beta-tilde is 0, uses the second step's."""
    pairs = [(3, 2), (4, 1), (1, 0)]
    for sign, pick in ((1.0, 3), (-1.0, 2)):
        fn = lambda z, t, sign=sign: (z, jnp.full(2, sign))
        _, spread = _kernels(Network(fn, "data", "learned"), pairs=pairs)
        last = BETA[0] if sign > 0 else _coefficients(2, 1)[2]
        expected = [*(_coefficients(t, s)[pick] for t, s in pairs[:2]), last]
        np.testing.assert_allclose(spread, np.repeat(np.array(expected)[:, None], 2, 1), rtol=1e-9)


def test_mean_head_is_equations_64_and_65(x64: None) -> None:
    """With the square root that makes zero output the forward kernel."""
    shift, spread = np.array([0.3, -0.6]), np.array([0.5, -1.2])
    pairs = np.array([(1, 0), *PAIRS])
    mean, variance = _kernels(Network(lambda z, t: (jnp.asarray(shift), jnp.asarray(spread)), "mean"), pairs=pairs)
    zero = _kernels(Network(lambda z, t: (jnp.zeros(2), jnp.zeros(2)), "mean"), pairs=pairs)
    for i, (t, s) in enumerate(pairs):
        beta = 1 - KEPT[t] / KEPT[s]
        sigma = 1 / (1 + np.exp(-(spread + np.log(beta / (1 - beta)))))
        np.testing.assert_allclose(variance[i], sigma, rtol=1e-9)
        np.testing.assert_allclose(mean[i], (Z - shift) * np.sqrt(1 - sigma) + shift, rtol=1e-9)
        np.testing.assert_allclose(zero[0][i], np.sqrt(1 - beta) * Z, rtol=1e-9)
        np.testing.assert_allclose(zero[1][i], beta, rtol=1e-9)


def test_mean_head_predicts_the_data_that_its_kernel_implies(x64: None) -> None:
    """The bridge from the prediction has the kernel's mean; averaged over the posterior, its variance."""
    fn = lambda z, t: (0.3 * jnp.sin(z) + 0.1, 0.4 * jnp.cos(z))
    denoiser, times = Network(fn, "mean"), np.arange(1, T + 1)
    kernel = _kernels(denoiser, pairs=[(t, t - 1) for t in times])

    def posterior(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = denoiser.posterior(_diffusion(), jnp.asarray(X), t)
        return law.mean, law.variance

    mean, variance = (np.asarray(a) for a in jax.jit(jax.vmap(posterior))(times))
    for i, t in enumerate(times):
        data, noise, tilde, _ = _coefficients(t, t - 1)
        np.testing.assert_allclose(data * (mean[i] - LOC) / SCALE + noise * Z, kernel[0][i], rtol=1e-8)
        np.testing.assert_allclose(
            data**2 * variance[i] / SCALE**2, np.maximum(kernel[1][i] - tilde, 0), rtol=1e-7, atol=1e-13
        )


def test_exact_logits_are_the_enumerated_kernel(x64: None) -> None:
    """A head that returns the exact log-odds gives the oracle's kernels, which are Bayes averaged bridges."""
    states, chances = np.array([[0, 1], [1, 1], [1, 0]]), np.array([0.2, 0.5, 0.3])
    rate, diffusion = 0.3, BinomialDiffusion(schedules.from_beta(BETA), 0.3)

    def fn(x: jax.Array, t: jax.Array) -> jax.Array:
        ones = jnp.asarray(KEPT)[jnp.asarray(t, int)] * states
        ones = ones + (1 - jnp.asarray(KEPT)[jnp.asarray(t, int)]) * rate
        weight = chances * jnp.prod(jnp.where(x > 0.5, ones, 1 - ones), axis=1)
        return jnp.log(weight @ states) - jnp.log(weight @ (1 - states))

    for x in (np.array([0.0, 1.0]), np.array([1.0, 1.0])):
        mean, _ = _kernels(Network(fn, "logits"), diffusion, x)
        oracle, _ = _kernels(Enumerated(states, chances), diffusion, x)
        np.testing.assert_allclose(mean, oracle, rtol=1e-9)
        for i, (t, s) in enumerate(PAIRS):
            # For each bit: sum over x_0 of q(x_s | x_0) q(x_t | x_s) p(x_0 | x_t) / q(x_t | x_0).
            bit = lambda a, x=x: np.where(x > 0.5, a, 1 - a)
            beta = 1 - KEPT[t] / KEPT[s]
            at_t, at_s = (KEPT[u] * states + LOST[u] * rate for u in (t, s))
            weight = chances * np.prod(bit(at_t), axis=1)
            bridges = at_s * bit((1 - beta) + beta * rate) / bit(at_t)
            np.testing.assert_allclose(mean[i], weight @ bridges / weight.sum(), rtol=1e-9)


def test_zero_output_for_bits_is_the_forward_kernel(x64: None) -> None:
    """Free logits are added to those of the reversed forward step, and the prediction fits the kernel."""
    rate, diffusion = 0.3, BinomialDiffusion(schedules.from_beta(BETA), 0.3)
    x, shift = np.array([0.0, 1.0]), np.array([0.7, -0.2])
    pairs = np.array([(1, 0), *PAIRS])
    zero, _ = _kernels(Network(lambda z, t: jnp.zeros(2), "mean"), diffusion, x, pairs)
    denoiser = Network(lambda z, t: jnp.asarray(shift), "mean")
    moved, _ = _kernels(denoiser, diffusion, x, pairs)
    beta = 1 - KEPT[pairs[:, 0]] / KEPT[pairs[:, 1]]
    forward = x * (1 - beta[:, None]) + beta[:, None] * rate
    np.testing.assert_allclose(zero, forward, rtol=1e-9)
    odds = forward / (1 - forward) * np.exp(shift)
    np.testing.assert_allclose(moved, odds / (1 + odds), rtol=1e-9)
    t = 4
    on, off, kernel, prediction = jax.jit(
        lambda: (
            diffusion.bridge(x, np.ones(2), t).mean,
            diffusion.bridge(x, np.zeros(2), t).mean,
            denoiser.reverse(diffusion, jnp.asarray(x), t).mean,
            denoiser.posterior(diffusion, jnp.asarray(x), t).mean,
        )
    )()
    expected = np.clip((kernel - off) / (on - off), 1e-6, 1 - 1e-6)
    np.testing.assert_allclose(prediction, expected, rtol=1e-6)


def test_the_network_sees_standardised_data_and_the_original_step(x64: None) -> None:
    """z = (x - loc)/scale and, after respacing, the step of the chain it was trained for."""
    diffusion = GaussianDiffusion(schedules.cosine(100).respace(4), LOC, SCALE)
    echo = lambda head, t: jax.jit(lambda: Network(head, "data").posterior(diffusion, jnp.asarray(X), t).mean)()
    np.testing.assert_allclose((echo(lambda z, t: z, 3) - LOC) / SCALE, Z, rtol=1e-12)
    np.testing.assert_allclose((echo(lambda z, t: t * jnp.ones(2), 3) - LOC) / SCALE, 75, rtol=1e-12)
    np.testing.assert_allclose((echo(lambda z, t: t * jnp.ones(2), 2.5) - LOC) / SCALE, 62.5, rtol=1e-12)


def test_modules_are_trained_and_other_callables_are_not() -> None:
    """An Equinox module's arrays are leaves of the denoiser; a function has none."""
    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    wrapped = Network(eqx.nn.Lambda(jnp.tanh), "data")
    assert jax.tree.leaves(eqx.filter(wrapped, eqx.is_array)) == []
    assert len(jax.tree.leaves(eqx.filter(Network(layer), eqx.is_array))) == 2


BITS = BinomialDiffusion(schedules.from_beta(BETA))
ONE = lambda z, t: z[0]
PLAIN = lambda z, t: z
UNEVEN = lambda z, t: (z, z[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Network(3), r"fn: expected a callable fn\(x_t, t\), got 3"),
        (lambda: Network(PLAIN, "score"), "predicts: expected one of 'noise', 'data', .*, got 'score'"),
        (lambda: Network(PLAIN, variance="fixed"), "variance: expected one of 'beta', .*, got 'fixed'"),
        (
            lambda: Network(PLAIN, clip=(1.0, 1.0)),
            r"clip: expected the least and the greatest value, .* got \(1.0, 1.0",
        ),
        (lambda: Network(PLAIN, clip=1.0), r"clip: expected the least and the greatest value, \(low, high\), got 1.0"),
        (
            lambda: Network(PLAIN, "mean", clip=(-1.0, 1.0)),
            r"clip: expected None with predicts='mean', got \(-1.0, 1.0",
        ),
        (
            lambda: ReverseProcess(_diffusion(), Network(ONE), 2),
            r"fn: expected an output of the shape of its input, \(2,\), got \(\)",
        ),
        (
            lambda: ReverseProcess(_diffusion(), Network(UNEVEN, "mean"), 2),
            r"fn: expected an output of the shape of its input, \(2,\), got \(\)",
        ),
        (
            lambda: ReverseProcess(_diffusion(), Network(lambda z, t: jnp.stack([z] * 3), "mean"), 2),
            "fn: predicts='mean', variance='beta' needs a pair of outputs, each of shape",
        ),
        (
            lambda: ReverseProcess(_diffusion(), Network(lambda z, t: z.sum(), "noise", "learned"), 2),
            r"fn: predicts='noise', variance='learned' needs a pair of outputs.* got \(\)",
        ),
        (
            lambda: ReverseProcess(_diffusion(), Network(PLAIN, "logits"), 2),
            "predicts: expected 'noise' or 'data' .* with GaussianDiffusion, got 'logits'",
        ),
        (
            lambda: ReverseProcess(BITS, Network(PLAIN, "noise"), 2),
            "predicts: expected 'logits' or 'mean' with BinomialDiffusion, got 'noise'",
        ),
        (
            lambda: ReverseProcess(BITS, Network(ONE, "logits"), 2),
            r"fn: expected an output of the shape of its input, \(2,\), got \(\)",
        ),
    ],
)
def test_errors(build: Callable[[], Any], message: str) -> None:
    """Wrong arguments and outputs are named, with what was expected and what came."""
    with refused(message):
        build()


class _Recording(eqx.Module):
    """A network that says in what type it computes."""

    weight: jax.Array
    seen: dict[str, Any] = eqx.field(static=True)

    def __call__(self, z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = self.weight * z
        self.seen.update(out=out.dtype, t=jnp.result_type(t))
        return out, jnp.zeros_like(z)


def test_a_network_computes_in_the_type_that_is_asked_for() -> None:
    """Weights and input are cast, the step is not; answers and gradients are float32."""
    seen: dict[str, Any] = {}
    net, diffusion = _Recording(jnp.full(2, 1 / 3, jnp.float32), seen), _diffusion()
    exact, half = (Network(net, "noise", "learned", dtype=kind) for kind in (None, "bfloat16"))

    def mean(denoiser: Network) -> jax.Array:
        law = denoiser.reverse(diffusion, jnp.asarray(X, jnp.float32), 3, 2)
        return law.mean.sum() + law.variance.sum()

    run = eqx.filter_jit(eqx.filter_value_and_grad(mean))
    (expected, slope), kept = run(exact), dict(seen)
    value, gradient = run(half)
    assert kept["out"] == jnp.float32 and seen == {"out": jnp.bfloat16, "t": kept["t"]}
    assert value.dtype == gradient.fn.weight.dtype == jnp.float32
    assert value != expected
    np.testing.assert_allclose(value, expected, rtol=1e-2)
    np.testing.assert_allclose(gradient.fn.weight, slope.fn.weight, rtol=2e-2)
    with pytest.raises(ValueError, match="dtype: expected one of 'bfloat16', 'float16', 'float32', got 'int8'"):
        Network(net, dtype="int8")


@pytest.mark.parametrize("build", ["mlp", "bump", "multiscale", "unet"])
def test_every_network_stays_in_a_lower_type(build: str) -> None:
    """No product is taken in float32, though the step is a float32."""
    key = jax.random.key(0, impl="unsafe_rbg")
    nets = {
        "mlp": lambda: networks.MLP(key, (4, 4), num_steps=5, width=8, depth=1, time_features=4),
        "bump": lambda: networks.BumpReadout(networks.Dense(key, (4, 4), outputs=4, width=4, depth=1), num_steps=5,
                                             num_bumps=4, outputs=1),
        "multiscale": lambda: networks.BumpReadout(networks.MultiScale(key, (4, 4), outputs=4, channels=3),
                                                   num_steps=5, num_bumps=4, outputs=1),
        "unet": lambda: networks.UNet(key, (4, 4), **networks.UNET_SIZES["tiny"]),
    }  # fmt: skip
    shapes = eqx.filter_eval_shape(nets[build])
    net = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype) if eqx.is_array_like(a) or hasattr(a, "shape") else a, shapes
    )
    denoiser, diffusion = Network(net, dtype="bfloat16"), GaussianDiffusion(schedules.cosine(5))
    program = jax.make_jaxpr(lambda x: denoiser.posterior(diffusion, x, 3).mean)(jnp.zeros((4, 4)))
    assert program.out_avals[0].dtype == jnp.float32
    products = re.findall(r":(\w+)\[[\d,]*\] = (?:dot_general|convolution_3x3)\[", str(program))
    assert products and set(products) == {"bf16"}


@pytest.mark.slow
def test_bfloat16_leaves_the_bound_of_the_digits_within_half_a_percent() -> None:
    """K of a trained network, on draws from it, with the same noise."""
    exact = load("digits").process
    half = eqx.tree_at(lambda p: p.denoiser, exact, Network(exact.denoiser.fn, "velocity", dtype="bfloat16"))
    draw = lambda key: Ancestral(20).sample(key, exact)

    @eqx.filter_jit
    def both(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jax.vmap(draw)(keys)
        bounds = [KBound(2, 16)(jax.random.key(1), process, x).value.mean() for process in (exact, half)]
        return bounds[0], bounds[1]

    values = [float(value) for value in both(jax.random.split(jax.random.key(0), 16))]
    assert values[0] != values[1]
    assert abs(values[1] / values[0] - 1) < 0.005, values
