"""The picture of docs/design.md, kept true: who may import whom, and what importing loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The core of privopt; everything else there belongs to the run, which the core never imports.
CORE = {
    "layout",
    "expression",
    "summation",
    "vector",
    "recording",
    "executors",
    "step",
    "schedules",
    "groups",
    "aggregators",
    "testing",
    "backends",
    "registry",
    "declarations",
    "plugin",
    "auxvar",
    "modules",
    "regularizers",
    "optimizer",
    "checkpoint",
}


def imports(path: Path) -> set[str]:
    """Absolute dotted names of everything that a file imports, wherever in it."""
    package = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: -node.level] if node.level else ()
            name = ".".join([*base, node.module] if node.module else base)
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    ("package", "forbidden"), [("secagg", {"dp", "privopt"}), ("dp", {"secagg", "privopt"})]
)
def test_secagg_and_dp_import_no_sibling(package: str, forbidden: set[str]) -> None:
    assert files(package), f"no sources under {package}"
    for path in files(package):
        found = {name.partition(".")[0] for name in imports(path)}
        assert not found & forbidden, f"{path.relative_to(ROOT)} imports {found & forbidden}"


def test_the_core_of_privopt_imports_no_part_of_the_run() -> None:
    run = {p.relative_to(ROOT / "privopt").parts[0].removesuffix(".py") for p in files("privopt")} - CORE
    assert {"federation", "cli"} <= run
    for path in files("privopt"):
        top = path.relative_to(ROOT / "privopt").parts[0].removesuffix(".py")
        if top not in CORE:
            continue
        used = {n.split(".")[1] for n in imports(path) if n.startswith("privopt.")}
        assert not used & run, f"{path.relative_to(ROOT)} imports {used & run}"


@pytest.mark.parametrize("package", ["privopt", "secagg", "dp"])
def test_importing_a_package_loads_no_framework(package: str) -> None:
    heavy = [
        "torch",
        "jax",
        "tensorflow",
        "opacus",
        "dp_accounting",
        "flwr",
        "scipy",
        "sklearn",
        "matplotlib",
        "llvmlite",
    ]
    code = f"import sys, {package}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
