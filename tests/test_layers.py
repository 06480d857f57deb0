"""Who may import whom, the modules of each operation, and what ``import tritonsyn`` costs."""

import ast
import compileall
import importlib
import inspect
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import tritonsyn

PACKAGES = {
    "tritonsyn": Path(tritonsyn.__file__).parent,
    "tritonsyn.kernels": Path(
        next(iter(find_spec("tritonsyn.kernels").submodule_search_locations))
    ),
}

# Lowest first. A module imports from its own floor or from those below it.
FLOORS = (
    ("kernels",),
    ("values", "system"),
    ("backend", "checks", "physics", "testing"),
    ("reference",),
    ("launch",),
    ("ops",),
    ("functional", "init", "parametrizations", "regularizers"),
    ("modules",),
    ("distributed", "export", "interop", "nir", "plot"),
    ("workbench", "demo"),
    ("cli",),
)
# What else a package must not import. Launchers are reached by ops.common.implementation only.
FORBIDDEN = {
    "tritonsyn": ("bench", "tests"),
    "tritonsyn.kernels": ("torch", "tritonsyn.values"),
    "tritonsyn.launch": ("tritonsyn.reference",),
    "tritonsyn.modules": ("triton", "tritonsyn.kernels", "tritonsyn.launch"),
    "tritonsyn.ops": ("triton", "tritonsyn.kernels", "tritonsyn.launch", "tritonsyn.reference"),
    "tritonsyn.reference": ("triton", "tritonsyn.kernels"),
}


def sources() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for room, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = (room, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(name: str, path: Path) -> set[str]:
    """Dotted names that a module imports, those of what it imports from modules included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def stems() -> list[str]:
    """What the launchers are about."""
    names = [name.removeprefix("tritonsyn.launch.") for name in sources() if "launch." in name]
    return sorted(set(names) - {"config", "launcher", "lines", "tables"})


def floor(name: str) -> int | None:
    """Height of a module of the package; None for the package itself, and for others."""
    for height, rooms in enumerate(FLOORS):
        if any(within(name, f"tritonsyn.{room}") for room in rooms):
            return height
    return None


def test_every_module_stands_on_a_floor():
    assert [name for name in sources() if floor(name) is None] == ["tritonsyn"]


@pytest.mark.parametrize("module", [name for name in sources() if name != "tritonsyn"])
def test_no_import_runs_up(module):
    """Those inside functions included."""
    above = [n for n in imported(module, sources()[module]) if (floor(n) or 0) > floor(module)]
    assert not above, f"{module} imports {', '.join(above)}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_follow_the_arrows(room):
    modules = {name: path for name, path in sources().items() if within(name, room)}
    assert modules
    for module, path in modules.items():
        wrong = [n for n in imported(module, path) if any(within(n, f) for f in FORBIDDEN[room])]
        assert not wrong, f"{module} imports {', '.join(wrong)}"


def test_kernels_import_nothing_else_of_the_package():
    for module, path in sources().items():
        if within(module, "tritonsyn.kernels"):
            ours = [name for name in imported(module, path) if within(name, "tritonsyn")]
            assert all(within(name, "tritonsyn.kernels") for name in ours), module


@pytest.mark.parametrize("stem", stems())
def test_launchers_and_reference_offer_the_same_functions(stem):
    """The contract of both stands in the reference."""
    launch, reference = (
        importlib.import_module(f"tritonsyn.{room}.{stem}") for room in ("launch", "reference")
    )
    functions = {
        name: value
        for name, value in vars(launch).items()
        if inspect.isfunction(value)
        and value.__module__ == launch.__name__
        and not name.startswith("_")
    }
    assert functions
    for name, function in functions.items():
        assert inspect.signature(function) == inspect.signature(getattr(reference, name)), name
        assert getattr(reference, name).__doc__, name


@pytest.mark.parametrize("room", ["tritonsyn.kernels", "tritonsyn.reference", "tritonsyn.ops"])
def test_every_operation_has_its_module_everywhere(room):
    """But for the tape, which runs the kernels of scans and projections."""
    wanted = set(stems()) - ({"tape"} if room == "tritonsyn.kernels" else set())
    assert {f"{room}.{stem}" for stem in wanted} <= sources().keys()


SCRIPT = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import tritonsyn
print(json.dumps([time.process_time() - start, sorted(set(sys.modules) - before)]))
"""


def test_the_package_is_quick_to_import_and_leaves_triton_alone():
    compileall.compile_dir(PACKAGES["tritonsyn"], quiet=2)  # as after a first import
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, modules = json.loads(run.stdout)
    assert seconds < 0.3
    wrong = ("triton", "tritonsyn.kernels", "tritonsyn.launch", "tritonsyn.testing")
    wrong += ("tritonsyn.interop", "tritonsyn.plot", "tritonsyn.workbench", "matplotlib")
    wrong += ("tritonsyn.nir", "nir", "nirtorch")
    assert not [name for name in modules if any(within(name, w) for w in wrong)]
