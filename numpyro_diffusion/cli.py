"""The command line: ``numpyro-diffusion`` or ``python -m numpyro_diffusion``."""

import argparse
import sys
from collections.abc import Sequence

from . import __version__, demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="numpyro-diffusion", description="Learned diffusion priors for NumPyro.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands.add_parser("demo", help="infer half-hidden digits and the noise scale, with a learned prior"))
    options = parser.parse_args(arguments)
    try:
        demo.run(
            options.output,
            train=options.train,
            seed=options.seed,
            num_digits=options.digits,
            num_warmup=options.warmup,
            num_samples=options.samples,
            train_steps=options.train_steps,
            progress=not options.quiet,
        )
    except (ImportError, ValueError, OSError) as error:
        print(f"numpyro-diffusion: {error}", file=sys.stderr)
        return 1
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", action="store_true", help="learn the prior afresh (minutes), not the packaged one")
    parser.add_argument("--output", default="demo", help="folder for the figure and the ArviZ file (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    parser.add_argument("--digits", type=_count, default=3, help="number of held-out digits (default: 3)")
    parser.add_argument("--warmup", type=_count, default=100, help="Gibbs warm-up iterations (default: 100)")
    parser.add_argument("--samples", type=_count, default=400, help="Gibbs draws in each of 2 chains (default: 400)")
    parser.add_argument("--train-steps", type=_count, default=6000, help="optimiser steps with --train (default: 6000)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)
