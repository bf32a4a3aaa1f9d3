"""A prior of spatial fields that is told their length scale, learned from draws, beside the exact Gaussian process.

    python examples/benchmarks/spatial.py [--field line|grid] [--ways nuts gibbs smc] [--fields 4000] [--draws 1000]
    python examples/benchmarks/spatial.py --priors [--field line|grid]
    python examples/benchmarks/spatial.py --short

Fields of unit variance: 80 places on [0, 1], Matérn 5/2, whose length scale is U(0.05, 0.8), true 0.2; or 16 × 16
places on [0, 100]², Matérn ½, U(1, 100), true 20. Data: y ~ Poisson(exp(β + x)) at 70% of the places, β ~ N(0, 1).

The reference is NUTS on the Gaussian process itself, in double precision. Beside it are two priors: the process with
the same axes for all length scales, a law that is known and has an exact denoiser, so that what its draws miss of its
own NUTS is the sampler's error; and one that `nd.fit_prior` learned, of which the held-out K is printed beside the
exact log density. W₁ is that of the length scale's posterior, in its standard deviations; the field's error is that of
the posterior mean, as a ratio to that of the reference; seconds are of CPU time, without compilation.
With --priors: how far the priors are from the process, and no posterior.
"""

import argparse
import time
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from scipy.stats import multivariate_normal, wasserstein_distance

import numpyro_diffusion as nd
from numpyro_diffusion.transforms import PrincipalAxes


class Field(NamedTuple):
    """A Gaussian process at some places."""

    distance: np.ndarray
    matern: float
    low: float
    high: float
    true: float
    jitter: float

    def covariance(self, length, xp=np):
        """At one length scale."""
        r = self.distance / length
        if self.matern == 0.5:
            return xp.exp(-r) + self.jitter * np.eye(len(r))
        r = np.sqrt(5) * r
        return (1 + r + r**2 / 3) * xp.exp(-r) + self.jitter * np.eye(len(r))

    def draws(self, rng, count):
        """Fields, and their length scales."""
        lengths = rng.uniform(self.low, self.high, count)
        each = [np.linalg.cholesky(self.covariance(length)) @ rng.normal(size=len(self.distance)) for length in lengths]
        return np.stack(each), lengths

    def log_prob(self, x, lengths):
        """Exact log densities."""
        return np.array([multivariate_normal.logpdf(*pair) for pair in self._pairs(x, lengths)])

    def _pairs(self, x, lengths):
        return [(each, np.zeros(len(each)), self.covariance(length)) for each, length in zip(x, lengths, strict=True)]


def field_of(name, size=None):
    """The line or the grid."""
    if name == "line":
        places = np.linspace(0, 1, size or 80)[:, None]
        law = (2.5, 0.05, 0.8, 0.2, 1e-4)
    else:
        axis = np.linspace(0, 100, size or 16)
        places = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        law = (0.5, 1.0, 100.0, 20.0, 1e-6)
    return Field(np.sqrt(np.square(places[:, None] - places).sum(-1)), *law)


class SharedAxes(NamedTuple):
    """The process with the same axes at all length scales: its variances along those of the mean covariance."""

    transform: PrincipalAxes
    grid: np.ndarray
    log_variances: np.ndarray

    @classmethod
    def of(cls, field):
        """Variances on a grid of length scales; between them their logs are linear."""
        grid = np.linspace(field.low, field.high, 400)
        variances, axes = np.linalg.eigh(np.mean([field.covariance(length) for length in grid], 0))
        size = len(variances)
        transform = PrincipalAxes(np.zeros(size), np.ones(size), axes, np.sqrt(variances))
        own = [np.einsum("ij,ik,kj->j", axes, field.covariance(length), axes, optimize=True) for length in grid]
        return cls(transform, grid, np.log(np.stack(own) / variances))

    def scale(self, length):
        """Standard deviations in the coordinates of `transform`."""
        place = (length - self.grid[0]) / (self.grid[1] - self.grid[0])
        before = jnp.clip(jnp.floor(place), 0, len(self.grid) - 2).astype(int)
        table, share = jnp.asarray(self.log_variances, float), place - before
        return jnp.exp(((1 - share) * table[before] + share * table[before + 1]) / 2)

    def log_prob(self, x, lengths):
        """Log densities."""
        z = self.transform.inv(jnp.asarray(x))
        scale = jax.vmap(self.scale)(jnp.asarray(lengths))
        own = dist.Normal(0, scale).to_event(1).log_prob(z) - self.transform.log_abs_det_jacobian(z, x)
        return np.asarray(own, np.float64)

    def prior(self, num_steps=8):
        """A diffusion prior with the exact denoiser, whose chain is exact at any number of steps."""
        denoiser = nd.denoisers.Conditional(lambda length: nd.denoisers.Gaussian(jnp.zeros(()), self.scale(length)))
        diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9.0, 9.0))
        process = nd.ReverseProcess(diffusion, denoiser, self.log_variances.shape[1])
        return nd.DiffusionPrior(process, transform=self.transform)


