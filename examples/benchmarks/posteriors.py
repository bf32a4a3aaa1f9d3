"""Every posterior sampler against exact answers: linear-Gaussian, enumerated bits, and a joint model.

* Linear-Gaussian, d = 64, 16 observations: z-scores of posterior means and variances, and of the log evidence.
* 8 bits, a random factor: total variation from the chain's own law times r, enumerated; beside it what as many
  independent draws would have.
* x ~ mixture, gain ~ N(1, 0.3²), σ ~ HalfNormal(1), y ~ N(gain · A x, σ²): marginals by quadrature against Gibbs.

    python examples/benchmarks/posteriors.py [--short]
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd

samplers, twists = nd.samplers, nd.twists


def line(*cells: Any) -> None:
    """Print one line of a Markdown table."""
    print(
        "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def z_scores(estimates: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Errors of the mean over independent runs, in its standard errors."""
    error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    return (estimates.mean(0) - truth) / np.maximum(error, 1e-6)


class Linear(NamedTuple):
    """A Gaussian prior seen through linear observations, and its exact posterior."""

    process: nd.ReverseProcess
    factor: nd.factors.LinearGaussian
    axes: np.ndarray  # of the posterior: variances are compared along them
    mean: np.ndarray  # along these axes
    variance: np.ndarray
    log_evidence: float

    def moments(self, x: Array, weight: Array | None = None) -> Array:
        """Weighted means along the posterior's axes, and mean squares about its mean; shape (2 d,)."""
        along = x @ self.axes.T
        weight = jnp.full(len(x), 1 / len(x)) if weight is None else weight
        return jnp.concatenate([weight @ along, weight @ (along - self.mean) ** 2])


def linear_problem() -> Linear:
    """64 dimensions, 16 observations."""
    d, m, noise = 64, 16, 0.5
    rng = np.random.default_rng(0)
    loc, scale = rng.standard_normal(d), rng.uniform(0.5, 2.0, d)
    operator = rng.standard_normal((m, d)) / 8
    observation = operator @ (loc + scale * rng.standard_normal(d)) + noise * rng.standard_normal(m)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(50, -9, 3))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(loc, scale), (d,))
    covariance = operator @ np.diag(scale**2) @ operator.T + noise**2 * np.eye(m)
    gain = np.diag(scale**2) @ operator.T @ np.linalg.inv(covariance)
    mean = loc + gain @ (observation - operator @ loc)
    variance, vectors = np.linalg.eigh(np.diag(scale**2) - gain @ operator @ np.diag(scale**2))
    log_evidence = float(dist.MultivariateNormal(operator @ loc, covariance).log_prob(observation))
    factor = nd.factors.LinearGaussian(observation, operator, noise)
    return Linear(process, factor, vectors.T, vectors.T @ mean, variance, log_evidence)


def smc_moments(case: Linear, keys: Array, size: int, twist: Any = None) -> tuple[Array, Array]:
    """Moments and log evidence of one SMC run for each key."""

    def one(key: Array) -> tuple[Array, Array]:
        particles = samplers.TwistedSMC(size, twist).run(key, case.process, case.factor)
        return case.moments(particles.x, jnp.exp(particles.log_weight)), particles.log_evidence

    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys)


def gibbs_moments(case: Linear, keys: Array, size: int, particles: int, twist: Any = None) -> tuple[Array, None]:
    """Moments of one chain of particle Gibbs for each key, its first tenth left out."""
    kernel = samplers.ParticleGibbs(particles, twist)

    def one(key: Array) -> Array:
        first, rest = jax.random.split(key)
        start = kernel.init(first, case.process, case.factor).x
        step = lambda path, key: (new := kernel.step(key, case.process, case.factor, path).x, new[0])
        return case.moments(jax.lax.scan(step, start, jax.random.split(rest, size))[1][size // 10 :])

    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys), None


def independent_moments(case: Linear, keys: Array, size: int, sampler: Any) -> tuple[Array, None]:
    """Moments of `size` independent draws for each key."""

    def one(key: Array) -> Array:
        draw = lambda key: sampler.sample(key, case.process, case.factor)
        return case.moments(jax.vmap(draw)(jax.random.split(key, size)))

    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys), None


