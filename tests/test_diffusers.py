"""Folders of the `diffusers` library: parity with its recorded answers, and the reasons for what is refused."""

import json
import runpy
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import numpyro_diffusion as nd
from numpyro_diffusion import denoisers, networks, schedules
from numpyro_diffusion.checkpoints import CheckpointError
from numpyro_diffusion.diffusers.scheduler import read_scheduler
from numpyro_diffusion.diffusers.unet import read_unet
from numpyro_diffusion.diffusers.weights import name_of

GOLDEN = Path(__file__).parent / "golden" / "diffusers"
MAKE = runpy.run_path(str(GOLDEN / "make.py"))
DDPM = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
KEY = jax.random.key(0)


def _golden(name):
    with safetensors.safe_open(GOLDEN / f"unet-{name}.safetensors", "np") as file:
        header = file.metadata()
        return json.loads(header["config"]), json.loads(header["shapes"]), file.get_tensor("outputs")


def _folder(folder, name="grey", unet=None, scheduler=None, tensors=None, flat=False):
    """Write a pipeline's folder as the library would, with changes."""
    config, shapes, _ = _golden(name)
    parts = [folder, folder] if flat else [folder / "unet", folder / "scheduler"]
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
    scheduler = DDPM | ({"variance_type": "learned_range"} if name == "pair" else {}) | (scheduler or {})
    (parts[0] / "config.json").write_text(json.dumps(config | (unet or {})))
    (parts[1] / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    tensors = MAKE["weights"](shapes) if tensors is None else tensors
    (parts[0] / WEIGHTS).write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
    return folder


def _as_ours(image, event_shape):
    """An image of the library, channels first, as an event."""
    return np.moveaxis(image, 0, -1).reshape(event_shape)


def _errors(name, prior):
    """The greatest difference of the network's output from the recorded one, for each recorded step."""
    config, _, outputs = _golden(name)
    size = config["sample_size"]
    x = MAKE["draw"](f"{name}-x", (config["in_channels"], *(size if isinstance(size, list) else [size] * 2)))
    net, call = prior.process.denoiser.fn, eqx.filter_jit(lambda net, x, t: net(x, t))
    for t, expected in zip(MAKE["UNET_STEPS"], outputs, strict=True):
        halves = np.split(expected, net.outputs)
        found = np.reshape(
            call(net, _as_ours(x, prior.event_shape), jnp.asarray(t + 1.0)), (net.outputs, *prior.event_shape)
        )
        yield max(np.abs(a - _as_ours(b, prior.event_shape)).max() for a, b in zip(found, halves, strict=True))


@pytest.mark.parametrize(
    ("name", "event_shape"),
    [
        pytest.param("cifar10", (32, 32, 3), marks=pytest.mark.slow),
        pytest.param("church", (32, 32, 3), marks=pytest.mark.slow),
        pytest.param("defaults", (8, 16, 3), marks=pytest.mark.slow),
        ("grey", (8, 8)),
        ("pair", (8, 8, 3)),
    ],
)
def test_network_outputs_are_the_librarys(name, event_shape, tmp_path):
    """Within 1e-4 in float32, at the first steps, in the middle and at the last."""
    prior = nd.load_diffusers(_folder(tmp_path, name))
    assert prior.event_shape == event_shape
    assert max(_errors(name, prior)) <= 1e-4


@pytest.mark.parametrize("name", MAKE["SCHEDULERS"])
def test_scheduler_steps_are_the_librarys(name):
    """Each step within 1e-5, and the prediction of x_0 to 1e-5 of its size; where float32 allows, as the library is."""
    tensors = safetensors.numpy.load_file(GOLDEN / "schedulers.safetensors")
    with safetensors.safe_open(GOLDEN / "schedulers.safetensors", "np") as file:
        config = json.loads(file.metadata()["configs"])[name]
    chain = read_scheduler(config)
    diffusion = nd.GaussianDiffusion(chain.schedule)
    clip = None if chain.clip is None else (-chain.clip, chain.clip)
    assert chain.schedule.num_steps == config["num_train_timesteps"]

    @jax.jit
    def step(x, out, t):
        output = (out[:3], out[3:]) if name == "learned" else out
        denoiser = denoisers.Network(lambda z, t: output, chain.predicts, chain.variance, clip)
        posterior, kernel = denoiser.denoise(diffusion, x, t)
        return posterior.mean, kernel.base_dist.loc, kernel.base_dist.scale

    compared = 0
    for t in MAKE["scheduler_steps"](config["num_train_timesteps"]):
        x, out, noise = (array[0] for array in MAKE["scheduler_inputs"](name, t))
        prediction, loc, scale = step(x, out, t + 1.0)
        state = loc + scale * noise if t else loc  # the library adds no noise in the last step
        kinds = ("exact", "float32") if chain.schedule.noise_variance(t + 1) > 5e-3 else ("exact",)
        for kind in kinds:
            np.testing.assert_allclose(state, tensors[f"{name}.{t}.{kind}.state"], rtol=0, atol=1e-5)
            expected = tensors[f"{name}.{t}.{kind}.prediction"]
            np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
            compared += kind == "float32"
    assert compared >= 4


def test_the_chain_is_that_of_the_files(tmp_path):
    """Head, variance, clipping and schedule are the scheduler's; the last step has the variance of the second."""
    prior = nd.load_diffusers(_folder(tmp_path))
    denoiser, schedule = prior.process.denoiser, prior.process.diffusion.schedule
    assert (denoiser.predicts, denoiser.variance, denoiser.clip) == ("noise", "beta_tilde", (-1.0, 1.0))
    beta = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(schedule.alpha_bar(1000), np.prod(1 - beta), rtol=1e-5)
    second = beta[1] * beta[0] / (1 - (1 - beta[0]) * (1 - beta[1]))
    x = jnp.zeros((8, 8))
    np.testing.assert_allclose(prior.process.kernel(x, 1).variance, second, rtol=1e-5)
    np.testing.assert_allclose(prior.process.kernel(x, 2).variance, second, rtol=1e-5)
    predictions = prior.process.predict(10 * jnp.ones((8, 8)), 1000)
    assert jnp.abs(predictions).max() == 1.0


def test_channels_that_come_first_are_said_to(tmp_path):
    prior = nd.load_diffusers(_folder(tmp_path, "pair"))
    with pytest.raises(ValueError, match=r"x_t: .*\(8, 8, 3\), got \(5, 3, 8, 8\) \(channels first: move that axis to"):
        prior.process.predict(jnp.zeros((5, 3, 8, 8)), 3)
    with pytest.raises(ValueError, match=r"value: .* got \(3, 8, 8\) \(channels first"):
        prior.log_prob(jnp.zeros((3, 8, 8)))


def test_a_loaded_prior_is_saved_in_our_own_format_too(tmp_path):
    folder = _folder(tmp_path, scheduler={"num_train_timesteps": 20, "clip_sample_range": 2.0})
    prior = nd.load_diffusers(folder).with_(likelihood=nd.KBound(1, 1))
    prior.save(tmp_path / "prior.safetensors")
    x, log_prob = 0.3 * MAKE["draw"]("data", (8, 8)), eqx.filter_jit(lambda prior, x: prior.log_prob(x))
    values = [log_prob(p, x) for p in (prior, nd.load(tmp_path / "prior.safetensors"))]
    assert np.isfinite(values[0]) and values[0] == values[1]


def test_units_are_the_users(tmp_path):
    """Pixels in 0 … 255 are the same model in other units."""
    folder = _folder(tmp_path)
    ours, bytes_ = nd.load_diffusers(folder), nd.load_diffusers(folder, loc=127.5, scale=127.5)
    x = MAKE["draw"]("units", (8, 8))
    left = jax.jit(lambda x: ours.process.predict(x, 300))(x)
    right = jax.jit(lambda x: bytes_.process.predict(x, 300))(127.5 + 127.5 * x)
    np.testing.assert_allclose(right, 127.5 + 127.5 * left, rtol=1e-4, atol=0.01)
    assert bytes_.process.denoiser.clip == (0.0, 255.0) and 0 < np.mean((right > 0) & (right < 255)) < 1


def test_whole_numbers_on_request(tmp_path):
    folder = _folder(tmp_path)
    prior, plain = nd.load_diffusers(folder, integers=True), nd.load_diffusers(folder)
    assert prior.support.is_discrete and prior.process.num_levels == 256
    assert float(prior.process.diffusion.loc) == float(prior.process.diffusion.scale) == 127.5
    assert prior.process.last_step.step.log_scale == plain.process.last_step.log_scale
    with pytest.raises(ValueError, match="loc, scale: expected None with integers, whose units are fixed, got 0.0"):
        nd.load_diffusers(folder, integers=True, loc=0.0)


def test_the_first_published_layout_and_names(tmp_path):
    """All files in one folder, and attention layers under their old names."""
    _, shapes, _ = _golden("pair")
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, value in MAKE["weights"](shapes).items():
        for new, before in old.items():
            name = name.replace(new, before)
        tensors[name] = value
    assert any("proj_attn" in name for name in tensors)
    extra = {"timestep_values": None, "trained_betas": None}
    folder = _folder(tmp_path, "pair", scheduler=extra, tensors=tensors, flat=True)
    (folder / "model_index.json").unlink()
    prior = nd.load_diffusers(str(folder))
    assert max(_errors("pair", prior)) <= 1e-4
    assert prior.process.denoiser.variance == "learned"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_precision_become_float32(dtype, tmp_path):
    _, shapes, _ = _golden("grey")
    tensors = {name: value.astype(dtype) for name, value in MAKE["weights"](shapes).items()}
    net = nd.load_diffusers(_folder(tmp_path, tensors=tensors)).process.denoiser.fn
    assert {leaf.dtype for leaf in jax.tree.leaves(net)} == {jnp.dtype("float32")}
    expected = tensors["conv_in.weight"].astype(np.float32)
    np.testing.assert_array_equal(np.transpose(net.conv_in.weight, (3, 2, 0, 1)), expected)


def test_half_precision_on_request(tmp_path):
    """The same weights in float32, and answers that differ by the 8 bits of bfloat16."""
    folder, x = _folder(tmp_path), MAKE["draw"]("half", (8, 8))
    exact, half = (nd.load_diffusers(folder, compute_dtype=kind).process.denoiser.fn for kind in (None, "bfloat16"))
    left, right = (eqx.filter_jit(lambda net: net(x, 9))(net) for net in (exact, half))
    assert right.dtype == jnp.float32 and 1e-4 < jnp.std(left - right) / jnp.std(left) < 0.05
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(half), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="compute_dtype: expected one of 'bfloat16', 'float32', got 'int8'"):
        nd.load_diffusers(folder, compute_dtype="int8")


