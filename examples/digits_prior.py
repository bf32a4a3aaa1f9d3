"""Learn the packaged prior over 8×8 handwritten digits, and save it with its card.

python examples/digits_prior.py --save numpyro_diffusion/priors/digits.safetensors
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax

import numpyro_diffusion as nd
from numpyro_diffusion.demo import held_out_bound, train_prior


def main() -> None:
    """Train, evaluate what the file holds on the held-out digits, and record it in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="file for the prior (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--short", action="store_true", help="a few steps, to see that everything runs")
    options = parser.parse_args()
    steps = 100 if options.short else options.steps
    start = time.perf_counter()
    prior = train_prior(jax.random.key(options.seed), max_steps=steps)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = options.save or Path(folder) / "digits.safetensors"
        prior.save(path, dtype="float16")
        value, error = held_out_bound(jax.random.key(1), nd.load(path))
        card = {
            "data": "the 8x8 handwritten digits of scikit-learn (UCI), grey levels 0 to 1, uniform noise of 1/16 added",
            "licence": "data CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits); weights Apache-2.0",
            "command": f"python examples/digits_prior.py --seed {options.seed} --steps {steps} --save PATH",
            "dequantize": 1 / 16,
            "schedule": f"log-SNR in {prior.process.num_steps} equal steps",
            "bound": value,
            "bound_error": error,
            "unit": "nats per image, mean of the 297 held-out digits",
            "limits": "1,500 training images; centred digits only",
        }
        prior.save(path, dtype="float16", card=card)
        size = path.stat().st_size
    print(
        f"held-out K bound {value:.2f} ± {error:.2f} nats per image; {seconds:.0f} s of training; {size / 1e3:.0f} kB"
    )
    assert value > (-60 if options.short else 60), "the prior has not been learned"


if __name__ == "__main__":
    main()
