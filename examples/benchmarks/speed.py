"""Wall time of the chain, the bound and a training step, as ratios to the bare network work inside them.

Every ratio compares two timings of one run, interleaved: the median over rounds of the one divided by the other's.

python examples/benchmarks/speed.py [--only bound] [--cpu]
"""

import argparse
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import numpyro_diffusion as nd
from numpyro_diffusion.likelihoods.k_bound import reconstruction, step_kl
from numpyro_diffusion.process import trainable
from numpyro_diffusion.training import bound_loss
from numpyro_diffusion.training.run import TrainingRun

EVENT = (8, 8)
clock, depth = time.perf_counter, 3  # and the blocks of the network


def make(num_steps: int, width: int = 256) -> nd.ReverseProcess:
    """A process over 8×8 images with the default network, its read-out filled so that nothing can be skipped."""
    network = nd.networks.MLP(jax.random.key(0), EVENT, num_steps=num_steps, width=width, depth=depth)
    leaves, treedef = jax.tree.flatten(eqx.filter(network, eqx.is_array))
    filled = [leaf + 0.01 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    network = eqx.combine(jax.tree.unflatten(treedef, filled), network)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps))
    return nd.ReverseProcess(diffusion, nd.denoisers.Network(network, "velocity"), EVENT)


def ratio(ours: Callable[[], object], bare: Callable[[], object], rounds: int, calls: int = 1) -> tuple[float, float]:
    """Median seconds of `ours`, and that over the median of `calls` times `bare`."""
    for fn in (ours, bare):
        jax.block_until_ready(fn())
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for fn, kept, repeats in ((ours, seconds[0], 1), (bare, seconds[1], max(1, min(calls, 50)))):
            start = clock()
            for _ in range(repeats):
                jax.block_until_ready(fn())
            kept.append((clock() - start) / repeats)
    first, second = (float(np.median(kept)) for kept in seconds)
    return first, first / (calls * second)


def chain(num_steps: int, batch: int, rounds: int) -> None:
    """The reverse chain against T calls of the network on the same batch."""
    process = make(num_steps)
    prior = nd.DiffusionPrior(process)
    network = process.denoiser.fn
    x = jax.random.normal(jax.random.key(1), (batch, *EVENT))
    sample = jax.jit(lambda key: prior.sample(key, (batch,)))
    call = jax.jit(lambda x, t: jax.vmap(lambda x: network(x, t))(x))
    key, t = jax.random.key(2), jnp.asarray(3.0)
    seconds, value = ratio(lambda: sample(key), lambda: call(x, t), rounds, num_steps)
    print(f"reverse chain, T = {num_steps:4d}, batch {batch:3d}: {seconds:8.3f} s, / (T network calls) = {value:.2f}")


def bound(num_steps: int, rounds: int) -> None:
    """K over all terms, for one example, against the same number of network calls in one batch."""
    process = make(num_steps)
    likelihood = nd.KBound(4)
    network = process.denoiser.fn
    count = 4 * num_steps
    x = jax.random.normal(jax.random.key(1), (count, *EVENT))
    times = jnp.tile(jnp.arange(1.0, num_steps + 1), 4)
    value = jax.jit(lambda key, x: likelihood(key, process, x).value)
    call = jax.jit(lambda x, t: jax.vmap(network)(x, t))
    key, one = jax.random.key(2), x[0]
    seconds, result = ratio(lambda: value(key, one), lambda: call(x, times), rounds)
    print(f"K bound, all {count} terms, T = {num_steps:4d}: {seconds:8.4f} s, / (as many network calls) = {result:.2f}")
    if rounds == 1:
        return
    keys, few, inner = jax.random.split(jax.random.key(3), count), x[:4], jnp.maximum(times, 2.0)
    parts = {
        "noise of every term": (lambda keys: jax.vmap(lambda key: jax.random.normal(key, EVENT))(keys), keys),
        "KL terms and their network calls, given noise": (
            lambda noise: jax.vmap(lambda t, noise: step_kl(process, one, t, noise))(inner, noise),
            x,
        ),
        "reconstruction, 4 calls": (lambda noise: jax.vmap(lambda e: reconstruction(process, one, e))(noise), few),
    }
    for name, (fn, given) in parts.items():
        part = jax.jit(fn)
        _, share = ratio(lambda part=part, given=given: part(given), lambda: call(x, times), rounds)
        print(f"  {name}: / (as many network calls) = {share:.3f}")


