"""Priors that depend on an unknown: every exact way against the closed form, and the bound beside them.

    python examples/benchmarks/conditional.py [--sizes 1 4 16 64] [--draws 2000] [--islands 4]
    python examples/benchmarks/conditional.py --evidence [--sizes 1 4 16 64] [--islands 4]
    python examples/benchmarks/conditional.py --chains [--sizes 1 4 16 64] [--draws 2000]
    python examples/benchmarks/conditional.py --short

With --evidence: SMC and TemperedSMC on the Gaussian alone. With --chains: all but these, on the Gaussian. With --short:
one of the rows, with few draws.

x | c ~ N(c, 1) in d dimensions by an exact denoiser that is told c, c ~ N(0, 1) in common, y = x + noise of scale ½. So
c, x and y are jointly normal, and posterior and evidence have closed forms. For each way: posterior mean and standard
deviation of c with their errors in standard errors, effective draws a second of CPU time, and the log evidence where
there is one. The other cases are an amplitude and a time shift of a series, which the data tie to x, by quadrature.
"""

import argparse
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro.diagnostics import effective_sample_size
from numpyro.distributions.transforms import LowerCholeskyAffine
from numpyro.handlers import reparam
from numpyro.infer import NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd

NUM_STEPS = 20
NOISE = 0.5
DIFFUSION = nd.GaussianDiffusion(nd.schedules.log_snr(NUM_STEPS, -9.0, 6.0))


def conditional_prior(size):
    """N(c, 1) in `size` dimensions, for a context c that is one number."""
    denoiser = nd.denoisers.Conditional(lambda c: nd.denoisers.Gaussian(c, 1.0))
    return nd.DiffusionPrior(nd.ReverseProcess(DIFFUSION, denoiser, size))


def gaussian_case(size, likelihood=None):
    """The model, the posterior mean and standard deviation of c, and the log evidence."""
    y = np.random.default_rng(size).normal(1.5, np.sqrt(1 + NOISE**2), size)
    prior = conditional_prior(size)
    prior = prior if likelihood is None else prior.with_(likelihood=likelihood)

    def model():
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", prior.given(c))
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.asarray(y, float))

    spread = 1 + NOISE**2
    precision = 1 + size / spread
    evidence = multivariate_normal.logpdf(y, np.zeros(size), np.ones((size, size)) + spread * np.eye(size))
    return model, (y.sum() / spread / precision, 1 / np.sqrt(precision)), evidence


def say(case, way, draws, truth, rest):
    """One line of the table; `draws` may be their mean and standard deviation."""
    mean, sd = draws if isinstance(draws, tuple) else (draws.mean(), draws.std())
    print(f"| {case} | {way} | {mean:.3f} ({truth[0]:.3f}) | {sd:.3f} ({truth[1]:.3f}) | {rest} |", flush=True)


def report(case, way, draws, truth, seconds):
    """One line: moments, their errors in standard errors, effective draws."""
    draws = np.asarray(draws, np.float64).reshape(1, -1)
    mean, sd = truth
    size = float(effective_sample_size(draws))
    square = float(effective_sample_size((draws - mean) ** 2))
    z_mean, z_sd = (draws.mean() - mean) / (sd / np.sqrt(size)), (draws.std() / sd - 1) * np.sqrt(2 * square)
    errors, effective = f"{z_mean:+.1f} | {z_sd:+.1f}", f"{size:.0f} of {draws.size} | {size / seconds:.1f}"
    say(case, way, draws, truth, f"{errors} | {effective} | ")


def run_mcmc(kernel, name, num_samples):
    """Draws of one site, and the seconds of CPU time that they take, without compilation and warm-up."""
    num_warmup = min(200, num_samples)
    state = kernel.init(jax.random.key(0), num_warmup, None, (), {})

    def step(i, carry):
        state = kernel.sample(carry[0], (), {})
        drawn = kernel.get_constrain_fn((), {})(getattr(state, kernel.sample_field))[name]
        return state, carry[1].at[i].set(drawn, mode="drop")

    # One program for warm-up and draws, as compiling takes longer than either where they are few.
    chain = jax.jit(lambda state, count: jax.lax.fori_loop(0, count, step, (state, jnp.zeros(num_samples))))
    chain = chain.lower(state, num_samples).compile()
    state, _ = jax.block_until_ready(chain(state, num_warmup + 1))
    start = time.process_time()
    draws = jax.block_until_ready(chain(state, num_samples)[1])
    return draws, time.process_time() - start


def gibbs(model, interweave="auto"):
    """Particle Gibbs for x, NUTS for the rest."""
    blocks = [(nd.infer.ParticleGibbs(model, num_particles=8), ["x"]), (NUTS(model), None)]
    return nd.infer.Gibbs(blocks, interweave=interweave)


def chains(size, num_samples):
    """The exact chains, and the bound, on the Gaussian."""
    model, truth, _ = gaussian_case(size)
    case = f"Gaussian, d = {size}"
    ways = {"`Gibbs`": gibbs(model), "`Gibbs`, not interwoven": gibbs(model, "none")}
    ways["`DiffusionReparam`, NUTS"] = NUTS(reparam(model, config={"x": nd.infer.DiffusionReparam()}))
    ways["bound, NUTS"] = NUTS(model)
    for way, kernel in ways.items():
        draws, seconds = run_mcmc(kernel, "c", num_samples)
        report(case, way, draws, truth, seconds)
    variational(case, size, truth)


