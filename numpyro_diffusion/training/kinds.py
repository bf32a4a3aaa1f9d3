"""Networks by kind of event: a vector, a series or an image, and what trains them in bearable time.

What an event is taken for decides which network learns it: an MLP that knows nothing of its elements, or convolutions,
for which neighbours belong together, along a series or in an image. A step of convolutions costs ten times as much or
more, so that there are fewer of them, and validation is rarer. The choices are *empirical*, by benchmarks, and each can
be overridden.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jax import Array

from .._checks import check_choice
from .._compiled import compiled
from ..likelihoods import AbstractLikelihood, KBound
from ..networks import MLP, UNET_SIZES, ContextFeatures, Patched, Series, UNet
from ..process import ReverseProcess
from ._arguments import cadence, default_validation

Kind = Literal["vector", "series", "image"]

CHANNELS = 24  # of a series' network
MOST_PIXELS = 200  # of the image that a U-Net is given, above which pixels are folded into patches
MOST_HELD_OUT = 500  # examples
VALIDATION_TERMS, VALIDATION_CALLS = 16, 4_000
LEAST_SIDE = 8  # of what is taken for an image
BATCH, LEAST_EVERY, MOST_STEPS = 64, 100, 5_000


class Sizes(NamedTuple):
    """What a network is made for.

    Attributes:
        num_steps: T.
        width: of an `MLP`.
        outputs: arrays of the shape of what it is given, which it returns.
        context: of a network that is told one.
    """

    num_steps: int
    width: int
    outputs: int = 1
    context: ContextFeatures | None = None


class AbstractKind(ABC):
    """A kind of event: its network, and how that is trained.

    Attributes:
        is_quick: whether its network trains so fast that several models may be tried, and that missing cells can be
            drawn by particles.
        is_whitened: whether its coordinates may be mixed, which leaves what it is.
        takes_classes: whether its network takes classes.
    """

    is_quick: ClassVar[bool]
    is_whitened: ClassVar[bool]
    takes_classes: ClassVar[bool]

    def check(self, event_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless an event of this shape may be one of the kind; any may, unless it says more."""
        del event_shape

    def network(self, key: Array, shape: tuple[int, ...], sizes: Sizes) -> Any:
        """The network, which is zero before it is trained.

        Args:
            key: JAX random key, for the first weights.
            shape: of what it is given.
            sizes: all else.
        """
        return _first_weights(self, key, shape, sizes)

    @abstractmethod
    def _network(self, key: Array, shape: tuple[int, ...], sizes: Sizes) -> Any:
        """See `network`."""

    @abstractmethod
    def said(self, given: bool, event_shape: tuple[int, ...]) -> list[str]:
        """A line for a plan, if there is something to say; whether the kind was `given`."""

    @abstractmethod
    def most_steps(self, count: int) -> int:
        """Steps of the optimiser for so many examples about a baseline."""

    @abstractmethod
    def longest(self, size: int) -> int:
        """Steps of the optimiser without a baseline, for examples of so many elements."""

    @abstractmethod
    def batch_size(self, few: bool) -> int:
        """Examples in a step, which may be `few` about a baseline."""

    def share_held_out(self, count: int) -> float:
        """A tenth, but 25 examples or a quarter of them where they are few."""
        return max(0.1, min(0.25, 25 / count))

    def validation_every(self, count: int) -> int:
        """Steps between validations."""
        return cadence(count)

    def validation(self, process: ReverseProcess, count: int) -> AbstractLikelihood | None:
        """What `count` held-out examples are judged by; None for `fit`'s own."""
        del process, count
        return None


@compiled
def _first_weights(kind: AbstractKind, key: Array, shape: tuple[int, ...], sizes: Sizes) -> Any:
    """In one program: the layers' own draws would be compiled one by one."""
    return kind._network(key, shape, sizes)


class _Vector(AbstractKind):
    """Numbers in no order, for an `MLP`; of any shape."""

    is_quick = is_whitened = takes_classes = True

    def _network(self, key: Array, shape: tuple[int, ...], sizes: Sizes) -> MLP:
        return MLP(key, shape, **sizes._asdict())

    def said(self, given: bool, event_shape: tuple[int, ...]) -> list[str]:
        del given  # nothing for vectors that are nothing else
        return ['kind: vector; kind="series" or "image" is for convolutions'] if len(event_shape) > 1 else []

    def most_steps(self, count: int) -> int:
        return int(np.clip(5 * count, 1_000, 20_000))

    def longest(self, size: int) -> int:
        return 10_000 if size <= 32 else 20_000

    def batch_size(self, few: bool) -> int:
        return 128 if few else 256