def test_another_image_size(tmp_path):
    folder = _folder(tmp_path, unet={"sample_size": None})
    prior = nd.load_diffusers(folder, image_size=(4, 6))
    assert prior.event_shape == (4, 6)
    assert prior.process.predict(jnp.zeros((4, 6)), 10).shape == (4, 6)
    with pytest.raises(CheckpointError, match=r"sample_size: expected the image's size, got none; give image_size="):
        nd.load_diffusers(folder)
    with pytest.raises(CheckpointError, match=r"config.json: event_shape: expected a height and width divisible by 2"):
        nd.load_diffusers(folder, image_size=(5, 6))
    with pytest.raises(ValueError, match=r"image_size: expected \(height, width\), got 8"):
        nd.load_diffusers(folder, image_size=8)
    with pytest.raises(TypeError, match="image_size: expected a whole number of at least 1, got 2.5"):
        nd.load_diffusers(folder, image_size=(4, 2.5))


def _prior(schedule=None, predicts="noise", variance="beta_tilde", clip=(-1.0, 1.0), diffusion=None, **changes):
    """A prior of our own, with none of its weights at its initial value."""
    settings = {"channels": (4, 8), "depth": 1, "num_groups": 2, "outputs": 2 if variance == "learned" else 1}
    net = eqx.filter_eval_shape(lambda: networks.UNet(KEY, (4, 6, 3), **(settings | changes)))
    net = jax.tree.map(lambda leaf: jnp.asarray(MAKE["draw"](str(leaf.shape), leaf.shape)), net)
    diffusion = nd.GaussianDiffusion(schedules.cosine(20) if schedule is None else schedule, *(diffusion or ()))
    denoiser = denoisers.Network(net, predicts, variance, clip)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, (4, 6, 3)))


