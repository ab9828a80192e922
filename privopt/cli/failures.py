"""Errors as a user meets them: floor 7, one paragraph and an exit code for each kind.

What is not in the table below is a mistake of privopt itself, and keeps its traceback.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "AUDIT",
    "BUG",
    "DATA",
    "EXIT_CODES",
    "EXTRA",
    "FILES",
    "INTERRUPTED",
    "MASKS",
    "OK",
    "PRIVACY",
    "USAGE",
    "exit_code",
    "told",
    "told_warnings",
]

OK, BUG, USAGE, DATA, PRIVACY, MASKS, AUDIT, FILES, EXTRA, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 7, 8, 130

EXIT_CODES = {
    OK: "done",
    BUG: "a mistake in privopt itself; please report it",
    USAGE: "the command or the configuration (key, type, value, plug-in, model)",
    DATA: "the data (columns, numbers, labels, bounds)",
    PRIVACY: "privacy parameters, or a spent budget",
    MASKS: "masks: too few clients, weaker than a client allows, or a round that failed",
    AUDIT: "the audit, or a ledger's check, found a fault",
    FILES: "the file system: missing, unreadable, no space left",
    EXTRA: "something that is not installed",
    INTERRUPTED: "interrupted; `privopt train --resume` goes on",
}

# Errors by where they are declared, most particular first. Only modules that are loaded are looked at.
_ERRORS: list[tuple[str, str, int]] = [
    ("privopt.setup.tables", "PrivacyConfigError", PRIVACY),
    ("privopt.setup.tables", "MasksConfigError", MASKS),
    ("privopt.setup.tables", "ConfigError", USAGE),
    ("privopt.setup.models", "ModelError", USAGE),
    ("privopt.setup.datafiles", "DataError", DATA),
    ("privopt.report.folder", "RunFolderError", FILES),
    ("dp.errors", "LedgerError", AUDIT),
    ("dp.errors", "DPError", PRIVACY),
    ("dp.errors", "PrivacyParameterError", PRIVACY),
    ("secagg.errors", "SecAggError", MASKS),
    ("builtins", "OSError", FILES),
    ("builtins", "ImportError", EXTRA),
]


def exit_code(error: BaseException) -> int:
    """The exit code of an error; one that the file system caused is the file system's."""
    if isinstance(error.__cause__, OSError):
        return FILES
    if isinstance(error, ImportError) and str(error.name).partition(".")[0] in ("privopt", "secagg", "dp"):
        return BUG
    for module, name, code in _ERRORS:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return code
    return BUG


def told(error: BaseException) -> str:
    """An error as one paragraph with its remedy."""
    if isinstance(error, OSError):
        # A temporary neighbour that was to become the file (`checkpoint.write_atomic`) is told as the file.
        name = re.sub(r"\.([^/]+)\.[0-9a-f]{8}\.tmp$", r"\1", str(error.filename or "a file"))
        remedy = {
            28: "Free some space, or keep the run elsewhere: out=FOLDER. What was complete was kept.",
            13: "Check its permissions, or choose another place: out=FOLDER.",
            30: "The file system is read-only; choose another place: out=FOLDER.",
            2: "Check the path; it is relative to the folder that privopt runs in.",
        }.get(error.errno or 0, "Check the path and the disk.")
        return f"Expected to read or write {name}, got: {error.strerror or error}. {remedy}"
    if isinstance(error, ImportError) and error.name and "pip install" not in str(error):
        return (
            f"Expected {error.name} to be installed, got none. Install it with: pip install 'privopt[run]'."
        )
    return " ".join(str(error).split())


@contextmanager
def told_warnings() -> Iterator[None]:
    """Our own warnings as one line each kind, with how many more there were; others as Python shows them."""
    counts: dict[str, int] = {}

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if category.__module__.partition(".")[0] not in ("privopt", "secagg", "dp"):
                shown(message, category, *place, **more)
                return
            name = category.__name__
            counts[name] = counts.get(name, 0) + 1
            if counts[name] == 1:
                print(f"privopt: note: {' '.join(str(message).split())}", file=sys.stderr)

        warnings.showwarning = show
        try:
            yield
        finally:
            for count in counts.values():
                if count > 1:
                    print(f"privopt: note: {count - 1} more of this kind.", file=sys.stderr)
