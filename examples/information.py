"""How much noisy digits say of clean ones: mutual information at every noise level, and the entropy of the data.

    python examples/information.py [--output figures] [--short]

The packaged prior on the 297 held-out digits, with the uniform noise that it was trained with. By the I-MMSE relation
the integral of the denoiser's squared error over log-SNR bounds I(x_0; x_t) from above, and with the last step h(x_0).
Beside them −K, the same bound with the chain's 100 steps, and the entropy of the Gaussian with the digits' covariance.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.demo import held_out_bound


def main() -> None:
    """Print the information and the entropies, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the picture; none unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="fewer times and digits")
    options = parser.parse_args()
    prior, data, rng = nd.load("digits"), nd.datasets.digits(), np.random.default_rng(options.seed)
    noisy = lambda images: images + (rng.uniform(size=images.shape) - 0.5) / 16
    test, train = noisy(data.test_images[: 50 if options.short else None]), noisy(data.train_images)
    key, times = jax.random.key(options.seed), 40 if options.short else 400
    result = nd.diagnostics.mutual_information(key, prior.process, test, num_times=times)
    for wanted in (-6, -4, -2, 0, 2, 4, 6):
        i = int(np.abs(result.log_snr - wanted).argmin())
        value, error = result.information[i], result.standard_error[i]
        print(f"log-SNR {result.log_snr[i]:5.2f}: I(x_0; x_t) at most {value:7.2f} ± {error:.2f} nats")
    variances = np.linalg.eigvalsh(np.cov(train.reshape(len(train), -1).T))
    gaussian = 0.5 * np.log(2 * np.pi * np.e * variances).sum()
    print(f"h(x_0) at most {result.entropy:.2f} ± {result.entropy_error:.2f} nats; Gaussian {gaussian:.2f}")
    if not options.short:
        bound, error = held_out_bound(jax.random.key(1), prior)
        print(f"-K {-bound:.2f} ± {error:.2f} nats, {prior.process.num_steps} steps")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        ax = nd.plots.mutual_information(result, label="digits, packaged prior")
        scale = np.asarray(prior.process.diffusion.scale) ** 2
        ratio = np.exp(result.log_snr)[:, None] * variances / scale
        ax.plot(result.log_snr, 0.5 * np.log1p(ratio).sum(1), "--", color="0.5", label="Gaussian, same covariance")
        ax.legend(frameon=False, fontsize=8)
        ax.figure.savefig(options.output / "information.png", dpi=100)
    assert result.entropy < gaussian + 20, "the prior should know more than a Gaussian does"


if __name__ == "__main__":
    main()
