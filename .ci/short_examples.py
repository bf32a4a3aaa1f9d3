"""Run scripts with --short, two at a time: two processes import JAX, and each compiles once what its scripts share.

python .ci/short_examples.py SCRIPT ...
"""

import gc
import os
import runpy
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path


def run(script: str) -> tuple[str, float, str]:
    """The script's name, the seconds that it took, and what it said if it failed."""
    begun, failed = time.monotonic(), False
    sys.argv, before = [script, "--short"], sys.path
    with tempfile.TemporaryFile() as said:
        for stream in (1, 2):  # of the processes that a script starts, too
            os.dup2(said.fileno(), stream)
        sys.path = [str(Path(script).parent), *before]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            failed = stopped.code not in (None, 0)
            if failed:
                print(f"it stopped with {stopped.code}")
        except BaseException:
            failed = True
            traceback.print_exc()
        sys.path = before
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
        sys.stdout.flush()
        sys.stderr.flush()
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    gc.collect()
    gc.freeze()  # programs stay for the next scripts, and are not gone through again
    return Path(script).name, time.monotonic() - begun, "\n".join(lines[-30:]) if failed else ""


if __name__ == "__main__":
    failures = 0
    # The collector would go through all compiled programs again and again, so it waits for a script's end.
    with ProcessPoolExecutor(2, get_context("spawn"), gc.disable) as pool:
        for name, seconds, said in pool.map(run, sys.argv[1:]):
            print(f"{name}: FAILED\n{said}" if said else f"{name}: ok, {seconds:.0f} s", flush=True)
            failures += bool(said)
    sys.exit(failures > 0)
