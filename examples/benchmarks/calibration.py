"""Simulation-based calibration of eight inferences, 200 data sets each unless told otherwise.

(a) the digits prior (its chain in 25 steps) and an unknown noise scale, half of the pixels hidden, by Gibbs;
(b) a mixture prior seen through a linear operator, by SMC;
(c) the same by NUTS on the prior's K bound, which is a bound: reported as it is;
(d) a prior that depends on an unknown, and an unknown noise scale, by SMC of the whole model;
(e) the same by `nd.infer.Gibbs`, with particle Gibbs for x and NUTS for the rest;
(f) the same by one NUTS, with `DiffusionReparam`;
(g) a logistic regression whose coefficients have a learned prior, by SMC;
(h) a digit seen by counts of photons, the digits prior (its chain in 25 steps), by SMC.

    python examples/benchmarks/calibration.py [--short] [--only a b c d e f g h] [--replicates 200] [--seed 0]

The chains of many data sets are one program: of ten in (a) and (c), of all in (e) and (f).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd


def digits(key: jax.Array, replicates: int, size: int) -> tuple[nd.diagnostics.Calibration, str]:
    """One digit of the prior's own, a noise scale, hidden pixels."""
    # The noise scale is drawn given x, so that the prior's density is constant: the cheapest estimate will do.
    prior = nd.load("digits").with_(sampler=nd.samplers.Ancestral(25), likelihood=nd.KBound(1, 1, antithetic=False))
    mask = jax.random.bernoulli(jax.random.key(9), 0.5, (8, 8))

    def model() -> None:
        sigma = numpyro.sample("sigma", dist.LogNormal(-1.5, 0.5))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, sigma).mask(mask).to_event(2))

    def inference(model: Any) -> MCMC:
        kernel = Gibbs([(nd.infer.ParticleGibbs(model, num_particles=16), ["x"]), (NUTS(model), None)])
        return MCMC(kernel, num_warmup=min(size, 100), num_samples=size // 2)

    def quantities(values: Any) -> dict[str, Any]:
        x = values["x"]
        hidden = jnp.where(mask, 0.0, x).sum() / (~mask).sum()
        return {
            "sigma": values["sigma"],
            "mean of hidden pixels": hidden,
            "left minus right": (x[:, :4] - x[:, 4:]).sum(),
        }

    calibration = nd.diagnostics.calibrate(
        key, model, inference, observed="y", site=["sigma", "x"], num_replicates=replicates,
        num_draws=size // 20 - 1, quantities=quantities, batch_size=10,
    )  # fmt: skip
    return calibration, "(a) digits and noise scale, Gibbs"


def mixture_model() -> Any:
    """Three modes in the plane, three linear observations."""
    locs = np.array([[-2.0, 0.0], [1.0, 2.0], [2.0, -1.5]])
    denoiser = nd.denoisers.GaussianMixture(locs, np.array([0.6, 0.4, 0.8]), np.array([0.5, 0.2, 0.3]))
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(100, -9, 4))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, (2,)))
    operator = jnp.array([[1.0, 0.5], [-0.3, 1.0], [0.8, -0.8]])

    def model() -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(operator @ x, 1.0).to_event(1))

    return model


def smc(key: jax.Array, replicates: int, size: int) -> tuple[nd.diagnostics.Calibration, str]:
    """The mixture by SMC."""
    inference = lambda model: nd.infer.SMC(model, num_particles=size, num_islands=1)
    calibration = nd.diagnostics.calibrate(
        key, mixture_model(), inference, observed="y", num_replicates=replicates,
        num_draws=min(size // 10, 99),
    )  # fmt: skip
    return calibration, "(b) mixture, SMC"


def nuts(key: jax.Array, replicates: int, size: int) -> tuple[nd.diagnostics.Calibration, str]:
    """The mixture by NUTS on the K bound."""
    inference = lambda model: MCMC(NUTS(model), num_warmup=300, num_samples=size)
    calibration = nd.diagnostics.calibrate(
        key, mixture_model(), inference, observed="y", num_replicates=replicates,
        num_draws=min(size // 10, 99), batch_size=10,
    )  # fmt: skip
    return calibration, "(c) mixture, NUTS on K"


def context_model() -> Any:
    """N(c, 1) in two dimensions, c unknown in common, seen with an unknown noise scale."""
    denoiser = nd.denoisers.Conditional(lambda c: nd.denoisers.Gaussian(c, 1.0))
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(10, -9, 6))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, 2))

    def model() -> None:
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
        x = numpyro.sample("x", prior.given(c))
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1))

    return model


