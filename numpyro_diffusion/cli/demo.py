"""``numpyro-diffusion demo``."""

import argparse

from .. import demo

# Its arguments are checked as they are parsed: what fails later is not the user's input.
BAD_INPUT_STATUS = 1


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
