"""Learn the packaged prior over 8×8 handwritten digits, and save it with its card.

A U-Net learns 1,500 digits far better than a dense network does, and takes many times as long for a call. So a
U-Net is learned first, and the dense network, which is what is packaged, learns from the digits and from 20,000 draws
of it (distillation: Hinton et al. 2015; here the teacher's draws are all that the student sees of it).

    python examples/digits_prior.py --save numpyro_diffusion/priors/digits.safetensors
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.demo import held_out_bound

GREY = 1 / 16
CHAIN_STEPS, AT_ONCE = 96, 250  # of the teacher's chain, and draws of one call
COPIES = 4  # of each digit beside the draws, each with its own noise
NUM_STEPS, WIDTH, DEPTH = 100, 96, 3


def drawn(key: jax.Array, teacher: nd.DiffusionPrior, count: int, num_steps: int) -> np.ndarray:
    """Draws of the teacher, shape (count, 8, 8)."""
    prior = teacher.with_(sampler=nd.samplers.Ancestral(num_steps))
    draw = jax.jit(lambda key: prior.sample(key, (min(AT_ONCE, count),)))
    keys = jax.random.split(key, -(-count // AT_ONCE))
    return np.concatenate([np.asarray(draw(own)) for own in keys])[:count]


def distilled(key: jax.Array, draws: np.ndarray, max_steps: int, short: bool) -> nd.DiffusionPrior:
    """The dense network's prior, of the draws and of the training digits, with noise between their grey levels."""
    first, second, third = jax.random.split(key, 3)
    digits = jnp.repeat(nd.datasets.digits().train_images, COPIES, axis=0)
    noisy = digits + GREY * (jax.random.uniform(first, digits.shape) - 0.5)
    options: dict[str, Any] = {"network": network_of(second, NUM_STEPS, WIDTH, DEPTH)}
    if short:  # as many examples as the teacher had, and its network: most programs are compiled already
        noisy, options = noisy[: len(nd.datasets.digits().train_images) - len(draws)], small(second)
    return nd.fit_prior(
        third, np.concatenate([draws, noisy]), dequantize=0.0, max_steps=max_steps, learning_rate=2e-3, **options
    )


def network_of(key: jax.Array, num_steps: int, width: int, depth: int) -> nd.networks.MLP:
    """A dense network of digits."""
    return nd.networks.MLP(key, (8, 8), num_steps=num_steps, width=width, depth=depth)


def small(key: jax.Array) -> dict[str, Any]:
    """A dense network and a short chain, in place of what `fit_prior` would choose."""
    return {"network": network_of(key, 8, 64, 1), "schedule": nd.schedules.log_snr(8)}


def main() -> None:
    """Train, evaluate what the file holds on the held-out digits, and record it in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="file for the prior (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=20_000, help="of the U-Net, to learn from")
    parser.add_argument("--steps", type=int, default=16_000, help="of the dense network's training")
    parser.add_argument(
        "--short", action="store_true", help="a few steps of small networks and no U-Net, to see that it runs"
    )
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(options.seed), 3)
    count, steps = options.draws, options.steps
    learning: dict[str, Any] = {"kind": "image"}
    if options.short:  # a dense network teaches
        count, steps, learning = 100, 300, {"max_steps": 300, **small(keys[0])}
    start = time.process_time()
    teacher = nd.fit_prior(keys[0], nd.datasets.digits().train_images, **learning)
    draws = drawn(keys[1], teacher, count, min(CHAIN_STEPS, teacher.process.num_steps))
    prior = distilled(keys[2], draws, steps, options.short)
    seconds = time.process_time() - start
    taught, its_error = held_out_bound(jax.random.key(1), teacher)
    with tempfile.TemporaryDirectory() as folder:
        path = options.save or Path(folder) / "digits.safetensors"
        prior.save(path, dtype="float16")
        value, error = held_out_bound(jax.random.key(1), nd.load(path))
        command = f"--seed {options.seed} --draws {count} --steps {steps}"
        card = {
            "data": "the 8x8 handwritten digits of scikit-learn, grey levels 0 to 1, uniform noise of 1/16 added; "
            f"{count} draws of a U-Net that was learned from them",
            "licence": "data CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits); weights Apache-2.0",
            "command": f"python examples/digits_prior.py {command} --save PATH",
            "dequantize": GREY,
            "schedule": f"log-SNR in {prior.process.num_steps} equal steps",
            "bound": value,
            "bound_error": error,
            "unit": "nats per image, mean of the 297 held-out digits",
            "limits": "1,500 training images; centred digits only",
        }
        prior.save(path, dtype="float16", card=card)
        size = path.stat().st_size
    print(
        f"held-out K bound {value:.2f} ± {error:.2f} nats per image, the U-Net's {taught:.2f} ± {its_error:.2f}; "
        f"{seconds:.0f} s of CPU time; {size / 1e3:.0f} kB"
    )
    assert value > (0 if options.short else 72), "the prior has not been learned"


if __name__ == "__main__":
    main()
