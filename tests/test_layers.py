"""The architecture, held: which module may import which, and what the config stack must never load."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "quantcfg"
LAYERS = [  # bottom first; a layer imports itself and what stands before it
    "quantcfg.errors",
    "quantcfg.config",
    "quantcfg.numeric",
    "quantcfg.qconfig",
    "quantcfg.preparation",
    "quantcfg.integer",
    "quantcfg.runs",
    "quantcfg.stages",
    "quantcfg.export",
    "quantcfg.render",
    "quantcfg.cli",
    "quantcfg.__main__",
]
STRANGERS = [  # do not know each other, though one stands above the other
    ("quantcfg.numeric", "quantcfg.config"),
    ("quantcfg.runs", "quantcfg.preparation"),
    ("quantcfg.runs", "quantcfg.qconfig"),
    ("quantcfg.runs", "quantcfg.numeric"),
    ("quantcfg.runs", "quantcfg.config"),
]
ONLY_IN = {"rich": "quantcfg.render", "typer": "quantcfg.cli"}
NOWHERE = ("torch.ao", "torch.quantization", "pickle")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
DOOR = "quantcfg"


def layer_of(module: str) -> int:
    for index, layer in enumerate(LAYERS):
        if module == layer or module.startswith(f"{layer}."):
            return index
    raise AssertionError(f"{module} is in no layer: add it to LAYERS, at its place")


@cache
def imports_of(module: str, *, top_level: bool = False) -> set[str]:
    """Every module that ``module`` imports, those inside functions too unless ``top_level``."""
    tree = ast.parse(SOURCES[module].read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {full_name(node.module or "", alias.name) for alias in node.names}
    return found


def full_name(package: str, name: str) -> str:
    return f"{package}.{name}" if f"{package}.{name}" in SOURCES else package


def own_imports_of(module: str) -> set[str]:
    return {name for name in imports_of(module) if name.split(".")[0] == "quantcfg"}


INSIDE = [module for module in SOURCES if module != DOOR]


@pytest.mark.parametrize("module", INSIDE)
def test_imports_point_down(module: str) -> None:
    for imported in own_imports_of(module):
        assert imported in SOURCES, f"{module} imports {imported}, which is no module"
        assert imported != DOOR, f"{module} imports from the public door instead of the defining module"
        assert layer_of(imported) <= layer_of(module), f"{module} imports {imported}, which stands above it"


@pytest.mark.parametrize(("stranger", "other"), STRANGERS)
def test_strangers_do_not_import_each_other(stranger: str, other: str) -> None:
    for module in INSIDE:
        if layer_of(module) == LAYERS.index(stranger):
            reached = {name for name in own_imports_of(module) if layer_of(name) == LAYERS.index(other)}
            assert not reached, f"{module} imports {sorted(reached)}"


def test_no_import_knots() -> None:
    graph = {m: {i for i in imports_of(m, top_level=True) if i in SOURCES and i != m} for m in INSIDE}
    assert set(TopologicalSorter(graph).static_order()) >= set(INSIDE)


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_layer(library: str) -> None:
    users = {m for m in INSIDE if any(name.split(".")[0] == library for name in imports_of(m))}
    assert users
    assert all(module.startswith(ONLY_IN[library]) for module in users), sorted(users)


@pytest.mark.parametrize("library", NOWHERE)
def test_nothing_imports(library: str) -> None:
    users = [m for m in INSIDE if any(n == library or n.startswith(f"{library}.") for n in imports_of(m))]
    assert not users


def loaded_by(code: str, cwd: Path) -> set[str]:
    """The top-level names of the modules that are loaded once ``code`` has run in a new interpreter."""
    report = "import sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=cwd, capture_output=True, text=True, check=True
    )
    return set(run.stdout.splitlines()[-1].removeprefix("LOADED ").split())


CONFIG_MODULES = [module for module in INSIDE if module.startswith("quantcfg.config")]
COMMAND = "from quantcfg.cli.main import main\ntry:\n    main({!r})\nexcept SystemExit:\n    pass"
TORCH_FREE = {
    "the public door": "import quantcfg; dir(quantcfg)",
    "the config stack": f"import {', '.join(CONFIG_MODULES)}",
    "--help": COMMAND.format(["--help"]),
    "--version": COMMAND.format(["--version"]),
    "validate --help": COMMAND.format(["validate", "--help"]),
    "validate": COMMAND.format(["validate", "config.yaml"]),
    "schema": COMMAND.format(["schema"]),
    "presets": COMMAND.format(["presets"]),
}


@pytest.mark.parametrize("what", TORCH_FREE)
def test_torch_is_not_loaded_by(what: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("version: 1\nqconfig: {global: w8a8}\ncalib: {batches: 4}\n")
    assert not loaded_by(TORCH_FREE[what], tmp_path) & {"torch", "numpy"}
