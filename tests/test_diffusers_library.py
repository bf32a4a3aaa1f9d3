"""Parity with the `diffusers` library itself, where it and torch are installed; nothing is downloaded."""

import inspect
import json
import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import denoisers, networks, schedules
from numpyro_diffusion.diffusers import scheduler, unet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

MAKE = runpy.run_path(str(Path(__file__).parent / "golden" / "diffusers" / "make.py"))
# The published configurations at their full width, but 64 pixels instead of 256; and the small ones.
UNETS = MAKE["UNETS"] | {"church": MAKE["CHURCH"] | {"sample_size": 64}}


def _save(folder, model, chain, pipeline="DDPMPipeline"):
    getattr(diffusers, pipeline)(unet=model, scheduler=chain).save_pretrained(folder)
    return folder


def _random(config):
    """A model with the library's own random weights, moved off those that start at 0 or 1."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                value.add_(0.1 * torch.randn(value.shape))
    return model


def _theirs(model, x, t):
    with torch.no_grad():
        out = model(torch.from_numpy(x)[None], t).sample[0].numpy()
    return out.reshape(-1, *x.shape)


@pytest.mark.parametrize("name", UNETS)
def test_network_outputs(name, tmp_path):
    """At most 1e-4 apart in float32, loaded from what `save_pretrained` wrote."""
    model = _random(UNETS[name])
    variance = "learned_range" if name == "pair" else "fixed_small"
    prior = nd.load_diffusers(_save(tmp_path, model, diffusers.DDPMScheduler(variance_type=variance)))
    net, call = prior.process.denoiser.fn, eqx.filter_jit(lambda net, x, t: net(x, t))
    event_shape = prior.event_shape
    for t in (0, 10, 500, 999):
        x = np.random.default_rng(t).standard_normal((model.config.in_channels, *event_shape[:2])).astype(np.float32)
        found = np.reshape(
            call(net, np.moveaxis(x, 0, -1).reshape(event_shape), jnp.asarray(t + 1.0)), (net.outputs, *event_shape)
        )
        for a, b in zip(found, _theirs(model, x, t), strict=True):
            b = np.moveaxis(b, 0, -1).reshape(event_shape)
            assert b.std() > 0.05
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MAKE["SCHEDULERS"])
def test_golden_answers_of_schedulers_are_the_librarys(name):
    """The recorded steps are those that the installed version takes."""
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(MAKE["FOLDER"] / "schedulers.safetensors")
    parts = {"float32": MAKE["make_scheduler"](name), "exact": MAKE["widen"](MAKE["make_scheduler"](name))}
    for t in MAKE["scheduler_steps"](parts["exact"].config.num_train_timesteps):
        for kind, part in parts.items():
            state, prediction = MAKE["scheduler_step"](part, t, *MAKE["scheduler_inputs"](name, t))
            np.testing.assert_allclose(state[0], tensors[f"{name}.{t}.{kind}.state"], rtol=0, atol=1e-6)
            recorded = tensors[f"{name}.{t}.{kind}.prediction"]
            gate = {"rtol": 1e-6, "atol": 1e-6}
            if kind == "float32":
                # x_0 = (x_t - ...) / sqrt(alpha_bar) has x_t of size 4; processors round such numbers either way.
                gate = {"rtol": 0, "atol": np.finfo(np.float32).eps * 4 / float(part.alphas_cumprod[t]) ** 0.5}
            np.testing.assert_allclose(prediction[0], recorded, **gate)


@pytest.mark.parametrize("name", ["grey", "pair", "defaults", "church"])
def test_golden_answers_of_networks_are_the_librarys(name):
    import safetensors

    model, shapes = MAKE["make_unet"](name)
    with safetensors.safe_open(MAKE["FOLDER"] / f"unet-{name}.safetensors", "np") as file:
        header, outputs = file.metadata(), file.get_tensor("outputs")
    assert json.loads(header["shapes"]) == shapes
    size = model.config.sample_size
    size = [size, size] if isinstance(size, int) else list(size)
    x = MAKE["draw"](f"{name}-x", (1, model.config.in_channels, *size))
    for t, expected in zip(MAKE["UNET_STEPS"], outputs, strict=True):
        with torch.no_grad():
            found = model(torch.from_numpy(x), t).sample[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["small-log", "learned"])
def test_a_whole_chain_with_the_same_noise(name, tmp_path):
    """The library's loop from noise to image, and our kernels with the same noise: 20 steps, 1e-3 at the end."""
    config = MAKE["UNETS"]["pair"] if name == "learned" else MAKE["UNETS"]["grey"]
    model = _random(config)
    kind, settings = MAKE["SCHEDULERS"][name]
    chain = getattr(diffusers, kind)(**settings | {"num_train_timesteps": 20})
    prior = nd.load_diffusers(_save(tmp_path, model, chain))
    noise = np.random.default_rng(0).standard_normal((21, model.config.in_channels, 8, 8)).astype(np.float32)
    x = noise[20]
    for t in reversed(range(20)):
        with torch.no_grad():
            out = model(torch.from_numpy(x)[None], t).sample.numpy()
        x = MAKE["scheduler_step"](chain, t, x[None], out, noise[t][None])[0][0]
    ours = np.moveaxis(noise, 1, -1).reshape(21, *prior.event_shape)

    @eqx.filter_jit
    def step(prior, x, t, s, noise):
        kernel = prior.process.inner_kernel(x, t, s).base_dist
        return kernel.loc + kernel.scale * noise

    y = ours[20]
    for t in range(20, 1, -1):
        y = step(prior, y, jnp.asarray(float(t)), jnp.asarray(t - 1.0), ours[t - 1])
    y = prior.process.predict(y, 1)
    assert np.std(y) > 0.1
    np.testing.assert_allclose(y, np.moveaxis(x, 0, -1).reshape(prior.event_shape), rtol=0, atol=1e-3)


