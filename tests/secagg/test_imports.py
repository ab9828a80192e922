"""What `import secagg` loads, and that names which load later are no different to those who use them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import secagg

SOURCE = Path(secagg.__file__)
PUBLIC: list[str] = vars(secagg)["__all__"]
VOCABULARY = {"secagg", "secagg.errors", "secagg.fields", "secagg.reductions"}


def run_fresh(code: str) -> Any:
    """What a new interpreter prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parent.parent
    )
    return json.loads(done.stdout)


def names_for_type_checkers() -> dict[str, str]:
    """Public name -> module, as the import statements of the package say it."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {alias.name: str(node.module) for alias in node.names}
    return found


def test_importing_secagg_loads_the_vocabulary_only() -> None:
    loaded = set(run_fresh("import json, sys, secagg; print(json.dumps(sorted(sys.modules)))"))
    ours = {name for name in loaded if name.partition(".")[0] == "secagg"}
    assert {name for name in ours if not name.startswith("secagg.reductions.")} == VOCABULARY
    heavy = {"cryptography", "msgspec", "typing_extensions", "hashlib", "secrets", "numpy.random"}
    assert not loaded & heavy


def test_a_name_loads_its_module_and_no_other_part_that_it_does_not_need() -> None:
    code = "import json, sys, secagg; secagg.Schema; print(json.dumps(sorted(sys.modules)))"
    loaded = set(run_fresh(code))
    assert "secagg.schema" in loaded
    assert not loaded & {"secagg.client", "secagg.server", "secagg.messages", "cryptography"}


def test_runtime_and_type_checkers_see_the_same_names() -> None:
    declared = names_for_type_checkers()
    assert set(PUBLIC) == set(declared)
    assert len(PUBLIC) == len(declared), "a name is listed twice"
    for name, module in declared.items():
        assert getattr(secagg, name) is getattr(import_module(f"secagg.{module}"), name)


def test_a_star_import_and_dir_give_every_public_name_in_a_fresh_process() -> None:
    code = (
        "import json, secagg; listed = dir(secagg); names = {}; exec('from secagg import *', names);"
        "print(json.dumps([listed, sorted(names)]))"
    )
    listed, starred = run_fresh(code)
    assert set(PUBLIC) <= set(listed)
    assert set(PUBLIC) == set(starred) - {"__builtins__"}


def test_modules_are_reached_as_attributes_and_hide_no_name() -> None:
    code = (
        "import json, secagg, secagg.explanation;"
        "print(json.dumps([secagg.keys.Roster is secagg.Roster, callable(secagg.explain),"
        " [n for n in secagg.__all__ if type(getattr(secagg, n)).__name__ == 'module']]))"
    )
    assert run_fresh(code) == [True, True, []]


def test_what_is_pickled_in_one_process_opens_in_another_that_only_imports_pickle() -> None:
    write = (
        "import json, pickle, secagg;"
        "thing = (secagg.Schema({'n': secagg.counted()}), secagg.ClientPhase);"
        "print(json.dumps(pickle.dumps(thing).hex()))"
    )
    read = (
        "import json, pickle; schema, phase = pickle.loads(bytes.fromhex('{}'));"
        "import secagg; print(json.dumps([list(schema), phase is secagg.ClientPhase]))"
    )
    assert run_fresh(read.format(run_fresh(write))) == [["n"], True]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'secagg' has no attribute 'Servre'"):
        _ = secagg.Servre  # type: ignore[attr-defined]
