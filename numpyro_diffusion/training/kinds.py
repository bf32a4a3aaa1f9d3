"""Networks by kind of event: a vector, a series or an image, and what trains them in bearable time."""

import math
from typing import Any, Literal

import numpy as np
from jax import Array

from .._checks import check_choice
from ..likelihoods import AbstractLikelihood, KBound
from ..networks import MLP, UNET_SIZES, ContextFeatures, Patched, Series, UNet
from ..process import ReverseProcess
from ._arguments import cadence, default_validation

Kind = Literal["vector", "series", "image"]

RANKS = {"vector": None, "series": (1, 2), "image": (2, 3)}  # of an event; any for a vector
SHAPES = {
    "series": "(n, length) or (n, length, variables)",
    "image": "(n, height, width) or (n, height, width, colours)",
}
CHANNELS = 24  # of a series' network
MOST_PIXELS = 200  # of the image that a U-Net is given, above which pixels are folded into patches
MOST_HELD_OUT = 500  # examples
VALIDATION_TERMS, VALIDATION_CALLS = 16, 4_000
LEAST_SIDE = 8  # of what is taken for an image
BATCH, LEAST_EVERY, MOST_STEPS = 64, 100, 5_000


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
        return "image" if has_baseline and _looks_like_an_image(event_shape) else "vector"
    check_choice("kind", kind, tuple(RANKS))
    if network is not None:
        raise ValueError(f"kind: expected None with a network of your own, got {kind!r}")
    if family == "categorical" and kind != "vector":
        raise ValueError(f"kind: expected None or 'vector' for the categorical family, got {kind!r}")
    ranks = RANKS[kind]
    if ranks is not None and len(event_shape) not in ranks:
        got = f"({', '.join(['n', *map(str, event_shape)])})"
        raise ValueError(f"kind: expected data of shape {SHAPES[kind]} for {kind!r}, got {got}")
    return kind


def kind_beside(kind: Kind | None, network: object, missing: bool) -> Kind | None:
    """The kind of what has a context, or missing cells: a vector unless it is said, as such fits take longer already.

    Raises:
        ValueError: convolutions with missing cells, which would be drawn by particles too slowly.
    """
    if missing and kind not in (None, "vector"):
        raise ValueError(f"kind: expected None or 'vector' with missing cells, got {kind!r}")
    return "vector" if kind is None and network is None else kind


def _looks_like_an_image(event_shape: tuple[int, ...]) -> bool:
    """Two sides of at least eight, neither more than twice the other, of as many pixels as need no patches."""
    if len(event_shape) not in (2, 3):
        return False
    short, long = sorted(event_shape[:2])
    return LEAST_SIDE <= short and long <= 2 * short and short * long <= MOST_PIXELS


def network_of(
    kind: Kind,
    key: Array,
    shape: tuple[int, ...],
    *,
    num_steps: int,
    width: int,
    outputs: int = 1,
    context: ContextFeatures | None = None,
) -> Any:
    """The network of a kind, which is zero before it is trained.

    Args:
        kind: of events.
        key: JAX random key, for the first weights.
        shape: of what it is given.
        num_steps: T.
        width: of the `MLP` of vectors.
        outputs: arrays of that shape which it returns.
        context: of a network that is told one.
    """
    if kind == "vector":
        return MLP(key, shape, num_steps=num_steps, width=width, outputs=outputs, context=context)
    if kind == "series":
        return Series(key, shape, num_steps=num_steps, channels=CHANNELS, outputs=outputs, context=context)
    height, breadth, colours = (*shape, 1)[:3]
    patch = _patch(height, breadth)
    inner = (height // patch, breadth // patch, patch**2 * colours)
    even = inner[0] % 2 == inner[1] % 2 == 0 and min(inner[:2]) > 2
    settings: dict[str, Any] = {**UNET_SIZES["tiny"]}
    settings["channels"] = settings["channels"] if even else settings["channels"][:1]
    unet = UNet(key, shape if patch == 1 else inner, outputs=outputs, context=context, **settings)
    return unet if patch == 1 else Patched(unet, shape)


def _patch(height: int, width: int) -> int:
    """The side of the patches that become channels: the least that leaves an image small enough, if one does."""
    both = math.gcd(height, width)
    fitting = [p for p in range(1, both + 1) if both % p == 0 and height * width <= MOST_PIXELS * p**2]
    return fitting[0] if fitting else both


def said_kind(kind: Kind, given: Kind | None, event_shape: tuple[int, ...]) -> list[str]:
    """A line for a plan; none for vectors that are nothing else."""
    if kind == "vector":
        return ['kind: vector; kind="series" or "image" is for convolutions'] if len(event_shape) > 1 else []
    return [
        f"kind: {kind} (given)" if given else f'kind: {kind}, by the shape; kind="vector" takes an MLP, which is faster'
    ]


def said_of(network: Any) -> str:
    """A network in words."""
    if isinstance(network, Series):
        return f"1-d convolutions of {network.channels} channels, with {network.padding} beyond the ends"
    if isinstance(network, Patched):
        return f"{said_of(network.network)}, over patches of {network.patch} × {network.patch} pixels"
    if isinstance(network, UNet):
        return f"U-Net of {', '.join(map(str, network.channels))} channels"
    return f"MLP of width {network.width}"


def hidden_width(shape: tuple[int, ...]) -> int:
    """Hidden units of an `MLP` without a baseline, for what it is given."""
    size = math.prod(shape)
    return 128 if size <= 8 else 256 if size <= 128 else 512


def most_steps(kind: Kind, count: int) -> int:
    """Steps of the optimiser for so many examples about a baseline: convolutions' cost ten times as much or more."""
    if kind == "vector":
        return int(np.clip(5 * count, 1_000, 20_000))
    return int(np.clip(2 * count, 1_000, MOST_STEPS))


def share_held_out(kind: Kind, count: int) -> float:
    """A tenth, but 25 examples or a quarter of them where they are few; of convolutions no more than 500."""
    share = max(0.1, min(0.25, 25 / count))
    return share if kind == "vector" else min(share, MOST_HELD_OUT / count)


def validation_every(kind: Kind, count: int) -> int:
    """Steps between validations."""
    return cadence(count) if kind == "vector" else max(LEAST_EVERY, cadence(count))


def validation_of(kind: Kind, process: ReverseProcess, count: int) -> AbstractLikelihood | None:
    """K of `count` held-out examples by about as many network calls as twenty steps make; None for `fit`'s own."""
    if kind == "vector" or not count:
        return None
    terms = min(process.num_steps - 1, VALIDATION_TERMS)
    draws = min(8, VALIDATION_CALLS // (count * terms))
    usual = default_validation(process, count)
    return KBound(max(1, draws - draws % 2), terms, low_discrepancy=usual.low_discrepancy, chunk=usual.chunk)
