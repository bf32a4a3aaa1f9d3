"""Training on eight simulated CPU devices against one: the same losses, each device with its share of the batch.

python examples/benchmarks/data_parallel.py [--short]
"""

import argparse
import os
import subprocess
import sys

RUN = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
import numpyro_diffusion as nd
from numpyro_diffusion._devices import check_devices, share

steps, width, depth = map(int, sys.argv[1:])
data = np.random.default_rng(0).normal(size=(2000, 8, 8)).cumsum(axis=1)
network = nd.networks.MLP(jax.random.key(0), (8, 8), num_steps=100, width=width, depth=depth)
diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(100), 0.0, 2.0)
process = nd.ReverseProcess(diffusion, nd.denoisers.Network(network, "velocity"), (8, 8))
results = {}
for count in (1, 8):
    start = time.perf_counter()
    results[count] = nd.fit(jax.random.key(1), process, data, max_steps=steps, batch_size=256, log_every=1,
                            validation=0.0, devices=count, progress_bar=False)
    losses = results[count].history["loss"]
    print(f"{count} device(s): {time.perf_counter() - start:.1f} s, loss {losses[0]:.2f} to {losses[-1]:.2f}")
one, eight = (np.array(results[count].history["loss"]) for count in (1, 8))
difference = np.max(np.abs(eight / one - 1))
spread = check_devices(8, 256)
batch = jax.jit(lambda x: share(x, spread) * 1.0)(jnp.zeros((256, 8, 8)))
print(f"{len(batch.sharding.device_set)} devices hold {batch.addressable_shards[0].data.shape} of {batch.shape} each; "
      f"largest relative difference of {len(one)} losses {difference:.1e}")
assert difference < 1e-5, "the losses differ"
"""


def main() -> None:
    """Compare in a process of its own, which alone has eight devices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few steps")
    options = parser.parse_args()
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    size = ["5", "16", "1"] if options.short else ["200", "96", "2"]
    subprocess.run([sys.executable, "-c", RUN, *size], check=True, env=environment)


if __name__ == "__main__":
    main()
