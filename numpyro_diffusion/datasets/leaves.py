"""The dead leaves model: what is seen of disks that fell on one another.

Disks whose radii have density ∝ r⁻³ between two ends, with centres uniform over the plane, fall for ever; an image is
what is seen from above (Matheron 1968; Jeulin 1997; Lee, Mumford and Huang 2001). Laid from the front until no pixel is
left uncovered, they are a draw of the stationary law, *exactly* (Kendall and Thönnes 1999), after a random number of
disks. Disks whose bounding square misses the frame cannot be seen, and only the law of the others is drawn from. Each
block of disks has a key of its own, so that another size of blocks changes the images of a key, and not their law.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._checks import check_count, check_key

_BLOCK = 16  # disks laid at a time
_IMAGES = 64  # images at a time


def dead_leaves(
    key: PRNGKeyArray,
    num: int,
    size: int = 32,
    *,
    min_radius: float = 1.0,
    max_radius: float | None = None,
    colours: bool = False,
) -> Float[Array, "num size size *colours"]:
    """Draw images of occluding disks whose radii follow the power law r⁻³, which makes them nearly scale invariant.

    Disks come from the front until every pixel's centre is covered, which gives *exactly* the law of the infinitely
    long process. Centres are uniform over the plane: disks reach in from beyond the frame. Each has a grey level, or
    three colours, uniform on [0, 1). Pixels are not averaged over their area.

    Args:
        key: JAX key.
        num: number of images.
        size: their height and width in pixels.
        min_radius: the smallest radius, in pixels; the number of disks grows as it shrinks.
        max_radius: the largest, in pixels; `size` unless given.
        colours: whether there are three colours in place of grey.

    Returns:
        float array of shape (num, size, size), or (num, size, size, 3), in [0, 1).

    Raises:
        ValueError: counts that are not positive whole numbers; radii for which 0 < min_radius < max_radius fails.

    Source: the model of Matheron 1968 and Jeulin 1997, with the power law of Lee, Mumford and Huang 2001; used without
    its parameters in Sohl-Dickstein et al. 2015, section 3.2. From the front: Kendall and Thönnes 1999.
    """
    num, size = check_count("num", num), check_count("size", size)
    max_radius = float(size) if max_radius is None else max_radius
    if not 0 < min_radius < max_radius < math.inf:
        raise ValueError(
            f"min_radius, max_radius: expected 0 < min_radius < max_radius, got {min_radius!r} and {max_radius!r}"
        )
    return _draw(check_key("key", key), num, size, float(min_radius), float(max_radius), 3 if colours else 1)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _draw(key: Array, num: int, size: int, low: float, high: float, channels: int) -> Array:
    one = lambda key: _image(key, size, low, high, channels)
    images = jax.lax.map(one, jax.random.split(key, num), batch_size=min(num, _IMAGES))
    return images[..., 0] if channels == 1 else images


def _image(key: Array, size: int, low: float, high: float, channels: int) -> Float[Array, "size size channels"]:
    """One image: blocks of disks, the front one first, until nothing of the background is left."""
    side = jnp.arange(size) + 0.5
    y, x = jnp.meshgrid(side, side, indexing="ij")

    def lay(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        index, covered, image = state
        disk_key, level_key = jax.random.split(jax.random.fold_in(key, index))
        centre, radius = _disks(disk_key, size, low, high)
        distance = (y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2
        hit = distance <= (radius**2)[:, None, None]
        level = jax.random.uniform(level_key, (_BLOCK, channels))
        new = ~covered & hit.any(0)
        return index + 1, covered | new, jnp.where(new[..., None], level[jnp.argmax(hit, axis=0)], image)

    def open_(state: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        return ~state[1].all()

    start = jnp.zeros((), int), jnp.zeros((size, size), bool), jnp.zeros((size, size, channels))
    return jax.lax.while_loop(open_, lay, start)[2]


def _disks(key: Array, size: int, low: float, high: float) -> tuple[Float[Array, "block 2"], Float[Array, " block"]]:
    """Centres and radii of the disks whose bounding square meets the frame; no others can be seen.

    A disk of radius r is one of them if its centre lies in a square of side size + 2 r, so that their radii have
    density ∝ r⁻³ (size + 2 r)² = size² r⁻³ + 4 size r⁻² + 4 r⁻¹: a mixture of three power laws.
    """
    kind_key, radius_key, centre_key = jax.random.split(key, 3)
    weights = jnp.array([size**2 * (low**-2 - high**-2) / 2, 4 * size * (1 / low - 1 / high), 4 * math.log(high / low)])
    kind = jax.random.categorical(kind_key, jnp.log(weights), shape=(_BLOCK,))
    u = jax.random.uniform(radius_key, (_BLOCK,))
    power = lambda exponent: (low**exponent + u * (high**exponent - low**exponent)) ** (1 / exponent)
    radius = jnp.choose(kind, [power(-2), power(-1), low * (high / low) ** u], mode="clip")
    reach = radius[:, None]
    return -reach + (size + 2 * reach) * jax.random.uniform(centre_key, (_BLOCK, 2)), radius
