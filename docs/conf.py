"""Sphinx configuration. The site is built, and read, without a network."""

import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))
from run_tutorials import QUIET  # noqa: E402

project = "numpyro-diffusion"
copyright = "the numpyro-diffusion developers"
version = release = importlib.metadata.version("numpyro-diffusion")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
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

# What names of other packages stand on which page there: plain text, written by hand from these packages' own sources,
# since an inventory from the network would need one whenever the site is built.
intersphinx_mapping = {
    name: (address, f"inventories/{name}.txt")
    for name, address in {
        "arviz": "https://python.arviz.org/en/stable/",
        "equinox": "https://docs.kidger.site/equinox/",
        "jax": "https://docs.jax.dev/en/latest/",
        "numpyro": "https://num.pyro.ai/en/stable/",
        "python": "https://docs.python.org/3/",
    }.items()
}

# Ours are documented at the names users type; types stay in the signatures.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

# MathJax comes from a Python package and is copied into the site, as one file.
_mathjax = importlib.util.find_spec("mathjax").submodule_search_locations[0]
html_static_path = [str(Path(_mathjax) / "static" / "mathjax" / "es5" / "tex-svg.js"), "static/site.css"]
html_css_files = ["site.css"]
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}}

html_theme = "furo"
html_logo = html_favicon = "images/logo.svg"
html_title = f"numpyro-diffusion {release}"


def escape_shapes(app, what, name, obj, options, lines):
    """Docstrings write shapes as (*batch, *event); to reStructuredText a star opens emphasis."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)  # what is between backticks stays as it is
        parts[::2] = [re.sub(r"(?<=[(\s])\*(?=\w+[,)])", r"\\*", part) for part in parts[::2]]
        lines[number] = "".join(parts)


# What `jax.typing.ArrayLike` is, spelt out, as annotations come to Sphinx.
ARRAY_LIKE = re.compile(r"~?[\w.]*Array \| ~?[\w.]*ndarray \| (?:~?[\w.]+ \| )*~?[\w.]*complex")
# The same with a shape, as `Real[ArrayLike, "..."]`: one kind of array, then the other, then Python's numbers.
ARRAY_LIKE_OF_SHAPE = re.compile(
    r"(?P<kind>~?[\w.]+)\[[\w.]*Array, (?P<shape>'[^']*')\] \| (?P=kind)\[[\w.]*ndarray, (?P=shape)\]"
    r"(?: \| ~?[\w.]*(?:number|bool_?|int|float|complex)\b)*"
)


def shorten_types(app, what, name, obj, options, signature, returned):
    """ArrayLike is a word, not the union of eight types."""

    def short(text):
        return ARRAY_LIKE_OF_SHAPE.sub(r"\g<kind>[ArrayLike, \g<shape>]", ARRAY_LIKE.sub("ArrayLike", text))

    return tuple(None if text is None else short(text) for text in (signature, returned))


def public_bases(app, name, obj, options, bases):
    """Of our base classes only those that have a page of their own."""
    listed = (Path(app.srcdir) / "api.md").read_text(encoding="utf-8").split()
    ours = [base for base in bases if getattr(base, "__module__", "").startswith("numpyro_diffusion")]
    hidden = [base for base in ours if base.__name__ not in listed]
    bases[:] = [base for base in bases if base not in hidden] or [object]


# Names under which objects come to Sphinx, or which docstrings use, and those under which they are documented.
DOCUMENTED_AS = {
    "Any": "typing.Any",
    "Array": "jax.Array",
    "ArrayLike": "jax.typing.ArrayLike",
    "jax.jaxlib._jax.Array": "jax.Array",
    "jaxlib._jax.Array": "jax.Array",
    "jax.devices()": "jax.devices",
    "equinox._module._module.Module": "equinox.Module",
    "Gaussian": "nd.factors.Gaussian",
    "Gibbs": "nd.infer.Gibbs",
    "MCMC": "numpyro.infer.mcmc.MCMC",
    "MCMCKernel": "numpyro.infer.mcmc.MCMCKernel",
    "NamedTuple": "typing.NamedTuple",
    "ParticleGibbs": "nd.infer.ParticleGibbs",
    "Predictive": "numpyro.infer.util.Predictive",
    "Sequence": "collections.abc.Sequence",
    "fit": "nd.fit",
    "numpyro.factor": "numpyro.primitives.factor",
    "numpyro.infer.MCMC": "numpyro.infer.mcmc.MCMC",
    "numpyro.infer.Predictive": "numpyro.infer.util.Predictive",
}


def own_name(domain, target):
    """The full name of an object of ours: of `nd.X`, of `module.X`, or of X where there is only one X; else None."""
    if "." in target:
        full = "numpyro_diffusion." + target.removeprefix("nd.")
        return full if full in domain.objects else None
    if not (target[:1].isupper() or "_" in target):  # a short word is more likely an argument
        return None
    pages = [name for name, entry in domain.objects.items() if entry.docname == f"api/{name}"]
    found = [name for name in pages if name.rpartition(".")[2] == target]
    return found[0] if len(found) == 1 else None


def find_name(app, env, node, contnode):
    """Links for names that are not written in full; intersphinx, which comes next, reads the target that is left."""
    if node.get("refdomain") != "py":
        return None
    node["reftarget"] = DOCUMENTED_AS.get(node["reftarget"], node["reftarget"])
    domain = env.get_domain("py")
    full = own_name(domain, node["reftarget"])
    if full is None:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, contnode)


def link_names(app, doctree, page):
    """In pages of Markdown, where backticks make no links by themselves: names of ours lead to their pages."""
    if page.startswith("api/"):
        return
    domain = app.env.get_domain("py")
    for node in list(doctree.findall(nodes.literal)):
        full = own_name(domain, node.astext().partition("(")[0])
        if full is None or isinstance(node.parent, nodes.reference | nodes.title):
            continue
        entry = domain.objects[full]
        node.replace_self(make_refnode(app.builder, page, entry.docname, entry.node_id, node.deepcopy()))


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
    app.connect("doctree-resolved", link_names)
    app.connect("html-page-context", lead_back)
    app.connect("missing-reference", find_name, priority=400)  # before intersphinx
    app.connect("autodoc-process-bases", public_bases)
    app.connect("autodoc-process-signature", shorten_types)
    app.connect("autodoc-process-docstring", escape_shapes, priority=400)
