"""What a user may write behind each command, and what numbers are: read without loading JAX.

The parsers raise argparse's own error, which names the option and ends with status 2. Counts are below 2**31 and seeds
below 2**32, which is what JAX takes; long texts are cut before they are made numbers, since Python refuses those of
thousands of digits with an error of its own. Names of networks and kinds stand here once more, as the modules that have
them take a while to load; a test holds the two alike.
"""

import argparse
import math
from collections.abc import Callable

NETWORKS = ("mlp", "unet-tiny", "unet-small", "unet-cifar10")
KINDS = ("vector", "series", "image")
_WHAT = "an .npy file, or a table in text; an array of whole numbers holds labels"
_FIT = """
The data are one array, shape (n, *event): n examples of any shape. Family, scaling, schedule, network and training
length are chosen from them and said; a tenth is held out, and training stops when K on it no longer rises. An
interrupted run goes on from its checkpoint when the same command is given again.
"""

_EVALUATE = """
K is a lower bound on log p(data), a mean over the examples with its standard error. Bits per dimension are minus K
for each element, as a code of data in steps of the dequantisation (of 1 where there is none): the smaller the better.
"""


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


def add_context(parser: argparse.ArgumentParser, of: str) -> None:
    """``--context``."""
    parser.add_argument("--context", help=f"contexts {of}, for a prior of p(x | c): {_WHAT}")


def _fit(parser: argparse.ArgumentParser) -> None:
    """The options of training."""
    parser.epilog = _FIT
    parser.add_argument("data", help="examples: an .npy file (or .npz of one array), shape (n, *event), or a table "
                        "of numbers in text, .csv or .tsv, with or without a line of names")  # fmt: skip
    parser.add_argument("-o", "--output", required=True, help="file for the prior, such as prior.safetensors")
    parser.add_argument(
        "--max-steps", type=count, help="optimiser steps at most (default: by the data's number and size)"
    )
    parser.add_argument("--batch-size", type=count, help="examples a step (default: 256; small tables: 128)")
    parser.add_argument("--learning-rate", type=positive, default=1e-3, help="its peak (default: 0.001)")
    families = ("gaussian", "binomial", "categorical")
    parser.add_argument("--family", choices=families, help="binomial: bits; categorical: codes (default: by the data)")
    parser.add_argument("--dequantize", type=width, help="width of uniform noise to add (default: the data's spacing)")
    parser.add_argument("--network", choices=NETWORKS, help="a U-Net suits images (default: by --kind)")
    parser.add_argument("--kind", choices=KINDS, help="series: 1-d convolutions; image: a small U-Net; "
                        "vector: an MLP (default: by the shape)")  # fmt: skip
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float32", help="weights in the file")
    parser.add_argument("--checkpoint", help="file to resume from and save to (default: OUTPUT.checkpoint, "
                        "which is removed at the end)")  # fmt: skip
    add_context(parser, "of the examples")
    parser.add_argument("--context-dropout", type=share, default=0.0, help="share of contexts left out in training, so "
                        "that p(x) is learned too (default: 0)")  # fmt: skip
    add_seed(parser)


def _sample(parser: argparse.ArgumentParser) -> None:
    """The options of sampling."""
    parser.add_argument("prior", help="a prior file, or the name of a packaged prior")
    parser.add_argument("-n", "--number", type=count, default=16, help="how many draws (default: 16)")
    parser.add_argument("-o", "--output", required=True, help=".npy file for the draws, shape (number, *event), or "
                        ".csv for the draws of a prior of tables")  # fmt: skip
    parser.add_argument("--image", help="file for a picture of the draws, if they are images (.png, .pdf, .svg)")
    parser.add_argument("--steps", type=count, help="steps of a shorter chain (default: as the prior has it)")
    parser.add_argument("--batch", type=count, default=256, help="draws at a time; they are the same (default: 256)")
    add_context(parser, "of the draws, one for each or one for all")
    add_seed(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    """The options of the bound."""
    parser.epilog = _EVALUATE
    parser.add_argument("prior", help="a prior file, or the name of a packaged prior")
    parser.add_argument(
        "data", help="examples: an .npy file (or .npz of one array), shape (n, *event), or a table in text"
    )
    parser.add_argument("--samples", type=count, default=2, help="noise draws for each example, even (default: 2)")
    parser.add_argument("--terms", type=count, help="terms of K for each draw, chosen at random (default: at most 100)")
    parser.add_argument("--limit", type=count, help="only so many of the examples, the first")
    parser.add_argument("--dequantize", type=width, help="width of uniform noise to add to the data "
                        "(default: as the prior's card says, or none)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    add_context(parser, "of the examples")
    add_seed(parser)


def _info(parser: argparse.ArgumentParser) -> None:
    """The options of the description."""
    parser.add_argument("prior", nargs="?", help="a prior file, or the name of a packaged prior (default: list these)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _demo(parser: argparse.ArgumentParser) -> None:
    """The options of the demonstration."""
    add_seed(parser)
    parser.add_argument("--train", action="store_true", help="learn the prior afresh (minutes), not the packaged one")
    parser.add_argument("--output", default="demo", help="folder for the figure and the ArviZ file (default: demo)")
    parser.add_argument("--digits", type=count, default=3, help="number of held-out digits (default: 3)")
    parser.add_argument("--warmup", type=count, default=100, help="Gibbs warm-up iterations (default: 100)")
    parser.add_argument("--samples", type=count, default=400, help="Gibbs draws in each of 2 chains (default: 400)")
    parser.add_argument("--train-steps", type=count, default=6000, help="optimiser steps with --train (default: 6000)")


ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "fit": _fit,
    "sample": _sample,
    "evaluate": _evaluate,
    "info": _info,
    "demo": _demo,
}