def test_a_pipeline_that_has_changed_its_scheduler(tmp_path):
    """The file of the second scheduler keeps fields of the first."""
    first = diffusers.DDPMScheduler(variance_type="fixed_large", prediction_type="sample", clip_sample_range=2.0)
    second = diffusers.DDIMScheduler.from_config(first.config)
    prior = nd.load_diffusers(_save(tmp_path, _random(UNETS["grey"]), second, "DDIMPipeline"))
    denoiser = prior.process.denoiser
    assert (denoiser.predicts, denoiser.variance, denoiser.clip) == ("data", "beta_tilde", (-2.0, 2.0))


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "learned"])
def test_the_library_loads_what_we_save(variance, tmp_path):
    """A pipeline of ours, in the library: the same network, the same β, and it runs."""
    settings = {"channels": (8, 16), "depth": 1, "num_groups": 4, "outputs": 2 if variance == "learned" else 1}
    net = networks.UNet(jax.random.key(0), (8, 16, 3), **settings)
    rng = np.random.default_rng(0)
    net = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype("f"), net)
    schedule = schedules.linear(50) if variance == "beta" else schedules.log_snr(50, -8.0, 6.0)
    diffusion = nd.GaussianDiffusion(schedule)
    denoiser = denoisers.Network(net, "velocity", variance, (-1.0, 1.0))
    nd.save_diffusers(nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, (8, 16, 3))), tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(str(tmp_path))
    x = rng.standard_normal((3, 8, 16)).astype(np.float32)
    expected = np.reshape(eqx.filter_jit(net)(np.moveaxis(x, 0, -1), 8.0), (-1, 8, 16, 3))
    for a, b in zip(_theirs(pipeline.unet, x, 7), expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(a, 0, -1), b, rtol=0, atol=1e-4)
    alpha_bar = schedule.alpha_bar(jnp.arange(1, 51))
    np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod.numpy(), alpha_bar, rtol=1e-4, atol=1e-6)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(num_inference_steps=50, output_type="np", generator=torch.manual_seed(0)).images
    assert image.shape == (1, 8, 16, 3) and np.isfinite(image).all() and image.std() > 0.01


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (unet.DEFAULTS, ["UNet2DModel"]),
        (scheduler.DEFAULTS, ["DDPMScheduler", "DDIMScheduler"]),
    ],
)
def test_every_field_of_the_library_is_known_with_its_default(ours, theirs):
    for kind in theirs:
        for name, parameter in inspect.signature(getattr(diffusers, kind).__init__).parameters.items():
            if name not in ("self", "kwargs"):
                assert ours[name] == parameter.default, name
