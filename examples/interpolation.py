"""Between two digits: mixtures of diffused images, and the flow's own coordinates.

    python examples/interpolation.py [--output figures] [--short]

Each row leads from one held-out digit to another, with the packaged prior. Above: both are diffused to x_t, mixed
there, (1 − w) x_t + w x_t', and the reverse chain makes digits of the mixtures (Ho et al. 2020, Figure 8), for growing
t. Last: both are encoded by the deterministic flow, their x_T are mixed along the great circle and decoded (Song et al.
2021). Prints how far the ends of each row are from the two digits, and how exactly the flow is inverted.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.samplers import SDE, interpolate


def rms(difference: jax.Array) -> float:
    """Root mean square."""
    return float(jnp.sqrt(jnp.mean(jnp.square(difference))))


def great_circle(a: jax.Array, b: jax.Array, weights: jax.Array) -> jax.Array:
    """Points between a and b around 0, shape (n, *event)."""
    angle = jnp.arccos(jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))
    parts = jnp.stack([jnp.sin((1 - weights) * angle), jnp.sin(weights * angle)], 1) / jnp.sin(angle)
    return jnp.tensordot(parts, jnp.stack([a, b]), 1)


def main() -> None:
    """Make the rows, print the distances, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the picture; none unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="one level, fewer steps")
    options = parser.parse_args()
    process, data = nd.load("digits").process, nd.datasets.digits()
    first, second = (jnp.asarray(data.test_images[data.test_labels == label][0], dtype=float) for label in (0, 3))
    weights = jnp.linspace(0, 1, 9)
    rows, levels = [], (40,) if options.short else (20, 40, 60, 80, 100)
    for t in levels:
        between = jax.jit(lambda key, t=t: interpolate(key, process, first, second, weights, t))
        rows.append(between(jax.random.key(options.seed)))
        ends = rms(rows[-1][0] - first), rms(rows[-1][-1] - second)
        snr = float(process.diffusion.schedule.log_snr(t))
        print(f"mixed at t = {t:3d} (log-SNR {snr:5.2f}): ends {ends[0]:.3f} and {ends[1]:.3f} from the two digits")
    flow = SDE(0.0, 20 if options.short else 200, "heun")
    decode = jax.jit(lambda x: flow.decode(process, x))
    codes = jax.jit(lambda x: flow.encode(process, x))(jnp.stack([first, second]))
    back = decode(codes)
    standard = process.diffusion.standardize(codes)
    rows.append(decode(process.diffusion.unstandardize(great_circle(*standard, weights))))
    error = rms(back - jnp.stack([first, second]))
    print(f"flow, {flow.num_steps} steps: encoded and decoded, {error:.1e} from the digits")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        pair = [jnp.stack([first, *[jnp.full((8, 8), jnp.nan)] * 7, second])]
        ax = nd.plots.samples(np.concatenate(pair + rows), columns=9, limits=(0, 1))
        for index, label in enumerate(["digits", *(f"t = {t}" for t in levels), "flow"]):
            ax.text(-0.6, 9 * index + 3.5, label, ha="right", va="center", fontsize=8)
        ax.figure.colorbar(ax.images[0], ax=ax, fraction=0.03, pad=0.02, label="grey level")
        ax.figure.savefig(options.output / "interpolation.png", dpi=100, bbox_inches="tight")
    assert error < 0.05, "the flow should be inverted"


if __name__ == "__main__":
    main()
