"""What must not grow with the number of steps: the size of the compiled program, and memory where it is bounded."""

import jax
import jax.numpy as jnp
import pytest

import numpyro_diffusion as nd


def make(num_steps, likelihood=None):
    network = nd.networks.MLP(jax.random.key(0), (4,), num_steps=num_steps, width=32, depth=1)
    process = nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(num_steps)), nd.denoisers.Network(network, "velocity"), (4,)
    )
    return nd.DiffusionPrior(process, likelihood)


def lines(fn, *arguments):
    return len(jax.jit(fn).lower(*arguments).as_text().splitlines())


def temporary_bytes(fn, *arguments):
    return jax.jit(fn).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["sample", "log_prob", "gradient", "from_noise"])
def test_the_program_does_not_grow_with_the_steps(name):
    def program(num_steps):
        prior = make(num_steps)
        if name == "sample":
            return lines(lambda key: prior.sample(key, (3,)), jax.random.key(0))
        if name == "from_noise":
            return lines(jax.grad(lambda z: prior.from_noise(z).sum()), jnp.zeros(prior.noise_shape))
        return lines(jax.grad(prior.log_prob) if name == "gradient" else prior.log_prob, jnp.zeros(4))

    # From 257 steps on, the gradient through the chain recomputes whole segments of it.
    counts = (430, 1200) if name == "from_noise" else (20, 320)
    assert len({program(count) for count in counts}) == 1


@pytest.mark.slow
def test_memory_of_the_gradient():
    """Linear in the steps for the whole bound; a subset of the terms, or chunks of them, bound it."""
    planned = lambda n, likelihood: temporary_bytes(jax.grad(make(n, likelihood).log_prob), jnp.zeros(4))
    small, whole = (planned(n, nd.KBound(2)) for n in (100, 800))
    assert whole <= 8 * small * 1.1
    for likelihood in (nd.KBound(2, num_times=8), nd.KBound(2, chunk=16)):
        small, large = (planned(n, likelihood) for n in (100, 800))
        per_step = 2 * 700 * 4 * 8  # with chunks, a handful of numbers for each of the further terms may stay
        assert large <= small + (per_step if likelihood.chunk else 0)
        assert large < whole / 4