def whole(case, model, truth, evidence, islands):
    """The two samplers that give the evidence; z is in standard errors of as many independent draws."""
    tempered = nd.infer.TemperedSMC(model, num_particles=256, num_islands=islands, progress_bar=False)
    for smc in (nd.infer.SMC(model, num_islands=islands), tempered):
        start = time.process_time()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            smc.run(jax.random.key(0))
        warned = any(issubclass(each.category, nd.ReliabilityWarning) for each in caught)
        said = f"{smc.log_evidence:.2f} ± {smc.log_evidence_error:.2f} ({evidence:.2f})"
        draws = np.asarray(smc.get_samples()["c"], np.float64)
        took = f"{draws.size} draws in {time.process_time() - start:.0f} s, compilation too{', warned' * warned}"
        z = (draws.mean() - truth[0]) / truth[1] * np.sqrt(draws.size)
        say(case, f"`{type(smc).__name__}`", draws, truth, f"{z:+.1f} | | {took} | | {said}")


def variational(case, size, truth):
    """SVI with the bound, the default one and a cheap one: how far its c is from the exact posterior."""
    for way, likelihood in (("bound, SVI", None), ("`KBound(1, 1)`, SVI", nd.KBound(1, 1, antithetic=False))):
        model, _, _ = gaussian_case(size, likelihood)
        guide = AutoMultivariateNormal(model)
        svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO(8))
        result = svi.run(jax.random.key(0), 3000, progress_bar=False)
        posterior = guide.get_posterior(result.params)
        _, unravel = ravel_pytree({"c": jnp.zeros(()), "x": jnp.zeros(size)})
        mean = float(unravel(posterior.mean)["c"])
        sd = float(jnp.sqrt(unravel(jnp.diagonal(posterior.covariance_matrix))["c"]))
        bias = f"{(mean - truth[0]) / truth[1]:+.2f} sd | {sd / truth[1] - 1:+.0%}"
        say(case, way, (mean, sd), truth, f"bias {bias} | | | ")


def series(count=24, scale=0.1):
    """A smooth series known up to an amplitude, and up to a shift in time, each with its exact posterior."""
    rng, grid = np.random.default_rng(0), np.linspace(0, 1, count)
    covariance = np.exp(-0.5 * ((grid[:, None] - grid) / 0.15) ** 2) + 1e-3 * np.eye(count)
    root = np.linalg.cholesky(covariance)
    process = nd.ReverseProcess(DIFFUSION, nd.denoisers.Gaussian(0.0, 1.0), count)
    prior = nd.DiffusionPrior(process, transform=LowerCholeskyAffine(jnp.zeros(count), jnp.asarray(root, float)))
    x_0, places = root @ rng.normal(size=count), np.linspace(0.2, 0.8, 8)

    def window(shift, xp):
        weights = xp.exp(-0.5 * ((places[:, None] + shift - grid) / 0.06) ** 2)
        return weights / weights.sum(1, keepdims=True)

    ways = {
        "amplitude": (dist.LogNormal(0.0, 0.5), lambda a, xp: a * xp.eye(count), np.linspace(0.2, 6, 800), 1.7),
        "time shift": (dist.Normal(0.0, 0.1), window, np.linspace(-0.5, 0.5, 800), 0.08),
    }
    for name, (law, operator, points, true) in ways.items():
        y = operator(true, np) @ x_0
        y = y + scale * rng.normal(size=len(y))

        def model(law=law, operator=operator, y=y):
            a = numpyro.sample("a", law)
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(operator(a, jnp) @ x, scale).to_event(1), obs=jnp.asarray(y, float))

        def log_p(a, law=law, operator=operator, y=y):
            matrix = operator(a, np)
            spread = matrix @ covariance @ matrix.T + scale**2 * np.eye(len(y))
            return float(law.log_prob(a)) + multivariate_normal.logpdf(y, np.zeros(len(y)), spread)

        values = np.array([log_p(a) for a in points])
        share = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
        mean = (share * points).sum()
        yield name, model, (mean, np.sqrt((share * (points - mean) ** 2).sum()))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one of the rows, few draws")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 4, 16, 64], help="dimensions of the Gaussian")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--islands", type=int, default=4, help="of SMC and TemperedSMC")
    parser.add_argument("--evidence", action="store_true", help="SMC and TemperedSMC on the Gaussian alone")
    parser.add_argument("--chains", action="store_true", help="all but SMC and TemperedSMC on the Gaussian alone")
    options = parser.parse_args()
    print("| case | way | mean (exact) | sd (exact) | z | z of sd | effective | a CPU second | log evidence (exact) |")
    print("|---|---|---|---|---|---|---|---|---|")
    if options.short:
        model, truth, _ = gaussian_case(1)
        draws, seconds = run_mcmc(gibbs(model), "c", 50)
        report("Gaussian, d = 1", "`Gibbs`", draws, truth, seconds)
        return
    for size in options.sizes:
        if not options.evidence:
            chains(size, options.draws)
        if not options.chains:
            whole(f"Gaussian, d = {size}", *gaussian_case(size), options.islands)
    if options.evidence or options.chains:
        return
    for name, model, truth in series():
        for interweave in ("none", "auto"):
            draws, seconds = run_mcmc(gibbs(model, interweave), "a", options.draws)
            report(name, f"`Gibbs`, {interweave}", draws, truth, seconds)


if __name__ == "__main__":
    main()
