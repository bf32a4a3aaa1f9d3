"""Saved priors: files of the user's own, and the ones that come with the package."""

from os import PathLike
from pathlib import Path
from typing import Any

from .checkpoints import CheckpointError, describe, read_module
from .distributions import DiffusionPrior
from .distributions.prior import PriorParts

_FOLDER = Path(__file__).parent / "priors"


def packaged() -> tuple[str, ...]:
    """Names of the priors that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.safetensors")))


def load(source: str | PathLike[str]) -> DiffusionPrior:
    """Read a prior from a file that `DiffusionPrior.save` wrote, or a packaged one by its name.

    Args:
        source: a path, or one of `packaged()`.

    Returns:
        The prior. Nothing in a file is ever executed.

    Raises:
        FileNotFoundError: neither a file nor a packaged name.
        CheckpointError: the file is damaged, foreign, written by a newer version, or holds no prior.
    """
    path = _locate(source)
    parts, _ = read_module(path)
    if not isinstance(parts, PriorParts):
        raise CheckpointError(f"{path}: expected a DiffusionPrior, got a file that holds a {type(parts).__name__}")
    try:
        return DiffusionPrior(parts.process, parts.likelihood, parts.sampler, parts.key)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the parts of a DiffusionPrior, got others ({error})") from error


def card(source: str | PathLike[str]) -> dict[str, Any]:
    """What was recorded with a saved prior (data, licence, command, numbers), without reading its arrays.

    Args:
        source: a path, or one of `packaged()`.

    Raises:
        FileNotFoundError: neither a file nor a packaged name.
        CheckpointError: the file is damaged, foreign, written by a newer version, or holds no prior.
    """
    path = _locate(source)
    metadata: Any = describe(path)["metadata"]
    if not isinstance(metadata, dict) or metadata.get("content") != "DiffusionPrior":
        raise CheckpointError(f"{path}: expected a file of DiffusionPrior.save, got another checkpoint")
    return metadata.get("card", {})


def _locate(source: str | PathLike[str]) -> Path:
    if not isinstance(source, (str, PathLike)):
        raise ValueError(f"source: expected a path or the name of a packaged prior, got {source!r}")
    path = Path(source)
    if isinstance(source, str) and source in packaged() and not path.is_file():
        return _FOLDER / f"{source}.safetensors"
    if not path.is_file():
        names = ", ".join(map(repr, packaged())) or "none"
        raise FileNotFoundError(f"source: expected a file or a packaged prior ({names}), got {str(source)!r}")
    return path