def with_context(
    key: jax.Array, inference: Any, replicates: int, size: int, batch_size: int = 1
) -> nd.diagnostics.Calibration:
    """All unknowns of the model with a context."""
    return nd.diagnostics.calibrate(
        key, context_model(), inference, observed="y", site=["c", "sigma", "x"],
        num_replicates=replicates, num_draws=min(size // 10, 99), batch_size=batch_size,
    )  # fmt: skip


def whole(key: jax.Array, replicates: int, size: int) -> tuple[nd.diagnostics.Calibration, str]:
    """The model with a context by SMC."""
    inference = lambda model: nd.infer.SMC(model, num_particles=8, num_draws=size // 4, num_islands=1)
    return with_context(key, inference, replicates, size), "(d) context, noise scale and x, SMC"


def paths(key: jax.Array, replicates: int, size: int) -> tuple[nd.diagnostics.Calibration, str]:
    """The model with a context by particle Gibbs, which hands on its chain, and NUTS."""

    def inference(model: Any) -> MCMC:
        blocks = [(nd.infer.ParticleGibbs(model, num_particles=8), ["x"]), (NUTS(model, max_tree_depth=5), None)]
        return MCMC(nd.infer.Gibbs(blocks), num_warmup=min(size, 200), num_samples=size)

    return with_context(key, inference, replicates, size, replicates), "(e) the same, Gibbs"


def noise(key: jax.Array, replicates: int, size: int) -> tuple[nd.diagnostics.Calibration, str]:
    """The model with a context by NUTS on c, the noise scale and the noise that makes x."""

    def inference(model: Any) -> MCMC:
        kernel = NUTS(reparam(model, config={"x": nd.infer.DiffusionReparam()}))
        return MCMC(kernel, num_warmup=min(size, 500), num_samples=size)

    return with_context(key, inference, replicates, size, replicates), "(f) the same, `DiffusionReparam` and NUTS"


def logistic(key: jax.Array, replicates: int, size: int) -> tuple[nd.diagnostics.Calibration, str]:
    """Forty answers of yes or no, four coefficients, of which two lie on a ring and two depend on where."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(-np.pi, np.pi, 2000)
    centre = np.stack([1.5 * np.cos(angle), 1.5 * np.sin(angle), np.sin(2 * angle), 0.5 * angle], 1)
    coefficients = centre + 0.3 * rng.standard_normal(centre.shape)
    prior = nd.fit_prior(jax.random.key(0), coefficients, max_steps=400, progress_bar=False)
    design = jnp.asarray(rng.standard_normal((40, 4)))

    def model() -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Bernoulli(logits=design @ x).to_event(1))

    inference = lambda model: nd.infer.SMC(model, num_particles=size, num_islands=1)
    calibration = nd.diagnostics.calibrate(
        key, model, inference, observed="y", num_replicates=replicates, num_draws=min(size // 10, 99)
    )
    return calibration, "(g) logistic regression, a learned prior, SMC"


def photons(key: jax.Array, replicates: int, size: int) -> tuple[nd.diagnostics.Calibration, str]:
    """Digits under some ten photons in the brightest pixels."""
    prior = nd.load("digits").with_(sampler=nd.samplers.Ancestral(25))

    def model() -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Poisson(0.5 + 10 * jnp.clip(x, 0)).to_event(2))

    def quantities(values: Any) -> dict[str, Any]:
        x = values["x"]
        return {"mean": x.mean(), "left minus right": (x[:, :4] - x[:, 4:]).sum(), "centre": x[3:5, 3:5].sum()}

    inference = lambda model: nd.infer.SMC(model, num_particles=size, num_islands=1)
    calibration = nd.diagnostics.calibrate(
        key, model, inference, observed="y", num_replicates=replicates, num_draws=min(size // 10, 99),
        quantities=quantities,
    )  # fmt: skip
    return calibration, "(h) a digit by counts, SMC"


# With the number of its random key: (d) to (f) see the same data.
CHECKS = {
    "a": (digits, 0), "b": (smc, 1), "c": (nuts, 2), "d": (whole, 3), "e": (paths, 3), "f": (noise, 3),
    "g": (logistic, 4), "h": (photons, 5),
}  # fmt: skip


def main() -> None:
    """Calibrate, print p-values and coverage, draw the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few and small replicates of (b) alone")
    parser.add_argument("--only", nargs="*", default=list(CHECKS), choices=CHECKS, help="which of them")
    parser.add_argument("--replicates", type=int, default=200, help="data sets of each")
    parser.add_argument("--seed", type=int, default=0, help="other data sets and draws than those of the table")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the pictures")
    options = parser.parse_args()
    replicates, size = (3, 40) if options.short else (options.replicates, 1000)
    print("| check | quantity | p (χ², 10 bins) | 90% interval covers | mean rank, in s.e. | seconds |")
    print("|---|---|---|---|---|---|")
    for name, (run, number) in CHECKS.items():
        if name not in options.only or (options.short and name != "b"):
            continue
        start = time.perf_counter()
        calibration, title = run(jax.random.key(number + 100 * options.seed), replicates, size)
        seconds = time.perf_counter() - start
        values, covered, z = calibration.p_values(), calibration.coverage(), calibration.z_scores()
        for quantity in calibration.ranks:
            flat = [np.ravel(part[quantity]) for part in (values, covered, z)]
            for i, (p, cover, score) in enumerate(zip(*flat, strict=True)):
                label = quantity if len(flat[0]) == 1 else f"{quantity}_{i}"
                error = calibration.coverage_error()
                print(
                    f"| {title} | {label} | {p:.3f} | {cover:.3f} ± {error:.3f} | {score:+.2f} | {seconds:.0f} |",
                    flush=True,
                )
        axes = nd.plots.ranks(calibration)
        options.output.mkdir(parents=True, exist_ok=True)
        axes[0].figure.savefig(options.output / f"calibration_{name}.png", dpi=150)
        assert all(np.isfinite(part).all() for part in z.values())


if __name__ == "__main__":
    main()
