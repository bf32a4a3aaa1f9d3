"""Refusals of wrong arguments: what is said, and by which of the two errors."""

import contextlib
from collections.abc import Iterator

import pytest

# What is said of values of a wrong type; of a wrong value everything else is.
WRONG_TYPES = {
    "^diffusion: expected",
    "^key: expected",
    "^likelihood: expected",
    "^process: expected",
    "^sampler: expected",
    "attention: expected a tuple",
    "baseline: expected an exact denoiser, got 3",
    "channels: expected a whole number of at least 1, got 1.5",
    "chunk: expected a whole number of at least 1, got 1.5",
    r"clip: expected the least and the greatest value, \(low, high\), got 1.0",
    "data: expected numbers, got dtype <U1",
    "data: expected numbers, got dtype complex128",
    "data: expected numbers, got dtype object",
    "denoiser: expected one from numpyro_diffusion.denoisers, got <function _coupled",
    "diffusion: expected a GaussianDiffusion or .* got Schedule",
    "event_shape: expected .* got 2$",
    "event_shape: expected .* got 4$",
    "factor: expected one from numpyro_diffusion.factors",
    "factors: expected factors, got 2.0",
    r"fn: expected a callable fn\(x_t, t\), got 3",
    "kind: expected one of .* got 1",
    "log_r: expected a callable of one example, got 3.0",
    "max_steps: expected a whole number of at least 1, got 1.5",
    r"network: expected a callable fn\(x_t, t\), got 3",
    "noise: expected a finite number of at least 0, got '1'",
    "num_groups",
    "num_steps: expected a whole number of at least 2, got 2.5",
    "num_steps: expected a whole number of at least 2, got True",
    "num_times: expected a whole number",
    "observations: expected arrays of numbers",
    "outputs: expected a whole number of at least 1, got 1.5",
    "prior: expected a DiffusionPrior or a ReverseProcess, got 3",
    "priors: expected a DiffusionPrior, or one times a factor, as 'b', got Normal",
    "priors: expected a dict of priors by name, got",
    "sampler: expected a TwistedSMC, got Ancestral",
    "schedule: expected a schedule from numpyro_diffusion.schedules, got 'cosine'",
    "schedule: expected a schedule from numpyro_diffusion.schedules, got array",
    "site: expected None for an array",
    "size: expected",
    "step: expected a last step to round, .* got 'learned'",
    "times: expected a whole number",
}


@contextlib.contextmanager
def refused(message: str) -> Iterator[None]:
    """Expect ``TypeError`` where `message`, a regular expression, is about a type, and ``ValueError`` elsewhere."""
    with pytest.raises(TypeError if message in WRONG_TYPES else ValueError, match=message):
        yield
