"""Categorical diffusion against enumeration: the process, the bound and posteriors of its own chain, in numpy."""

import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import BinomialDiffusion, CategoricalDiffusion, KBound, ReverseProcess, laws, schedules
from numpyro_diffusion.denoisers import Enumerated
from numpyro_diffusion.factors import Categorical, Delta, Factor
from numpyro_diffusion.samplers import ParticleGibbs, TwistedSMC

T, K = 4, 3
NOISES: dict[str, Any] = {"uniform": "uniform", "absorbing": "absorbing", "frequencies": [0.5, 0.2, 0.3]}
PAIRS = np.array([(t, s) for t in range(1, T + 1) for s in range(t)])
LISTED, SHARES = np.array([[0, 0], [1, 0], [2, 1], [2, 2]]), np.array([0.1, 0.3, 0.4, 0.2])
DATA = np.array(list(itertools.product(range(K), repeat=2)))
WEIGHTS = np.array([[0.5, -1.0, 1.0], [0.0, 1.5, -0.5]])
FACTORS = {
    "elementwise": Categorical(WEIGHTS),
    "known": Delta([2, 0], [True, False]) * Categorical(WEIGHTS),
    "coupled": Factor(lambda x: jnp.where(x[0] == x[1], 1.5, -0.5) + 0.4 * x[0]),
}
UNIFORM = pytest.param("uniform", marks=pytest.mark.slow)


def diffusion_of(noise: str) -> CategoricalDiffusion:
    return CategoricalDiffusion(schedules.erasing(T), K, NOISES[noise])


def process_of(noise: str) -> ReverseProcess:
    return ReverseProcess(diffusion_of(noise), Enumerated(LISTED, SHARES), 2)


def noise_law(noise: str) -> np.ndarray:
    return {"uniform": np.full(K, 1 / K), "absorbing": np.eye(K + 1)[K]}.get(noise, np.asarray([0.5, 0.2, 0.3]))


def transition(t: int, s: int, noise: str) -> np.ndarray:
    """One element's transition matrix, [from, to], by multiplying those of single steps."""
    law = noise_law(noise)
    chain = np.eye(len(law))
    for u in range(s + 1, t + 1):
        beta = 1 / (T - u + 1)
        chain = chain @ ((1 - beta) * np.eye(len(law)) + beta * law)
    return chain


def entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), -1)


def states_of(noise: str) -> np.ndarray:
    return np.array(list(itertools.product(range(len(noise_law(noise))), repeat=2)))


def chances(law: Any, states: np.ndarray) -> np.ndarray:
    """Probabilities of all states under a batch of laws, shape (n, len(states))."""
    logits = np.asarray(laws.class_logits(law), np.float64)
    each = np.take_along_axis(logits[:, None], np.broadcast_to(states, (len(logits), *states.shape))[..., None], -1)
    return np.exp(each[..., 0].sum(-1))


@functools.cache
def kernels(noise: str) -> list[np.ndarray]:
    """p(x_s | x_t) over all states, from T down to the last step."""
    process, states = process_of(noise), states_of(noise)
    inner = jax.jit(lambda t: jax.vmap(lambda x: process.inner_kernel(x, t, t - 1))(states))
    last = jax.jit(jax.vmap(process.last_kernel))(states)
    return [*(chances(inner(float(t)), states) for t in range(T, 1, -1)), chances(last, states)]


def prior_law(noise: str) -> np.ndarray:
    """p(x_0) of the chain itself over DATA."""
    states = states_of(noise)
    p = noise_law(noise)[states].prod(-1)
    for kernel in kernels(noise):
        p = p @ kernel
    inside = (states < K).all(-1)
    np.testing.assert_allclose(p[inside].sum(), 1.0, rtol=1e-5)
    return p[inside]