OURS = {
    "plain": lambda: _prior(),
    "other": lambda: _prior(
        schedules.from_beta([0.1, 0.3, 0.05]), "velocity", "beta", None, up_attention=(0,), head_channels=2, eps=1e-5
    ),
    "learned": lambda: _prior(schedules.linear(100), "data", "learned", (-2.0, 2.0), down_padding=(1, 1)),
    "bytes": lambda: _prior(clip=(0.0, 255.0), diffusion=(127.5, 127.5), cosine_first=True, frequency_shift=0),
}


@pytest.mark.parametrize("name", OURS)
def test_what_is_saved_comes_back(name, tmp_path):
    prior = OURS[name]()
    nd.save_diffusers(prior, tmp_path / "new" / "folder")
    units = {"loc": 127.5, "scale": 127.5} if name == "bytes" else {}
    back = nd.load_diffusers(tmp_path / "new" / "folder", **units)
    assert jax.tree.structure(back.process.denoiser) == jax.tree.structure(prior.process.denoiser)
    left, right = jax.tree.leaves(back.process.denoiser), jax.tree.leaves(prior.process.denoiser)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)
    # 1 − β_t = ᾱ_t/ᾱ_{t-1} has the rounding of both; schedules that have a name come back by it, to the bit.
    tables = [p.process.diffusion.schedule.table[1:] for p in (back, prior)]
    np.testing.assert_allclose(*tables, rtol=0, atol=5e-6 if name == "other" else 0)


