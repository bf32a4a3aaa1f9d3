"""What the posterior samplers cost: overhead, memory, effective draws per second, several devices, ArviZ.

python examples/benchmarks/samplers.py [--short] [--only overhead memory efficiency devices arviz]
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_sample

import numpyro_diffusion as nd

DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpyro_diffusion as nd
d, width, steps, depth = SIZES
network = nd.networks.MLP(jax.random.key(0), (d,), num_steps=steps, width=width, depth=depth)
diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(steps))
process = nd.ReverseProcess(diffusion, nd.denoisers.Network(network, "velocity"), (d,))
observations = jnp.linspace(-1, 1, 8)[:, None] * jnp.ones(d)
def program(keys, observations, devices=None):
    sampler = nd.samplers.TwistedSMC(64, nd.twists.PseudoInverse(), devices=devices)
    one = lambda key, y: sampler.run(key, process, nd.factors.Gaussian(y, 0.5))
    return jax.jit(jax.vmap(one)).lower(keys, observations).compile()
keys = jax.random.split(jax.random.key(1), 8)
mesh = Mesh(np.array(jax.devices()), ("island",))
spread = jax.device_put((keys, observations), NamedSharding(mesh, PartitionSpec("island")))
alone = program(keys, observations)
expected = alone(keys, observations)
def compare(name, run, *inputs):
    found = run(*inputs)
    print(f"{name}: {found.x.addressable_shards[0].data.shape} of {found.x.shape} on each of "
          f"{len(found.x.sharding.device_set)} devices; largest difference",
          float(np.abs(np.asarray(found.x) - np.asarray(expected.x)).max()), "in x,",
          float(np.abs(np.asarray(found.log_evidence) - np.asarray(expected.log_evidence)).max()), "nats in log Z;",
          f"operations / those of one alone: {run.cost_analysis()['flops'] / alone.cost_analysis()['flops']:.3f}")
compare("islands and observations", program(*spread), *spread)
compare("particles", program(keys, observations, 8), keys, observations)
"""


