"""What `fit` and `plan_prior` require of their arguments.

All of this comes before the first step, so that a wrong argument is refused at once and by its name, and not in the
middle of a run. What is held out, how often a run is validated and with how many draws follow from the numbers of
examples: the fewer there are, the sooner they are learned by heart.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from .._checks import check_choice, check_count, check_finite
from .._devices import Devices, check_devices
from .._numbers import as_numbers, check_resolution
from ..likelihoods import AbstractLikelihood, KBound
from ..moments import LARGEST_WHOLE
from ..process import ReverseProcess
from .objectives import OBJECTIVES

# Fold-ins of a run's key that no step number reaches.
SPLIT, VALIDATION, VALIDATION_TOLD = 2**31 - 1, 2**31 - 2, 2**31 - 4


def check_numbers(name: str, data: ArrayLike) -> np.ndarray:
    """Return `data` as a NumPy array once it is one of numbers."""
    return as_numbers(name, data)


def check_data(name: str, data: ArrayLike, process: ReverseProcess) -> Array:
    """Return `data` as an array once it suits the process: not empty, of the event shape, finite, of its values."""
    return jnp.asarray(check_examples(name, data, process, apart=True))


def check_examples(name: str, data: ArrayLike, process: ReverseProcess, *, apart: bool = False) -> np.ndarray:
    """The same on the host, of a batch, unless `apart` without asking whether their type tells the examples apart."""
    array = check_numbers(name, data)
    if array.shape[1:] != process.event_shape or array.ndim == 0 or len(array) == 0:
        sizes = ", ".join(["n", *map(str, process.event_shape)])
        raise ValueError(f"{name}: expected shape ({sizes}) with n >= 1, got {array.shape}")
    check_finite(name, array)
    dtype = process.diffusion.schedule.times.dtype
    if apart:
        check_resolution(name, array, dtype)
    array = array.astype(dtype)
    process.check_values(name, array)
    return array


def check_number(name: str, value: Any, expected: str, fits: Callable[[Any], Any]) -> None:
    """Raise unless `value` is a finite number for which `fits` holds.

    Raises:
        TypeError: no number.
        ValueError: any other number.
    """
    try:
        is_finite = math.isfinite(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected {expected}, got {value!r:.80}") from error
    if not (is_finite and fits(value)):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def check_process(process: ReverseProcess, objective: str) -> None:
    """Raise ``ValueError`` unless `objective` can train `process`; ``TypeError`` unless that is one."""
    if not isinstance(process, ReverseProcess):
        raise TypeError(f"process: expected a ReverseProcess, got {process!r}")
    check_choice("objective", objective, tuple(OBJECTIVES))
    learned = process.diffusion.schedule.is_learned
    if learned and not process.diffusion.is_gaussian:
        name = type(process.diffusion.schedule).__name__
        raise ValueError(f"schedule: expected a fixed one for bits and classes, which have no gradient, got a {name}")
    if objective == "bound":
        return
    if learned:
        raise ValueError(
            f"objective: expected 'bound' for a learned schedule, got {objective!r}, which has no best one"
        )
    fits = process.denoiser.objectives(process.diffusion)
    if objective == "simple" and objective not in fits:
        more = ", or 'hybrid'" if "hybrid" in fits else ""
        raise ValueError(
            f"objective: expected 'bound' for a learned variance, got 'simple', which does not see it{more}"
        )
    if objective not in fits:
        expected = " or ".join(map(repr, fits))
        raise ValueError(
            f"objective: expected {expected} without a Network of variance='learned', got {objective!r}, which is for "
            "it alone"
        )


def check_settings(
    optimizer: Any,
    learning_rate: Any,
    ema: Any,
    weight_decay: Any,
    dequantize: Any,
    patience: Any,
    process: ReverseProcess,
) -> None:
    """Raise ``TypeError`` for a setting of the wrong kind, ``ValueError`` for one of a wrong size; it is named."""
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer: expected an optax optimiser, got {optimizer!r}")
    if not callable(learning_rate):
        expected = "a positive number or an optax schedule"
        check_number("learning_rate", learning_rate, expected, lambda value: value > 0)
    check_number("ema", ema, "a decay in [0, 1)", lambda value: 0 <= value < 1)
    expected = "a number of at least 0" if optimizer is None else "0 with an optimizer of your own"
    check_number("weight_decay", weight_decay, expected, lambda decay: decay == 0 or decay > 0 and optimizer is None)
    discrete = process.support.is_discrete
    check_number(
        "dequantize",
        dequantize,
        "a width of at least 0 (0 for bits, classes and grey levels)",
        lambda width: width == 0 or width > 0 and not discrete,
    )
    if patience is not None:
        check_count("patience", patience)


def check_validation(
    key: Array, process: ReverseProcess, held_out: Array, likelihood: Any, patience: int | None
) -> AbstractLikelihood:
    """Return the estimator of the validation value, tried in the abstract so that it cannot fail in the middle."""
    if likelihood is None:
        likelihood = default_validation(process, len(held_out))
    if not isinstance(likelihood, AbstractLikelihood):
        raise TypeError(f"likelihood: expected an estimator such as KBound, got {likelihood!r}")
    if patience is not None and not len(held_out):
        raise ValueError(f"patience: expected None without validation data, got {patience!r}")
    if len(held_out):
        told = process.denoiser.wanted
        open_ = told is not None and told.value is None
        eqx.filter_eval_shape(likelihood.estimate, key, process.given(told.example) if open_ else process, held_out[0])
    return likelihood


def default_validation(process: ReverseProcess, count: int) -> KBound:
    """K of `count` held-out examples, with more draws the fewer they are: some 16,000 network calls."""
    every = process.num_steps - 1
    terms = every if count <= 100 else min(every, 32)
    draws = 8 if count * terms <= 2_000 else 4 if count * terms <= 4_000 else 2
    return KBound(draws, terms, low_discrepancy=math.prod(process.event_shape) <= LARGEST_WHOLE, chunk=2048)


def check_batch(devices: Devices | None, size: int, parts: int) -> NamedSharding | None:
    """Return how batches of `size` examples lie on the devices, once each of their parts divides among them."""
    sharding = check_devices(devices, size)
    count = 1 if sharding is None else sharding.mesh.size
    if size % (parts * count):
        among = f" times the {count} devices" if count > 1 else ""
        raise ValueError(f"batch_size: expected a multiple of accumulate = {parts}{among}, got {size}")
    return sharding


def cadence(count: int | None) -> int:
    """Steps between validations for `count` examples: a small table is learned by heart in some hundred steps."""
    if count is None:
        return 1_000
    return 50 if count <= 1_000 else 100 if count <= 4_000 else 250 if count <= 16_000 else 1_000


def check_context(name: str, context: Any, process: ReverseProcess, count: int) -> Array | None:
    """Return the contexts of `count` examples once they suit the process; None for one that takes none.

    Raises:
        ValueError: contexts for a process that takes none, or none for one that takes some; another number of them;
            what `Context.checked` raises.
    """
    told = process.denoiser.wanted
    if told is None or told.value is not None:
        if context is not None:
            expected = "a process whose denoiser takes a context that is still to be given"
            raise ValueError(f"{name}: expected {expected}, as of denoisers.Network(fn, told=Context(…)), got none")
        return None
    if context is None:
        raise ValueError(f"{name}: expected {told.said}, one for each of {count} examples, got None")
    array = told.checked(context)
    if array.shape != (count, *told.shape):
        raise ValueError(f"{name}: expected shape {(count, *told.shape)}, one for each example, got {array.shape}")
    return array


def check_dropout(dropout: Any, process: ReverseProcess) -> float:
    """Return the share of contexts that are left out."""
    told = process.denoiser.wanted
    optional = told is not None and told.optional
    expected = "a share in [0, 1), and 0 without a denoiser of Context(optional=True)"
    fits = lambda share: share == 0 or 0 < share < 1 and optional
    check_number("context_dropout", dropout, expected, fits)
    return float(dropout)


def are_examples(validation: Any) -> bool:
    """Whether `validation` is held-out data, and no share of the data."""
    return isinstance(validation, (list, tuple)) or np.ndim(validation) > 0


def split_context(
    key: Array, context: Array | None, validation: Any, validation_context: Any, process: ReverseProcess, held_out: int
) -> tuple[Array | None, Array | None]:
    """The contexts of the examples that `split` trains on, and of those it holds out."""
    own = are_examples(validation)
    if not own and validation_context is not None:
        raise ValueError("validation_context: expected None without validation data of their own, got some")
    if own:
        return context, check_context("validation_context", validation_context, process, held_out)
    if context is None:
        return None, None
    order = _order(key, len(context))
    return context[order[held_out:]], context[order[:held_out]]


def split(key: Array, data: Array, validation: float | ArrayLike, process: ReverseProcess) -> tuple[Array, Array]:
    """The data to train on and those that are held out, which may be none."""
    if are_examples(validation):
        return data, check_data("validation", validation, process)
    train, held_out = split_rows(key, len(data), validation)
    return data[train], data[held_out]


def split_rows(key: Array, count: int, share: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` examples are trained on, and which are held out, which may be none."""
    expected = "a share in [0, 1) that leaves data to train on, or held-out data"
    check_number("validation", share, expected, lambda share: 0 <= share < 1 and round(share * count) < count)
    held_out = round(float(np.asarray(share)) * count)
    order = _order(key, count)
    return order[held_out:], order[:held_out]


def generator_of(key: Array) -> np.random.Generator:
    """A NumPy generator of a JAX key's bits."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))


def _order(key: Array, count: int) -> np.ndarray:
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, SPLIT), count))
