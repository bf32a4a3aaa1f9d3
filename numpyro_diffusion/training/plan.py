"""What to train is chosen from the data's shape and values, and said.

Family, noise law, schedule, coordinates, network and training length follow from the shape of the data and their
values, and each choice is said in a line, and can be overridden. Those that matter most are left to held-out examples
(`of_table`). The others are rules of thumb from benchmarks: *empirical*, and no theory. Small events of real values
start at an exact simple model, so that a prior is that model before anything is learned.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.transforms import Transform

from .._checks import check_choice, check_count, check_finite, check_key
from .._display import shown_as_text
from .._numbers import check_resolution
from ..denoisers import Network
from ..diffusions import AbstractDiffusion
from ..moments import LARGEST_WHOLE
from ..process import ReverseProcess
from ..schedules import AbstractSchedule
from ._arguments import check_number, check_numbers
from .bounds import Bounds, checked_bounds, proposed_bounds
from .coordinates import same_elements
from .holding_out import independent_rows
from .kinds import KINDS, Kind, Sizes, chosen_kind, hidden_width
from .noise import for_bits, for_classes, for_reals, given_or_not
from .scaling import spacing
from .tables import FEWEST, MANY, candidates, table, table_width, whitened_gaussian

Family = Literal["gaussian", "binomial", "categorical"]


MOST_CLASSES = 1_000  # of an element; more are a sign that numbers are no codes


@shown_as_text
class PriorPlan(NamedTuple):
    """What `fit_prior` will train, and the reasons, one line each; `print` it.

    Attributes:
        process: the untrained reverse process; of a table, the first of those that `fit_prior` tries, about a Gaussian.
        max_steps: optimiser steps; 0 where a Gaussian is all that is fitted.
        dequantize: width of the uniform noise added to data that come in steps; 0 for none.
        reasons: what was chosen, and from what.
        transform: from the process's coordinates to the data's; None where they are the same.
        bounds: of elements whose log or logit may be modelled; None for none.
        bounds_given: whether they were, or held-out examples are to decide.
        schedule: the one that was given; None where steps are placed.
        kind: of events, by which the network is chosen.
    """

    process: ReverseProcess
    max_steps: int
    dequantize: float
    reasons: tuple[str, ...]
    transform: Transform | None = None
    bounds: Bounds | None = None
    bounds_given: bool = False
    schedule: AbstractSchedule | None = None
    kind: Kind = "vector"

    @property
    def is_table(self) -> bool:
        """Whether `fit_prior` tries several coordinates and baselines."""
        return self.process.diffusion.is_gaussian and self.has_baseline

    @property
    def has_baseline(self) -> bool:
        """Whether the network learns what a simple model leaves."""
        return not isinstance(self.process.denoiser, Network)

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def plan_prior(
    key: Array,
    data: ArrayLike,
    *,
    family: Family | None = None,
    loc: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    schedule: AbstractSchedule | None = None,
    network: object = None,
    kind: Kind | None = None,
    dequantize: float | None = None,
    max_steps: int | None = None,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
) -> PriorPlan:
    """Choose family, scaling, schedule, network and training length for some data; every choice can be overridden.

    Examples of up to 256 real values are a table: unless a loc, scale, learned schedule or network is given, the
    network learns what an exact Gaussian or Gaussian mixture leaves, for vectors in whitened or in elementwise
    coordinates, as held-out examples decide. A kernel density is tried too, without a network, for vectors of up to
    20,000 numbers in all. With fewer than 20 vectors a Gaussian is all that is fitted.

    Args:
        key: JAX random key, for the network's first weights.
        data: shape (n, *event), finite, not constant.
        family: ``"gaussian"``, ``"binomial"`` or ``"categorical"``; binomial for data of nothing but 0 and 1, and
            categorical only if it is asked for, of whole numbers from 0 that are codes of classes. The elements of a
            vector then have as many classes each as its codes say, those of other events as many as the largest one.
        loc: location of the Gaussian noise law; the mean (of each element, for events of rank 1).
        scale: its scale; the standard deviation, one constant for images, one per element for events of rank 1.
        schedule: of the noise, in the standardised (or whitened) coordinates; unless given log-SNR from the data's
            scale to their finest detail, in equal steps, or for a table in steps that are placed.
        network: a callable fn(x_t, t), predicting the velocity, or the logits of bits or classes; chosen by `kind`
            and sized by the event.
        kind: of events, ``"vector"``: an `MLP`, for any shape; ``"series"``, of shape (length,) or (length, variables):
            1-d convolutions (`networks.Series`) with zeros beyond the ends; ``"image"``, of shape (height, width) or
            (height, width, colours): a small `UNet`, on patches (`networks.Patched`) where there are more than 200
            pixels. Unless given, image for tables of two sides of at least 8, neither more than twice the other, of up
            to 200 pixels, and vector for all others. A step of convolutions takes ten to twenty times as long, and they
            take fewer. Of tables they start at the simple model that is best on held-out examples, series in
            elementwise coordinates. Not for classes, nor beside a network.
        dequantize: width of the uniform noise added to the data, in their units; their spacing if they come in equal
            steps (whole numbers, k/255), otherwise 0.
        max_steps: optimiser steps.
        bounds: where the elements of tables lie, (low, high), each of a shape that broadcasts to the event's, −inf and
            inf for none: the prior has this support, and models the log of elements with one bound, the logit of those
            with two. Unless given, vectors' elements whose log or logit is much nearer to a normal law are proposed,
            positive ones and those up to 1 or 100, and held-out examples decide; (−inf, inf) for none.

    Returns:
        A `PriorPlan`.

    Example:
        >>> table = jax.random.normal(jax.random.key(0), (300, 3))
        >>> plan = nd.plan_prior(jax.random.key(1), table)  # print(plan) says why
        >>> plan.process.event_shape, plan.has_baseline
        ((3,), True)

    Raises:
        TypeError: data that are no numbers, bounds that are no pair, a network or a schedule that is none.
        ValueError: data that are empty, not finite or constant, or a choice that does not fit them.
    """
    array = _checked(data)
    event_shape, size = array.shape[1:], int(np.prod(array.shape[1:]))
    binary = bool(((array == 0) | (array == 1)).all())
    if family is None:
        family = "binomial" if binary else "gaussian"
    check_choice("family", family, ("gaussian", "binomial", "categorical"))
    check_key("key", key)
    _check_overrides(family, array, schedule, network, dequantize)
    count = None if max_steps is None else check_count("max_steps", max_steps)
    found = "only 0 and 1" if binary else "whole numbers" if family == "categorical" else "real values"
    reasons = [f"family: {family} ({found} in the data)"]
    overridden = any(choice is not None for choice in (loc, scale, network)) or (schedule and schedule.is_learned)
    small = family == "gaussian" and size <= LARGEST_WHOLE and not overridden
    tabled = small and _suits_a_table(array, dequantize)
    given_kind, kind = kind, chosen_kind(kind, family, event_shape, network, tabled)
    reasons += KINDS[kind].said(given_kind is not None, event_shape) if network is None else []
    if tabled:
        return _for_table(key, array, dequantize, count, bounds, schedule, kind, reasons)
    if bounds is not None and not checked_bounds(bounds, array, 0.0).is_free.all():
        said = "gaussian family, up to 256 elements, and no loc, scale, learned schedule or network of one's own"
        raise ValueError(f"bounds: expected None but for tables ({said}), got {bounds!r:.80}")
    steps = KINDS[kind].longest(size) if count is None else count
    diffusion: AbstractDiffusion
    if family == "gaussian":
        diffusion, width = for_reals(array, loc, scale, schedule, dequantize, reasons)
    else:
        if loc is not None or scale is not None:
            name, value = ("loc", loc) if loc is not None else ("scale", scale)
            raise ValueError(f"{name}: expected None for the {family} family, got {value!r}")
        diffusion, width = (for_bits if family == "binomial" else for_classes)(array, schedule, reasons), 0.0
    shape = diffusion.network_shape(event_shape)
    make = lambda: KINDS[kind].network(key, shape, Sizes(diffusion.num_steps, hidden_width(shape)))
    fn: Any = make() if network is None else network
    reasons.append(f"network: {fn.said if network is None else f'{type(fn).__name__} (given)'}")
    reasons.append(f"training: {steps} steps{given_or_not(max_steps)}")
    denoiser = Network(fn, "velocity" if family == "gaussian" else "logits")
    return PriorPlan(ReverseProcess(diffusion, denoiser, event_shape), steps, width, tuple(reasons), kind=kind)


def _suits_a_table(array: np.ndarray, dequantize: float | None) -> bool:
    """Any vectors; of images, those of which there are some, without pixels that nothing makes vary."""
    if array.ndim == 2:
        return True
    width = spacing(array) if dequantize is None else dequantize
    return len(array) >= FEWEST and bool(width > 0 or (np.ptp(array, axis=0) > 0).all())


def _for_table(
    key: Array,
    array: np.ndarray,
    dequantize: float | None,
    max_steps: int | None,
    bounds: tuple[ArrayLike, ArrayLike] | None,
    given: AbstractSchedule | None,
    kind: Kind,
    reasons: list[str],
) -> PriorPlan:
    """The plan for a table: its process is that about the Gaussian of all examples."""
    event_shape = array.shape[1:]
    width = spacing(array) if dequantize is None else float(dequantize)
    own = None if bounds is None else checked_bounds(bounds, array, width).or_none
    apart = independent_rows(array)
    array = array.reshape(len(array), -1)
    constant = np.flatnonzero(np.ptp(array, axis=0) == 0)
    if constant.size and len(event_shape) == 1:
        raise ValueError(f"data: expected every element to vary, got constant ones at {constant[:8].tolist()}; "
                         "leave them out, or give a scale")  # fmt: skip
    count, size = array.shape
    found = "the data's spacing" if width else "the data do not come in equal steps"
    reasons.append(f"dequantize: {width:.4g}{given_or_not(dequantize) or f', {found}'}")
    simple = table(array, array[:0], width, own, event_shape)
    same = same_elements(array) if len(event_shape) == 1 else None
    if same:
        reasons.append(
            f"data: elements {same[0]} and {same[1]} are the same but for their units; the density is that of the model"
        )
    if apart < FEWEST:
        few = f"{count} examples" if apart == count else f"windows of which only {apart} share nothing"
        reasons.append("coordinates: whitened, covariance shrunk as Ledoit and Wolf have it")
        reasons.append(f"training: none, a Gaussian is all that is fitted to {few} (fewer than {FEWEST})")
        process, transform = whitened_gaussian(simple, given)
        return PriorPlan(process, 0, width, tuple(reasons), transform, own, bounds is not None, given, kind)
    steps = KINDS[kind].most_steps(count) if max_steps is None else max_steps
    first = candidates(key, simple, table_width(count, size), event_shape, given, kind)[0]
    schedule = first.process.diffusion.schedule
    ends = f"log-SNR {float(schedule.log_snr(1)):.3g} to {float(schedule.log_snr(schedule.num_steps)):.3g}"
    whitened = "whitened (covariance shrunk as Ledoit and Wolf have it) or elementwise, as validation decides"
    whitened = whitened if KINDS[kind].is_whitened else "elementwise"
    units = f"those of the data, in units of {array.std():.4g} about {array.mean():.4g}"
    reasons.append(f"coordinates: {whitened if len(event_shape) == 1 else units}")
    if bounds is None and len(event_shape) == 1:
        own, why = proposed_bounds(array, width)
        reasons += why
    elif own is not None:
        reasons.append(f"bounds: {own.said} (given)")
    kernels = ", or a kernel density alone" if len(event_shape) == 1 else ""
    said = f"one Gaussian or up to {MANY[-1]}, as validation decides; the network learns the rest{kernels}"
    reasons.append(f"baseline: {said}")
    reasons.append(f"schedule: {schedule.num_steps} steps, {ends}{given_or_not(given)}")
    fn: Any = first.process.denoiser
    reasons.append(f"network: {fn.fn.said}, for {count} examples")
    reasons.append(f"training: at most {steps} steps{given_or_not(max_steps)}, the best on validation are kept")
    return PriorPlan(first.process, steps, width, tuple(reasons), first.transform, own, bounds is not None, given, kind)


def _checked(data: ArrayLike) -> np.ndarray:
    array = check_numbers("data", data)
    if array.ndim < 2 or array.shape[0] < 2 or array.size == 0:
        raise ValueError(
            f"data: expected shape (n, *event) with n >= 2 and an event of rank 1 or more, got {array.shape}"
        )
    check_finite("data", array)
    check_resolution("data", array)
    array = array.astype(np.float64)
    if (array == array[:1]).all():
        raise ValueError(f"data: expected examples that differ, got {array.shape[0]} equal ones (constant data)")
    return array


def _check_overrides(family: Family, array: np.ndarray, schedule: object, network: object, dequantize: Any) -> None:
    """Raise ``TypeError`` for a choice of the wrong kind, ``ValueError`` for one that does not fit the family."""
    if family == "binomial" and not ((array == 0) | (array == 1)).all():
        raise ValueError("family: expected 'gaussian' for data with other values than 0 and 1, got 'binomial'")
    if family == "categorical":
        _check_codes(array)
    if schedule is not None and not isinstance(schedule, AbstractSchedule):
        raise TypeError(f"schedule: expected a schedule from numpyro_diffusion.schedules, got {schedule!r}")
    if network is not None and not callable(network):
        raise TypeError(f"network: expected a callable fn(x_t, t), got {network!r}")
    if dequantize is not None:
        fits = lambda width: width == 0 or (width > 0 and family == "gaussian")
        check_number("dequantize", dequantize, "a width of at least 0 (0 for bits and classes)", fits)


def _check_codes(array: np.ndarray) -> None:
    """Raise ``ValueError`` unless the data are whole numbers, and as many of them as codes of classes are used."""
    bad = (array < 0) | (array != np.round(array))
    if bad.any():
        raise ValueError(f"data: expected whole numbers from 0 for the categorical family, got {array[bad][0]:g}")
    if array.max() >= MOST_CLASSES:
        raise ValueError(
            f"data: expected codes of at most {MOST_CLASSES} classes for the categorical family, got {array.max():g}"
        )
