"""What the defaults of `nd.infer.SMC` cost beside those of an earlier version, where that one was right.

Linear observations with normal noise under priors whose denoiser is exact, and element-wise evidence about bits: log Z
is known in closed form, or by enumeration. Of each problem CPU seconds of the first call, compiling included, and the
median of later ones with other data of the same shapes. Twist and particles are the defaults of each version. The other
version is a checkout of it:

    git worktree add old c0da7a3
    python examples/benchmarks/cost.py --beside old [--runs 9] [--short]

The other version runs in a process of its own, and both take turns, so that both share what else the machine does.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

import numpyro_diffusion as nd

# This file is run with earlier versions too: it uses only what these had.


def seen_through(prior, operator, noise):
    """A model of linear observations."""

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(operator @ x, noise).to_event(1), obs=y)

    return model


def normal(size, looks, steps):
    """N(0, I) seen by sums with normal weights."""
    operator = jax.random.normal(jax.random.key(1), (looks, size)) / size**0.5
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(steps, -9, 5))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), (size,)))
    law = dist.MultivariateNormal(jnp.zeros(looks), operator @ operator.T + 0.25 * jnp.eye(looks))
    return seen_through(prior, operator, 0.5), lambda key: law.sample(key), law.log_prob


def mixture(size, looks, steps):
    """Three Gaussians seen by sums with normal weights."""
    locs = 2 * jax.random.normal(jax.random.key(2), (3, size))
    scales, weights = jnp.array([0.5, 0.8, 1.0]), jnp.array([0.5, 0.3, 0.2])
    operator = jax.random.normal(jax.random.key(1), (looks, size)) / size**0.5
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(steps, -9, 5))
    denoiser = nd.denoisers.GaussianMixture(np.asarray(locs), np.asarray(scales), np.asarray(weights))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, (size,)))
    covariance = scales[:, None, None] ** 2 * (operator @ operator.T) + 0.25 * jnp.eye(looks)
    each = dist.MultivariateNormal(locs @ operator.T, covariance)
    exact = lambda y: logsumexp(each.log_prob(y) + jnp.log(weights))

    def draw(key):
        which, noise = jax.random.split(key)
        return each.sample(noise)[jax.random.categorical(which, jnp.log(weights))]

    return seen_through(prior, operator, 0.5), draw, exact


def bits(size, steps):
    """Bits of two patterns, each seen through a channel that flips one in four."""
    patterns, weights = jax.random.bernoulli(jax.random.key(3), 0.5, (2, size)), jnp.array([0.6, 0.4])
    states = jnp.array(list(itertools.product((0.0, 1.0), repeat=size)))
    agree = jnp.where(states[:, None] == patterns, 0.9, 0.1).prod(-1) @ weights
    diffusion = nd.BinomialDiffusion(nd.schedules.erasing(steps))
    denoiser = nd.denoisers.Enumerated(np.asarray(states), np.asarray(agree))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, (size,)))

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Bernoulli(0.25 + 0.5 * x).to_event(1), obs=y)

    exact = lambda y: jnp.log(jnp.where(states == y, 0.75, 0.25).prod(-1) @ agree)
    return model, lambda key: jax.random.bernoulli(key, 0.5, (size,)).astype(float), exact


PROBLEMS = {
    "normal, d = 4, 2 observations, T = 50": lambda: normal(4, 2, 50),
    "normal, d = 64, 16 observations, T = 50": lambda: normal(64, 16, 50),
    "mixture, d = 2, 1 observation, T = 100": lambda: mixture(2, 1, 100),
    "mixture, d = 16, 4 observations, T = 50": lambda: mixture(16, 4, 50),
    "mixture, d = 64, 8 observations, T = 50": lambda: mixture(64, 8, 50),
    "bits, d = 8, T = 20": lambda: bits(8, 20),
}


class Here:
    """Answers of the version that this process has, whose models are made once."""

    def __init__(self):
        self.engines = {}

    def ask(self, name, seed):
        """Seconds of a call with data of a seed, log Z less the exact one, and the error that it claims."""
        if name not in self.engines:
            model, draw, exact = PROBLEMS[name]()
            self.engines[name] = nd.infer.SMC(model), draw, exact
        smc, draw, exact = self.engines[name]
        y = jax.block_until_ready(draw(jax.random.key(seed)))
        true = float(exact(y))
        begun = time.process_time()
        jax.block_until_ready(smc.run(jax.random.key(seed), y).get_samples())
        seconds = time.process_time() - begun
        return seconds, float(smc.log_evidence) - true, float(smc.log_evidence_error)


class Elsewhere:
    """Answers of the version that lies in a folder, from a process of its own."""

    def __init__(self, folder):
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        command = [sys.executable, __file__, "--serve"]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, name, seed):
        """What `Here.ask` says there."""
        self.process.stdin.write(json.dumps([name, seed]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="a checkout of the other version; this one alone unless given")
    parser.add_argument("--runs", type=int, default=9, help="later calls of each problem")
    parser.add_argument("--short", action="store_true", help="a first and two later calls of one problem")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        here = Here()
        for line in sys.stdin:
            print(json.dumps(here.ask(*json.loads(line))), flush=True)
        return
    versions = [Elsewhere(options.beside.resolve()), Here()] if options.beside else [Here()]
    who = (["then: "] if options.beside else []) + ["now: "]
    columns = [f"{prefix}{what}" for prefix in who for what in ("first", "later", "log Z − exact, rms", "its error")]
    print(f"| problem | {' | '.join(columns)} | ratio of later ones |")
    print("|---|" + "---|" * (len(columns) + 1))
    for name in ["bits, d = 8, T = 20"] if options.short else PROBLEMS:
        answers = [[] for _ in versions]
        for seed in range(3 if options.short else 1 + options.runs):
            for version, found in zip(versions, answers, strict=True):
                found.append(version.ask(name, seed))
        cells, later = [], []
        for found in answers:
            seconds, gaps, errors = (np.array(column) for column in zip(*found, strict=True))
            later.append(statistics.median(seconds[1:]))
            cells += [f"{seconds[0]:.1f} s", f"{later[-1]:.3f} s", f"{np.sqrt(np.mean(gaps**2)):.3f}"]
            cells.append(f"{np.sqrt(np.mean(errors**2)):.3f}")
        ratio = f"{later[1] / later[0]:.2f}" if options.beside else ""
        print(f"| {name} | {' | '.join(cells)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
