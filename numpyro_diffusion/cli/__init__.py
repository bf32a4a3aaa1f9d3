"""The command line: ``numpyro-diffusion`` or ``python -m numpyro_diffusion``.

What a user may write is in `_options`, which loads no JAX, so that ``--help`` and a mistyped option are answered at
once. A command is a module of its name with `run` and `BAD_INPUT_STATUS`, imported only where it is asked for. What it
raises becomes one line on the standard error, and a status: that of bad input for ``ValueError`` and ``OSError`` (2; 1
of the demonstration, whose options are all that a user gives it), 1 for a missing package, training that diverged or
too little memory, 130 for an interrupt. An error of another class is a fault of the package, and keeps its traceback.
Messages quote files, so that signs a terminal would obey are written out.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ._options import ADD

COMMANDS = {
    "fit": "learn a prior from an array of examples",
    "sample": "draw from a prior",
    "evaluate": "how probable a prior finds some data: the K bound",
    "info": "what a prior file holds",
    "demo": "infer half-hidden digits and the noise scale, with a learned prior",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 1 for what else failed, 130 for an interrupt."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="numpyro-diffusion", description="Learned diffusion priors for NumPyro.")
    parser.add_argument("--version", action="version", version=__version__, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    parsers = {name: commands.add_parser(name, help=about, description=about) for name, about in COMMANDS.items()}
    for name, each in parsers.items():
        ADD[name](each)
    options = parser.parse_args(arguments)
    # Only the module of the command that is used is loaded: the demo needs ArviZ, and training needs Optax.
    module = importlib.import_module(f".{options.command}", __name__)
    try:
        module.run(options)
    except (ImportError, FloatingPointError) as error:  # the latter: training that diverged
        return _fail(error, 1)
    except (ValueError, OSError) as error:
        return _fail(error, module.BAD_INPUT_STATUS)
    except MemoryError as error:
        return _fail(f"not enough memory {error}".strip(), 1)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted {error}".strip(), 130)
    return 0


def _fail(error: object, status: int) -> int:
    """One line, whatever the message's own lines, and no signs that could command the terminal."""
    line = " ".join(str(error).split())
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
    print(f"numpyro-diffusion: {shown}", file=sys.stderr)
    return status
