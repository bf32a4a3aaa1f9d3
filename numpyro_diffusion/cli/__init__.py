"""The commands of ``numpyro-diffusion`` and ``python -m numpyro_diffusion``, a module for each.

Each has `run` and `BAD_INPUT_STATUS`, and is imported only where it is asked for, as what some of them need takes a
while to load. What a user may write, and what becomes of errors, is in the package `numpyro_diffusion_cli`.
"""

from numpyro_diffusion_cli import COMMANDS as COMMANDS
from numpyro_diffusion_cli import main as main
