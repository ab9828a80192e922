"""What `import privopt` loads, and that names which load later are no different to those who use them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import privopt
import privopt.schedules

ROOT = Path(privopt.__file__).parent.parent


def run_fresh(code: str) -> Any:
    """What a new interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def public(package: ModuleType) -> list[str]:
    """`__all__`, which type checkers do not see because they see the imports themselves."""
    names: list[str] = vars(package)["__all__"]
    return names


def names_for_type_checkers(package: ModuleType) -> dict[str, str]:
    """Public name -> module, as the import statements of a package say it."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(Path(str(package.__file__)).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module != "typing" and node.module != "importlib":
            home = f"{package.__name__}.{node.module}" if node.level else str(node.module)
            found |= {alias.name: home for alias in node.names if alias.asname}
    return found


def test_importing_privopt_loads_the_core_and_the_vocabulary_of_fields_only() -> None:
    loaded = set(run_fresh("import json, sys, privopt; print(json.dumps(sorted(sys.modules)))"))
    parts = {name.split(".")[1] for name in loaded if name.startswith("privopt.")}
    later = {"federation", "modules", "regularizers", "aggregators", "checkpoint", "testing"}
    assert not parts & (later | {"cli", "report", "setup"})
    schedules = {name for name in loaded if name.startswith("privopt.schedules.")}
    assert schedules == {"privopt.schedules.base"}
    backends = {name for name in loaded if name.startswith("privopt.backends.")}
    assert not backends & {"privopt.backends.torch", "privopt.backends.jax", "privopt.backends.tensorflow"}
    vocabulary = {name for name in loaded if name.partition(".")[0] == "secagg"}
    assert {name for name in vocabulary if not name.startswith("secagg.reductions.")} == {
        "secagg",
        "secagg.errors",
        "secagg.fields",
        "secagg.reductions",
    }
    others = {"dp", "cryptography", "msgspec", "safetensors", "rich", "scipy", "typing_extensions"}
    assert not loaded & others
    assert not loaded & {"torch", "jax", "tensorflow", "numba", "llvmlite", "numpy.random", "difflib"}


@pytest.mark.parametrize("package", [privopt, privopt.schedules], ids=lambda package: package.__name__)
def test_runtime_and_type_checkers_see_the_same_names(package: ModuleType) -> None:
    declared = names_for_type_checkers(package)
    names = public(package)
    assert set(names) == set(declared)
    assert len(names) == len(declared), "a name is listed twice"
    for name, home in declared.items():
        assert getattr(package, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Optimiser'"):
        _ = package.Optimiser


@pytest.mark.parametrize("package", [privopt, privopt.schedules], ids=lambda package: package.__name__)
def test_a_star_import_and_dir_give_every_public_name_in_a_fresh_process(package: ModuleType) -> None:
    code = (
        f"import json, {package.__name__} as it; listed = dir(it); names = {{}};"
        f"exec('from {package.__name__} import *', names);"
        "print(json.dumps([listed, sorted(set(names) - {'__builtins__'})]))"
    )
    listed, starred = run_fresh(code)
    assert set(public(package)) <= set(listed)
    assert starred == sorted(public(package))


def test_every_schedule_is_found_by_name_in_a_fresh_process() -> None:
    code = (
        "import json, privopt; from privopt import Optimizer;"
        "rate = Optimizer(lrate=['cosine', {'base': 0.5}]).lrate;"
        "print(json.dumps([type(rate).__name__, sorted(privopt.list_rate_schedulers())]))"
    )
    found, names = run_fresh(code)
    assert found == "Cosine"
    classes = [getattr(privopt.schedules, name) for name in public(privopt.schedules)]
    plugins = [cls for cls in classes if isinstance(cls, type) and issubclass(cls, privopt.Schedule)]
    declared = {cls.name for cls in plugins if cls is not privopt.Schedule}
    assert set(names) == declared


def test_a_schedule_pickled_in_one_process_continues_in_another_that_only_imports_pickle() -> None:
    write = (
        "import json, pickle; from privopt.schedules import Exponential;"
        "rate = Exponential(base=0.5, factor=0.5); rate.advance();"
        "print(json.dumps(pickle.dumps(rate).hex()))"
    )
    read = "import json, pickle; print(json.dumps(pickle.loads(bytes.fromhex('{}')).advance()))"
    assert run_fresh(read.format(run_fresh(write))) == 0.25


@pytest.mark.parametrize(
    ("base", "name", "owner"),
    [
        ("privopt.Schedule", "cosine", "privopt.schedules.cosine.Cosine"),
        ("privopt.OptiModule", "adam", "privopt.modules.adaptive.Adam"),
        ("privopt.Regularizer", "fedprox", "privopt.regularizers.fedprox.FedProx"),
    ],
)
def test_a_built_in_name_is_taken_though_nothing_was_looked_up_yet(base: str, name: str, owner: str) -> None:
    code = (
        f"import json, privopt\ntry: type('Mine', ({base},), {{'name': '{name}'}})\n"
        "except TypeError as error: print(json.dumps(str(error)))"
    )
    assert f"{name!r} for __main__.Mine: {owner} has it" in run_fresh(code)
