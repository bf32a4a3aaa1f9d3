"""The shape of the package: imports go downwards only, modules are small and documented, importing is cheap."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import numpyro_diffusion

PACKAGE = "numpyro_diffusion"
ROOT = Path(numpyro_diffusion.__file__).parent
LINES, MAX_LINES = 300, 320  # above the former a file says why: "# Over 300 lines: …"

# From the bottom up. Parts of one layer do not import one another; a part may import from any layer below its own.
LAYERS = [
    {"_checks", "_compiled", "_display", "_compiler", "_functions", "_products", "_shapes"},
    {"_batching", "_devices", "_files", "_numbers", "_structure", "transforms"},
    {"_packing"},
    {"_frames", "networks", "checkpoints", "laws", "moments", "schedules"},
    {"diffusions"},
    {"denoisers"},
    {"last_steps"},
    {"process"},
    {"diffusers", "factors", "likelihoods", "placement"},
    {"twists"},
    {"samplers"},
    {"distributions"},
    {"_contents"},
    {"training", "hub"},
    {"infer"},
    {"convert", "datasets", "diagnostics", "incomplete"},
    {"plots"},
    {"__init__"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
HEAVY = {"arviz", "arviz_base", "arviz_plots", "arviz_stats", "matplotlib", "pandas", "sklearn", "xarray"}
# Only leaves may import these, and only so that a model does not: test_what_a_model_needs_is_cheap.
LEAVES = {"cli", "convert", "datasets", "demo", "diagnostics", "plots"}
# What these parts need takes a while to load.
LATE = {"convert", "diagnostics", "incomplete", "plots", "training"}
NEEDED = ", ".join(name for name, part in numpyro_diffusion._ON_USE.items() if part not in LATE)
# Longer modules begin with a summary and a paragraph: theory and its references, or what one must know to change them.
SHORT = 40  # lines

FILES = sorted(ROOT.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module):
    """The file or folder directly in the package that a module belongs to."""
    return (module.split(".") + ["__init__"])[1]


MODULES = {module_name(path): path for path in FILES}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def targets(module, node):
    """The modules an import statement names, relative ones made absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        package = parts if MODULES[module].name == "__init__.py" else parts[:-1]
        package = package[: len(package) - node.level + 1]
        base = ".".join(package + ([node.module] if node.module else []))
    # `from . import datasets` names a module, `from .process import ReverseProcess` does not.
    return [name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names]


def imports(module):
    """Every import of one module: (target, line number, whether it is inside a function)."""
    found = []

    def visit(node, inside):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend((target, node.lineno, inside) for target in targets(module, node))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(TREES[module], False)
    return found


def internal(module):
    return [(target, line, lazy) for target, line, lazy in imports(module) if target.split(".")[0] == PACKAGE]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    part = part_of(module)
    assert part in RANK, f"{module}: give {part!r} a place in LAYERS"
    for target, line, _ in internal(module):
        other = part_of(target)
        assert other == part or RANK[other] < RANK[part], f"{module}:{line} imports {target}, which is not below it"


def test_no_cycles():
    graph = {module: {target for target, _, _ in internal(module)} - {module} for module in MODULES}
    for part in {part_of(module) for module in MODULES}:
        # Across parts the layers rule cycles out. Within a folder, its __init__ gathers and is not imported back.
        inside = {module for module in graph if part_of(module) == part}
        remaining = {module: graph[module] & inside for module in inside}
        while remaining:
            free = [module for module, needs in remaining.items() if not needs & set(remaining)]
            assert free, f"these import one another: {sorted(remaining)}"
            for module in free:
                del remaining[module]