class Problem(NamedTuple):
    """Counts at some places of one field."""

    field: Field
    x: np.ndarray
    seen: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, field, seed=0):
        """Simulated at the true length scale, β = 1."""
        rng = np.random.default_rng(seed)
        size = len(field.distance)
        x = np.linalg.cholesky(field.covariance(field.true)) @ rng.normal(size=size)
        seen = np.sort(rng.choice(size, round(0.7 * size), replace=False)).astype(np.int32)
        return cls(field, x, seen, rng.poisson(np.exp(1.0 + x[seen])))

    def model(self, draw):
        """The NumPyro model; `draw` has the field's site."""
        length = numpyro.sample("length", dist.Uniform(self.field.low, self.field.high))
        beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
        x = draw(length)
        numpyro.sample("y", dist.Poisson(jnp.exp(beta + x[self.seen])).to_event(1), obs=jnp.asarray(self.y))

    def of_prior(self, prior):
        """With a diffusion prior."""
        return lambda: self.model(lambda length: numpyro.sample("x", prior.given(length)))

    def of_process(self):
        """With the Gaussian process."""
        root = lambda length: jnp.linalg.cholesky(self.field.covariance(length, jnp))
        return lambda: self.model(lambda length: self._pushed(lambda z: root(length) @ z))

    def of_axes(self, shared):
        """With the process of shared axes, without any diffusion."""
        push = lambda length: lambda z: shared.transform(shared.scale(length) * z)
        return lambda: self.model(lambda length: self._pushed(push(length)))

    def _pushed(self, push):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand((len(self.x),)).to_event(1))
        return numpyro.deterministic("x", push(z))


class Draws(NamedTuple):
    """Of a posterior, with the effective number of the length scale's, and the seconds that they took."""

    length: np.ndarray
    x: np.ndarray
    effective: float
    seconds: float
    warned: int = 0


def run_mcmc(kernel, num_samples, num_warmup):
    """Draws of a kernel; warm-up is compiled and run before, the draws are timed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
        mcmc.warmup(jax.random.key(0))
        mcmc.run(mcmc.post_warmup_state.rng_key)  # compiles
        mcmc.post_warmup_state = mcmc.last_state
        start = time.process_time()
        mcmc.run(mcmc.post_warmup_state.rng_key)
        found = jax.block_until_ready(mcmc.get_samples())
    seconds = time.process_time() - start
    length = np.asarray(found["length"], np.float64)
    return Draws(length, np.asarray(found["x"]), float(effective_sample_size(length[None])), seconds, _warned(caught))


def run_smc(model, islands, draws):
    """Draws of SMC, of which as many are effective as there are; compilation is counted, as there is one run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.process_time()
        smc = nd.infer.SMC(model, num_islands=islands, num_draws=draws).run(jax.random.key(0))
        found = smc.get_samples()
    seconds = time.process_time() - start
    length = np.asarray(found["length"], np.float64)
    return Draws(length, np.asarray(found["x"]), float("nan"), seconds, _warned(caught))


def _warned(caught):
    found = [each for each in caught if issubclass(each.category, nd.ReliabilityWarning)]
    for each in found:
        print(f"    {each.message}", flush=True)
    return len(found)


