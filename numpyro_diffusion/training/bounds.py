"""Elements that are positive or bounded: which they seem to be, and the coordinates in which they are free.

Of an element that is positive or bounded, the logarithm or logit may be nearer to a normal law than the element. For x
= T(z) the log densities of a normal law of z, with log |dz/dx| counted, and of one of x are compared, as Box and Cox
(1964) compare powers, and bounds are proposed where the gain is beyond errors. The transform is *exact*; the proposals
are a guess, on which held-out examples decide.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._checks import check_finite
from ..transforms import Bounded
from ._arguments import check_numbers

LEAST_GAIN, ERRORS = 0.05, 3.0  # nats a value, and standard errors, by which a log or logit has to be nearer to normal
FEWEST_VALUES = 12  # different ones; of fewer no law is seen
HIGHEST, NEAR = (1.0, 100.0), 0.9  # shares and percentages, of which some come near the bound; others may have none


class Bounds(NamedTuple):
    """Where flat examples lie.

    Attributes:
        low: shape (d,), −inf for none.
        high: shape (d,), inf for none.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def is_free(self) -> np.ndarray:
        """Which elements have no bounds."""
        return np.isinf(self.low) & np.isinf(self.high)

    @property
    def or_none(self) -> "Bounds | None":
        """None where all elements are free."""
        return None if self.is_free.all() else self

    @property
    def said(self) -> str:
        """Which elements have which, in a few words."""
        kinds = {
            "log": np.isfinite(self.low) & np.isinf(self.high),
            "log of the distance below the upper bound": np.isinf(self.low) & np.isfinite(self.high),
            "logit": np.isfinite(self.low) & np.isfinite(self.high),
        }
        found = [f"{name} of {_listed(np.flatnonzero(which))}" for name, which in kinds.items() if which.any()]
        return ", ".join(found) or "none"

    def transform(self, event_shape: tuple[int, ...]) -> Bounded:
        """From free examples to those within the bounds."""
        return Bounded(self.low.reshape(event_shape), self.high.reshape(event_shape))

    def free(self, x: np.ndarray) -> np.ndarray:
        """The free coordinates of flat examples, shape (n, d); elements without bounds keep all their digits."""
        free = np.asarray(self.transform(self.low.shape).inv(jnp.asarray(x, float)), np.float64)
        return np.where(self.is_free, x, free)

    def log_volume(self, x: np.ndarray) -> np.ndarray:
        """log |det dx/dz| of flat examples, in nats, shape (n,)."""
        transform = self.transform(self.low.shape)
        each = jnp.asarray(x, float)
        return np.asarray(transform.log_abs_det_jacobian(transform.inv(each), each), np.float64).sum(1)


class Pushed(NamedTuple):
    """A law of free coordinates as one of the data.

    Attributes:
        law: with `log_prob` of flat examples.
        bounds: of the data.
    """

    law: Any
    bounds: Bounds

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density in nats, shape (n,)."""
        return self.law.log_prob(self.bounds.free(x)) - self.bounds.log_volume(x)


def checked_bounds(given: Any, array: np.ndarray, width: float) -> Bounds:
    """Bounds that the user gave, for examples of shape (n, *event): a step wider where data in steps are given noise.

    Raises:
        TypeError: no pair.
        ValueError: bounds of another shape, NaN, not above each other, or with data on or beyond them.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"bounds: expected a pair (low, high), −inf and inf for none, got {given!r:.80}")
    shape, flat = array.shape[1:], array.reshape(len(array), -1)
    pair = []
    for side in given:
        values = check_numbers("bounds", side).astype(np.float64)
        try:
            whole = np.broadcast_to(values, shape)
        except ValueError as error:
            raise ValueError(f"bounds: expected shapes that broadcast to {shape}, got {values.shape}") from error
        if np.isnan(whole).any():
            raise ValueError("bounds: expected numbers, −inf or inf, got NaN")
        pair.append(whole.reshape(-1))
    low, high = pair
    if not (low < high).all():
        raise ValueError(f"bounds: expected lower bounds below the upper ones, got {low!s:.80} and {high!s:.80}")
    low, high = low - width, high + width
    beyond = np.flatnonzero(((flat <= low) | (flat >= high)).any(0))
    if beyond.size:
        raise ValueError(f"bounds: expected data between them, got some on or beyond them in {_listed(beyond)}")
    return Bounds(low, high)


def proposed_bounds(array: np.ndarray, width: float) -> tuple[Bounds | None, tuple[str, ...]]:
    """Bounds of those elements of vectors, shape (n, d), whose logs or logits are nearer to a normal law.

    Asked are elements above 0, and of these the ones that come near 1 or 100, and stay below, about their logit too.
    0, 1 and 100 may themselves occur in data that come in steps, whose bounds are a step beyond. Compared are the log
    densities of normal laws of the values and of their log or logit, ``log |dx/dz|`` counted.

    Returns:
        The bounds, None where no element gains, and the reasons, a line or none.
    """
    check_finite("data", array)
    rng = np.random.default_rng(0)
    noisy = array + width * (rng.random(array.shape) - 0.5)
    low, high = np.full(array.shape[1], -np.inf), np.full(array.shape[1], np.inf)
    gains = []
    for i, values in enumerate(array.T):
        if (values.min() < 0 if width else values.min() <= 0) or len(np.unique(values)) < FEWEST_VALUES:
            continue
        tops = [top for top in HIGHEST if NEAR * top < values.max() and (values.max() < top or width)]
        pairs = [(0.0 - width, np.inf), *((0.0 - width, top + width) for top in tops if values.max() <= top)]
        (gain, error), pair = max((_gain(noisy[:, i], *pair), pair) for pair in pairs)
        if gain > LEAST_GAIN and gain > ERRORS * error:
            low[i], high[i] = pair
            gains.append(gain)
    if not gains:
        return None, ()
    found, nearer = Bounds(low, high), f"nearer to a normal law by {np.mean(gains):.2f} nats a value"
    return found, (f"bounds: {found.said} ({nearer}), if held-out examples agree",)


def _gain(x: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Mean log density of x by a normal law of its free coordinate, less that by one of x, and its standard error."""
    bounds = Bounds(np.array([low]), np.array([high]))
    z = bounds.free(x[:, None])[:, 0]
    gain = _normal_log_prob(z) - bounds.log_volume(x[:, None]) - _normal_log_prob(x)
    return float(gain.mean()), float(gain.std() / np.sqrt(len(gain)))


def _normal_log_prob(x: np.ndarray) -> np.ndarray:
    scale = max(float(x.std()), 1e-300)
    return -0.5 * np.square((x - x.mean()) / scale) - np.log(scale) - 0.5 * np.log(2 * np.pi)


def _listed(elements: np.ndarray) -> str:
    more = f" and {len(elements) - 8} more" if len(elements) > 8 else ""
    return f"element{'s' if len(elements) > 1 else ''} {', '.join(map(str, elements[:8]))}{more}"
