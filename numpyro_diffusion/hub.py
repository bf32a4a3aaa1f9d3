"""Saved priors: files of the user's own, and the ones that come with the package.

A file is a checkpoint of the prior's parts with its card, what was recorded of it in JSON (`checkpoints`). Nothing in
it is executed. Its checksums say that it is as it was written and not that it makes sense, so that the parts are
checked as if they were made anew (`_contents`), also where a model that is traced loads them. A packaged prior is found
by its name unless a file of that name is there. Pipelines of the `diffusers` library are folders of their own form,
read and written without it.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jax.typing import ArrayLike

from ._checks import check_count
from ._compiled import is_tracing
from ._contents import check_contents
from .checkpoints import CheckpointError, describe, read_module
from .diffusers import read_process, write_process
from .distributions import DiffusionPrior
from .distributions.parts import PriorParts
from .distributions.report import report_from_json
from .networks.unet import ComputeType

_FOLDER = Path(__file__).parent / "priors"


def packaged() -> tuple[str, ...]:
    """Names of the priors that come with the package.

    Example:
        >>> "digits" in nd.packaged()
        True
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.safetensors")))


def load(source: str | PathLike[str], *, classes: Iterable[type[eqx.Module]] = ()) -> DiffusionPrior:
    """Read a prior from a file that `DiffusionPrior.save` wrote, or a packaged one by its name.

    Args:
        source: a path, or one of `packaged()`.
        classes: modules of one's own in the prior, such as a network's class; a file may name no others than these and
            those of numpyro_diffusion and `equinox.nn`. They are found by their name.

    Returns:
        The prior. Nothing in a file is ever executed.

    Example:
        >>> nd.load("digits").event_shape
        (8, 8)

    Raises:
        FileNotFoundError: neither a file nor a packaged name.
        CheckpointError: the file is damaged, foreign, written by a newer version, holds no prior, or parts that make no
            sense: unknown names, counts below 0, NaN, shapes that do not fit each other.
        TypeError: `classes` that are no `equinox.Module` classes.
    """
    with _evaluated():
        return _read_prior(_locate(source), classes)


def _evaluated() -> AbstractContextManager[Any]:
    """Values can be checked, also where a model that is being traced loads a prior."""
    return jax.ensure_compile_time_eval() if is_tracing() else nullcontext()


def _read_prior(path: Path, classes: Iterable[type[eqx.Module]]) -> DiffusionPrior:
    parts, metadata = read_module(path, classes=classes)
    if not isinstance(parts, PriorParts):
        raise CheckpointError(f"{path}: expected a DiffusionPrior, got a file that holds a {type(parts).__name__}")
    try:
        check_contents(parts)
        parts.sampler.check(parts.process)
        prior = DiffusionPrior(parts.process, parts.likelihood, parts.sampler, parts.key, transform=parts.transform)
        return prior.with_report(report_from_json(metadata.get("report")))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the parts of a DiffusionPrior, got others ({error})") from error


