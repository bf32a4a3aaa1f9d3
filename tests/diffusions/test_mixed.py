"""Columns of several kinds: the process against its groups, and laws of a small mixture against quadrature."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion import laws
from numpyro_diffusion.denoisers import Network, ProductMixture, Residual
from numpyro_diffusion.factors import Categorical, Delta, Elementwise, Factor, Gaussian, LinearGaussian
from numpyro_diffusion.samplers import ParticleGibbs, TwistedSMC

T = 40
COLUMNS = ((0, 3), (1,), (2,))  # real, a class of three, a bit, real
WEIGHTS = np.array([0.2, 0.5, 0.3])
LOCS = np.array([[-2.0, 0, 0, 1], [0, 0, 0, -1], [3, 0, 0, 0]])
SCALES = np.array([[0.5, 1, 1, 1], [1, 1, 1, 0.3], [0.4, 1, 1, 0.5]])
CLASSES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9]])
ONES = np.array([0.1, 0.7, 0.5])
SHARES = np.ones((3, 4, 3)) / 3
SHARES[:, 1] = CLASSES
SHARES[:, 2] = np.stack([1 - ONES, ONES, 0 * ONES], 1)
X = np.array([0.4, 2.0, 1.0, -0.7])


def groups(steps: int = T) -> list[nd.AbstractDiffusion]:
    real = nd.GaussianDiffusion(nd.schedules.log_snr(steps), loc=[0.5, 0.0], scale=[2.0, 1.0])
    classes = nd.CategoricalDiffusion(nd.schedules.erasing(steps), 3, "absorbing")
    return [real, classes, nd.BinomialDiffusion(nd.schedules.erasing(steps), 0.4)]


def process(steps: int = T) -> nd.ReverseProcess:
    diffusion = nd.MixedDiffusion(groups(steps), COLUMNS)
    return nd.ReverseProcess(diffusion, ProductMixture(LOCS, SCALES, SHARES, WEIGHTS), 4)


def test_the_forward_process_is_that_of_its_groups(x64: None) -> None:
    """Densities and entropies add up, moments and noise stand in their columns, for steps, marginals and bridges."""
    diffusion, parts = process(6).diffusion, [np.array(own) for own in COLUMNS]
    x_t = np.array([0.1, 3.0, 0.0, 0.2])  # the class is masked
    seen = [X[at] for at in parts]

    @jax.jit
    def pairs() -> Any:
        found = []
        for name, args in {"marginal": (X, 3.0), "bridge": (x_t, X, 4.0, 2.0), "step": (X, 3.0, 1.0)}.items():
            law = getattr(diffusion, name)(*args)
            own = [
                getattr(each, name)(*(arg[at] if np.ndim(arg) else arg for arg in args))
                for each, at in zip(groups(6), parts, strict=True)
            ]
            found.append((law.log_prob(X), sum(each.log_prob(x) for each, x in zip(own, seen, strict=True))))
            found.extend((law.mean[at], each.mean) for each, at in zip(own, parts, strict=True))
            found.extend((law.variance[at], each.variance) for each, at in zip(own, parts, strict=True))
            found.append((laws.event_kl(law, law), 0.0))
        for name in ("marginal_entropy", "step_entropy"):
            total = sum(getattr(each, name)(x, 3.0) for each, x in zip(groups(6), seen, strict=True))
            found.append((getattr(diffusion, name)(X, 3.0), total))
        return found

    for ours, theirs in pairs():
        np.testing.assert_allclose(ours, np.broadcast_to(theirs, ours.shape), rtol=1e-6, atol=1e-9)
    noise = diffusion.noise_from_uniform(jnp.full(4, 0.25))
    np.testing.assert_allclose(noise, [norm.ppf(0.25), 0.25, 0.25, norm.ppf(0.25)], rtol=1e-5)
    np.testing.assert_allclose(diffusion.mirror_noise(noise), [-norm.ppf(0.25), 0.75, 0.75, -norm.ppf(0.25)], rtol=1e-5)
    assert diffusion.network_input(X).shape == diffusion.network_shape((4,)) == (2 + 4 + 1,)
    assert diffusion.terminal((4,)).event_shape == (4,)


def test_the_mixture_is_exact(x64: None) -> None:
    """E[x_0 | x_t] and the law of the class by a sum over components and values, written out."""
    own = process(6)
    real, classes, bits = groups(6)
    x_t, t = np.array([0.1, 1.0, 0.0, 0.2]), 3.0
    kept, lost = (float(share) for share in real.schedule.signal_and_noise(t))
    z = (x_t[[0, 3]] - [0.5, 0.0]) / [2.0, 1.0]
    loc, scale = (LOCS[:, [0, 3]] - [0.5, 0.0]) / [2.0, 1.0], SCALES[:, [0, 3]] / [2.0, 1.0]
    spread = kept * scale**2 + lost
    seen = norm.pdf(z, np.sqrt(kept) * loc, np.sqrt(spread)).prod(1)
    zero = float(bits.schedule.alpha_bar(t)) * (1 - ONES) + (1 - float(bits.schedule.alpha_bar(t))) * 0.6
    share = WEIGHTS * seen * CLASSES[:, 1] * zero
    share /= share.sum()
    mean = loc + np.sqrt(kept) * scale**2 / spread * (z - np.sqrt(kept) * loc)

    @jax.jit
    def answers(x_t: Any) -> Any:
        law = own.denoiser.posterior(own.diffusion, x_t, t)
        return law.mean, law.laws[1].base_dist.logits[0, :3]

    found = np.asarray(answers(x_t)[0])
    np.testing.assert_allclose(found[[0, 3]], [0.5, 0.0] + share @ mean * [2.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(found[1], 1.0)  # a class that is not masked is known
    share = WEIGHTS * seen * zero
    _, logits = answers(np.array([0.1, 3.0, 0.0, 0.2]))  # the class is masked
    np.testing.assert_allclose(np.exp(logits), share @ CLASSES / share.sum(), rtol=1e-5)


@pytest.mark.slow
def test_the_chain_has_the_law_of_the_mixture_and_its_bound_lies_below() -> None:
    own = process()
    keys = jax.random.split(jax.random.key(0), 1500)
    x = np.asarray(jax.jit(jax.vmap(lambda key: nd.samplers.Ancestral().sample(key, own)))(keys))
    mean, shares = WEIGHTS @ LOCS[:, [0, 3]], WEIGHTS @ CLASSES
    spread = np.sqrt(WEIGHTS @ (SCALES**2 + LOCS**2)[:, [0, 3]] - mean**2)
    assert (abs(x[:, [0, 3]].mean(0) - mean) < 5 * spread / np.sqrt(1500)).all()
    counted = np.array([(x[:, 1] == c).mean() for c in range(3)])
    assert (abs(counted - shares) < 5 * np.sqrt(shares * (1 - shares) / 1500)).all()
    within = (WEIGHTS * CLASSES[:, 2]) @ LOCS[:, 0] / (WEIGHTS @ CLASSES[:, 2])
    assert abs(x[x[:, 1] == 2, 0].mean() - within) < 0.3  # 2.26, and 0.5 over all
    exact = jax.jit(jax.vmap(lambda x: own.denoiser.log_prob(own.diffusion, x)))(x[:300])
    bound = nd.KBound(2, 6)
    value = jax.jit(jax.vmap(lambda key, x: bound.estimate(key, own, x).value))(keys[:300], x[:300])
    gap = np.asarray(value - exact)
    assert -0.5 < gap.mean() < 4 * gap.std() / np.sqrt(300)


def wanted(log_r: Any) -> tuple[float, np.ndarray]:
    """log evidence, P(class = 2), P(bit = 1) and E[x_0] by quadrature and sums."""
    first, second = np.linspace(-6, 7, 400), np.linspace(-5, 5, 300)
    one, two = np.meshgrid(first, second, indexing="ij")
    total, moments = 0.0, np.zeros(3)
    for c in range(3):
        for b in range(2):
            value = np.stack([one, np.full(one.shape, c), np.full(one.shape, b), two], -1)
            density = sum(
                WEIGHTS[k] * CLASSES[k, c] * SHARES[k, 2, b]
                * np.outer(norm.pdf(first, LOCS[k, 0], SCALES[k, 0]), norm.pdf(second, LOCS[k, 3], SCALES[k, 3]))
                for k in range(3)
            )  # fmt: skip
            weight = density * np.exp(log_r(value))
            total += weight.sum()
            moments += [(weight * (c == 2)).sum(), (weight * b).sum(), (weight * one).sum()]
    return np.log(total * (first[1] - first[0]) * (second[1] - second[0])), moments / total


def known_class() -> tuple[float, np.ndarray]:
    weight = WEIGHTS * CLASSES[:, 2]
    total = weight.sum()
    return np.log(total), np.array([1.0, weight @ ONES / total, weight @ LOCS[:, 0] / total])


INF = np.inf
SAID = np.zeros((4, 3))
SAID[1] = [1.0, 0.0, -1.0]
CASES: dict[str, Any] = {
    "class": (Delta(np.array([0.0, 2, 0, 0]), np.array([False, True, False, False])), known_class),
    "elements": (
        Gaussian([1.0, 0, 0, 0], [0.7, INF, INF, INF]) * Categorical(SAID),
        lambda: wanted(lambda x: norm.logpdf(1, x[..., 0], 0.7) + 1 - x[..., 1]),
    ),
    "coupled": (
        Factor(lambda x: -2 * (x[0] - x[1] * x[3]) ** 2 + jnp.where(x[2] == 1, 0.5, 0.0)),
        lambda: wanted(lambda x: -2 * (x[..., 0] - x[..., 1] * x[..., 3]) ** 2 + 0.5 * (x[..., 2] == 1)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_smc_has_the_posterior(name: str) -> None:
    """Evidence, class, bit and real column; the chain's law differs a little from the mixture's at so few steps."""
    factor, truth = CASES[name]
    own, (log_evidence, moments) = process(), truth()
    smc = TwistedSMC(64)
    found = jax.jit(jax.vmap(lambda key: smc.run(key, own, factor)))(jax.random.split(jax.random.key(3), 32))
    evidence = np.exp(np.asarray(found.log_evidence) - log_evidence)
    assert abs(evidence.mean() - 1) < 0.15 + 4 * evidence.std() / np.sqrt(32)
    weight = np.asarray(jax.nn.softmax(found.log_weight, -1)) * evidence[:, None]
    columns = np.stack([found.x[..., 1] == 2, found.x[..., 2], found.x[..., 0]], -1)
    each = (weight[..., None] * columns).sum(1) / weight.sum() * 32
    assert (abs(each.mean(0) - moments) < np.array([0.05, 0.05, 0.15]) + 4 * each.std(0) / np.sqrt(32)).all()


@pytest.mark.slow
def test_particle_gibbs_leaves_the_posterior_given_a_class() -> None:
    factor, truth = CASES["class"]
    own, (_, moments) = process(20), truth()
    gibbs = ParticleGibbs(16)

    @jax.jit
    @jax.vmap
    def chain(key: Any) -> Any:
        begin, run = jax.random.split(key)
        start = jnp.array([0.0, 2.0, 1.0, 0.0])  # any chain of that class
        first = jnp.concatenate([start[None], nd.ForwardTrajectory(own.diffusion, start).sample(begin)])

        def step(path: Any, key: Any) -> Any:
            new = gibbs.step(key, own, factor, path).x
            return new, new[0]

        return jax.lax.scan(step, first, jax.random.split(run, 12))[1][4:]

    x = np.asarray(chain(jax.random.split(jax.random.key(4), 64)))
    assert (x[..., 1] == 2).all()
    each = np.stack([x[..., 2].mean(1), x[..., 0].mean(1)], -1)
    assert (abs(each.mean(0) - moments[1:]) < np.array([0.05, 0.15]) + 4 * each.std(0) / 8).all()


def mixed(*args: Any) -> Any:
    return nd.MixedDiffusion(*args)


BAD: dict[str, tuple[Any, str]] = {
    "places": (lambda: mixed(groups(), [[0], [1], [3]]), "columns: expected the places 0 … d − 1"),
    "count": (lambda: mixed(groups(), [[0, 1], [2]]), "diffusions: expected one for each of 2 groups, got 3"),
    "nested": (lambda: mixed([process().diffusion], [[0, 1]]), "diffusions: expected some of other families"),
    "steps": (lambda: mixed([groups()[1], groups(9)[2]], [[0], [1]]), r"one number of steps, got \[40, 9\]"),
    "values": (lambda: process().diffusion.marginal(X + 0.5, 1.0), "x_0: expected whole numbers from 0 to 2"),
    "network": (
        lambda: nd.ReverseProcess(process().diffusion, Network(lambda x, t: x), 4),
        "denoiser: expected a Residual with MixedDiffusion",
    ),
    "kind": (
        lambda: nd.DiffusionPrior(process()) * Gaussian(np.zeros(4), 1.0),
        r"Gaussian is for real numbers, got a prior over bits or classes in columns \[1, 2\]",
    ),
    "levels": (lambda: nd.MixedStep([None, 5, None]).completed(process().diffusion, None), "groups of a Gaussian"),
    "twist": (
        lambda: TwistedSMC(8, nd.twists.Tweedie()).chain(process(), CASES["coupled"][0]),
        "Tweedie needs a slope",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    build, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        build()


@pytest.mark.slow
def test_rounded_columns_other_factors_and_files(tmp_path: Any) -> None:
    """Levels have a probability, a network of zeros is the baseline, and bits and sums have factors; files keep it."""
    diffusion = nd.MixedDiffusion(groups(4)[::2], [[0, 1], [2]])
    network = nd.networks.MLP(jax.random.key(0), (3,), num_steps=4, width=8, depth=1, outputs=2)
    baseline = ProductMixture(LOCS[:, :3] + 2, SCALES[:, :3], SHARES[:, [0, 0, 2]], WEIGHTS)
    own = nd.ReverseProcess(diffusion, Residual(network, baseline), 3, last_step=nd.MixedStep([5, None]))
    assert own.is_discrete and not own.is_smooth
    nd.DiffusionPrior(own).save(tmp_path / "mixed.safetensors")
    prior = nd.load(tmp_path / "mixed.safetensors")
    grid = np.stack(np.meshgrid(range(5), range(5), range(2), indexing="ij"), -1).reshape(-1, 3)

    @eqx.filter_jit
    def last(process: nd.ReverseProcess) -> Any:
        kernel = process.last_kernel(jnp.array([1.7, 2.1, 1.0]))
        return kernel.mean, jax.vmap(kernel.log_prob)(grid.astype(float))

    mean, log_prob = last(prior.process)
    np.testing.assert_allclose(np.exp(np.asarray(log_prob)).sum(), 1.0, rtol=1e-5)
    same = nd.ReverseProcess(diffusion, baseline, 3, last_step=nd.MixedStep([5, None]))
    np.testing.assert_allclose(mean, last(same)[0], rtol=1e-5)
    factor = Elementwise([0.0, 0, 1.0]) * LinearGaussian(jnp.array([3.0]), jnp.array([[1.0, 1.0, 1.0]]), 0.5)
    x = jax.jit(lambda key: TwistedSMC(16).run(key, prior.process, factor).x)(jax.random.key(1))
    assert np.isin(x[:, 2], (0, 1)).all() and np.isin(x[:, :2], range(5)).all()
    assert bool(np.all(prior.support(x))) and not bool(prior.support(jnp.array([0.5, 1.0, 1.0])))
