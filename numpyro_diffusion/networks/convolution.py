"""A 3×3 convolution whose derivatives, of every order, are in forms that are fast in loops on a CPU.

In a loop, XLA for CPUs has fast code only for convolutions in one layout: images (batch, height, width, channels) and
weights (height, width, inputs, outputs), neither mirrored nor spread out. Its own gradients are in other layouts. It
mends that only outside loops, while training is a loop. So the convolution is a primitive here, with gradients written
in that layout. Elsewhere than on a CPU, it and its gradients are XLA's; on a CPU too, with
``NUMPYRO_DIFFUSION_CONVOLUTIONS=xla`` in the environment.

An image x, a weight w and an answer y meet in the number Σ y · (x ∗ w), linear in each. Its derivative by y is the
convolution; those by x and by w are the gradients. Differentiated again, each of the three gives the other two, so that
the set is complete. All are *exact*.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Padding = tuple[int, int]
Sides = tuple[int, int]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# The gradient of the weight is summed over images in the inner loop of its fast code, which fewer do not fill.
_FEWEST_IMAGES = 8
# Read once: a program that is compiled stays as it is.
_CHOICE = os.environ.get("NUMPYRO_DIFFUSION_CONVOLUTIONS", "fast")
if _CHOICE not in ("fast", "xla"):
    raise ValueError(f"NUMPYRO_DIFFUSION_CONVOLUTIONS: expected 'fast' or 'xla', got {_CHOICE!r}")


def convolve(
    x: Float[Array, "height width inputs"], weight: Float[Array, "3 3 inputs outputs"], stride: int, padding: Padding
) -> Float[Array, "height_out width_out outputs"]:
    """Return x ∗ w for one image: each of its 3×3 pieces, `stride` pixels apart, times the weight.

    Args:
        x: the image.
        weight: of the type of `x`.
        stride: from one piece to the next.
        padding: zeros before and after the image, the same for both axes.

    Raises:
        TypeError: if `x` and `weight` are of different types.
    """
    return _answer_p.bind(x[None], weight, stride=stride, padding=padding, sides=x.shape[:2])[0]


def _answer(x: Array, weight: Array, stride: int, padding: Padding, sides: Sides) -> Array:
    del sides  # of the image; what the gradients need
    return jax.lax.conv_general_dilated(x, weight, (stride, stride), (padding, padding), None, None, _LAYOUT)


def _product(x: Array, weight: Array, stride: int, padding: Padding, sides: Sides) -> Array:
    """The same: the nine neighbours of every pixel side by side, times one matrix."""
    del sides
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    height, width = (side - 2 for side in padded.shape[1:3])
    near = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(near, axis=-1) @ weight.reshape(-1, weight.shape[-1])


def _image(y: Array, weight: Array, *, of: Callable[..., Array] = _answer, sides: Sides, **how: Any) -> Array:
    """The derivative of Σ y · (x ∗ w) by x."""
    x = jax.ShapeDtypeStruct((len(y), *sides, weight.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: of(x, weight, sides=sides, **how), x)(y)[0]


def _weight(x: Array, y: Array, *, of: Callable[..., Array] = _answer, **how: Any) -> Array:
    """The derivative of Σ y · (x ∗ w) by w."""
    weight = jax.ShapeDtypeStruct((3, 3, x.shape[-1], y.shape[-1]), y.dtype)
    return jax.linear_transpose(lambda weight: of(x, weight, **how), weight)(y)[0]


def _image_on_cpu(y: Array, weight: Array, *, stride: int, padding: Padding, sides: Sides) -> Array:
    """As a convolution of y with the mirrored weight. With a stride, y would have to be spread out."""
    if stride != 1 or not _has_fast_code(y):
        return _image(y, weight, of=_product, stride=stride, padding=padding, sides=sides)
    # Behind the barrier, or the compiler makes it a convolution that is itself mirrored.
    mirrored = jax.lax.optimization_barrier(jnp.flip(weight, (0, 1)).swapaxes(2, 3))
    return _answer(y, mirrored, 1, (2 - padding[0], 2 - padding[1]), sides)


def _weight_on_cpu(x: Array, y: Array, *, stride: int, padding: Padding, sides: Sides) -> Array:
    """As a convolution of x with y, where the images are the channels that are summed over."""
    if len(x) < _FEWEST_IMAGES or not _has_fast_code(x):
        return _weight(x, y, of=_product, stride=stride, padding=padding, sides=sides)
    # The nine places of y above x, spread out by the stride; what is right of the last piece has no part in it.
    after = [(y.shape[1 + axis] - 1) * stride + 3 - sides[axis] - padding[0] for axis in range(2)]
    ends = [(padding[0], end) for end in after]
    x, y = jax.lax.optimization_barrier((x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)))
    weight = jax.lax.conv_general_dilated(x, y, (1, 1), ends, None, (stride, stride), _LAYOUT)
    return weight.transpose(1, 2, 0, 3)


def _has_fast_code(x: Array) -> bool:
    return x.dtype != jnp.float64


def _primitive(name: str, everywhere: Callable[..., Array], cpu: Callable[..., Array]) -> Primitive:
    """A function of two arrays that is compiled as `cpu` on a CPU, unless switched off, elsewhere as `everywhere`."""
    cpu = cpu if _CHOICE == "fast" else everywhere
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("stride", "padding", "sides")))
    primitive.def_abstract_eval(lambda *args, **how: jax.make_jaxpr(partial(everywhere, **how))(*args).out_avals[0])
    mlir.register_lowering(primitive, mlir.lower_fun(everywhere, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
    return primitive


_answer_p = _primitive("convolution_3x3", _answer, _answer)
_image_p = _primitive("convolution_3x3_image", _image, _image_on_cpu)
_weight_p = _primitive("convolution_3x3_weight", _weight, _weight_on_cpu)

ad.defbilinear(
    _answer_p,
    lambda y, x, weight, **how: _image_p.bind(y, weight, **how),
    lambda y, x, weight, **how: _weight_p.bind(x, y, **how),
)
ad.defbilinear(
    _image_p,
    lambda x, y, weight, **how: _answer_p.bind(x, weight, **how),
    lambda x, y, weight, **how: _weight_p.bind(x, y, **how),
)
ad.defbilinear(
    _weight_p,
    lambda weight, x, y, **how: _image_p.bind(y, weight, **how),
    lambda weight, x, y, **how: _answer_p.bind(x, weight, **how),
)


def _batch(primitive: Primitive, args: Sequence[Array], axes: Sequence[Any], **how: Any) -> tuple[Array, int]:
    """Batches of images with one weight are more images. Each with a weight of its own is no convolution any more."""
    if axes[1] is None and primitive is not _weight_p:
        first = jnp.moveaxis(args[0], axes[0], 0)
        out = primitive.bind(first.reshape(-1, *first.shape[2:]), args[1], **how)
        return out.reshape(*first.shape[:2], *out.shape[1:]), 0
    everywhere, product = _APART[primitive]
    product = product if _CHOICE == "fast" else everywhere
    apart = partial(jax.lax.platform_dependent, cpu=partial(product, **how), default=partial(everywhere, **how))
    return jax.vmap(apart, tuple(axes))(*args), 0


_APART: dict[Primitive, tuple[Callable[..., Array], Callable[..., Array]]] = {
    _answer_p: (_answer, _product),
    _image_p: (_image, partial(_image, of=_product)),
    _weight_p: (_weight, partial(_weight, of=_product)),
}
for _p in _APART:
    batching.primitive_batchers[_p] = partial(_batch, _p)