def test_schedules_are_saved_by_name_where_they_have_one(tmp_path):
    named = {
        "linear": schedules.linear(1000),
        "scaled_linear": schedules.from_beta(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
        "squaredcos_cap_v2": schedules.cosine(50),
    }
    for name, schedule in named.items():
        nd.save_diffusers(_prior(schedule), tmp_path)
        config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
        assert config["beta_schedule"] == name and config["trained_betas"] is None
        np.testing.assert_array_equal(read_scheduler(config).schedule.table, schedule.table)
        assert name != "linear" or (config["beta_start"], config["beta_end"]) == (1e-4, 0.02)


def test_every_weight_has_a_name_of_its_own():
    """The published configuration's names and shapes, one by one."""
    config, shapes, _ = _golden("cifar10")
    paths, _ = jax.tree_util.tree_flatten_with_path(read_unet(config))
    assert sum(leaf.size for _, leaf in paths) == 35_746_307
    # Ho et al. 2020, appendix B: 114 million for the 256-pixel models
    large = read_unet({"_class_name": "UNet2DModel", **MAKE["CHURCH"]})
    assert large.event_shape == (256, 256, 3) and sum(leaf.size for leaf in jax.tree.leaves(large)) == 113_673_219
    assert {name_of(path): leaf.size for path, leaf in paths} == {k: np.prod(v) for k, v in shapes.items()}


UNET = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
UNSUPPORTED = {
    "unknown field": ("unet", {"skip": 3, "hop": "x"}, "hop, skip: expected only known fields, got hop = 'x', skip"),
    "another model": (
        "unet",
        {"_class_name": "UNet2DConditionModel"},
        "_class_name: expected UNet2DModel, got 'UNet2D",
    ),
    "fourier": (
        "unet",
        {"time_embedding_type": "fourier"},
        "not supported: time_embedding_type: expected 'positional'",
    ),
    "two faults": ("unet", {"act_fn": "mish", "downsample_type": "resnet"}, "downsample_type: .*; act_fn: expected"),
    "scale and shift": (
        "unet",
        {"resnet_time_scale_shift": "scale_shift"},
        "resnet_time_scale_shift: expected 'default",
    ),
    "classes": ("unet", {"num_class_embeds": 10}, "num_class_embeds: expected None, got 10"),
    "no middle": ("unet", {"mid_block_type": None}, "mid_block_type: expected 'UNetMidBlock2D', got None"),
    "other groups": ("unet", {"attn_norm_num_groups": 3}, "attn_norm_num_groups: expected None or 2, got 3"),
    "time width": ("unet", {"time_embedding_dim": 3}, "time_embedding_dim: expected None or 32, got 3"),
    "block": (
        "unet",
        {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
        "down_block_types: expected DownBlock2D or AttnDownBlock2D, got SkipDownBlock2D",
    ),
    "blocks": ("unet", {"up_block_types": ["UpBlock2D"]}, "up_block_types: expected 2 of them, .* got 1"),
    "three outputs": ("unet", {"out_channels": 3}, "out_channels: expected in_channels, 1, or twice that, got 3"),
    "no layers": ("unet", {"layers_per_block": 0}, "layers_per_block: expected a whole number of at least 1, got 0"),
    "channels": ("unet", {"block_out_channels": 8}, "block_out_channels: expected a list, got 8"),
    "groups": ("unet", {"norm_num_groups": 3}, r"channels: expected multiples of num_groups = 3, got \[8, 16\]"),
    "size": ("unet", {"sample_size": "8"}, "sample_size: expected a size or two, got '8'"),
    "odd size": ("unet", {"sample_size": 7}, r"event_shape: expected a height and width divisible by 2, .* \(7, 7\)"),
    "eps": ("unet", {"norm_eps": None}, "norm_eps: expected a number, got None"),
    "another scheduler": (
        "scheduler",
        {"_class_name": "PNDMScheduler"},
        "_class_name: expected DDPMScheduler or DDIMScheduler, got 'PNDMScheduler'",
    ),
    "unknown setting": ("scheduler", {"lower_order_final": True}, "lower_order_final: expected only known fields, got"),
    "beta schedule": ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule: expected 'linear' or .*got 'sigmoid'"),
    "prediction": ("scheduler", {"prediction_type": "flow"}, "prediction_type: expected 'epsilon' or .* got 'flow'"),
    "variance": ("scheduler", {"variance_type": "learned"}, "variance_type: expected 'fixed_small' or .*got 'learned'"),
    "thresholding": ("scheduler", {"thresholding": True}, "thresholding: expected False, got True"),
    "zero snr": ("scheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: expected False, got True"),
    "one step": ("scheduler", {"num_train_timesteps": 1}, "num_train_timesteps: expected a whole number of at least 2"),
    "betas": ("scheduler", {"trained_betas": [0.1]}, r"trained_betas: expected as many as .* 1000, got shape \(1,\)"),
    "wild betas": (
        "scheduler",
        {"trained_betas": [0.1, 2.0], "num_train_timesteps": 2},
        "trained_betas: beta: expected every step in",
    ),
    "rising": ("scheduler", {"beta_start": 0.5}, "beta_start, beta_end: expected 0 < beta_start <= beta_end <= 1, got"),
    "clip": ("scheduler", {"clip_sample_range": "1"}, "clip_sample_range: expected a number, got '1'"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_named(name, tmp_path):
    part, change, message = UNSUPPORTED[name]
    folder = _folder(tmp_path, **{part: change})
    file = UNET if part == "unet" else SCHEDULER
    with pytest.raises(CheckpointError, match=f"(?s){file}: .*{message}"):
        nd.load_diffusers(folder)


def test_variances_and_outputs_must_agree(tmp_path):
    with pytest.raises(
        CheckpointError, match="expected out_channels of twice in_channels with variance_type 'learned_r"
    ):
        nd.load_diffusers(_folder(tmp_path / "a", scheduler={"variance_type": "learned_range"}))
    with pytest.raises(CheckpointError, match="expected out_channels of twice .* got 2 times and a variance of 'beta'"):
        nd.load_diffusers(_folder(tmp_path / "b", "pair", scheduler={"variance_type": "fixed_large"}))


def test_settings_of_sampling_and_of_training_are_passed_over(tmp_path):
    """Steps of a strided sampler, and dropout, are no part of the model."""
    ddim = {"_class_name": "DDIMScheduler", "steps_offset": 1, "set_alpha_to_one": False, "predict_epsilon": False}
    folder = _folder(tmp_path, unet={"dropout": 0.1, "_name_or_path": "x"}, scheduler=ddim)
    assert nd.load_diffusers(folder).process.denoiser.predicts == "data"


def _tensors(change):
    tensors = MAKE["weights"](_golden("grey")[1])
    change(tensors)
    return tensors


WRONG_WEIGHTS = {
    "missing": (lambda w: w.pop("conv_in.bias"), "weights: missing conv_in.bias; left over none"),
    "left over": (lambda w: w.update(extra=w["conv_in.bias"]), "weights: missing none; left over extra"),
    "renamed": (
        lambda w: w.update({"mid_block.resnets.0.conv.bias": w.pop("mid_block.resnets.0.conv1.bias")}),
        "missing mid_block.resnets.0.conv1.bias; left over mid_block.resnets.0.conv.bias",
    ),
    "all others": (lambda w: [w.update({f"layer.{k}": w.pop(k)}) for k in list(w)], "and [0-9]+ more; left over layer"),
    "shape": (
        lambda w: w.update({"conv_in.weight": w["conv_in.weight"][..., :1]}),
        r"conv_in.weight: expected shape \(8, 1, 3, 3\), got \(8, 1, 3, 1\)",
    ),
    "whole numbers": (
        lambda w: w.update({"conv_in.bias": w["conv_in.bias"].astype(int)}),
        "conv_in.bias: expected floating-point numbers, got int64",
    ),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_wrong_weights_are_named(name, tmp_path):
    change, message = WRONG_WEIGHTS[name]
    with pytest.raises(CheckpointError, match=f"unet/{WEIGHTS}: .*{message}"):
        nd.load_diffusers(_folder(tmp_path, tensors=_tensors(change)))


def test_pickled_weights_are_refused_with_the_reason(tmp_path):
    folder = _folder(tmp_path)
    weights = folder / "unet" / WEIGHTS
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.bin is refused: it is a pickle, which can run"):
        nd.load_diffusers(folder)
    weights.with_suffix(".bin").rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(CheckpointError, match=r"not supported: diffusion_pytorch_model.fp16.safetensors \(shards and"):
        nd.load_diffusers(folder)


def test_missing_and_damaged_files_are_named(tmp_path):
    folder = _folder(tmp_path / "model")
    weights = folder / "unet" / WEIGHTS
    data = weights.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"PK" + data):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"unet/{WEIGHTS}: not a safetensors file, damaged or cut short"):
            nd.load_diffusers(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=f"unet/{WEIGHTS}: no such file"):
        nd.load_diffusers(folder)
    for file, text, message in [
        (UNET, "{", f"{UNET}: expected JSON, got otherwise"),
        (SCHEDULER, "[1]", f"{SCHEDULER}: expected a JSON object, got list"),
        ("model_index.json", '{"_class_name": "LDMPipeline"}', "not supported: expected DDPMPipeline or DDIMPipeline"),
    ]:
        before = (folder / file).read_text()
        (folder / file).write_text(text)
        with pytest.raises(CheckpointError, match=message):
            nd.load_diffusers(folder)
        (folder / file).write_text(before)
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(FileNotFoundError, match="scheduler_config.json: no such file; expected the folder of a diff"):
        nd.load_diffusers(folder)
    with pytest.raises(FileNotFoundError, match="folder: expected a folder, got '.*nowhere'"):
        nd.load_diffusers(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="folder: expected a path, got 3"):
        nd.load_diffusers(3)


def _mlp():
    net = networks.MLP(KEY, (2,), num_steps=4, width=4, depth=1, time_features=2)
    return nd.DiffusionPrior(nd.ReverseProcess(nd.GaussianDiffusion(schedules.cosine(4)), denoisers.Network(net), 2))


def _exact():
    diffusion = nd.GaussianDiffusion(schedules.cosine(4))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoisers.Gaussian(0.0, 1.0), 2))


UNSAVED = {
    "another network": (_mlp, "denoiser: expected a Network whose fn is a networks.UNet, got MLP"),
    "no network": (_exact, "denoiser: expected a Network whose fn is a networks.UNet, got Gaussian"),
    "units": (lambda: _prior(diffusion=(0.5, 0.25)), r"loc, scale: expected 0 and 1 .* got 0.5 and 0.25"),
    "respaced": (lambda: _prior(schedules.cosine(20).respace(5)), "schedule: expected a network that is told 0 ... T"),
    "clip": (lambda: _prior(clip=(-1.0, 2.0)), r"clip: expected a range about loc, .* got \(-1.0, 2.0\)"),
    "activation": (lambda: _prior(activation="gelu"), "activation: expected 'silu', which UNet2DModel has, got 'gelu'"),
    "head": (
        lambda: _prior(predicts="mean", clip=None, outputs=2),
        "predicts: expected 'noise' or 'data' or 'velocity', got 'mean'",
    ),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_what_the_library_has_no_place_for_is_named(name, tmp_path):
    make, message = UNSAVED[name]
    with pytest.raises(ValueError, match=message):
        nd.save_diffusers(make(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_batch_of_priors_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"prior: expected one of batch shape \(\), got \(2,\)"):
        nd.save_diffusers(_prior().expand((2,)), tmp_path)
