"""The shape of the package: imports go downwards only, modules are small and documented, importing is cheap."""

import ast
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
# Only leaves may import these, and only so that `import numpyro_diffusion` does not: test_import_is_cheap.
LEAVES = {"cli", "convert", "datasets", "demo", "diagnostics", "plots"}
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


def test_import_is_cheap():
    """What is loaded is counted, not timed, so that a busy machine cannot fail this."""
    program = (
        "import sys, numpyro, numpyro.distributions, numpyro.infer; before = set(sys.modules);"
        f"import {PACKAGE}; print(*sorted(set(sys.modules) - before))"
    )
    # Outside the tests, so that what pytest and its plugins have loaded does not count.
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    added = run.stdout.split()
    heavy = sorted(HEAVY & {name.split(".")[0] for name in added})
    assert not heavy, f"import {PACKAGE} loads {heavy}"
    foreign = [name for name in added if name.split(".")[0] != PACKAGE]
    assert len(foreign) <= 600, f"import {PACKAGE} loads {len(foreign)} modules beyond NumPyro's own"


def test_namespaces_hold_nothing_of_others():
    """What a user completes after a dot is ours: what a package's `__init__` needs of others has an underscore."""
    for module, path in MODULES.items():
        if path.name != "__init__.py" or part_of(module) == "cli":
            continue
        for node in TREES[module].body:
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                names = [alias.asname or alias.name for alias in node.names]
                assert all(name.startswith("_") for name in names), f"{module} shows {names}"
