"""What `nd.infer.SMC` says of a problem, and how far that is from the truth."""

import time
import warnings
from typing import Any, NamedTuple

import numpy as np
from _likelihoods import Model
from _truths import Truth
from jax import Array

import numpyro_diffusion as nd


class Answer(NamedTuple):
    """What SMC says of a problem.

    Attributes:
        log_evidence: in nats.
        error: its own standard error.
        x: equally weighted draws, shape (n, d).
        least: effective particles where they are fewest.
        plan: what it says it did.
        warned: its warnings.
        seconds: processor time of the last run.
    """

    log_evidence: float
    error: float
    x: np.ndarray
    least: float
    plan: str
    warned: tuple[str, ...]
    seconds: float


def answer(
    model: Model, prior: nd.DiffusionPrior, args: tuple[Any, ...], key: Array, settings: dict[str, Any], runs: int = 1
) -> Answer:
    """Run SMC; the last of several runs of the same key is timed, without compiling."""
    smc = nd.infer.SMC(model, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(runs):
            caught.clear()
            start = time.process_time()
            smc.run(key, prior, *args)
            x = np.asarray(smc.get_samples()["x"], dtype=np.float64)
            log_evidence, error = float(smc.log_evidence), float(smc.log_evidence_error)
            seconds = time.process_time() - start
    least = float(np.min(np.asarray(smc.particles.effective_size)))
    said = tuple(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning))
    plan = str(getattr(smc, "plan", "")).replace("\n", "; ").replace("|", "/")
    return Answer(log_evidence, error, x.reshape(len(x), -1), least, plan, said, seconds)


def moment_errors(found: Answer, truth: Truth) -> tuple[float, float]:
    """Largest errors of a mean, in posterior standard deviations, and of a standard deviation, relative."""
    free = truth.sd > 0
    mean = np.abs(found.x.mean(0) - truth.mean)[free] / truth.sd[free]
    sd = np.abs(found.x.std(0) / np.where(free, truth.sd, 1.0) - 1)[free]
    return float(mean.max()), float(sd.max())


def z_of(found: Answer, truth: Truth) -> float:
    """The difference of the log evidences in standard errors."""
    return (found.log_evidence - truth.log_evidence) / max(float(np.hypot(found.error, truth.error)), 1e-4)