def load_diffusers(
    folder: str | PathLike[str],
    *,
    image_size: tuple[int, int] | None = None,
    loc: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    compute_dtype: ComputeType | None = None,
    integers: bool = False,
) -> DiffusionPrior:
    """Read a pixel-space pipeline of the `diffusers` library as a prior, without that library and without torch.

    Read are `DDPMPipeline` and `DDIMPipeline`, of a `UNet2DModel` of plain and attention blocks and a `DDPMScheduler`
    or `DDIMScheduler`, as saved by `save_pretrained`: from the folders `unet` and `scheduler`, or all from one folder,
    as the first published models are. A `DDIMScheduler` stands for its chain with η = 1.

    The network's event has its channels last: `(height, width, channels)`, or `(height, width)` for one channel. The
    library adds no noise in the last step; here it has the variance β̃_2, as in the code of Ho et al. 2020, so that
    there is a density. `log_prob` calls the network 4 T times with the default likelihood; for fewer, say
    `prior.with_(likelihood=nd.KBound(2, 16))`.

    Args:
        folder: the pipeline's folder.
        image_size: height and width; those of the file unless given. Both must divide by 2^(levels − 1).
        loc: location of the noise law, in data units; the model's images lie from loc − scale to loc + scale.
        scale: its scale. The default is the model's own units, [-1, 1]; 127.5 for both means pixels in 0 … 255.
        compute_dtype: ``"bfloat16"`` for a network that computes with less precision, as `networks.UNet` has it.
        integers: whether pixels are whole numbers 0 … 255, rounded by a `DiscretisedStep`: the prior is then a
            discrete distribution, and `log_prob` bounds a log probability. `loc` and `scale` are 127.5.

    Returns:
        The prior, with float32 weights. Nothing in a file is ever executed.

    Raises:
        FileNotFoundError: no such folder, or a file in it that is missing.
        CheckpointError: a file that is damaged or foreign, a field that is unknown or not supported, weights that are
            missing or left over, each by name; pickled weights, which can execute code; an image that does not divide.
        TypeError: a folder that is no path, `image_size` of other than whole numbers.
        ValueError: `image_size` that is no pair of positive numbers, `loc` and `scale` that are not finite, or are
            given with `integers`.
    """
    if not isinstance(folder, (str, PathLike)):
        raise TypeError(f"folder: expected a path, got {folder!r}")
    if image_size is not None:
        if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
            raise ValueError(f"image_size: expected (height, width), got {image_size!r}")
        image_size = check_count("image_size", image_size[0]), check_count("image_size", image_size[1])
    if integers and (loc is not None or scale is not None):
        raise ValueError(f"loc, scale: expected None with integers, whose units are fixed, got {loc!r} and {scale!r}")
    with _evaluated():
        return DiffusionPrior(read_process(folder, image_size, loc, scale, compute_dtype, integers))


def save_diffusers(prior: DiffusionPrior, folder: str | PathLike[str]) -> None:
    """Write a prior's process as a `DDPMPipeline` that the `diffusers` library can load, without that library.

    That has no place for the scale of the last step, the likelihood, the sampler and the key. Where `loc` and
    `scale` are 127.5, as for pixels in 0 … 255, they are those of the pipeline's own last line.

    Args:
        prior: what `load_diffusers` reads again.
        folder: made if it does not exist; files in it that have the names of the pipeline's are replaced.

    Raises:
        TypeError: a prior that is no `DiffusionPrior`.
        ValueError: a part that `diffusers` has no place for, by name: a network that is no `networks.UNet`, another
            head than ``"noise"``, ``"data"``, ``"velocity"``, other units, a respaced schedule, batch or transform.
    """
    if not isinstance(prior, DiffusionPrior):
        raise TypeError(f"prior: expected a DiffusionPrior, got {type(prior).__name__}")
    if prior.batch_shape:
        raise ValueError(f"prior: expected one of batch shape (), got {prior.batch_shape}")
    if prior.transform is not None:
        raise ValueError("prior: expected one without a transform, which diffusers has no place for")
    write_process(folder, prior.process)


def card(source: str | PathLike[str]) -> dict[str, Any]:
    """What was recorded with a saved prior (data, licence, command, numbers), without reading its arrays.

    Args:
        source: a path, or one of `packaged()`.

    Raises:
        FileNotFoundError: neither a file nor a packaged name.
        CheckpointError: the file is damaged, foreign, written by a newer version, or holds no prior.

    Example:
        >>> nd.card("digits")["dequantize"]
        0.0625
    """
    path = _locate(source)
    metadata: Any = describe(path)["metadata"]
    if not isinstance(metadata, dict) or metadata.get("content") != "DiffusionPrior":
        raise CheckpointError(f"{path}: expected a file of DiffusionPrior.save, got another checkpoint")
    found = metadata.get("card", {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a card that is a dictionary, got {found!r:.80}")
    return found


def _locate(source: str | PathLike[str]) -> Path:
    if not isinstance(source, (str, PathLike)):
        raise TypeError(f"source: expected a path or the name of a packaged prior, got {source!r}")
    path = Path(source)
    if isinstance(source, str) and source in packaged() and not path.is_file():
        return _FOLDER / f"{source}.safetensors"
    if not path.is_file():
        names = ", ".join(map(repr, packaged())) or "none"
        raise FileNotFoundError(f"source: expected a file or a packaged prior ({names}), got {str(source)!r}")
    return path
