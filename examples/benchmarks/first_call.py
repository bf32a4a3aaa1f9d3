"""CPU seconds until a first answer, mostly spent on compiling, in fresh interpreters; and of a second one.

python examples/benchmarks/first_call.py [--runs 3] [--short]

Three answers: `SMC` under a packaged prior (an MLP) with a normal observation, with counts, and `fit_prior` on 800 rows
in the plane, stopped after 300 steps. Beside what the package asks of the compiler stands what XLA does by itself.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion._compiled import options

# What XLA takes unless it is asked for something else; a flag that is given is left as it is.
BY_ITSELF = {
    "xla_backend_optimization_level": "3",
    "xla_cpu_parallel_codegen_split_count": "32",
    "xla_cpu_use_fusion_emitters": "true",
}


def smc(observed):
    """A function that runs `SMC` for a model with an observation at site "y"; the first call loads the prior."""
    load = functools.cache(lambda: nd.load("swiss-roll"))

    def model(y):
        x = numpyro.sample("x", load())
        numpyro.sample("y", observed(x), obs=y)

    return lambda value: nd.infer.SMC(model, progress_bar=False).run(jax.random.key(0), value).get_samples()


def fit(seed):
    """A short fit to a bent cloud."""
    rng = np.random.default_rng(int(seed))
    first = rng.standard_normal(800)
    data = np.stack([first, 0.5 * first**2 + 0.3 * rng.standard_normal(800)], 1)
    return nd.fit_prior(jax.random.key(0), data, max_steps=300, progress_bar=False).sample(jax.random.key(1))


CASES = {
    "SMC, normal observation": (smc(lambda x: dist.Normal(x.sum(), 0.3)), (jnp.array(1.0), jnp.array(0.5))),
    "SMC, counts": (smc(lambda x: dist.Poisson(jnp.exp(x[0]))), (jnp.array(2), jnp.array(1))),
    "fit_prior, 300 steps": (fit, (0, 1)),
}


def seconds(function, value):
    """CPU seconds of this process."""
    begun = time.process_time()
    jax.block_until_ready(function(value))
    return time.process_time() - begun


def in_fresh_process(case, flags):
    """CPU seconds of the first and the second call."""
    given = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    done = subprocess.run([sys.executable, __file__, "--case", case], env=given, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [float(word) for word in done.stdout.split()[-2:]]


def main():
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="interpreters started for each")
    parser.add_argument("--short", action="store_true", help="one run of one case, by the package's own settings")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        function, values = CASES[args.case]
        print(*(seconds(function, value) for value in values))
        return
    by_itself = " ".join(f"--{name}={value}" for name, value in BY_ITSELF.items() if name in options())
    print(f"jax {jax.__version__}; asked of the compiler: {options() or 'nothing'}")
    print(f"{'CPU s':26}{'first call':>12}{'second':>9}{'first, XLA by itself':>22}{'second':>9}")
    for case in list(CASES)[: 1 if args.short else None]:
        settings = [""] if args.short else ["", by_itself] * args.runs
        runs = [in_fresh_process(case, flags) for flags in settings]
        ours, its = (
            [statistics.median(call) for call in zip(*runs[k::2], strict=True)] or [np.nan] * 2 for k in (0, 1)
        )
        print(f"{case:26}{ours[0]:12.1f}{ours[1]:9.1f}{its[0]:22.1f}{its[1]:9.1f}")


if __name__ == "__main__":
    main()
