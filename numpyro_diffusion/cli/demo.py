"""``numpyro-diffusion demo``."""

import argparse

from .. import demo
from ._arguments import add_seed, count

# Its arguments are checked as they are parsed: what fails later is not the user's input.
BAD_INPUT_STATUS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the demonstration."""
    add_seed(parser)
    parser.add_argument("--train", action="store_true", help="learn the prior afresh (minutes), not the packaged one")
    parser.add_argument("--output", default="demo", help="folder for the figure and the ArviZ file (default: demo)")
    parser.add_argument("--digits", type=count, default=3, help="number of held-out digits (default: 3)")
    parser.add_argument("--warmup", type=count, default=100, help="Gibbs warm-up iterations (default: 100)")
    parser.add_argument("--samples", type=count, default=400, help="Gibbs draws in each of 2 chains (default: 400)")
    parser.add_argument("--train-steps", type=count, default=6000, help="optimiser steps with --train (default: 6000)")


def run(options: argparse.Namespace) -> None:
    """Run the demonstration."""
    demo.run(
        options.output,
        train=options.train,
        seed=options.seed,
        num_digits=options.digits,
        num_warmup=options.warmup,
        num_samples=options.samples,
        train_steps=options.train_steps,
        progress_bar=not options.quiet,
    )
