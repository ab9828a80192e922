"""What the documentation shows is what happens: every block that can run is run.

A page is one test. Its blocks run in order, share one namespace and one temporary folder:

    ```python                   is executed; with >>> it is a doctest, compared with what it prints
    ```python title="a.py"      is also written to that file first, so that later blocks may import it
    ```toml title="a.toml"      is written to that file, and read as a configuration
    ```console, ```sh           lines that begin with ``$ privopt``: cheap ones run, and what they print is
                                compared ("..." stands for anything); of the others the arguments are read
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
import shlex
import sys
import types
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
    from privopt import registry

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
    yield vars(module)
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