@pytest.mark.parametrize("module", MODULES)
def test_no_lazy_internal_imports(module):
    lazy = [f"line {line}: {target}" for target, line, inside in internal(module) if inside]
    assert not lazy, f"{module}: imports of the package inside functions: {lazy}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_by_leaves_only(module):
    for target, line, _ in imports(module):
        assert target.split(".")[0] not in HEAVY or part_of(module) in LEAVES, f"{module}:{line} imports {target}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_documented_and_small(module):
    said = ast.get_docstring(TREES[module])
    assert said, f"{module} has no docstring"
    lines = MODULES[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= SHORT or "\n\n" in said, f"{module}: expected a summary and a paragraph, got {said!r}"
    assert len(lines) <= MAX_LINES, f"{module} has {len(lines)} lines, more than {MAX_LINES}"
    says_why = any(line.startswith(f"# Over {LINES} lines: ") for line in lines)
    assert says_why == (len(lines) > LINES), f"{module} has {len(lines)} lines; says why: {says_why}"


def said(program):
    """What a process prints: outside the tests, so that what pytest and its plugins have loaded does not count."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, check=True).stdout


def test_import_is_cheap():
    """What is loaded is counted, not timed, so that a busy machine cannot fail this."""
    loaded = said(f"import sys, {PACKAGE}; print(*sys.modules)").split()
    ours = {name for name in loaded if name.split(".")[0] == PACKAGE}
    assert ours == {PACKAGE, f"{PACKAGE}._compiler"}
    assert not {"jax", "jaxlib", "numpy", "numpyro"} & set(loaded)


def test_what_a_model_needs_is_cheap():
    """Every name but those of the parts that need Optax, ArviZ or Matplotlib."""
    program = (
        "import sys, numpyro, numpyro.distributions, numpyro.infer; before = set(sys.modules);"
        f"from {PACKAGE} import {NEEDED}; print(*sorted(set(sys.modules) - before))"
    )
    added = said(program).split()
    heavy = sorted((HEAVY | {"optax"}) & {name.split(".")[0] for name in added})
    assert not heavy, f"a model loads {heavy}"
    foreign = [name for name in added if name.split(".")[0] != PACKAGE]
    assert len(foreign) <= 600, f"a model loads {len(foreign)} modules beyond NumPyro's own"


def test_type_checkers_see_the_names_that_are_loaded_on_use():
    block = next(node for node in TREES[PACKAGE].body if isinstance(node, ast.If))
    seen = {alias.asname: node.module or alias.name for node in block.body for alias in node.names}
    assert ast.unparse(block.test) == "_typing.TYPE_CHECKING" and seen == numpyro_diffusion._ON_USE
    hidden = {name for name, module in seen.items() if name != module and f"{PACKAGE}.{name}" in MODULES}
    assert not hidden, f"modules of these names would take their place: {hidden}"


def test_public_names_are_found_before_they_are_used():
    """By `dir`, by a star, and by name, which is then kept; and no others."""
    program = (
        f"import {PACKAGE} as nd; names = nd.__all__; assert {{*names}} <= {{*dir(nd)}}; dir(nd);"
        "assert 'fit_prior' not in vars(nd); nd.fit_prior; assert {'fit_prior', 'training'} <= {*vars(nd)};"
        f"assert not hasattr(nd, 'fit_posterior'); from {PACKAGE} import *; assert {{*names}} <= {{*globals()}};"
        "assert {*names} <= {*vars(nd)}; print(len(names))"
    )
    assert int(said(program)) == len({*numpyro_diffusion.__all__}) > 60


def test_names_may_be_used_first_while_a_program_is_traced():
    """Nothing is computed by an import: it would become a part of the program, and be lost with it."""
    program = (
        f"import jax, {PACKAGE} as nd; load = lambda: [getattr(nd, name) for name in nd.__all__] and 0.0;"
        f"print(len(jax.make_jaxpr(load)().eqns)); import sys;"
        f"print([(name, key) for name, module in [*sys.modules.items()] if name.startswith('{PACKAGE}')"
        " for key, value in vars(module).items() if isinstance(value, jax.core.Tracer)])"
    )
    assert said(program).split() == ["0", "[]"]


def test_files_are_read_alike_whatever_was_used_before():
    """The classes that a file may name are those of the package, not those that a program happens to have loaded."""
    known = "print(*sorted(_packing._known_classes()))"
    first = said(f"from {PACKAGE} import _packing; {known}").split()
    assert len(first) > 150 and first == said(f"from {PACKAGE} import {NEEDED}, _packing; {known}").split()


def test_namespaces_hold_nothing_of_others():
    """What a user completes after a dot is ours: what a package's `__init__` needs of others has an underscore."""
    for module, path in MODULES.items():
        if path.name != "__init__.py" or part_of(module) == "cli":
            continue
        for node in TREES[module].body:
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                names = [alias.asname or alias.name for alias in node.names]
                assert all(name.startswith("_") for name in names), f"{module} shows {names}"


@pytest.mark.parametrize("module", MODULES)
def test_properties_are_said_without_a_colon_in_front(module):
    """What stands before a colon in the first line of a property's docstring is a type to those who build the site."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef) and any("property" in ast.unparse(each) for each in node.decorator_list):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            assert not re.search("(?<![:`]):(?![:`])", first), f"{module}.{node.name}: {first}"


# Of citations. A list of names shows the first sentence of a docstring alone, and takes the stop of these for its end.
ABBREVIATION = re.compile(r"\b(?:[Ee]qs?|App|Algs?|Figs?|Secs?|Tab|Thm|Prop|Ch|Nos?|Vol|pp?|cf|resp|etc)\.$")
# What Sphinx's autosummary takes for the first sentence.
FIRST_SENTENCE = re.compile(r"(?s:.*?)(?<!et al)(?<!e\.g)(?<!i\.e)(?<!vs)\.(?=\s|$)")


def is_cut(docstring):
    """Does the first sentence end where an abbreviation does?"""
    first = FIRST_SENTENCE.match(docstring.split("\n\n")[0])
    return first is not None and ABBREVIATION.search(first[0]) is not None


def test_first_sentences_are_whole():
    cut = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                if is_cut(ast.get_docstring(node) or ""):
                    cut.append(f"{module}.{node.name}")
    assert not cut


@pytest.mark.parametrize("said", ["A bound ([2015] eq. 9).", "As in App. B.", "Coding (see\nAlg. 3), and more."])
def test_first_sentences_that_are_cut_are_found(said):
    assert is_cut(said) and is_cut(f"Of Ho et al. 2020, {said}")
    assert not is_cut(f"Whole. {said}")
