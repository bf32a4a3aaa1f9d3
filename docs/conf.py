"""Sphinx configuration. The site is built, and read, without a network."""

import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from run_tutorials import QUIET  # noqa: E402

project = "numpyro-diffusion"
copyright = "the numpyro-diffusion developers"
version = release = importlib.metadata.version("numpyro-diffusion")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
root_doc = "index"
exclude_patterns = ["_build"]

# Tutorials are run when the site is built, each once for each state of its code; what fails, fails the build.
# What was run is kept beside the site: after a change of the package, throw it away.
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_allow_errors = False
nb_merge_streams = True
os.environ.pop("MPLBACKEND", None)  # pictures go into the page
os.environ |= QUIET
copybutton_exclude = ".linenos, .gp, .go"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
templates_path = ["_templates"]
default_role = "py:obj"  # a name between single backticks is a link where there is such a name
suppress_warnings = ["ref.python"]  # where there are several, as of an argument `x`, it is none

# Ours are documented at the names users type; types stay in the signatures.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# MathJax comes from a Python package and is copied into the site, as one file.
_mathjax = importlib.util.find_spec("mathjax").submodule_search_locations[0]
html_static_path = [str(Path(_mathjax) / "static" / "mathjax" / "es5" / "tex-svg.js")]
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}}

html_theme = "furo"
html_logo = html_favicon = "images/logo.svg"
html_title = f"numpyro-diffusion {release}"


def escape_shapes(app, what, name, obj, options, lines):
    """Docstrings write shapes as (*batch, *event); to reStructuredText a star opens emphasis."""
    for number, line in enumerate(lines):
        parts = line.split("`")  # what is between backticks stays as it is
        parts[::2] = [re.sub(r"(?<=[(\s])\*(?=\w+[,)])", r"\\*", part) for part in parts[::2]]
        lines[number] = "`".join(parts)


# What `jax.typing.ArrayLike` is, spelt out, as annotations come to Sphinx.
ARRAY_LIKE = re.compile(r"~?[\w.]*Array \| ~?[\w.]*ndarray \| (?:~?[\w.]+ \| )*~?[\w.]*complex")


def shorten_types(app, what, name, obj, options, signature, returned):
    """ArrayLike is a word, not the union of eight types."""
    short = [None if text is None else ARRAY_LIKE.sub("ArrayLike", text) for text in (signature, returned)]
    return tuple(short)


# A link from a source file back to the page of an object, or of a member of it.
BACK = re.compile(r'href="(?P<page>[^"#]*/(?P<object>numpyro_diffusion[\w.]*)\.html)#[\w.]*?(?P<member>\.[\w]+)?"')


def lead_back(app, page, template, context, doctree):
    """Objects of one file that are documented under several names each have the name of their own page."""
    if not page.startswith("_modules/") or "body" not in context:
        return

    def link(found):
        name, member = found["object"], found["member"] or ""
        member = "" if name.endswith(member) else member
        return f'href="{found["page"]}#{name}{member}"'

    context["body"] = BACK.sub(link, context["body"])


def setup(app):
    """Register the above; shapes before napoleon reads the docstrings."""
    app.connect("html-page-context", lead_back)
    app.connect("autodoc-process-signature", shorten_types)
    app.connect("autodoc-process-docstring", escape_shapes, priority=400)
