"""What posterior denoising costs on the device that JAX finds: a CPU, a GPU or a TPU.

For U-Nets of several sizes, in float32 and with a bfloat16 network: a draw of the chain, the K bound and its
gradient, SMC, particle Gibbs, the gradient that NUTS takes in the space of the noise, and a training step, each beside
as many bare calls of the network (or of its gradient) in batches of the same size; seconds to compile; memory; and
that nothing goes between host and device while they run (`jax.transfer_guard`). Then what fewer bits in matrix
products do to K. Where torch and diffusers are installed, their chain and training step with the same weights follow.

python examples/benchmarks/accelerator.py [--short] [--sizes tiny small cifar10] [--batch 1 32] [--largest]
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from unet import library, medians

import numpyro_diffusion as nd
from numpyro_diffusion.networks import UNET_SIZES, UNet
from numpyro_diffusion.training.objectives import simple_loss
from numpyro_diffusion.training.run import TrainingRun

# Bits of the fraction of a factor of a product, for each setting of `jax.default_matmul_precision`.
PRECISIONS = {"float32": 23, "tensorfloat32": 10, "bfloat16": 7}
PRODUCTS = ("dot_general", "conv_general_dilated", "convolution_3x3")


class Work(NamedTuple):
    """Something to time.

    Attributes:
        name: in the table.
        fn: of a process, a key and an image or images.
        given: those.
        bare: what it is compared with: ``"call"`` of the network, its ``"gradient"`` by the image, or by the
            ``"weights"``.
        count: how many of these it must make, in batches.
    """

    name: str
    fn: Callable[..., Any]
    given: tuple[Any, ...]
    bare: str
    count: float


def make(size: str, side: int, num_steps: int, dtype: str) -> nd.ReverseProcess:
    """A process with a U-Net (an MLP, to be short) whose weights are all moved off their start: nothing is skipped."""
    event, rng = (side, side, 3), np.random.default_rng(0)
    if size == "short":
        network: Any = nd.networks.MLP(jax.random.key(0), event, num_steps=num_steps, width=8, depth=1)
    else:
        network = UNet(jax.random.key(0), event, **UNET_SIZES[size])
    stir = lambda leaf: (
        leaf + 0.02 * rng.standard_normal(leaf.shape).astype("f") if eqx.is_inexact_array(leaf) else leaf
    )
    denoiser = nd.denoisers.Network(jax.tree.map(stir, network), "noise", "beta", (-1.0, 1.0), dtype=dtype)
    return nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.linear(num_steps)), denoiser, event)


def works(process: nd.ReverseProcess, batch: int) -> Iterator[Work]:
    """All that is timed, for batches (of draws, terms, particles or examples) of one size."""
    steps, event, key = process.num_steps, process.event_shape, jax.random.key(1)
    images = jax.random.normal(jax.random.key(2), (batch, *event))
    factor = nd.factors.Factor(lambda x: -50 * jnp.sum((jnp.mean(x, (0, 1)) - 0.5) ** 2))
    draws = -(-batch // steps)  # so many that the terms, of all times or some, are about a batch
    terms = min(max(1, batch // draws - 1), steps - 1)
    bound, sampler = nd.KBound(draws, terms), nd.samplers.Ancestral()
    smc, gibbs = (
        kind(max(2, batch), nd.twists.Tweedie()) for kind in (nd.samplers.TwistedSMC, nd.samplers.ParticleGibbs)
    )
    share = max(2, batch) / batch
    yield Work(f"chain, T = {steps}", lambda p, key: nd.DiffusionPrior(p).sample(key, (batch,)), (key,), "call", steps)
    value = lambda p, key, x: bound(key, p, x).value
    calls = bound.calls(process) / batch
    yield Work(f"K, {bound.calls(process)} terms", value, (key, images[0]), "call", calls)
    yield Work(
        "its gradient", lambda p, key, x: jax.grad(partial(value, p, key))(x), (key, images[0]), "gradient", calls
    )
    yield Work("SMC", lambda p, key: smc.run(key, p, factor), (key,), "gradient", steps * share)
    path = jnp.zeros((steps + 1, *event))
    step = lambda p, key, path: gibbs.step(key, p, factor, path).x
    yield Work("particle Gibbs, a step", step, (key, path), "gradient", steps * share)
    noise = jax.random.normal(key, (batch, *sampler.noise_shape(process)))
    energy = lambda p, noise: jnp.sum(factor.log_r(sampler.from_noise(noise, p))) - jnp.sum(noise**2) / 2
    leap = lambda p, noise: jax.vmap(jax.grad(partial(energy, p)))(noise)
    yield Work("NUTS on noise, a gradient", leap, (noise,), "gradient", steps)
    if not process.denoiser.dtype:
        for parts in (1, 4) if batch % 4 == 0 else (1,):
            yield training(process, images, parts)


def training(process: nd.ReverseProcess, images: jax.Array, parts: int) -> Work:
    """A step of `fit`, its gradient in one piece or several; with bfloat16 it is the network's, not the weights'."""
    run = TrainingRun(process, optax.adam(1e-4), simple_loss, 0.999, 0.0, len(images), accumulate=parts)
    arrays, rest = eqx.partition((run, run.start()), eqx.is_array)

    def step(process: nd.ReverseProcess, arrays: Any, key: jax.Array, images: jax.Array) -> Any:
        del process
        run, state = eqx.combine(arrays, rest)
        return eqx.filter(run.scan(key, state, images, None, jnp.asarray(len(images)), 2), eqx.is_array)

    name = "training step" + (f", in {parts} parts" if parts > 1 else "")
    return Work(name, step, (arrays, jax.random.key(3), images), "weights", 2)


def bare(process: nd.ReverseProcess, batch: int) -> dict[str, Work]:
    """The network's own calls and gradients, for a batch of images."""
    x = jax.random.normal(jax.random.key(2), (batch, *process.event_shape))
    net = lambda p, x: p.denoiser.denoise(p.diffusion, x, jnp.asarray(2.0), jnp.asarray(1.0))[0].mean
    square = lambda x, p: jnp.mean(jax.vmap(partial(net, p))(x) ** 2)

    def by_weights(p: nd.ReverseProcess, x: jax.Array) -> Any:
        params, rest = eqx.partition(p, eqx.is_inexact_array)
        return jax.grad(lambda params: square(x, eqx.combine(params, rest)))(params)

    fns = {
        "call": lambda p, x: jax.vmap(partial(net, p))(x),
        "gradient": lambda p, x: jax.grad(square)(x, p),
        "weights": by_weights,
    }
    return {name: Work(f"network: {name}", fn, (x,), name, 1) for name, fn in fns.items()}


