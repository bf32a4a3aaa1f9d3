"""What data sets need of the machine: folders, and packages of the extra `datasets`."""

import importlib
from os import PathLike
from pathlib import Path
from typing import Any


def require(module: str, need: str) -> Any:
    """Import a module of an optional package, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{need}: install it with pip install 'numpyro-diffusion[datasets]'") from error


def check_folder(name: str, folder: str | PathLike[str]) -> Path:
    """Return the path of a folder that exists."""
    if not isinstance(folder, (str, PathLike)):
        raise TypeError(f"{name}: expected a path, got {folder!r}")
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: expected a folder, got {str(path)!r}")
    return path