def training(batch: int, rounds: int) -> None:
    """Steps of `fit` against a bare loop of gradient, update and apply on the same loss."""
    process, optimizer, steps = make(100), optax.adam(1e-3), 20
    data = jax.random.normal(jax.random.key(1), (2000, *EVENT))
    run = TrainingRun(process, optimizer, bound_loss, ema=0.999, dequantize=0.0, batch_size=batch)
    state = run.start()
    params, rest = eqx.partition(process, trainable(process))

    @jax.jit
    def bare_steps(params: nd.ReverseProcess, state: optax.OptState, batch: Array) -> tuple[object, Array]:
        def step(carry: tuple, key: Array) -> tuple[tuple, Array]:
            params, state = carry
            loss, grad = jax.value_and_grad(lambda p: bound_loss(key, eqx.combine(p, rest), batch))(params)
            updates, state = optimizer.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(3), steps))

    scan = eqx.filter_jit(run.scan)
    seconds, value = ratio(
        lambda: scan(jax.random.key(2), state, data, None, jnp.asarray(len(data)), steps),
        lambda: bare_steps(params, optimizer.init(params), data[:batch]),
        rounds,
    )
    print(f"training step, batch {batch}: {1e3 * seconds / steps:8.2f} ms, / (bare optax step) = {value:.2f}")


def compiling(num_steps: int, compile: bool = True) -> list[int]:
    """Seconds to trace and compile, which T must not change; returns the programs' lengths, in lines."""
    prior = nd.DiffusionPrior(make(num_steps))
    x = jnp.zeros(EVENT)
    parts = {
        "sample": (lambda key, x: prior.sample(key, (4,))),
        "log_prob": (lambda key, x: prior.log_prob(x)),
        "gradient": (lambda key, x: jax.grad(prior.log_prob)(x)),
    }
    said, lines = [], []
    for name, fn in parts.items():
        start = time.perf_counter()
        lowered = jax.jit(fn).lower(jax.random.key(0), x)
        if compile:
            lowered.compile()
        lines.append(len(lowered.as_text().splitlines()))
        said.append(f"{name} {time.perf_counter() - start:.2f} s ({lines[-1]} lines)")
    print(f"trace{' and compile' if compile else ''}, T = {num_steps:4d}: {', '.join(said)}")
    return lines


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--short", action="store_true", help="one round of the small cases with a network of one block, one compilation"
    )
    parser.add_argument("--cpu", action="store_true", help="CPU time in place of wall time: for cores that others use")
    parser.add_argument("--only", nargs="+", choices=("chain", "bound", "training", "compiling"))
    options = parser.parse_args()
    wanted = options.only or ("chain", "bound", "training", "compiling")
    rounds = 1 if options.short else options.rounds
    global clock, depth
    clock = time.process_time if options.cpu else time.perf_counter
    depth = 1 if options.short else depth
    for num_steps in (100,) if options.short else (100, 1000):
        for batch in (1,) if options.short else (1, 256):
            if "chain" in wanted:
                chain(num_steps, batch, rounds if num_steps * batch < 100_000 else min(rounds, 5))
    for num_steps in (100,) if options.short else (100, 1000):
        if "bound" in wanted:
            bound(num_steps, rounds)
    if "training" in wanted:
        training(64 if options.short else 256, rounds)
    if "compiling" in wanted:
        assert compiling(100) == compiling(1000, not options.short), "the programs should not grow with T"


if __name__ == "__main__":
    main()