class Compiled(NamedTuple):
    """A program, called without arguments, seconds to make it, and the temporary memory it plans, in MB."""

    call: Callable[[], Any]
    seconds: float
    memory: float


def compiled(process: nd.ReverseProcess, work: Work, clock: Callable[[], float] = time.perf_counter) -> Compiled:
    """The program, whose weights are an argument and no constant of it."""
    arrays, rest = eqx.partition(process, eqx.is_array)
    fn = jax.jit(lambda arrays, *given: work.fn(eqx.combine(arrays, rest), *given))
    given = jax.device_put((arrays, *work.given))
    start = clock()
    program = fn.lower(*given).compile()
    seconds = clock() - start
    return Compiled(lambda: program(*given), seconds, program.memory_analysis().temp_size_in_bytes / 1e6)


def table(process: nd.ReverseProcess, batch: int, rounds: int, clock: Callable[[], float]) -> None:
    """A row for each piece of work."""
    calls = {name: compiled(process, work) for name, work in bare(process, batch).items()}
    for work in works(process, batch):
        program, alone = compiled(process, work, clock), calls[work.bare]
        jax.block_until_ready((program.call(), alone.call()))
        with jax.transfer_guard("disallow"):
            seconds, one = medians(clock, rounds, program.call, alone.call)
        rest = f"{seconds / (one * work.count):.2f} | {program.seconds:.1f} | {program.memory:.0f}"
        print(f"| {work.name} | {batch} | {seconds:.4f} | {work.bare} | {rest} |", flush=True)


def largest(process: nd.ReverseProcess) -> int:
    """The largest batch, of 1, 2, 4, …, whose chain fits into the device's memory."""
    batch = 1
    while True:
        work = next(works(process, 2 * batch))
        try:
            jax.block_until_ready(compiled(process, work).call())
        except Exception as error:  # of jaxlib's, whose class has had several names
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return batch
        batch *= 2