class _Convolved(AbstractKind):
    """What is taken by convolutions, whose steps cost ten times as much or more."""

    name: ClassVar[str]
    ranks: ClassVar[tuple[int, ...]]  # of an event
    shapes: ClassVar[str]  # of data, in words
    is_quick = is_whitened = takes_classes = False

    def check(self, event_shape: tuple[int, ...]) -> None:
        if len(event_shape) not in self.ranks:
            got = f"({', '.join(['n', *map(str, event_shape)])})"
            raise ValueError(f"kind: expected data of shape {self.shapes} for {self.name!r}, got {got}")

    def said(self, given: bool, event_shape: tuple[int, ...]) -> list[str]:
        del event_shape
        found = " (given)" if given else ', by the shape; kind="vector" takes an MLP, which is faster'
        return [f"kind: {self.name}{found}"]

    def most_steps(self, count: int) -> int:
        return int(np.clip(2 * count, 1_000, MOST_STEPS))

    def longest(self, size: int) -> int:
        del size
        return MOST_STEPS

    def batch_size(self, few: bool) -> int:
        del few
        return BATCH

    def share_held_out(self, count: int) -> float:
        """As for vectors, but no more than 500 examples."""
        return min(super().share_held_out(count), MOST_HELD_OUT / count)

    def validation_every(self, count: int) -> int:
        return max(LEAST_EVERY, cadence(count))

    def validation(self, process: ReverseProcess, count: int) -> AbstractLikelihood | None:
        """K by about as many network calls as twenty steps make."""
        if not count:
            return None
        terms = min(process.num_steps - 1, VALIDATION_TERMS)
        draws = min(8, VALIDATION_CALLS // (count * terms))
        usual = default_validation(process, count)
        return KBound(max(1, draws - draws % 2), terms, low_discrepancy=usual.low_discrepancy, chunk=usual.chunk)


class _Series(_Convolved):
    """Numbers in order, for 1-d convolutions."""

    name, ranks, shapes = "series", (1, 2), "(n, length) or (n, length, variables)"

    def _network(self, key: Array, shape: tuple[int, ...], sizes: Sizes) -> Series:
        return Series(
            key, shape, num_steps=sizes.num_steps, channels=CHANNELS, outputs=sizes.outputs, context=sizes.context
        )


class _Image(_Convolved):
    """Pixels, for a small U-Net."""

    name, ranks = "image", (2, 3)
    shapes = "(n, height, width) or (n, height, width, colours)"

    def _network(self, key: Array, shape: tuple[int, ...], sizes: Sizes) -> UNet | Patched:
        height, breadth, colours = (*shape, 1)[:3]
        patch = _patch(height, breadth)
        inner = (height // patch, breadth // patch, patch**2 * colours)
        even = inner[0] % 2 == inner[1] % 2 == 0 and min(inner[:2]) > 2
        settings: dict[str, Any] = {**UNET_SIZES["tiny"]}
        settings["channels"] = settings["channels"] if even else settings["channels"][:1]
        unet = UNet(key, shape if patch == 1 else inner, outputs=sizes.outputs, context=sizes.context, **settings)
        return unet if patch == 1 else Patched(unet, shape)


KINDS: Mapping[Kind, AbstractKind] = MappingProxyType({"vector": _Vector(), "series": _Series(), "image": _Image()})
USUAL: Kind = "vector"


def chosen_kind(
    kind: Kind | None, family: str, event_shape: tuple[int, ...], network: object, has_baseline: bool
) -> Kind:
    """What events are taken for: unless it is said, small images about a simple model for images, others for vectors.

    A shape does not tell: (64, 2) may be a series of two variables or a strip of an image. And convolutions take
    longer: they are chosen where they were measured to be far better (examples/benchmarks/kinds.py).

    Args:
        kind: the one that was given.
        family: of the noise.
        event_shape: of one example.
        network: the one that was given.
        has_baseline: whether the network learns what a simple model of real values leaves.

    Raises:
        ValueError: an unknown kind, one for classes or beside a network, or one that does not fit the shape.
    """
    if kind is None:
        return "image" if has_baseline and _looks_like_an_image(event_shape) else USUAL
    check_choice("kind", kind, tuple(KINDS))
    if network is not None:
        raise ValueError(f"kind: expected None with a network of your own, got {kind!r}")
    if family == "categorical" and not KINDS[kind].takes_classes:
        raise ValueError(f"kind: expected None or {USUAL!r} for the categorical family, got {kind!r}")
    KINDS[kind].check(event_shape)
    return kind


def kind_beside(kind: Kind | None, network: object, missing: bool) -> Kind | None:
    """The kind of what has a context, or missing cells: a vector unless it is said, as such fits take longer already.

    Raises:
        ValueError: convolutions with missing cells, which would be drawn by particles too slowly.
    """
    if missing and kind not in (None, *(name for name, own in KINDS.items() if own.is_quick)):
        raise ValueError(f"kind: expected None or {USUAL!r} with missing cells, got {kind!r}")
    return USUAL if kind is None and network is None else kind


def _looks_like_an_image(event_shape: tuple[int, ...]) -> bool:
    """Two sides of at least eight, neither more than twice the other, of as many pixels as need no patches."""
    if len(event_shape) not in (2, 3):
        return False
    short, long = sorted(event_shape[:2])
    return LEAST_SIDE <= short and long <= 2 * short and short * long <= MOST_PIXELS


def _patch(height: int, width: int) -> int:
    """The side of the patches that become channels: the least that leaves an image small enough, if one does."""
    both = math.gcd(height, width)
    fitting = [p for p in range(1, both + 1) if both % p == 0 and height * width <= MOST_PIXELS * p**2]
    return fitting[0] if fitting else both


def hidden_width(shape: tuple[int, ...]) -> int:
    """Hidden units of an `MLP` without a baseline, for what it is given."""
    size = math.prod(shape)
    return 128 if size <= 8 else 256 if size <= 128 else 512
