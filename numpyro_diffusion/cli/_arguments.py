"""What several commands read and check: numbers, and files to be written.

The parsers raise argparse's own error, which names the option and ends with status 2. Counts are below 2**31 and seeds
below 2**32, which is what JAX takes; long texts are cut before they are made numbers, since Python refuses those of
thousands of digits with an error of its own. Files that are to be written are tried before any work is done: hours of
training must not end at a folder that does not exist.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from .._files import check_writable


def count(text: str) -> int:
    """A whole number of at least 1, and not absurdly large."""
    if not text.isdecimal() or int(text[:20]) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    if int(text[:20]) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number below 2**31, got {text:.40}")
    return int(text)


def seed(text: str) -> int:
    """A whole number that JAX takes as a seed."""
    if not text.isdecimal() or int(text[:20]) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**32 - 1, got {text!r}")
    return int(text)


def number(expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """A parser of finite numbers for which `fits` holds."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


positive = number("a positive number", lambda value: value > 0)
share = number("a share from 0 to below 1", lambda value: 0 <= value < 1)
width = number("a number of at least 0", lambda value: value >= 0)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``, of everything random, and ``--quiet``."""
    parser.add_argument("--seed", type=seed, default=0, help="seed of everything random (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def writable(name: str, path: str) -> Path:
    """`path` once its folder exists, so that no work is done for a file that cannot be written.

    Raises:
        OSError: nothing can be written there, or the path is itself a folder, a device or a pipe.
    """
    file = Path(path)
    check_writable(name, file)
    return file
