"""The table of docs/secagg-threats.md names every threat, and tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parents[2] / "docs" / "secagg-threats.md").read_text("utf-8")
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("|")][2:]


def test_every_threat_has_its_rows():
    assert [row[0].strip() for row in ROWS if row[0].strip()] == [f"R{number}" for number in range(1, 16)]
    assert all(len(row) == 5 and row[1].strip() and row[3].strip() for row in ROWS)


def test_every_test_that_the_table_names_is_there():
    file = ""
    for row in ROWS:
        names = re.findall(r"`([^`]+)`", row[4])
        assert names, row
        for name in names:
            if name.startswith("test_"):
                file = (HERE / f"{name}.py").read_text("utf-8")
            elif "/" in name:
                assert (HERE.parents[2] / name).is_file()
            else:
                assert re.search(rf"^def \w*{name}\w*\(", file, re.M), name


def test_every_file_of_threats_is_in_the_table():
    for path in HERE.glob("test_r*.py"):
        assert f"`{path.stem}`" in PAGE
