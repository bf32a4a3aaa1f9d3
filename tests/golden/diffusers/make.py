"""Write the golden files beside this script: what the `diffusers` library answers for models with known weights.

    pip install torch diffusers && python tests/golden/diffusers/make.py

The weights themselves are not kept: each is drawn by NumPy's frozen `RandomState`, seeded by its name, so that the
tests can make them again from the names and shapes that are kept. `unet-*.safetensors` hold an input (of the same
origin), steps and outputs; in the header the configuration that the library wrote, and the weights' names and shapes.
`schedulers.safetensors` holds, for each scheduler and step, what one call of the library's `step` returns: "exact" with
its tables made again in float64, "float32" as it is. In float32 its 1 − ᾱ_t keeps three digits in the first steps, so
that there its answers are off by up to 3e-4 for these inputs.

Only `main` needs torch: the tests use the rest.
"""

import contextlib
import json
import tempfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy

FOLDER = Path(__file__).parent
# google/ddpm-cifar10-32 and google/ddpm-church-256 (-bedroom-256, -celebahq-256), as published.
CIFAR10 = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
CHURCH = CIFAR10 | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "sample_size": 256,
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}
UNETS = {
    "cifar10": CIFAR10,
    # the same layout as the 256-pixel models, thin and small
    "church": CHURCH | {"block_out_channels": [8, 8, 16, 16, 32, 32], "norm_num_groups": 4, "sample_size": 32},
    # the library's own defaults wherever they may stay: attention on all levels but the first, in several heads
    "defaults": {"block_out_channels": [8, 16, 24, 32], "norm_num_groups": 4, "sample_size": [8, 16]},
    # one channel, no attention at all
    "grey": {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "add_attention": False,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "sample_size": 8,
        "freq_shift": 1,
    },
    # noise and variance; attention on other levels up than down
    "pair": {
        "out_channels": 6,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
        "attention_head_dim": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "downsample_padding": 0,
        "sample_size": 8,
    },
}
UNET_STEPS = (0, 1, 437, 999)  # as the library counts
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {}),
    "ddpm-cifar10": ("DDPMScheduler", {"variance_type": "fixed_large"}),
    "large": ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}),
    "small-log": ("DDPMScheduler", {"variance_type": "fixed_small_log", "beta_schedule": "squaredcos_cap_v2"}),
    "scaled": (
        "DDPMScheduler",
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"},
    ),
    "sample": ("DDPMScheduler", {"prediction_type": "sample", "clip_sample_range": 1.5, "num_train_timesteps": 100}),
    "learned": ("DDPMScheduler", {"variance_type": "learned_range", "beta_schedule": "squaredcos_cap_v2"}),
    "trained": (
        "DDPMScheduler",
        {"trained_betas": [0.01, 0.05, 0.02, 0.2, 0.5], "num_train_timesteps": 5, "variance_type": "fixed_large"},
    ),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1}),
    "ddim-clipped": ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}),
}
EVENT = (3, 4, 4)  # channels first, as the library has them


def draw(name, shape):
    """Standard normal float32 numbers that depend on `name` only, in every version of NumPy."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(name, shape):
    """Numbers of the size that keeps a network's activations near 1, none of them at its initial value."""
    if name.endswith("weight") and len(shape) > 1:
        return draw(name, shape) / np.float32(np.sqrt(np.prod(shape[1:])))
    is_gain = name.endswith("weight")
    return np.float32(0.2) * draw(name, shape) + np.float32(is_gain)


def weights(shapes):
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def scheduler_steps(count):
    """Steps to test, as the library counts: both ends and some between."""
    return sorted({0, 1, 2, count // 10, count // 2, count - 2, count - 1})


def scheduler_inputs(name, t):
    """The state, the model's output (with a second half for a learned variance) and the noise of the step."""
    shape = (1, 2 * EVENT[0], *EVENT[1:]) if name == "learned" else (1, *EVENT)
    return draw(f"{name}-{t}-x", (1, *EVENT)), draw(f"{name}-{t}-out", shape), draw(f"{name}-{t}-noise", (1, *EVENT))


def make_unet(name):
    """A model of the library with the known weights."""
    import torch
    from diffusers import UNet2DModel

    model = UNet2DModel(**UNETS[name]).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes).items()})
    return model, shapes


@contextlib.contextmanager
def noise_is(noise):
    """Make the schedulers add this noise."""
    import torch
    from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

    modules = (scheduling_ddim, scheduling_ddpm)
    before = [module.randn_tensor for module in modules]
    for module in modules:
        module.randn_tensor = lambda *args, **kwargs: torch.from_numpy(noise)
    try:
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            module.randn_tensor = function


def make_scheduler(name):
    import diffusers

    kind, settings = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(**settings)
    if kind == "DDIMScheduler":
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler


def widen(scheduler):
    """Give a scheduler tables of float64; its β stay those of float32."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = scheduler.alphas.new_ones(())
    scheduler.final_alpha_cumprod = scheduler.one
    return scheduler


def scheduler_step(scheduler, t, x, out, noise):
    """What one step returns: the next state and the prediction of x_0. DDIM with η = 1 and noise from clipped x_0."""
    import torch

    extra = {"eta": 1.0, "use_clipped_model_output": True} if "DDIM" in type(scheduler).__name__ else {}
    with noise_is(noise):
        step = scheduler.step(torch.from_numpy(out), t, torch.from_numpy(x), **extra)
    return step.prev_sample.numpy(), step.pred_original_sample.numpy()


def config_of(part):
    """The configuration file that the library writes."""
    with tempfile.TemporaryDirectory() as folder:
        part.save_config(folder)
        (file,) = Path(folder).glob("*config.json")
        return file.read_text()


def main():
    import torch

    for name in UNETS:
        model, shapes = make_unet(name)
        config = json.loads(config_of(model))
        size = config["sample_size"]
        x = draw(f"{name}-x", (1, config["in_channels"], *(size if isinstance(size, list) else [size] * 2)))
        with torch.no_grad():
            outputs = [model(torch.from_numpy(x), t).sample.numpy()[0] for t in UNET_STEPS]
        header = {"config": json.dumps(config), "shapes": json.dumps(shapes)}
        data = safetensors.numpy.save({"outputs": np.stack(outputs)}, header)
        (FOLDER / f"unet-{name}.safetensors").write_bytes(data)
    tensors, configs = {}, {}
    for name in SCHEDULERS:
        schedulers = {"float32": make_scheduler(name), "exact": widen(make_scheduler(name))}
        configs[name] = json.loads(config_of(schedulers["float32"]))
        for t in scheduler_steps(configs[name]["num_train_timesteps"]):
            for kind, scheduler in schedulers.items():
                state, prediction = scheduler_step(scheduler, t, *scheduler_inputs(name, t))
                tensors[f"{name}.{t}.{kind}.state"] = state[0].astype(np.float32)
                tensors[f"{name}.{t}.{kind}.prediction"] = prediction[0].astype(np.float32)
    data = safetensors.numpy.save(tensors, {"configs": json.dumps(configs)})
    (FOLDER / "schedulers.safetensors").write_bytes(data)


if __name__ == "__main__":
    main()
