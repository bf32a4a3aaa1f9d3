"""A prior of spatial fields that is told their length scale, learned from draws, beside the exact Gaussian process.

    python examples/benchmarks/spatial.py [--field line|grid] [--ways nuts gibbs smc] [--fields 4000] [--draws 1000]
    python examples/benchmarks/spatial.py --priors [--field line|grid]
    python examples/benchmarks/spatial.py --cost
    python examples/benchmarks/spatial.py --short

Fields of unit variance: 80 places on [0, 1], Matérn 5/2, whose length scale is U(0.05, 0.8), true 0.2; or 16 × 16
places on [0, 100]², Matérn ½, U(1, 100), true 20. Data: y ~ Poisson(exp(β + x)) at 70% of the places, β ~ N(0, 1).

The reference is NUTS on the Gaussian process itself, in double precision. Beside it are two priors: the process with
the same axes for all length scales, a law that is known and has an exact denoiser, so that what its draws miss of its
own NUTS is the sampler's error; and one that `nd.fit_prior` learned, of which the held-out K is printed beside the
exact log density. W₁ is that of the length scale's posterior, in its standard deviations; the field's error is that of
the posterior mean, as a ratio to that of the reference, with and without the error in its level, which β takes up but
for its prior; seconds are of CPU time, without compilation.
With --priors: how far the priors are from the process, and no posterior. With --cost: a step of a reverse chain that is
told a length scale, beside one that is not, untrained.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _fields import Problem, SharedAxes, field_of
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import reparam
from numpyro.infer import NUTS
from scipy.stats import wasserstein_distance

import numpyro_diffusion as nd


class Draws(NamedTuple):
    """Of a posterior, with the effective number of the length scale's, and the seconds that they took."""

    length: np.ndarray
    x: np.ndarray
    effective: float
    seconds: float
    warned: int = 0


