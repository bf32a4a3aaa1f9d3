"""Wall time of the U-Net: its chain and its gradient inside loops, and the same work by diffusers on torch.

Every ratio compares two timings of one run, interleaved. The library's rows need torch and diffusers, and are left out
where they are not installed; both sides have the same weights and 2 threads.

python examples/benchmarks/unet.py [--short] [--size tiny|small|cifar10]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import numpyro_diffusion as nd
from numpyro_diffusion.networks import UNET_SIZES, UNet
from numpyro_diffusion.training.loop import TrainingRun
from numpyro_diffusion.training.objectives import simple_loss

THREADS = 2
EVENT = (32, 32, 3)


def medians(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of two pieces of work, by turns, after one of each."""
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for fn, kept in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(fn())
            if turn:
                kept.append(time.perf_counter() - start)
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


def loops(prior: nd.DiffusionPrior, batch: int, rounds: int) -> None:
    """The chain against T calls, and gradients in a loop against one alone."""
    network: Any = prior.process.denoiser.fn
    num_steps, x = prior.process.num_steps, jax.random.normal(jax.random.key(1), (batch, *EVENT))
    sample = jax.jit(lambda key: prior.sample(key, (batch,)))
    call = jax.jit(lambda x: jax.vmap(lambda x: network(x, 3.0))(x))
    ours, bare = medians(lambda: sample(jax.random.key(2)), lambda: call(x), rounds)
    print(f"chain, T = {num_steps}, batch {batch}: {ours:.3f} s, / (T network calls) = {ours / num_steps / bare:.2f}")
    params, rest = eqx.partition(network, eqx.is_inexact_array)
    loss = lambda params: jnp.mean(jax.vmap(lambda x: eqx.combine(params, rest)(x, 3.0))(x) ** 2)
    alone = jax.jit(jax.grad(loss))
    descend = lambda params, _: (jax.tree.map(lambda a, b: a - 1e-3 * b, params, jax.grad(loss)(params)), None)
    inside = jax.jit(lambda params: jax.lax.scan(descend, params, None, length=4)[0])
    ours, bare = medians(lambda: inside(params), lambda: alone(params), rounds)
    print(f"gradient, batch {batch}: {bare:.3f} s alone, {ours / 4:.3f} s in a loop, ratio {ours / 4 / bare:.2f}")


def library(prior: nd.DiffusionPrior, batch: int, rounds: int) -> None:
    """The same chain and training step by diffusers on torch."""
    import diffusers
    import torch

    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        prior.save_diffusers(folder)
        pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    model, scheduler, num_steps = pipeline.unet, pipeline.scheduler, prior.process.num_steps
    scheduler.set_timesteps(num_steps)

    def their_chain() -> None:
        with torch.no_grad():
            x = torch.randn(batch, 3, *EVENT[:2])
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t).sample, t, x).prev_sample

    sample = jax.jit(lambda key: prior.sample(key, (batch,)))
    ours, theirs = medians(lambda: sample(jax.random.key(2)), their_chain, rounds)
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

    run = TrainingRun(prior.process, optax.adam(1e-4), simple_loss, ema=0.0, dequantize=0.0, batch_size=batch)
    state, data = run.start(), jnp.asarray(images.permute(0, 2, 3, 1).numpy())
    ours, theirs = medians(lambda: run.steps(jax.random.key(3), state, data, count), their_steps, rounds)
    print(
        f"training step, batch {batch}: ours {ours / count:.3f} s, theirs {theirs / count:.3f} s, "
        f"ratio {ours / theirs:.2f}"
    )


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(UNET_SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="a chain of the smallest network, once, and no library")
    options = parser.parse_args()
    if options.short:
        loops(make("tiny", 4), 1, 1)
        return
    prior = make(options.size, 20)
    print(f"U-Net {options.size}, {EVENT}")
    for batch in (1, 32):
        loops(prior, batch, options.rounds)
        if find_spec("diffusers") and find_spec("torch"):
            library(prior, batch, options.rounds)
        else:
            print("diffusers or torch is not installed: no comparison")


if __name__ == "__main__":
    main()
