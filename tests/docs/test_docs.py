"""What the documentation shows is what happens: every block that can run is run.

A page is one test. Its blocks run in order, share one namespace and one temporary folder:

    ```python                   is executed; with >>> it is a doctest, compared with what it prints
    ```python title="a.py"      is also written to that file first, so that later blocks may import it
    ```toml title="a.toml"      is written to that file, and read as a configuration
    ```console, ```sh           lines that begin with ``$ privopt``: cheap ones run, and what they print is
                                compared ("..." stands for anything); of the others the arguments are read
"""

from __future__ import annotations

import ast
import contextlib
import copy
import doctest
import importlib
import io
import re
import shlex
import sys
import types
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHEAP = {"init", "modules", "explain", "--help", "--version"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file it is titled as, its text, and the line it starts on."""

    language: str
    title: str | None
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        language, _, rest = found["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        indent = found["indent"]
        body = "".join(line.removeprefix(indent) for line in found["body"].splitlines(keepends=True))
        line = text.count("\n", 0, found.start("body")) + 1
        yield Block(language, title and title[1], body, line)


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A module in a folder of its own, and the tables of plug-ins as they were before."""
    from privopt import executors, registry

    # As a user's own script: a class of the page finds its module, an import looks into the folder.
    module = types.ModuleType("page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "page", module)
    tables = [
        registry.OPTI_MODULES,
        registry.REGULARIZERS,
        registry.SCHEDULES,
        registry.AGGREGATORS,
        registry.AUX_VARS,
    ]
    for table in tables:
        table.table()  # with all that is built in, which a page may not take out again
    kept = [dict(table._classes) for table in tables]
    known = set(sys.modules)
    threads = executors.num_threads()
    yield vars(module)
    executors.set_num_threads(threads)
    for table, classes in zip(tables, kept, strict=True):
        table._classes = classes
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_is_what_happens(page: Path, namespace: dict[str, Any]) -> None:
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.title:
            Path(block.title).write_text(block.text, "utf-8")
            importlib.invalidate_caches()
        if block.language == "python" and ">>> " in block.text:
            run_session(block, namespace, where)
        elif block.language == "python":
            run_python(block, namespace, page)
        elif block.language == "toml" and block.title:
            from privopt.setup import config

            config.load(block.title)
        elif block.language in ("console", "sh"):
            run_commands(block, where)
    run_contracts(namespace)


def run_contracts(namespace: dict[str, Any]) -> None:
    """Run the test classes that a page defines, over all of their plug-ins."""
    from privopt.testing import Contract

    for page in [
        found for found in namespace.values() if isinstance(found, type) and issubclass(found, Contract)
    ]:
        if "plugins" not in page.__dict__:
            continue
        # Of the frameworks those that need not compile: the built-in plug-ins run on all of them.
        attributes = {"plugins": page.plugins, "frameworks": ("numpy", "torch"), "examples": 5}
        contract: Any = type(page.__name__, (page,), attributes)
        held = dict.fromkeys(page.plugins, 0)
        for test in contract.promises():
            for case in contract.cases(test):
                try:
                    getattr(contract(), test)(**case)
                except unittest.SkipTest:
                    continue
                held[case["subject"].plugin] += 1
        assert all(held.values())


def run_python(block: Block, namespace: dict[str, Any], page: Path) -> None:
    # As many empty lines as stand above it, so that a traceback points into the page.
    source = "\n" * (block.line - 1) + block.text
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, str(page), "exec", dont_inherit=True), namespace)


def run_session(block: Block, namespace: dict[str, Any], where: str) -> None:
    session = doctest.DocTestParser().get_doctest(block.text, {}, where, where, block.line)
    session.globs = namespace
    told = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(session, out=told.write, clear_globs=False)
    assert not runner.failures, told.getvalue()


def run_commands(block: Block, where: str) -> None:
    for command, expected in commands(block.text):
        words = shlex.split(command, comments=True)
        if words[:1] != ["privopt"]:
            continue
        if not CHEAP & set(words[1:]):
            read_arguments(words[1:], where)
            continue
        printed = run_command(words[1:], where)
        if expected:
            wanted = expected.replace("…\n", "...\n")
            same = doctest.OutputChecker().check_output(wanted, printed, FLAGS)
            assert same, f"{where}: `{command}` should print\n{expected}\nbut printed\n{printed}"


