"""CPU seconds until a prior can be made, beside `import numpyro`, and until the command line answers.

python examples/benchmarks/import_time.py [--runs 5] [--short]

`import numpyro_diffusion` loads no more than it must, and every name on first use: what a user pays is both together.
Least of several fresh interpreters, each of which counts its own time from its start.
"""

import argparse
import subprocess
import sys

START = "import atexit, time; atexit.register(lambda: print(time.process_time())); "
BASE = START + "import numpyro, numpyro.distributions, numpyro.infer; "
OURS = "import numpyro_diffusion as nd; "
HELP = "from numpyro_diffusion.cli import main; main(['fit', '--help'])"
PROGRAMS = {
    "Python": START,
    "Python, import numpyro_diffusion": START + OURS,
    "Python, numpyro-diffusion fit --help": START + HELP,
    "numpyro": BASE,
    "numpyro, import numpyro_diffusion": BASE + OURS,
    "numpyro, nd.DiffusionPrior": BASE + OURS + "nd.DiffusionPrior",
    "numpyro, nd.load, nd.infer": BASE + OURS + "nd.load, nd.infer",
    "numpyro, nd.load, nd.infer, nd.fit_prior": BASE + OURS + "nd.load, nd.infer, nd.fit_prior",
}


def seconds(program):
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def main():
    """Print a table; differences are to the bare Python, or to NumPyro."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="interpreters started for each of them")
    parser.add_argument("--short", action="store_true", help="one run of each")
    args = parser.parse_args()
    taken = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():  # fills the caches of the file system and of byte code
        seconds(program)
    for _ in range(1 if args.short else args.runs):  # by turns, so that a slow moment of the machine hits all
        for name, program in PROGRAMS.items():
            taken[name].append(seconds(program))
    least = {name: min(times) for name, times in taken.items()}
    for name, time in least.items():
        print(f"{name:41} {time:6.2f} s   {time - least[name.partition(',')[0]]:+6.2f} s")


if __name__ == "__main__":
    main()
