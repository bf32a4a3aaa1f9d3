"""The README's first model: digits whose lower half is hidden, under the packaged prior, and a picture of the answers.

python examples/quickstart.py [--output quickstart.png] [--short]
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

NOISE = 0.2


def main() -> None:
    """Condition, print the summaries, draw; with --short one digit and no picture unless asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the picture")
    parser.add_argument("--short", action="store_true", help="one digit, few particles")
    options = parser.parse_args()
    matplotlib.use("Agg")
    prior = nd.load("digits")
    digits = nd.datasets.digits().test_images[np.array([5] if options.short else [5, 9, 0])]

    def model(upper_half: jax.Array) -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[:4], NOISE).to_event(2), obs=upper_half)

    smc = nd.infer.SMC(model, num_particles=64) if options.short else nd.infer.SMC(model)
    figure, axes = plt.subplots(1 + len(digits), 9, figsize=(13, 1.7 * (1 + len(digits))), layout="constrained")
    for panel, draw in zip(axes[0], prior.sample(jax.random.key(1), (9,)), strict=True):
        nd.plots.samples(draw[None], panel, limits=(0, 1))
        panel.set_title("prior draw", fontsize=9)
    rng = np.random.default_rng(0)
    for row, digit in zip(axes[1:], digits, strict=True):
        upper_half = digit[:4] + NOISE * rng.standard_normal((4, 8))
        smc.run(jax.random.key(0), upper_half)
        smc.print_summary()
        seen = np.concatenate([upper_half, np.full((4, 8), np.nan)])
        nd.plots.posterior(digit, seen, smc.get_samples()["x"], row, num_draws=5, limits=(0, 1))
    figure.colorbar(axes[0, 0].images[0], ax=axes[:, -1], fraction=0.06, label="grey level")
    if options.output:
        figure.savefig(options.output, dpi=100)


if __name__ == "__main__":
    main()