def commands(text: str) -> list[tuple[str, str]]:
    """Each command of a console session with the lines that it prints there."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found and found[-1][0].endswith("\\"):
            found[-1] = (found[-1][0][:-1] + line.strip(), "")
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def run_command(arguments: list[str], where: str) -> str:
    from privopt.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    assert code in (0, None), (
        f"{where}: privopt {shlex.join(arguments)} ended with {code}:\n{printed.getvalue()}"
    )
    return printed.getvalue()


def read_arguments(arguments: list[str], where: str) -> None:
    """Of a command that takes long or needs a run: that there is one, its options, and its configuration."""
    from privopt.setup import config

    command, *rest = arguments
    usage = run_command([command, "--help"], where)
    for option in (word for word in rest if word.startswith("--")):
        assert option in usage, f"{where}: `privopt {command}` has no {option}"
    if command == "train" and "--resume" not in rest:
        file = next((word for word in rest if word.endswith(".toml")), None)
        if file and not Path(file).exists():
            Path(file).write_text(config.template(), "utf-8")
        config.check_plugins(config.load(file, [word for word in rest if "=" in word]))


def test_the_table_of_keys_has_every_key_with_its_default() -> None:
    from privopt.setup import config

    text = (ROOT / "docs" / "federation.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^`]+)` \|", text, re.M))
    every = set(config._all_keys())
    leaves = {key for key in every if not any(other.startswith(f"{key}.") for other in every)}
    assert set(rows) == leaves
    for key, default in rows.items():
        # Each way to give the effort unsets the others, so those whose default is none are not set here.
        unset = key in ("client.effort.epochs", "client.effort.seconds")
        overrides = [] if unset else [f"{key}={default}"]
        assert config.load(None, overrides) == config.Config(), key


def written_classes(page: Path) -> dict[str, ast.ClassDef]:
    """The classes that a page's blocks of Python define."""
    parsed = [ast.parse(b.text) for b in blocks(page) if b.language == "python" and ">>> " not in b.text]
    return {node.name: node for tree in parsed for node in tree.body if isinstance(node, ast.ClassDef)}


def lines_of(node: ast.ClassDef) -> int:
    """Lines of a class without blank ones and docstrings."""
    without = copy.deepcopy(node)
    for part in ast.walk(without):
        if isinstance(part, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(part) is not None:
            part.body.pop(0)
    # Unparsed, every statement is on a line of its own, whatever its length.
    return sum(bool(line.strip()) for line in ast.unparse(without).splitlines())


MOST_LINES = {"module": 12, "module with state": 20, "regularizer": 12, "schedule": 8, "aux-var": 8}


def test_a_plug_in_of_ones_own_is_as_short_as_the_page_says() -> None:
    page = ROOT / "docs" / "plugins.md"
    classes = written_classes(page)
    told = re.findall(r"^\| \[.*?\]\(#[a-z-]+\) \| `(\w+)` \| (\d+) \|$", page.read_text("utf-8"), re.M)
    assert {name: int(lines) for name, lines in told} == {name: lines_of(classes[name]) for name, _ in told}
    assert len(told) >= 7
    counted = set()
    for node in classes.values():
        if node.name.startswith("Test"):
            continue
        base = ast.unparse(node.bases[0])
        kind = {"OptiModule": "module", "AuxVar": "aux-var"}.get(base, base.lower())
        if kind == "module" and "= state(" in ast.unparse(node):
            kind = "module with state"
        assert lines_of(node) <= MOST_LINES[kind], f"{node.name} has {lines_of(node)} lines"
        counted.add(kind)
    assert counted == set(MOST_LINES)


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("optimizer.md", "OPTI_MODULES"),
        ("optimizer.md", "REGULARIZERS"),
        ("schedules.md", "SCHEDULES"),
        ("federated-algorithms.md", "AGGREGATORS"),
    ],
)
def test_every_plug_in_stands_in_a_table_of_its_page(page: str, table: str) -> None:
    from privopt import registry

    rows = re.findall(r"^\|(.*?)\|", (ROOT / "docs" / page).read_text("utf-8"), re.M)
    named = set(re.findall(r"`([a-z0-9-]+)`", "\n".join(rows)))
    found = registry.__dict__[table].table()
    built_in = {name for name, cls in found.items() if cls.__module__.startswith("privopt.")}
    assert built_in <= named


def imported(path: Path) -> set[str]:
    """The files of privopt (or folders, at the top) that a file needs when it runs."""
    package = path.relative_to(ROOT).with_suffix("").parts
    found: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: -node.level], *(node.module or "").split(".")]
            names = [".".join(filter(None, [*base, alias.name])) for alias in node.names]
            found.update(name.split(".")[1] for name in names if name.startswith("privopt."))
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(path.read_text("utf-8")))
    return found


def test_the_floors_of_the_design_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    rows = re.findall(r"^\| ([1-9]) \| (.*?) \|", text, re.M)[:7]
    floors = {name: int(n) for n, names in rows for name in re.findall(r"`(\w+)/?`", names)}
    files = [path for path in (ROOT / "privopt").rglob("*.py") if not path.stem.startswith("__m")]
    where = {path: path.relative_to(ROOT / "privopt").parts[0].removesuffix(".py") for path in files}
    assert set(floors) == set(where.values()) - {"__init__"}
    upwards = {
        (where[path], name)
        for path in files
        if where[path] != "__init__"
        for name in imported(path) & set(floors)
        if floors[name] > floors[where[path]]
    }
    assert upwards == {("federation", "report")}


def test_links_of_the_readme_lead_somewhere() -> None:
    """`mkdocs build --strict` looks after those of docs/."""
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text("utf-8")):
            assert (ROOT / target).exists(), f"{name} links to {target}"


def test_no_page_names_a_machine_or_a_placeholder() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        for word in ("/home/", "/root/", "/tmp/", "/work/", "TODO", "FIXME", "example.com"):
            assert word not in text, f"{page.name} holds {word!r}"