def timed(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """The smallest wall and CPU times of compiled calls, in turns, over `rounds`."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(rounds):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: (min(wall for wall, _ in kept), min(cpu for _, cpu in kept)) for name, kept in times.items()}


def image_process(steps: int, width: int, depth: int = 3) -> nd.ReverseProcess:
    """An untrained network on 28 × 28: the cost is what counts."""
    network = nd.networks.MLP(jax.random.key(0), (28, 28), num_steps=steps, width=width, depth=depth)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(steps))
    return nd.ReverseProcess(diffusion, nd.denoisers.Network(network), (28, 28))


def overhead(short: bool) -> None:
    """TwistedSMC against the bare denoiser with its gradient."""
    count, steps, *sizes = (64, 5, 64, 1) if short else (256, 50, 512)
    process = image_process(steps, *sizes)
    factor = nd.factors.Gaussian(jnp.zeros((28, 28)), 0.5)
    sampler = nd.samplers.TwistedSMC(count, nd.twists.PseudoInverse())
    smc = jax.jit(lambda key: sampler.run(key, process, factor).log_evidence)

    def bare(log_r: Callable[[Array], Array]) -> Callable[[Array], Array]:
        """A denoiser call and the gradient of log r of its answer, at every step."""

        def step(x: Array, t: Array) -> tuple[Array, None]:
            loss = lambda x: log_r(process.denoiser.posterior(process.diffusion, x, t).mean)
            return x + 1e-6 * jax.vmap(jax.grad(loss))(x), None

        return jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(steps, 0, -1.0))[0])

    x, key = jax.random.normal(jax.random.key(1), (count, 28, 28)), jax.random.key(2)
    # A quadratic log r pulls the answer itself back through the network. A sum pulls back ones: then a compiler drops
    # the answer, and the products of the last layers with ones it computes once for all particles.
    quadratic, linear = bare(lambda mean: -0.5 * jnp.sum(mean**2)), bare(jnp.sum)
    runs = {"SMC": lambda: smc(key), "bare": lambda: quadratic(x), "part": lambda: linear(x)}
    times = timed(runs, 2 if short else 7)
    print(f"overhead: {count} particles, {steps} steps, 28 × 28, width {sizes[0]}: TwistedSMC, smallest times")
    for name, what in (("bare", "bare denoiser with gradient"), ("part", "bare gradient of the answer's sum")):
        wall, cpu = (ours / other for ours, other in zip(times["SMC"], times[name], strict=True))
        print(f"overhead: ÷ {what}: {wall:.2f} in wall time, {cpu:.2f} in CPU time", flush=True)


def memory(short: bool) -> None:
    """Planned memory of many particles, in chunks and all at once."""
    count, chunk, *sizes = (100, 10, 5, 64, 1) if short else (10_000, 250, 20, 512)
    process = image_process(*sizes)
    factor = nd.factors.Gaussian(jnp.zeros((28, 28)), 0.5)
    for size in (chunk, None):
        sampler = nd.samplers.TwistedSMC(count, nd.twists.PseudoInverse(), chunk=size)
        compiled = (
            jax.jit(lambda key, sampler=sampler: sampler.run(key, process, factor)).lower(jax.random.key(0)).compile()
        )
        plan = compiled.memory_analysis()
        total = (plan.temp_size_in_bytes + plan.output_size_in_bytes + plan.argument_size_in_bytes) / 2**30
        print(f"memory: {count} particles of 784 dimensions, chunk {size}: {total:.2f} GiB planned")


def report(*cells: Any) -> None:
    """One line of the table: posterior, sampler, draws, largest R-hat, least effective size, CPU seconds."""
    title, name, draws, r_hat, least, seconds = cells
    print(f"| {title} | {name} | {draws} | {r_hat} | {least:.0f} | {seconds:.1f} | {least / seconds:.1f} |", flush=True)


def chain_draws(kernel: Any, warmup: int, draws: int) -> tuple[Array, float]:
    """Two chains' draws of x, and the seconds of CPU time (other work may run beside) that they and warm-up took."""

    def one(key: Array) -> Array:
        mcmc = MCMC(kernel, num_warmup=warmup, num_samples=draws, progress_bar=False)
        mcmc.run(key)
        return mcmc.get_samples()["x"]

    keys = jax.random.split(jax.random.key(4), 2)
    run = jax.jit(jax.vmap(one)).lower(keys).compile()
    start = time.process_time()
    x = jax.block_until_ready(run(keys))
    return x, time.process_time() - start


def efficiency(short: bool) -> None:
    """Effective draws per second of CPU time from one posterior, by four ways."""
    rng = np.random.default_rng(0)
    locs = 3 * rng.standard_normal((4, 16))
    mixture = nd.denoisers.GaussianMixture(locs, np.full(4, 0.7), np.full(4, 0.25))
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(50, -10, 2))
    plane = nd.DiffusionPrior(nd.ReverseProcess(diffusion, mixture, (16,)))
    operator = jnp.asarray(rng.standard_normal((2, 16)) / 4)
    digits = nd.load("digits").with_(sampler=nd.samplers.Ancestral(25), likelihood=nd.KBound(2, 16))
    image = jnp.asarray(nd.datasets.digits().test_images[0])
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (8, 8))
    pixels = image + 0.2 * jax.random.normal(jax.random.key(2), (8, 8))

    def linear() -> None:
        x = numpyro.sample("x", plane)
        numpyro.sample("y", dist.Normal(operator @ x, 0.5).to_event(1), obs=operator @ locs[0])

    def hidden() -> None:
        x = numpyro.sample("x", digits)
        numpyro.sample("y", dist.Normal(x, 0.2).mask(mask).to_event(2), obs=jnp.where(mask, pixels, 0.0))

    print("| posterior | sampler | draws | R-hat | least ESS | CPU seconds | ESS per CPU second |")
    print("|---|---|---|---|---|---|---|")
    cases = (("mixture, d = 16", linear, 400), ("digits, half hidden", hidden, 200))
    for title, model, size in (("mixture, d = 16", linear, 40),) if short else cases:
        free = numpyro.handlers.reparam(model, config={"x": nd.infer.DiffusionReparam()})
        for name, kernel in (
            ("NUTS on K", NUTS(model, init_strategy=init_to_sample, max_tree_depth=6)),
            ("NUTS, reparameterised", NUTS(free, init_strategy=init_to_sample, max_tree_depth=6)),
            ("ParticleGibbs, 16", nd.infer.ParticleGibbs(model, num_particles=16)),
        ):
            if short and name.startswith("NUTS"):
                continue
            x, seconds = chain_draws(kernel, size // 2, size)
            x = np.asarray(x)
            least, r_hat = np.min(effective_sample_size(x)), np.max(split_gelman_rubin(x))
            report(title, name, x.shape[0] * x.shape[1], f"{r_hat:.2f}", least, seconds)
        smc = nd.infer.SMC(model, num_particles=size, num_islands=8)
        smc.run(jax.random.key(5))
        start = time.process_time()
        smc.run(jax.random.key(6))
        particles = jax.block_until_ready(smc.particles)
        seconds = time.process_time() - start
        # Spread of the islands' means against that of single draws: how many independent draws an island is worth.
        weight = jnp.exp(particles.log_weight)
        means = jnp.einsum("in,in...->i...", weight, particles.x)
        within = jnp.einsum("in,in...->i...", weight, (particles.x - means.mean(0)) ** 2).mean(0)
        least = float(8 * jnp.median(within / means.var(0, ddof=1)))
        report(title, "SMC, 8 islands (median element)", 8 * size, "", least, seconds)


def devices(short: bool) -> None:
    """Eight simulated devices in a process of their own."""
    sizes = "(16, 32, 4, 1)" if short else "(256, 256, 20, 3)"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    # Simulated devices wait for one another in threads of one pool: with as many as cores, they can wait for ever.
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "64"}
    subprocess.run([sys.executable, "-c", DEVICES.replace("SIZES", sizes)], check=True, env=environment)


def arviz(short: bool) -> None:
    """Seconds of `to_arviz` for a site of many elements, log likelihood and all."""
    size, draws = (50, 20) if short else (20_000, 250)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(5))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), (size,)))

    def model() -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=jnp.zeros(size))

    kernel = nd.infer.ParticleGibbs(model, num_particles=4)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=draws, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0))
    smc = nd.infer.SMC(model, num_particles=draws, num_islands=2).run(jax.random.key(1))
    for name, result in (("MCMC", mcmc), ("SMC", smc)):
        jax.block_until_ready(result.get_samples())
        start = time.perf_counter()
        data = nd.to_arviz(result)
        seconds = time.perf_counter() - start
        print(f"arviz: {name}, 2 × {draws} draws of {data['posterior']['x'].shape[-1]} variables: {seconds:.1f} s")


def main() -> None:
    """Run the parts that are asked for."""
    parts = {"overhead": overhead, "memory": memory, "efficiency": efficiency, "devices": devices, "arviz": arviz}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="*", choices=list(parts), default=list(parts))
    options = parser.parse_args()
    for name in options.only:
        parts[name](options.short)


if __name__ == "__main__":
    main()