def ways(prior, problem, options):
    """The exact ways to infer both, as functions that run them."""
    model, steps = problem.of_prior(prior), options.steps
    few = problem.of_prior(prior.with_(sampler=nd.samplers.Ancestral(steps)))
    noise = NUTS(reparam(few, config={"x": nd.infer.DiffusionReparam()}), max_tree_depth=7)
    blocks = [(nd.infer.ParticleGibbs(few, num_particles=options.particles), ["x"]), (NUTS(few), None)]
    return {
        "nuts": lambda: run_mcmc(noise, options.draws, options.warmup),
        "gibbs": lambda: run_mcmc(nd.infer.Gibbs(blocks), options.draws, options.warmup),
        "smc": lambda: run_smc(model if steps is None else few, options.islands, options.draws // options.islands),
    }


NAMES = {"nuts": "`DiffusionReparam`, NUTS", "gibbs": "`Gibbs`", "smc": "`SMC`"}


def say(prior, way, draws, reference, truth):
    """One line of the table."""
    error = lambda found: np.sqrt(np.mean(np.square(found.x.mean(0) - truth)))
    length, sd = draws.length, reference.length.std()
    apart = wasserstein_distance(length, reference.length) / sd
    low, middle, high = np.quantile(length, [0.05, 0.5, 0.95])
    rate = f"{draws.effective:.0f} of {len(length)} | {draws.effective / draws.seconds:.1f}"
    if np.isnan(draws.effective):
        rate = f"{len(length)} in {draws.seconds:.0f} s | "
    print(
        f"| {prior} | {way} | {length.mean():.4g} ± {length.std():.3g} | {low:.3g}, {middle:.3g}, {high:.3g} | "
        f"{apart:.2f} | {error(draws) / error(reference):.3f} | {rate} | {draws.warned or ''} |",
        flush=True,
    )


def priors_apart(field, shared, prior, count=400):
    """Held-out log density, by fifths of the length scale: that of the process, and what the priors are below it."""
    x, lengths = field.draws(np.random.default_rng(1), count)
    exact = field.log_prob(x, lengths)
    rows = {"shared axes": shared.log_prob(x, lengths)}
    if prior is not None:
        rows["learned, K"] = np.asarray(prior.given(lengths).log_prob(x), np.float64)
    order = np.array_split(np.argsort(lengths), 5)
    print("| prior | log density − exact | by fifths of the length scale |\n|---|---|---|")
    print(f"| process | (exact: {exact.mean():.1f}) | {', '.join(f'{exact[own].mean():.1f}' for own in order)} |")
    for name, found in rows.items():
        each = ", ".join(f"{(found - exact)[own].mean():.2f}" for own in order)
        error = (found - exact).std() / np.sqrt(count)
        print(f"| {name} | {(found - exact).mean():.2f} ± {error:.2f} | {each} |", flush=True)


def learned(field, options):
    """A prior of draws of the process, and what it took."""
    x, lengths = field.draws(np.random.default_rng(0), options.fields)
    start = time.process_time()
    prior = nd.fit_prior(jax.random.key(0), x, context=lengths, num_steps=options.train, progress_bar=False)
    print(f"{prior.report()}\nlearned from {len(x)} fields in {time.process_time() - start:.0f} s of CPU time\n")
    return prior


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a line of 12 places, a prior that is known, few draws")
    parser.add_argument("--priors", action="store_true", help="how far the priors are from the process, no posterior")
    parser.add_argument("--field", choices=("line", "grid"), default="line")
    parser.add_argument("--ways", nargs="*", choices=NAMES, default=["nuts"])
    parser.add_argument("--known", action="store_true", help="the prior of shared axes too")
    parser.add_argument("--fields", type=int, default=4000, help="to learn from")
    parser.add_argument("--train", type=int, help="steps of training; fit_prior's unless given")
    parser.add_argument("--steps", type=int, default=8, help="of the chain")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--islands", type=int, default=4)
    parser.add_argument("--particles", type=int, default=16, help="of particle Gibbs")
    options = parser.parse_args()
    field = field_of(options.field, 12 if options.short else None)
    shared, prior = SharedAxes.of(field), None
    if options.short:
        options.draws = options.warmup = 100
        options.known = True
    else:
        prior = learned(field, options)
    priors_apart(field, shared, prior)
    if options.priors:
        return
    problem = Problem.of(field)
    with jax.enable_x64(True):
        reference = run_mcmc(NUTS(problem.of_process()), 4 * options.draws, options.warmup)
    print("\n| prior | way | length scale | 5, 50, 95% | W₁ / sd | field's error | effective | a CPU second | warned |")
    print("|---|---|---|---|---|---|---|---|---|")
    say("process", "NUTS", reference, reference, problem.x)
    priors = {} if prior is None else {"learned": prior}
    if options.known:
        own = run_mcmc(NUTS(problem.of_axes(shared)), 4 * options.draws, options.warmup)
        say("shared axes", "NUTS, no diffusion", own, reference, problem.x)
        priors = {"shared axes": shared.prior(options.steps), **priors}
    for name, each in priors.items():
        found = ways(each, problem, options)
        for way in options.ways:
            say(name, NAMES[way], found[way](), own if name == "shared axes" else reference, problem.x)


if __name__ == "__main__":
    main()
