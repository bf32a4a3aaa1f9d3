"""Time of the U-Net: its chain and its gradient inside loops, and the same work by diffusers on torch.

Every ratio compares two timings of one run, interleaved. The library's rows need torch and diffusers, and are left out
where they are not installed; both sides have the same weights and as many threads: torch is told, JAX takes the cores
that the process may use. XLA runs many of a network's operations in one thread each; with `--devices 2` JAX makes two
devices of the CPU, and they share every batch that divides among them. Where other work shares the cores, one thread
and its CPU time say more than the wall's clock:

python examples/benchmarks/unet.py [--short] [--size tiny|small|cifar10] [--devices 2]
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python examples/benchmarks/unet.py --threads 1 --cpu
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jax.sharding import NamedSharding

import numpyro_diffusion as nd
from numpyro_diffusion._devices import check_devices, replicate
from numpyro_diffusion.networks import UNET_SIZES, UNet
from numpyro_diffusion.training.objectives import simple_loss
from numpyro_diffusion.training.run import TrainingRun

EVENT = (32, 32, 3)
Measure: TypeAlias = Callable[[Callable[[], object], Callable[[], object]], tuple[float, float]]


def medians(
    clock: Callable[[], float], rounds: int, first: Callable[[], object], second: Callable[[], object]
) -> tuple[float, float]:
    """Median seconds of two pieces of work, by turns, after one of each."""
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for fn, kept in zip((first, second), seconds, strict=True):
            start = clock()
            jax.block_until_ready(fn())
            if turn:
                kept.append(clock() - start)
    return float(np.median(seconds[0])), float(np.median(seconds[1]))


def make(size: str, num_steps: int) -> nd.DiffusionPrior:
    """A prior with a U-Net whose weights are all moved off their start, so that nothing can be skipped."""
    network, rng = UNet(jax.random.key(0), EVENT, **UNET_SIZES[size]), np.random.default_rng(0)
    stir = lambda leaf: (
        leaf + 0.02 * rng.standard_normal(leaf.shape).astype("f") if eqx.is_inexact_array(leaf) else leaf
    )
    denoiser = nd.denoisers.Network(jax.tree.map(stir, network), "noise", "beta", (-1.0, 1.0))
    diffusion = nd.GaussianDiffusion(nd.schedules.linear(num_steps))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, EVENT))


def sampler(prior: nd.DiffusionPrior, batch: int, spread: NamedSharding | None) -> Callable[[], jax.Array]:
    """The chain of a batch, compiled; on devices that share it, if any do."""
    sample = jax.jit(lambda key: prior.sample(key, (batch,)), out_shardings=spread)
    return lambda: sample(jax.random.key(2))


def loops(prior: nd.DiffusionPrior, batch: int, measure: Measure) -> None:
    """The chain against T calls, and gradients in a loop against one alone."""
    network: Any = prior.process.denoiser.fn
    num_steps, x = prior.process.num_steps, jax.random.normal(jax.random.key(1), (batch, *EVENT))
    call = jax.jit(lambda x: jax.vmap(lambda x: network(x, 3.0))(x))
    ours, bare = measure(sampler(prior, batch, None), lambda: call(x))
    print(f"chain, T = {num_steps}, batch {batch}: {ours:.3f} s, / (T network calls) = {ours / num_steps / bare:.2f}")
    params, rest = eqx.partition(network, eqx.is_inexact_array)
    loss = lambda params: jnp.mean(jax.vmap(lambda x: eqx.combine(params, rest)(x, 3.0))(x) ** 2)
    alone = jax.jit(jax.grad(loss))
    descend = lambda params, _: (jax.tree.map(lambda a, b: a - 1e-3 * b, params, jax.grad(loss)(params)), None)
    inside = jax.jit(lambda params: jax.lax.scan(descend, params, None, length=4)[0])
    ours, bare = measure(lambda: inside(params), lambda: alone(params))
    print(f"gradient, batch {batch}: {bare:.3f} s alone, {ours / 4:.3f} s in a loop, ratio {ours / 4 / bare:.2f}")


def library(prior: nd.DiffusionPrior, batch: int, measure: Measure, spread: NamedSharding | None) -> None:
    """The same chain and training step by diffusers on torch."""
    import diffusers
    import torch

    with tempfile.TemporaryDirectory() as folder:
        nd.save_diffusers(prior, folder)
        pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    model, scheduler, num_steps = pipeline.unet, pipeline.scheduler, prior.process.num_steps
    scheduler.set_timesteps(num_steps)

    def their_chain() -> None:
        with torch.no_grad():
            x = torch.randn(batch, 3, *EVENT[:2])
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t).sample, t, x).prev_sample

    ours, theirs = measure(sampler(prior, batch, spread), their_chain)
    print(f"chain, T = {num_steps}, batch {batch}: ours {ours:.3f} s, theirs {theirs:.3f} s, ratio {ours / theirs:.2f}")

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images, count = torch.randn(batch, 3, *EVENT[:2]), 4

    def their_steps() -> None:
        for _ in range(count):
            t, noise = torch.randint(0, num_steps, (batch,)), torch.randn_like(images)
            loss = torch.nn.functional.mse_loss(model(scheduler.add_noise(images, noise, t), t).sample, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    run = TrainingRun(prior.process, optax.adam(1e-4), simple_loss, 0.0, 0.0, batch, spread)
    given = (jax.random.key(3), run.start(), jnp.asarray(images.permute(0, 2, 3, 1).numpy()))
    run, given = replicate(run, spread), replicate(given, spread)
    scan = eqx.filter_jit(run.scan)
    ours, theirs = measure(lambda: scan(*given, None, jnp.asarray(batch), count), their_steps)
    print(
        f"training step, batch {batch}: ours {ours / count:.3f} s, theirs {theirs / count:.3f} s, "
        f"ratio {ours / theirs:.2f}"
    )


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(UNET_SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="T")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--devices", type=int, default=1, help="that JAX makes of the CPU and shares batches among")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds in place of the wall's")
    parser.add_argument("--short", action="store_true", help="a chain of the smallest network, once, and no library")
    options = parser.parse_args()
    numpyro.set_host_device_count(options.devices)
    if options.short:
        loops(make("tiny", 4), 1, partial(medians, time.perf_counter, 1))
        return
    measure = partial(medians, time.process_time if options.cpu else time.perf_counter, options.rounds)
    prior, compared = make(options.size, options.steps), find_spec("diffusers") and find_spec("torch")
    if compared:
        import torch

        torch.set_num_threads(options.threads)
    clock = "CPU" if options.cpu else "wall"
    print(f"U-Net {options.size}, {EVENT}, {options.devices} device(s), seconds of {clock} time")
    for batch in options.batch:
        loops(prior, batch, measure)
        if compared:
            library(
                prior, batch, measure, check_devices(options.devices, batch) if batch % options.devices == 0 else None
            )
        else:
            print("diffusers or torch is not installed: no comparison")


if __name__ == "__main__":
    main()