@pytest.mark.parametrize("noise", [UNIFORM, "absorbing", "frequencies"])
def test_process_is_that_of_the_chain(noise: str, x64: None) -> None:
    """Steps, marginals, bridges, their averages and entropies are those of multiplied transition matrices."""
    diffusion, law = diffusion_of(noise), noise_law(noise)
    size = len(law)
    x_t, x_0 = (grid.ravel() for grid in np.meshgrid(np.arange(size), np.arange(K), indexing="ij"))
    posterior = np.array([[0.2, 0.5, 0.3]] * size)

    @jax.jit
    @jax.vmap
    def found(t: Any, s: Any) -> Any:
        given = diffusion.posterior_of_values(jnp.log(posterior), jnp.arange(size))
        averaged = diffusion.average_bridge(jnp.arange(size), given, t, s)
        parts = diffusion.step(np.arange(size), t, s), diffusion.bridge(x_t, x_0, t, s), averaged, given
        entropies = diffusion.step_entropy(np.array([1]), t, s), diffusion.marginal_entropy(np.array([1]), t)
        both = diffusion.reverse_entropy_bounds(np.array([1]), t, s)
        return [laws.class_logits(part) for part in parts], entropies, both

    logits, entropies, bounds = found(*PAIRS.T)
    step, bridge, averaged, given = (np.exp(np.asarray(part)) for part in logits)
    given = given[0]
    np.testing.assert_allclose(given.sum(-1), 1.0)
    if noise == "absorbing":  # who is not masked is known
        np.testing.assert_array_equal(given[:K, :K], np.eye(K))
    for i, (t, s) in enumerate(PAIRS):
        whole, above, below = (transition(*pair, noise) for pair in ((t, 0), (t, s), (s, 0)))
        np.testing.assert_allclose(step[i], above, atol=1e-12)
        joint = below[x_0] * above[:, x_t].T
        able = joint.sum(1) > 0
        np.testing.assert_allclose(bridge[i][able], joint[able] / joint[able].sum(1, keepdims=True), atol=1e-12)
        rows = bridge[i].reshape(size, K, size)
        reached = able.reshape(size, K).any(1)
        expected = np.einsum("xk,xkj->xj", given[:, :K], rows)
        np.testing.assert_allclose(averaged[i][reached], expected[reached], atol=1e-12)
        expected = below[1] @ entropy(above), entropy(whole[1])
        np.testing.assert_allclose([entropies[0][i], entropies[1][i]], expected, atol=1e-12)
        np.testing.assert_allclose(bounds[1][i] - bounds[0][i], entropy(whole[1]) - entropy(below[1]), atol=1e-12)
    np.testing.assert_allclose(diffusion.terminal_entropy((2,)), 2 * entropy(law), rtol=1e-12)
    cross = float(diffusion.expected_log_terminal(np.array([1, 2]), T))
    np.testing.assert_allclose(cross, -2 * entropy(law) if noise != "absorbing" else 0.0, rtol=1e-12)
    null = np.log(law[[1, 2]]).sum() if noise != "absorbing" else -2 * np.log(K)
    np.testing.assert_allclose(diffusion.log_null(np.array([1, 2])), null, rtol=1e-12)


BITS = np.array([[0, 0, 1], [1, 1, 0], [1, 1, 1]]), np.array([0.2, 0.5, 0.3])
AS_BITS, AS_CLASSES = (
    ReverseProcess(diffusion, Enumerated(*BITS), 3)
    for diffusion in (
        BinomialDiffusion(schedules.erasing(5), 0.3),
        CategoricalDiffusion(schedules.erasing(5), 2, [0.7, 0.3]),
    )
)


def test_two_classes_are_bits() -> None:
    """The same K, its terms, and posterior as a binomial diffusion's, to the precision of float32."""

    @eqx.filter_jit
    def found(process: ReverseProcess) -> Any:
        terms = KBound(4).estimate(jax.random.key(1), process, jnp.array([1, 1, 0])).terms
        return terms, process.denoiser.posterior(process.diffusion, jnp.array([1, 0, 1]), 2.0)

    (one, bits), (two, classes) = found(AS_BITS), found(AS_CLASSES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, two)
    logits = laws.class_logits(classes)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], bits.base_dist.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(classes.mean, bits.mean, rtol=1e-5)


