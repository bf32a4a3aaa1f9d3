"""The folder of a `diffusers` DDPM pipeline: configurations in JSON, weights in safetensors.

A pipeline is ``model_index.json`` with the folders ``unet`` and ``scheduler``; the first published models lie in one
folder. The model's images lie in [-1, 1], which `loc` and `scale` of the noise law turn into the user's units; a
pipeline has its place for two choices of these, 0 and 1, and 127.5 and 127.5, and others are not written. The library
adds no noise in the last step, which leaves no density; here it has variance β̃_2, as in the code of Ho et al. 2020,
unless the network says one. Pickled weights are refused, since they can run code, and shards and other pipelines are
not supported. Nothing is written before all parts are known to have their place.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.typing import ArrayLike

from ..checkpoints import CheckpointError
from ..denoisers import Network
from ..diffusions import GaussianDiffusion, require_gaussian
from ..networks import UNet
from ..networks.unet import ComputeType
from ..process import AbstractLastStep, DiscretisedStep, LearnedStep, ReverseProcess
from .config import Config
from .scheduler import read_scheduler, write_scheduler
from .unet import read_unet, write_unet
from .weights import Tensors, read_weights, write_weights

WEIGHTS = "diffusion_pytorch_model.safetensors"
_PIPELINES = ("DDPMPipeline", "DDIMPipeline")


def read_process(
    folder: str | PathLike[str],
    image_size: tuple[int, int] | None = None,
    loc: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    compute_dtype: ComputeType | None = None,
    integers: bool = False,
) -> ReverseProcess:
    """Return the reverse process of a pipeline; arguments and errors are those of `hub.load_diffusers`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder, got {str(folder)!r}")
    _check_pipeline(folder / "model_index.json")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder  # the first models lie in one folder
    config, weights = unet / "config.json", unet / WEIGHTS
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler = scheduler if scheduler.is_file() else folder / "scheduler_config.json"
    net = _reading(config, lambda: read_unet(_json(config), image_size, compute_dtype))
    chain = _reading(scheduler, lambda: read_scheduler(_json(scheduler)))
    if (net.outputs == 2) != (chain.variance == "learned"):
        raise CheckpointError(
            f"{folder}: expected out_channels of twice in_channels with variance_type 'learned_range' and only then, "
            f"got {net.outputs} times and a variance of {chain.variance!r}"
        )
    net = _reading(weights, lambda: read_weights(_tensors(weights), net))
    own = _UNITS[1 if integers else 0]
    diffusion = GaussianDiffusion(chain.schedule, own[0] if loc is None else loc, own[1] if scale is None else scale)
    clip = None if chain.clip is None else _our_clip(diffusion, chain.clip)
    denoiser = Network(net, chain.predicts, chain.variance, clip)
    last_step: AbstractLastStep = _last_step(diffusion, denoiser)
    last_step = DiscretisedStep(256, last_step) if integers else last_step
    return ReverseProcess(diffusion, denoiser, net.event_shape, last_step=last_step)


def write_process(folder: str | PathLike[str], process: ReverseProcess) -> None:
    """Write the folder of a pipeline; arguments and errors are those of `hub.save_diffusers`."""
    denoiser, diffusion = process.denoiser, process.diffusion
    if not isinstance(denoiser, Network) or not isinstance(denoiser.fn, UNet):
        found = type(denoiser.fn).__name__ if isinstance(denoiser, Network) else type(denoiser).__name__
        raise ValueError(f"denoiser: expected a Network whose fn is a networks.UNet, got {found}")
    diffusion = require_gaussian(diffusion)
    units = [np.asarray(value) for value in (diffusion.loc, diffusion.scale)]
    if not any(all(np.all(array == value) for array, value in zip(units, pair, strict=True)) for pair in _UNITS):
        raise ValueError(
            "loc, scale: expected 0 and 1 (images in [-1, 1]) or 127.5 and 127.5 (in 0 ... 255), for which a pipeline "
            f"has its place, got {units[0]} and {units[1]}"
        )
    unet, scheduler = write_unet(denoiser.fn), write_scheduler(diffusion, denoiser)
    tensors = write_weights(denoiser.fn)
    folder = Path(folder)
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "unet" / WEIGHTS).write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
    _write_json(folder / "unet" / "config.json", unet)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    _write_json(folder / "model_index.json", {"_class_name": "DDPMPipeline", **parts})


# What a pipeline's last line, x ↦ 127.5 x + 127.5, makes of its images; and those images themselves.
_UNITS = ((0.0, 1.0), (127.5, 127.5))


def _our_clip(diffusion: GaussianDiffusion, clip: float) -> tuple[float, float]:
    if jnp.ndim(diffusion.loc) or jnp.ndim(diffusion.scale):
        raise ValueError("loc, scale: expected numbers, since the model clips all pixels alike, got arrays")
    low, high = (float(diffusion.unstandardize(end)) for end in (-clip, clip))
    return low, high


def _last_step(diffusion: GaussianDiffusion, denoiser: Network) -> LearnedStep:
    """The library adds no noise in the last step; a density needs some: β̃_2, as in the code of Ho et al. 2020."""
    if denoiser.variance == "learned":
        return LearnedStep()
    return LearnedStep(0.5 * jnp.log(diffusion.bridge_coefficients(2.0, 1.0)[2]))


def _check_pipeline(index: Path) -> None:
    """Raise CheckpointError for a pipeline that is more than a U-Net and a scheduler."""
    if not index.is_file():
        return
    found = _reading(index, lambda: _json(index)).get("_class_name")
    if found not in _PIPELINES:
        raise CheckpointError(f"{index}: not supported: expected {' or '.join(_PIPELINES)}, got {found!r}")


def _reading(path: Path, read: Any) -> Any:
    """Call `read`, and put the file's path before what it complains of."""
    try:
        return read()
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _json(path: Path) -> Config:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a diffusers DDPM pipeline")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"expected JSON, got otherwise ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    return content


def _tensors(path: Path) -> Tensors:
    if not path.is_file():
        raise _no_weights(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"not a safetensors file, damaged or cut short ({error!r})") from error


def _no_weights(path: Path) -> Exception:
    """Why there are no weights to read."""
    found = sorted(file.name for file in path.parent.glob("diffusion_pytorch_model*"))
    pickled = [name for name in found if name.endswith((".bin", ".pt", ".ckpt"))]
    if pickled:
        return ValueError(
            f"no such file, and {pickled[0]} is refused: it is a pickle, which can run any code when it is read; "
            "where you trust it, diffusers writes it anew with model.save_pretrained(folder, safe_serialization=True)"
        )
    if found:
        return ValueError(f"no such file, and not supported: {', '.join(found)} (shards and variants)")
    return FileNotFoundError(f"{path}: no such file; expected the weights of a diffusers model")


def _write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
