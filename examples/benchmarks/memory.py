"""Peak memory of the bound, and of gradients of it and through the chain, as the compiler plans it.

python examples/benchmarks/memory.py
"""

import argparse

import jax
import jax.numpy as jnp
import speed
from speed import EVENT, make

import numpyro_diffusion as nd


def planned(fn: object, *arguments: object) -> float:
    """Megabytes of temporary memory of a compiled function."""
    return jax.jit(fn).lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 1e6


def chain(num_steps: int) -> tuple[float, float]:
    """Megabytes for the gradient of a draw with respect to its noises, and likewise where every step is stored."""
    process, sampler = make(num_steps), nd.samplers.Ancestral()
    noise = jnp.zeros(sampler.noise_shape(process))

    def stored(noise: jax.Array) -> jax.Array:
        def step(x: jax.Array, args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            t, z = args
            kernel = process.inner_kernel(x, t, t - 1)
            return kernel.mean + jnp.sqrt(kernel.variance) * z, None

        x, _ = jax.lax.scan(step, noise[0], (jnp.arange(num_steps, 1, -1), noise[1:-1]))
        kernel = process.last_kernel(x)
        return jnp.sum(kernel.mean + jnp.sqrt(kernel.variance) * noise[-1])

    ours = planned(jax.grad(lambda noise: sampler.from_noise(noise, process).sum()), noise)
    return ours, planned(jax.grad(stored), noise)


def main() -> None:
    """Print a table: T against the settings of the bound; then the gradient through the chain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="T = 100 only, a network of one block")
    options = parser.parse_args()
    speed.depth = 1 if options.short else speed.depth
    settings = {
        "all terms": nd.KBound(4),
        "all terms, chunk=128": nd.KBound(4, chunk=128),
        "num_times=16": nd.KBound(4, num_times=16),
    }
    network = make(100).denoiser.fn
    loss = lambda x: jnp.sum(jnp.square(jax.vmap(lambda x: network(x, 3.0))(x)))
    call = planned(jax.grad(loss), jnp.zeros((400, *EVENT))) / 400
    print(f"one network call and its gradient: {1e3 * call:.1f} kB of activations")
    for num_steps in (100,) if options.short else (100, 400, 1600):
        process, planned_gradients = make(num_steps), []
        for name, likelihood in settings.items():
            prior = nd.DiffusionPrior(process, likelihood)
            value = planned(prior.log_prob, jnp.zeros(EVENT))
            gradient = planned(jax.grad(prior.log_prob), jnp.zeros(EVENT))
            planned_gradients.append(gradient)
            calls = likelihood.num_samples * (likelihood.num_times or num_steps)
            print(f"T = {num_steps:4d}, {name:20s}: value {value:7.2f} MB, gradient {gradient:7.2f} MB "
                  f"= {gradient / (call * calls):5.1f} x (calls x one call's activations)")  # fmt: skip
        assert max(planned_gradients) == planned_gradients[0], "chunks and subsets should need less than all terms"
    for num_steps in (300,) if options.short else (100, 1000, 4000):
        ours, stored = chain(num_steps)
        print(f"T = {num_steps:4d}, gradient through the chain: {ours:7.2f} MB, / (every step stored, {stored:.2f} MB) "
              f"= {ours / stored:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
