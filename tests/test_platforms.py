"""What is compiled for GPUs and TPUs, without one: programs are lowered for them here, and read."""

import importlib.util
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import networks
from numpyro_diffusion.networks import convolution
from numpyro_diffusion.training.objectives import bound_loss
from numpyro_diffusion.training.run import TrainingRun

KEY = jax.random.key(0)
IMAGE = (4, 4, 1)
ACCELERATORS = ("cuda", "tpu")
# Decompositions of matrices, by the libraries that each platform has for them. Everything else is XLA's own.
LIBRARIES = re.compile(r"cusolver_\w+_ffi|cublas_\w+_ffi|Eigh|Qr|ProductOfElementaryHouseholderReflectors")


def _unet(event=IMAGE):
    return networks.UNet(KEY, event, channels=(8, 8), depth=1, attention=(1,), num_groups=4)


NETWORKS = {
    "mlp": lambda: networks.MLP(KEY, IMAGE, num_steps=6, width=8, depth=1),
    "unet": _unet,
    "multiscale": lambda: networks.BumpReadout(
        networks.MultiScale(KEY, (4, 4), outputs=4, channels=4, depth=1, dense_width=8, dense_depth=1), num_steps=6,
        num_bumps=4, outputs=1),
    "patched": lambda: networks.Patched(networks.MLP(KEY, (2, 2, 4), num_steps=6, width=8, depth=1), (4, 4)),
    "rbf": lambda: networks.RBF(KEY, (2,), num_steps=6, num_centers=7),
}  # fmt: skip


def _process(network, event=IMAGE):
    return nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(6)), nd.denoisers.Network(network, "velocity"), event
    )


def _texts(fn, *args):
    traced = jax.jit(fn).trace(*args)
    return {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ACCELERATORS}


def _check(texts):
    """No library of the CPU's, no Python, no double precision."""
    for platform, text in texts.items():
        foreign = {name for name in re.findall(r"custom_call @(\w+)", text) if not LIBRARIES.fullmatch(name)}
        assert not foreign, f"{platform}: {foreign}"
        assert not re.search(r"callback|infeed|outfeed|lapack|xf64|<f64>", text), platform


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_their_gradients_are_lowered_for_accelerators(name):
    """Plainly: not one call of anything but XLA's own operations."""
    network = NETWORKS[name]()
    event = network.event_shape if hasattr(network, "event_shape") else (4, 4)
    params, rest = eqx.partition(network, eqx.is_inexact_array)
    loss = lambda params, x: jnp.sum(jax.vmap(lambda x: eqx.combine(params, rest)(x, 2.0))(x) ** 2)
    texts = _texts(jax.grad(loss), params, jnp.ones((3, *event)))
    _check(texts)
    assert not any("custom_call" in text for text in texts.values())


class Damped(eqx.Module):
    """A network that multiplies no matrices."""

    weight: jax.Array

    def __call__(self, x, t):
        return self.weight * jnp.tanh(x) / (1 + t)


ROWS = np.random.default_rng(0).normal(size=(3, 16)).astype("f")
FACTORS = {
    "linear": lambda: nd.factors.LinearGaussian(jnp.ones(3), ROWS, 0.1),
    "any": lambda: nd.factors.Factor(lambda x: -jnp.sum(x**4)),
}


@pytest.mark.parametrize("factor", ["linear", pytest.param("any", marks=pytest.mark.slow)])
def test_own_products_keep_all_bits(factor):
    """The network here has no product, so that each in the program is the package's own."""
    process = _process(Damped(jnp.ones(IMAGE)))
    texts = _texts(lambda key: nd.samplers.TwistedSMC(4).run(key, process, FACTORS[factor]()), KEY)
    _check(texts)
    products = re.findall(r"stablehlo\.dot_general.*", texts["cuda"])
    assert len(products) > 5 and all("HIGHEST" in line and "DEFAULT" not in line for line in products)


@pytest.mark.slow
def test_samplers_bounds_and_training_are_lowered_for_accelerators():
    process = _process(_unet())
    prior, x = nd.DiffusionPrior(process), jnp.ones(IMAGE)
    plain = [
        _texts(lambda key: prior.sample(key, (3,)), KEY),  # random bits too: integers' arithmetic, the same everywhere
        _texts(jax.value_and_grad(prior.log_prob), x),
    ]
    run = TrainingRun(process, optax.adam(1e-3), bound_loss, 0.9, 0.0, 8)
    arrays, rest = eqx.partition((run, run.start()), eqx.is_array)

    def train(arrays, data):
        run, state = eqx.combine(arrays, rest)
        return eqx.filter(run.scan(KEY, state, data, None, jnp.asarray(len(data)), 2), eqx.is_array)

    plain.append(_texts(train, arrays, jnp.ones((16, *IMAGE))))
    for texts in plain:
        _check(texts)
        assert not any("custom_call" in text for text in texts.values())
    process, gibbs = _process(NETWORKS["mlp"]()), nd.samplers.ParticleGibbs(4)
    for make in FACTORS.values():
        _check(_texts(lambda key, make=make: nd.samplers.TwistedSMC(4).run(key, process, make()), KEY))
        _check(_texts(lambda key, path, make=make: gibbs.step(key, process, make(), path), KEY, jnp.ones((7, *IMAGE))))


def test_convolutions_of_a_cpu_are_switched_off_by_the_environment(monkeypatch):
    """A second copy of the module, read under another setting; the programs of a CPU are then those of a GPU."""

    def copy(choice):
        monkeypatch.setenv("NUMPYRO_DIFFUSION_CONVOLUTIONS", choice)
        spec = importlib.util.spec_from_file_location(f"convolution_{choice}", convolution.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.convolve

    def text(convolve, platform):
        loss = lambda x, w: jnp.sum(jax.vmap(lambda x: convolve(x, w, 1, (1, 1)))(x) ** 2)
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(jnp.ones((9, 4, 6, 2)), jnp.ones((3, 3, 2, 3)))
        return re.findall(r"stablehlo\.convolution\(.*", traced.lower(lowering_platforms=(platform,)).as_text())

    assert text(copy("xla"), "cpu") == text(copy("fast"), "cuda") != text(copy("fast"), "cpu")
    with pytest.raises(ValueError, match="NUMPYRO_DIFFUSION_CONVOLUTIONS: expected 'fast' or 'xla', got 'none'"):
        copy("none")


def test_draws_on_many_devices_are_those_on_one():
    """Of JAX's default generator, whose bits do not depend on where an array lies."""
    assert jax.config.jax_threefry_partitionable
    assert jax.config.jax_default_prng_impl == "threefry2x32"
    np.testing.assert_array_equal(jax.random.bits(KEY, (3,)), [4070199207, 4202968722, 1427181096])