def nuts_moments(case: Linear, chains: int, size: int) -> tuple[Array, None]:
    """Moments of every chain of NUTS on the reparameterised prior."""
    prior = nd.DiffusionPrior(case.process)

    def model() -> None:
        x = numpyro.sample("x", prior)
        numpyro.factor("y", case.factor.log_r(x))

    free = numpyro.handlers.reparam(model, config={"x": nd.infer.DiffusionReparam()})
    options = {"num_chains": chains, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(NUTS(free), num_warmup=size // 2, num_samples=size, **options)
    mcmc.run(jax.random.key(1))
    return jax.vmap(case.moments)(mcmc.get_samples(group_by_chain=True)["x"]), None


def linear_gaussian(runs: int, size: int, short: bool) -> list[float]:
    """Print every sampler's z-scores; those of the right ones are returned."""
    case, keys = linear_problem(), jax.random.split(jax.random.key(0), runs)
    inverse, tweedie = twists.PseudoInverse(), twists.Tweedie()
    rows = [
        ("TwistedSMC, MomentMatched", True, lambda: smc_moments(case, keys, size)),
        ("TwistedSMC, Tempered(power=1)", True, lambda: smc_moments(case, keys, size, twists.Tempered(None, 1.0))),
        ("TwistedSMC, PseudoInverse", True, lambda: smc_moments(case, keys, size, inverse)),
        ("ParticleGibbs, 2 particles", True, lambda: gibbs_moments(case, keys, size, 2)),
        ("ParticleGibbs, 16, PseudoInverse", True, lambda: gibbs_moments(case, keys, size, 16, inverse)),
        ("NUTS, reparameterised", True, lambda: nuts_moments(case, max(runs // 4, 4), size)),
        ("Guided, PseudoInverse", False, lambda: independent_moments(case, keys, size, samplers.Guided(inverse))),
        ("Guided, Tweedie (as DPS)", False, lambda: independent_moments(case, keys, size, samplers.Guided(tweedie))),
        ("Perturbed, constant r", False, lambda: independent_moments(case, keys, size, samplers.Perturbed())),
    ]
    d = len(case.mean)
    print(f"\nLinear-Gaussian, d = {d}, {len(case.factor.observation)} observations, {runs} runs of {size}\n")
    line("sampler", "rms z of means", "largest", "rms z of variances", "largest", "log Z − exact", "its s.e.")
    line(*["---"] * 7)
    root, worst = lambda part: float(np.sqrt(np.mean(part**2))), []
    for name, right, run in rows[:1] if short else rows:
        estimates, log_evidences = run()
        z = z_scores(np.asarray(estimates, dtype=np.float64), np.concatenate([case.mean, case.variance]))
        evidence: list[Any] = ["", ""]
        if log_evidences is not None:
            ratio = np.exp(np.asarray(log_evidences, dtype=np.float64) - case.log_evidence)
            evidence = [float(np.log(ratio.mean())), float(ratio.std(ddof=1) / np.sqrt(runs))]
        line(name, root(z[:d]), float(np.abs(z[:d]).max()), root(z[d:]), float(np.abs(z[d:]).max()), *evidence)
        if right:
            worst.append(root(z))
    return worst


def bits(size: int, short: bool) -> list[float]:
    """Total variation on 256 states."""
    n, steps = 8, 20 if short else 40
    rng = np.random.default_rng(1)
    states = np.array([[s >> i & 1 for i in range(n)] for s in range(2**n)])
    picked = rng.choice(2**n, 12, replace=False)
    diffusion = nd.BinomialDiffusion(nd.schedules.log_snr(steps, -6, 4))
    denoiser = nd.denoisers.Enumerated(states[picked], rng.dirichlet(np.ones(12)))
    process = nd.ReverseProcess(diffusion, denoiser, (n,))
    factor = nd.factors.Elementwise(1.5 * rng.standard_normal(n))
    every = jnp.asarray(states)

    @jax.jit
    def law() -> Array:
        def step(now: Array, t: Array) -> tuple[Array, None]:
            kernel = lambda x: jnp.exp(jax.vmap(process.kernel(x, t, t - 1).log_prob)(every))
            return now @ jax.vmap(kernel)(every), None

        start = jnp.exp(jax.vmap(process.terminal().log_prob)(every))
        now, _ = jax.lax.scan(step, start, jnp.arange(steps, 0, -1))
        target = now * jnp.exp(jax.vmap(factor.log_r)(every))
        return jnp.stack([target / target.sum(), jnp.full(2**n, jnp.log(target.sum()))])

    target, evidence = np.asarray(law(), dtype=np.float64)
    number = lambda x: jnp.tensordot(x, 2 ** jnp.arange(n), 1).astype(int)
    empirical = lambda x, weight: np.bincount(np.asarray(number(x)), np.asarray(weight), 2**n)
    ideal = rng.multinomial(size, target / target.sum(), 20) / size
    print(f"\n{n} bits, {size} draws; independent draws have {np.abs(ideal - target).sum(1).mean() / 2:.4f}\n")
    line("sampler", "total variation", "log Z − exact")
    line(*["---"] * 3)
    worst = []

    def report(name: str, share: np.ndarray, error: Any, right: bool) -> None:
        distance = float(np.abs(share - target).sum() / 2)
        line(name, distance, error)
        if right:
            worst.append(distance)

    for name, twist in (("default", None), ("constant", twists.Constant()), ("Tweedie", twists.Tweedie()))[
        : 1 if short else 3
    ]:
        run = jax.jit(lambda key, twist=twist: samplers.TwistedSMC(size, twist).run(key, process, factor))
        particles = run(jax.random.key(2))
        share = empirical(particles.x, jnp.exp(particles.log_weight))
        report(f"TwistedSMC, {name} twist", share, float(particles.log_evidence - evidence[0]), True)
    for count in (2,) if short else (2, 16):
        kernel = samplers.ParticleGibbs(count)

        def chain(key: Array, kernel: Any = kernel) -> Array:
            first, rest = jax.random.split(key)
            step = lambda path, key: (new := kernel.step(key, process, factor, path).x, new[0])
            start = kernel.init(first, process, factor).x
            return jax.lax.scan(step, start, jax.random.split(rest, size // 20))[1][size // 200 :]

        x = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(3), 20)).reshape(-1, n)
        report(f"ParticleGibbs, {count} particles", empirical(x, np.full(len(x), 1 / len(x))), "", True)
    for name, sampler in (
        ("Guided, not corrected", samplers.Guided()),
        ("Perturbed, constant r", samplers.Perturbed()),
    ):
        draw = jax.jit(jax.vmap(lambda key, sampler=sampler: sampler.sample(key, process, factor)))
        x = draw(jax.random.split(jax.random.key(4), size))
        report(name, empirical(x, np.full(size, 1 / size)), "", False)
    return worst


def joint(chains: int, size: int) -> list[float]:
    """Gibbs marginals of a mixture-distributed x, an unknown gain and an unknown noise scale."""
    rng = np.random.default_rng(2)
    locs = np.array([[-2.0, 0.0], [1.0, 2.0], [2.0, -1.5]])
    scales, weights = np.array([0.6, 0.4, 0.8]), np.array([0.5, 0.2, 0.3])
    operator = rng.standard_normal((6, 2))
    observation = operator @ np.array([0.8, 1.7]) + 1.0 * rng.standard_normal(6)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(100, -9, 3))
    process = nd.ReverseProcess(diffusion, nd.denoisers.GaussianMixture(locs, scales, weights), (2,))
    prior = nd.DiffusionPrior(process, nd.KBound(1, 1, antithetic=False))

    def model(y: Array) -> None:
        gain = numpyro.sample("gain", dist.Normal(1.0, 0.3))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(gain * (jnp.asarray(operator) @ x), sigma).to_event(1), obs=y)

    gain, sigma = np.meshgrid(np.linspace(-0.5, 2.5, 301), np.linspace(0.02, 5.0, 400), indexing="ij")
    density = np.exp(-0.5 * ((gain - 1) / 0.3) ** 2 - 0.5 * sigma**2)
    parts, means = [], []
    for loc, scale, weight in zip(locs, scales, weights, strict=True):
        gram = operator.T @ operator
        root, basis = np.linalg.eigh(gram)  # the covariance of y has these directions and noise elsewhere
        size_x = gain[..., None] ** 2 * scale**2 * root + sigma[..., None] ** 2
        residual = observation - gain[..., None] * (operator @ loc)
        inner = residual @ operator @ basis / np.sqrt(root)
        rest = (residual**2).sum(-1) - (inner**2).sum(-1)
        log_density = -0.5 * ((inner**2 / size_x).sum(-1) + np.log(size_x).sum(-1))
        log_density += -0.5 * (rest / sigma**2 + (len(observation) - 2) * np.log(sigma**2))
        parts.append(weight * density * np.exp(log_density))
        step = gain[..., None] * scale**2 * (inner * np.sqrt(root) / size_x) @ basis.T
        means.append(loc + step)
    total = np.sum(parts)
    truth = {
        "gain": sum((part * gain).sum() for part in parts) / total,
        "gain²": sum((part * gain**2).sum() for part in parts) / total,
        "sigma": sum((part * sigma).sum() for part in parts) / total,
        "sigma²": sum((part * sigma**2).sum() for part in parts) / total,
        "x_0": sum((part * mean[..., 0]).sum() for part, mean in zip(parts, means, strict=True)) / total,
        "x_1": sum((part * mean[..., 1]).sum() for part, mean in zip(parts, means, strict=True)) / total,
    }
    kernel = Gibbs([(nd.infer.ParticleGibbs(model, num_particles=16), ["x"]), (NUTS(model), None)])
    mcmc = MCMC(
        kernel,
        num_warmup=min(size, 300),
        num_samples=size,
        num_chains=chains,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(5), observation)
    draws = mcmc.get_samples(group_by_chain=True)
    values = {
        "gain": draws["gain"], "gain²": draws["gain"] ** 2, "sigma": draws["sigma"], "sigma²": draws["sigma"] ** 2,
        "x_0": draws["x"][..., 0], "x_1": draws["x"][..., 1],
    }  # fmt: skip
    print(f"\nJoint model by Gibbs, {chains} chains of {size}\n")
    line("quantity", "quadrature", "Gibbs", "s.e.", "z")
    line(*["---"] * 5)
    z = []
    for name, value in values.items():
        chain_means = np.asarray(value, dtype=np.float64).mean(1)
        error = chain_means.std(ddof=1) / np.sqrt(chains)
        z.append(float((chain_means.mean() - truth[name]) / error))
        line(name, float(truth[name]), float(chain_means.mean()), float(error), z[-1])
    return z


def main() -> None:
    """Run the three checks; with --short, smaller, and fail where a right sampler is far off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small runs")
    short = parser.parse_args().short
    worst = linear_gaussian(*((16, 64) if short else (32, 500)), short)
    distances = bits(2000 if short else 20_000, short)
    z = joint(*((4, 30) if short else (12, 500)))
    if short:
        assert max(worst) < 3 and max(distances[:1]) < 0.2 and max(map(abs, z)) < 12, (worst, distances, z)


if __name__ == "__main__":
    main()