def run_mcmc(kernel, num_samples, num_warmup):
    """Draws of a kernel, and the seconds of CPU time that they take, without compilation and warm-up."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = kernel.init(jax.random.key(0), num_warmup, None, (), {})

        def drawn(state):
            found = kernel.postprocess_fn((), {})(getattr(state, kernel.sample_field))
            return found["length"], found["x"]

        def step(i, carry):
            state = kernel.sample(carry[0], (), {})
            put = lambda kept, new: kept.at[i].set(new, mode="drop")
            return state, jax.tree.map(put, carry[1], drawn(state))

        # One program for warm-up and draws, as compiling takes longer than either where they are few.
        room = jax.tree.map(
            lambda each: jnp.zeros((num_samples, *each.shape), each.dtype), jax.eval_shape(drawn, state)
        )
        chain = jax.jit(lambda state, count: jax.lax.fori_loop(0, count, step, (state, room)))
        chain = chain.lower(state, num_samples).compile()
        state, _ = jax.block_until_ready(chain(state, num_warmup + 1))
        start = time.process_time()
        length, x = jax.block_until_ready(chain(state, num_samples)[1])
    seconds, length = time.process_time() - start, np.asarray(length, np.float64)
    return Draws(length, np.asarray(x), float(effective_sample_size(length[None])), seconds, _warned(caught))


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
    shape = lambda found: np.std(found.x.mean(0) - truth)
    length, sd = draws.length, reference.length.std()
    apart = wasserstein_distance(length, reference.length) / sd
    low, middle, high = np.quantile(length, [0.05, 0.5, 0.95])
    ratios = f"{error(draws) / error(reference):.3f}, {shape(draws) / shape(reference):.3f}"
    rate = f"{draws.effective:.0f} of {len(length)} | {draws.effective / draws.seconds:.1f}"
    if np.isnan(draws.effective):
        rate = f"{len(length)} in {draws.seconds:.0f} s | "
    print(
        f"| {prior} | {way} | {length.mean():.4g} ± {length.std():.3g} | {low:.3g}, {middle:.3g}, {high:.3g} | "
        f"{apart:.2f} | {ratios} | {rate} | {draws.warned or ''} |",
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


def cost(size=80, width=128, rounds=15):
    """CPU time of the reverse kernel with a context, common to a batch, over that without one."""
    knots = np.linspace(-1.5, 1.5, 9)[None]
    features, told = nd.networks.ContextFeatures(), nd.denoisers.Context()
    splines = nd.networks.SplineFeatures(features, knots)
    gaussian = nd.denoisers.FullGaussianMixture(np.zeros((1, size)), np.eye(size)[None])
    spread = nd.denoisers.LogVariances(splines, np.zeros((size, splines.size)))
    make = nd.denoisers.Regression(features, np.zeros((size, features.size)), gaussian, spread)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(64))
    network = lambda context: nd.networks.MLP(
        jax.random.key(0), (size,), num_steps=64, width=width, outputs=2, context=context
    )
    plain = nd.ReverseProcess(diffusion, nd.denoisers.Residual(network(None), gaussian), size)
    baseline = nd.denoisers.Conditional(make)
    open_ = nd.ReverseProcess(diffusion, nd.denoisers.Residual(network(features), baseline, told), size)
    step = lambda process, x: jax.vmap(lambda each: process.kernel(each, 20.0, 19.0).mean)(x)
    fns = [jax.jit(lambda x, c: step(plain, x)), jax.jit(lambda x, c: step(open_.given(c), x))]
    print("| batch | without a context | with one | ratio |\n|---|---|---|---|")
    for batch in (1, 16, 256):
        x, repeats, seconds = jnp.ones((batch, size)), max(1, 64 // batch), np.zeros((rounds, 2))
        for fn in fns:
            jax.block_until_ready(fn(x, jnp.asarray(0.3)))
        for row in seconds:
            for which, fn in enumerate(fns):
                start = time.process_time()
                for _ in range(repeats):
                    jax.block_until_ready(fn(x, jnp.asarray(0.3)))
                row[which] = (time.process_time() - start) / repeats
        one, other = np.median(seconds, 0) * 1e6
        ratio = np.median(seconds[:, 1] / seconds[:, 0])
        print(f"| {batch} | {one:.0f} µs | {other:.0f} µs | {ratio:.2f} |", flush=True)


def learned(field, options):
    """A prior of draws of the process, and what it took; or one that was learned before."""
    if options.prior is not None and options.prior.exists():
        return nd.load(options.prior)
    x, lengths = field.draws(np.random.default_rng(0), options.fields)
    start = time.process_time()
    prior = nd.fit_prior(jax.random.key(0), x, context=lengths, max_steps=options.train, progress_bar=False)
    print(f"{prior.report()}\nlearned from {len(x)} fields in {time.process_time() - start:.0f} s of CPU time\n")
    if options.prior is not None:
        prior.save(options.prior)
    return prior


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a line of 12 places, a prior that is known, few draws")
    parser.add_argument("--priors", action="store_true", help="how far the priors are from the process, no posterior")
    parser.add_argument("--cost", action="store_true", help="of a context, alone")
    parser.add_argument("--field", choices=("line", "grid"), default="line")
    parser.add_argument("--ways", nargs="*", choices=NAMES, default=["nuts"])
    parser.add_argument("--known", action="store_true", help="the prior of shared axes too")
    parser.add_argument("--prior", type=Path, help="a file to keep the learned prior in, and to load it from")
    parser.add_argument("--fields", type=int, default=4000, help="to learn from")
    parser.add_argument("--train", type=int, help="steps of training; fit_prior's unless given")
    parser.add_argument("--steps", type=int, default=8, help="of the chain")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--islands", type=int, default=4)
    parser.add_argument("--particles", type=int, default=16, help="of particle Gibbs")
    options = parser.parse_args()
    if options.cost:
        cost()
        return
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