@pytest.mark.slow
def test_two_classes_have_the_particles_of_bits() -> None:
    """With one key, the same particles and evidence under a coupled factor, and the same whole chains."""
    factor = Factor(lambda x: 1.0 * x[0] - 2.0 * x[1] * x[2]) * Delta([1, 0, 0], [True, False, False])
    run = eqx.filter_jit(lambda process: TwistedSMC(16).run(jax.random.key(2), process, factor))
    draw = eqx.filter_jit(lambda process: nd.ReverseTrajectory(process).sample(jax.random.key(5)))
    one, two = run(AS_BITS), run(AS_CLASSES)
    np.testing.assert_array_equal(one.x, two.x)
    np.testing.assert_allclose(one.log_evidence, two.log_evidence, rtol=1e-5)
    np.testing.assert_array_equal(draw(AS_BITS), draw(AS_CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["uniform", "absorbing"])
def test_bound_by_enumeration(noise: str) -> None:
    """Every part of K is the sum over all states that it estimates, and K is below log p(x_0)."""
    process, states, x_0 = process_of(noise), states_of(noise), np.array([2, 1])
    found = jax.jit(jax.vmap(lambda key: KBound(32).estimate(key, process, x_0).terms))(
        jax.random.split(jax.random.key(0), 40)
    )
    reverse, kl = kernels(noise), []
    weight = lambda t: transition(t, 0, noise)[x_0][np.arange(2), states].prod(-1)
    for t in range(2, T + 1):
        seen = weight(t) > 0
        bridge = np.ones((seen.sum(), len(states)))
        for i in range(2):
            joint = transition(t - 1, 0, noise)[x_0[i]] * transition(t, t - 1, noise)[:, states[seen, i]].T
            bridge *= (joint / joint.sum(1, keepdims=True))[:, states[:, i]]
        ratio = np.where(bridge > 0, bridge, 1.0) / np.where(bridge > 0, reverse[T - t][seen], 1.0)
        kl.append(weight(t)[seen] @ (bridge * np.log(ratio)).sum(1))
    target = (states == x_0).all(-1)
    last = weight(1)[weight(1) > 0] @ np.log(reverse[-1][weight(1) > 0][:, target][:, 0])
    for got, expected in ((found.kl, sum(kl)), (found.reconstruction, last)):
        values = np.asarray(got, np.float64)
        assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / np.sqrt(len(values)) + 1e-5
    np.testing.assert_allclose(found.kl_terminal, 0.0, atol=1e-6)
    exact = np.log(prior_law(noise)[(DATA == x_0).all(-1)][0])
    assert last - sum(kl) < exact


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "name"), [("absorbing", "elementwise"), ("uniform", "known"), ("absorbing", "coupled")]
)
def test_posteriors_of_the_chain(noise: str, name: str) -> None:
    """SMC's posterior and unbiased evidence, and particle Gibbs, against the chain multiplied out."""
    process, factor = process_of(noise), FACTORS[name]
    weight = prior_law(noise) * np.exp([float(factor.log_r(x)) for x in DATA])
    truth, index = weight / weight.sum(), lambda x: np.asarray(x).astype(int) @ [K, 1]
    smc = jax.jit(jax.vmap(lambda key: TwistedSMC(64).run(key, process, factor)))
    got = smc(jax.random.split(jax.random.key(3), 200))
    relative = np.exp(np.asarray(got.log_evidence, np.float64) - np.log(weight.sum()))
    each = np.exp(np.asarray(got.log_weight, np.float64) - np.asarray(got.log_weight).max())
    seen = np.stack([np.bincount(i, w, minlength=K * K) / w.sum() for i, w in zip(index(got.x), each, strict=True)])
    error = lambda values: values.std(0, ddof=1) / np.sqrt(len(values))
    assert abs(relative.mean() - 1) < 4 * error(relative) + 1e-4
    spread = relative[:, None] * (seen - truth)
    assert (abs(spread.mean(0)) < 4.5 * error(spread) + 1e-4).all() and (seen[:, truth == 0] == 0).all()

    @jax.jit
    @jax.vmap
    def chain(key: Any) -> Any:
        sampler = ParticleGibbs(4)
        step = lambda path, key: (path := sampler.step(key, process, factor, path).x, path[0])
        return jax.lax.scan(step, sampler.init(key, process, factor).x, jax.random.split(key, 300))[1]

    drawn = index(chain(jax.random.split(jax.random.key(4), 24)))[:, 20:]
    seen = np.stack([np.bincount(row, minlength=K * K) for row in drawn]) / drawn.shape[1]
    common = truth > 2e-3  # rarer states are seen too seldom for a normal law of their frequencies
    assert (abs(seen.mean(0) - truth) < 4.5 * error(seen) + 2e-4)[common].all() and (seen[:, truth == 0] == 0).all()


@pytest.mark.slow
def test_trajectories_of_masked_elements() -> None:
    """Joint densities of both directions make an unbiased estimate of p(x_0), as importance weights do."""
    process, x_0 = process_of("absorbing"), jnp.array([2, 1])
    exact = prior_law("absorbing")[(DATA == np.asarray(x_0)).all(-1)][0]
    forward, reverse = nd.ForwardTrajectory(process.diffusion, x_0), nd.ReverseTrajectory(process)

    @jax.jit
    def ratios(key: Any) -> Any:
        rest = forward.sample(key, (4_000,))
        whole = jnp.concatenate([jnp.broadcast_to(x_0, (4_000, 1, 2)), rest], 1)
        weights = nd.ImportanceWeighted(64).estimate(key, process, x_0)
        return jnp.exp(nd.joint_log_ratio(process, whole)), rest, reverse.sample(key, (500,)), weights.value

    ratio, rest, drawn, value = ratios(jax.random.key(6))
    ratio = np.asarray(ratio, np.float64)
    assert abs(ratio.mean() - exact) < 4 * ratio.std(ddof=1) / np.sqrt(len(ratio))
    assert abs(float(value) - np.log(exact)) < 0.3
    assert (rest[:, -1] == K).all() and forward.support(rest).all() and reverse.support(drawn).all()
    assert (drawn[:, 0] < K).all() and not reverse.support(drawn.at[0, 0, 0].set(K))[0]
    seen = np.asarray(drawn)
    kept = seen[:, 1:] != K  # what is not masked stays what it becomes
    assert (seen[:, :-1][kept] == seen[:, 1:][kept]).all()
