"""How often the 90% interval of the noise scale holds the true one: held-out digits, half of each hidden.

Every digit has a noise scale of its own to infer: as many independent copies of the demonstration's model, one digit
each, sampled in one run of NUTS on the noises that drive the prior's chain.

python examples/digits_coverage.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import summary
from numpyro.infer import MCMC, NUTS, init_to_sample

import numpyro_diffusion as nd
from numpyro_diffusion.demo import CHAIN_STEPS, TRUE_SIGMA, observe


def model(prior: nd.DiffusionPrior, mask: jax.Array, y: jax.Array) -> None:
    """Independent digits, each with its own unknown noise scale."""
    with numpyro.plate("digit", len(mask)):
        sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, sigma[:, None, None]).mask(mask).to_event(2), obs=y)


def independent_pixels() -> nd.DiffusionPrior:
    """A Gaussian of independent pixels of digits, whose denoiser is exact: a prior that is not learned."""
    images = nd.datasets.digits().train_images
    loc, scale = images.mean(0), np.hypot(images.std(0), 0.05)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(25), loc, scale)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(loc, scale), (8, 8)))


def main() -> None:
    """Run NUTS on all digits and count the intervals that hold the true scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--digits", type=int, default=20)
    parser.add_argument("--draws", type=int, default=300, help="warm-up iterations, and draws, of each of 2 chains")
    parser.add_argument("--short", action="store_true", help="2 digits, few draws, and a prior that is not learned")
    options = parser.parse_args()
    digits, draws = (2, 8) if options.short else (options.digits, options.draws)
    start = time.perf_counter()
    prior = independent_pixels() if options.short else nd.load("digits")
    prior = prior.with_(sampler=nd.samplers.Ancestral(CHAIN_STEPS))
    keys = jax.random.split(jax.random.key(options.seed))
    seen = observe(keys[0], jnp.asarray(nd.datasets.digits().test_images[:digits]))
    kernel = NUTS(
        numpyro.handlers.reparam(model, config={"x": nd.infer.DiffusionReparam()}),
        init_strategy=init_to_sample,
        max_tree_depth=3 if options.short else 7,
    )
    mcmc = MCMC(kernel, num_warmup=draws, num_samples=draws, num_chains=2, chain_method="vectorized")
    mcmc.run(keys[1], prior, seen.mask, seen.y)
    draws_by_chain = mcmc.get_samples(group_by_chain=True)
    quality = summary({name: np.asarray(draws_by_chain[name]) for name in ("sigma", "x")})
    sigma = np.asarray(draws_by_chain["sigma"]).reshape(-1, digits)
    low, high = np.quantile(sigma, [0.05, 0.95], axis=0)
    covered = (low <= TRUE_SIGMA) & (high >= TRUE_SIGMA)
    for i in range(digits):
        print(f"digit {i:2d}: sigma {sigma[:, i].mean():.3f}, 90% interval [{low[i]:.3f}, {high[i]:.3f}]"
              f"{'' if covered[i] else '  misses'}")  # fmt: skip
    for name in ("sigma", "x"):
        print(f"{name}: r_hat at most {quality[name]['r_hat'].max():.3f}, "
              f"effective sample size at least {quality[name]['n_eff'].min():.0f}")  # fmt: skip
    print(f"the 90% interval holds the true scale, {TRUE_SIGMA}, for {covered.sum()} of {digits} digits "
          f"({time.perf_counter() - start:.0f} s)")  # fmt: skip
    assert options.short or 15 <= covered.sum() <= 20, "coverage is off"


if __name__ == "__main__":
    main()
