"""How long `import numpyro_diffusion` takes, beside `import numpyro`: medians over fresh interpreters.

python examples/benchmarks/import_time.py [--runs 5] [--short]
"""

import argparse
import statistics
import subprocess
import sys
import time

BASE, OURS = "import numpyro, numpyro.distributions, numpyro.infer", "import numpyro_diffusion"


def seconds(program):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def main():
    """Print both medians and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="interpreters started for each of the two")
    parser.add_argument("--short", action="store_true", help="one run of each")
    args = parser.parse_args()
    runs = 1 if args.short else args.runs
    base, ours = [], []
    seconds(f"{BASE}; {OURS}")  # fills the caches of the file system and of byte code
    for _ in range(runs):  # by turns, so that a slow moment of the machine hits both
        base.append(seconds(BASE))
        ours.append(seconds(f"{BASE}; {OURS}"))
    before, after = statistics.median(base), statistics.median(ours)
    print(f"numpyro                      {before:6.2f} s")
    print(f"numpyro + numpyro_diffusion  {after:6.2f} s")
    print(f"difference                   {after - before:6.2f} s   (medians of {runs})")


if __name__ == "__main__":
    main()
