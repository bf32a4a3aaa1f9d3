"""Run the tutorials, as many at a time as there are cores, and keep what they print where Sphinx looks for it.

python docs/run_tutorials.py .jupyter_cache     # beside the folder of the site: the build into `site` then runs none
"""

import logging
import os
import sys
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

READER = {"name": "myst_nb_md", "type": "plugin"}
TIMEOUT = 600  # seconds for one cell
# What ArviZ before 1.0 announces on import, and tqdm where there are no widgets; all other warnings are part of a page.
QUIET = {"PYTHONWARNINGS": "ignore::FutureWarning,ignore:IProgress not found"}


def main(folder: str) -> int:
    """Run what is not in the cache yet; 0 if all went well."""
    os.environ |= QUIET
    os.environ.pop("MPLBACKEND", None)  # pictures go into the page
    cache = get_cache(folder)
    for page in sorted((Path(__file__).parent / "tutorials").glob("*.md")):
        if "{code-cell}" in page.read_text(encoding="utf-8"):
            cache.add_nb_to_project(str(page.resolve()), read_data=READER)
    result = load_executor("local-parallel", cache, logging.getLogger()).run_and_cache(timeout=TIMEOUT)
    for record in cache.list_cache_records():
        print(f"{Path(record.uri).name}: {record.data['execution_seconds']:.0f} s")
    for record in cache.list_project_records():
        if record.traceback:
            print(f"{record.uri}: failed\n{record.traceback}", file=sys.stderr)
    return len(result.excepted + result.errored)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
