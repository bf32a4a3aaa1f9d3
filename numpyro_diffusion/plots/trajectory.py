"""Pictures of chains over the plane.

Figure 1 of Sohl-Dickstein et al. (2015) for any process over the plane. Forward states are *exact* draws of
q(x_t | x_0), independent from one time to the next, so that no point can be followed; reverse states at all times are
those of the same chains, made by ancestral sampling in T steps. All their steps are kept, 2 (T + 1) numbers a point.
The drift is that of the mean of the reverse kernel, on a grid, and its arrows are shortened where it is large: they
show directions, and lengths only beside one another.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .._checks import check_count, check_key
from ..process import ReverseProcess
from ..samplers import Ancestral
from ._axes import BLUE, ORANGE, axes_array
from ._draws import shown


def trajectory(
    key: Array,
    process: ReverseProcess,
    data: ArrayLike,
    ax: np.ndarray | None = None,
    *,
    times: Sequence[int] | None = None,
) -> np.ndarray:
    """Both chains of a diffusion over the plane: data turning into noise, noise into data, and the drift between.

    Rows: draws of the forward process at `times`, begun at `data`; as many of the reverse process, begun in noise; and
    the drift d(x) = E[x_{t-1} given x_t = x] − x of the reverse process, as arrows d/(‖d‖ + m), m the median of ‖d‖ in
    the panel, so that far away, where it is largest, it does not hide the rest. Where t < 2 the drift of step 2 is
    shown, since the step to the data may be fixed. After Figure 1 of Sohl-Dickstein et al. 2015.

    Args:
        key: JAX random key.
        process: of event shape (2,).
        data: shape (n, 2).
        ax: Axes of shape (3, len(times)).
        times: steps in [0, T]; 0, T/2 and T unless given.

    Returns:
        The Axes, shape (3, len(times)).

    Raises:
        ValueError: an event shape other than (2,), data of another shape, times outside [0, T], or Axes of another
            shape.
    """
    points = jnp.asarray(shown("data", data), dtype=float)
    if process.event_shape != (2,) or points.ndim != 2 or points.shape[1:] != (2,) or not len(points):
        raise ValueError(f"data: expected a process of event shape (2,) and data of shape (n, 2), "
                         f"got {process.event_shape} and {points.shape}")  # fmt: skip
    last = process.num_steps
    steps = [0, last // 2, last] if times is None else [check_count("times", t, 0) for t in times]
    if not steps or max(steps) > last:
        raise ValueError(f"times: expected steps from 0 to T = {last}, got {steps}")
    axes = axes_array(ax, (3, len(steps)), (2.3 * len(steps) + 0.4, 7.0))
    forward, backward = jax.random.split(check_key("key", key))
    reverse = eqx.filter_jit(jax.vmap(lambda key: Ancestral().sample_trajectory(key, process)))
    chains = np.asarray(reverse(jax.random.split(backward, len(points))))
    bound = 1.1 * float(max(np.abs(points).max(), np.quantile(np.abs(chains), 0.999)))
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-bound, bound, 17)] * 2), -1).reshape(-1, 2)
    for column, t in enumerate(steps):
        noise = process.diffusion.marginal_noise(jax.random.fold_in(forward, t), points.shape)
        noised = points if t == 0 else process.diffusion.marginal_from_noise(noise, points, t)
        step = max(t, 2)
        drift = np.asarray(process.kernel(grid, step).mean - grid)
        length = np.linalg.norm(drift, axis=1, keepdims=True)
        arrows = drift / (length + np.median(length) + np.finfo(drift.dtype).tiny)
        axes[0, column].scatter(*np.asarray(noised).T, s=2, color=BLUE, alpha=0.5, linewidths=0)
        axes[1, column].scatter(*chains[:, t].T, s=2, color=ORANGE, alpha=0.5, linewidths=0)
        axes[2, column].quiver(*np.asarray(grid).T, *arrows.T, angles="xy", scale=14, color="0.25", width=0.005)
        axes[0, column].set_title(f"t = {t}", fontsize=10)
        for panel in axes[:, column]:
            panel.set(xlim=(-bound, bound), ylim=(-bound, bound), aspect="equal", xticks=[], yticks=[])
    for panel, name in zip(axes[:, 0], ("forward process", "reverse process", "drift"), strict=True):
        panel.set_ylabel(name, fontsize=10)
    return axes