def rounded(fn: Callable[..., Any], bits: int) -> Callable[..., Any]:
    """The function as it is where products take so many bits of their factors' fractions: emulated, on any device."""

    def evaluate(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        read = lambda var: var.val if hasattr(var, "val") else values[var]
        for eqn in jaxpr.eqns:
            given = [read(var) for var in eqn.invars]
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            if inner is not None and eqn.primitive.name != "scan":
                closed = hasattr(inner, "consts")
                out = evaluate(inner.jaxpr if closed else inner, inner.consts if closed else (), given)
            else:
                if eqn.primitive.name in PRODUCTS:
                    given = [jax.lax.reduce_precision(x, 8, bits) for x in given]
                out = eqn.primitive.bind(*given, **eqn.params)
                out = out if eqn.primitive.multiple_results else [out]
            values.update(zip(eqn.outvars, out, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return run


def precision(prior: nd.DiffusionPrior, x: jax.Array, name: str, settings: Sequence[str] = tuple(PRECISIONS)) -> None:
    """K of some examples with fewer bits in the network's products, with the same noise."""
    bound, on_cpu, values = nd.KBound(4, low_discrepancy=True), jax.default_backend() == "cpu", {}
    for setting in settings:
        process, network = prior.process, prior.process.denoiser.fn
        if on_cpu and setting != "float32":
            process = eqx.tree_at(lambda p: p.denoiser.fn, process, rounded(network, PRECISIONS[setting]))
        with jax.default_matmul_precision(setting):
            value = eqx.filter_jit(lambda key, p, x: jax.vmap(lambda x: bound(key, p, x).value)(x))
            values[setting] = np.asarray(value(jax.random.key(4), process, x), np.float64)
    for setting, found in values.items():
        apart = found - values["float32"]
        error = apart.std() / np.sqrt(len(apart))
        how = "emulated" if on_cpu and setting != "float32" else "as it is"
        print(f"| {name} | {setting} ({how}) | {found.mean():.4f} | {apart.mean():+.4f} ± {error:.4f} "
              f"| {np.abs(apart).max():.4f} |")  # fmt: skip


def header(clock: str) -> None:
    """What the figures are of."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    memory = f", {stats['bytes_limit'] / 1e9:.0f} GB" if "bytes_limit" in stats else ""
    name = f"{device.device_kind} ({device.platform}), {jax.device_count()} device(s){memory}"
    print(f"{name}, JAX {jax.__version__}; seconds of {clock} time\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(UNET_SIZES), default=["tiny", "small"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--largest", action="store_true", help="the largest batch that fits, too (not on a CPU)")
    parser.add_argument("--steps", type=int, default=20, help="T")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["times", "precision"], help="one of the two")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds in place of the wall's, where others share it")
    parser.add_argument("--cache", help="folder in which compiled programs are kept between runs")
    parser.add_argument("--short", action="store_true", help="an MLP in place of the U-Nets, and three steps, once")
    options = parser.parse_args()
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
    sizes, dtypes, batches, side = options.sizes, options.dtypes, options.batch, 32
    if options.short:
        sizes, dtypes, batches, side = ["short"], ["float32"], [2], 4
    clock = time.process_time if options.cpu else time.perf_counter
    header("CPU" if options.cpu else "wall")
    if options.only != "precision":
        times(options, sizes, dtypes, batches, side, clock)
    if options.only != "times":
        precisions(options.short, options.steps)


def times(options: Any, sizes: list[str], dtypes: list[str], batches: list[int], side: int, clock: Any) -> None:
    """The table of times, and diffusers' where it is installed."""
    steps, rounds = (3, 1) if options.short else (options.steps, options.rounds)
    print("| what | batch | seconds | beside bare | ratio | compiled in, s | planned memory, MB |\n" + "|---" * 7 + "|")
    for size in sizes:
        for dtype in dtypes:
            process = make(size, side, steps, None if dtype == "float32" else dtype)
            count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(process.denoiser, eqx.is_inexact_array)))
            print(f"| **{size}, {count / 1e6:.1f} M weights, {dtype}** | | | | | | |")
            more = [largest(process)] if options.largest and jax.default_backend() != "cpu" else []
            for batch in batches + more:
                table(process, batch, rounds, clock)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    print("\nhost transfers while they ran: none" + (f"; peak memory {peak / 1e9:.2f} GB" if peak else ""))
    if options.short:
        return
    if not (find_spec("diffusers") and find_spec("torch")):
        print("diffusers or torch is not installed: no comparison")
        return
    for batch in batches:
        library(nd.DiffusionPrior(make(sizes[0], 32, steps, None)), batch, partial(medians, clock, rounds), None)


def precisions(short: bool, num_steps: int) -> None:
    """The table of K with fewer bits in products."""
    print("\n| network | products | K, nats | beside float32 | largest difference |\n" + "|---" * 5 + "|")
    digits = nd.load("digits")
    if short:
        network, x = digits.process.denoiser.fn, jnp.full((8, 8), 0.5)
        pair = lambda x, t: (network(x, t), rounded(network, 23)(x, t))
        plain, found = jax.jit(pair)(x, jnp.asarray(2.0))
        # Rounding is of the size of the largest terms, not of each sum.
        np.testing.assert_allclose(found, plain, atol=1e-6 * jnp.max(jnp.abs(plain)))
        precision(digits, jnp.full((2, 8, 8), 0.5), "digits, 8×8", ("float32", "tensorfloat32"))
        return
    precision(digits, digits.sample(jax.random.key(5), (64,)), "digits, 8×8")
    process = make("tiny", 32, num_steps, None)
    images = jax.random.uniform(jax.random.key(6), (4, *process.event_shape), minval=-1.0)
    precision(nd.DiffusionPrior(process), images, "U-Net tiny, random weights, 32×32×3")


if __name__ == "__main__":
    main()
