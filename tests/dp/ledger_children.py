"""Starts the child processes of the ledger's tests, in an interpreter of their own."""

import os
import subprocess
import sys
from pathlib import Path

WRITER = Path(__file__).with_name("ledger_writer.py")
ROOT = Path(__file__).parents[2]


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, WRITER, *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child, timeout=120):
    _, errors = child.communicate(timeout=timeout)
    assert child.returncode == 0, errors
