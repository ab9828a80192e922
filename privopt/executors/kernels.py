"""Compiled loops, kept on disk so that only the first run of a chain pays for compiling it.

A kernel's text is a file named by its hash in the user's cache folder, and numba's index lies beside it. The
folder must belong to the user and be writable by nobody else, since what lies in it is run; where that cannot
be had, kernels live in memory only. ``PRIVOPT_CACHE_DIR`` names another folder; empty, it turns the disk off.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import secrets
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import compiler

__all__ = ["KEPT", "cache_folder", "compiled"]

KEPT = 256
"""Most kernels that stay on disk; the least recently used go first."""

_lock = threading.RLock()


class _DistinctArrays(compiler.Compiler):
    """Numba's compiler, told that no two array arguments overlap: `privopt.executors` sees to that.

    Without it a loop over more than a few arrays is not vectorized.
    """

    def __init__(
        self,
        typingctx: Any,
        targetctx: Any,
        library: Any,
        args: Any,
        return_type: Any,
        flags: Any,
        locals: Any,
    ) -> None:
        flags.noalias = True
        super().__init__(  # type: ignore[no-untyped-call]  # numba's own classes are untyped
            typingctx, targetctx, library, args, return_type, flags, locals
        )


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "pipeline_class": _DistinctArrays}


def compiled(text: str) -> Callable[..., None]:
    """The function ``kernel`` that a text defines, compiled when it is first called.

    Guarantees:
        - Damaged files in the cache, or a full disk, cost a compilation, never a step.
    """
    with _lock:
        return _compiled(text)


@functools.lru_cache(maxsize=1024)
def _compiled(text: str) -> Callable[..., None]:
    folder = cache_folder()
    whole = f"import math\n\nimport numpy as np\n\n\n{text}"
    if folder is None:
        return _in_memory(whole)
    try:
        on_disk: Callable[..., None] = numba.njit(cache=True, **_OPTIONS)(_from_file(folder, whole))
    except (OSError, RuntimeError):  # a full or read-only disk; numba raises RuntimeError
        return _in_memory(whole)

    def kernel(*arguments: Any) -> None:
        try:
            on_disk(*arguments)
        except Exception:  # noqa: BLE001 - files that are not what was written fail in any way
            # Kernels raise nothing of their own, so nothing was computed yet.
            _drop(folder, _name(whole))
            _in_memory(whole)(*arguments)

    return kernel


@functools.lru_cache(maxsize=1024)
def _in_memory(text: str) -> Callable[..., None]:
    space: dict[str, Any] = {}
    exec(compile(text, "<privopt kernel>", "exec"), space)  # spelled from a fixed table of operations
    function: Callable[..., None] = numba.njit(**_OPTIONS)(space["kernel"])
    return function


def _name(text: str) -> str:
    return f"k{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _from_file(folder: Path, text: str) -> Callable[..., None]:
    name = _name(text)
    path = folder / f"{name}.py"
    if not path.exists() or path.read_bytes() != text.encode():
        _drop(folder, name)
        # Whole or not at all, since another process may read it; after a crash it is written again.
        neighbour = folder / f".{name}.{secrets.token_hex(4)}"
        neighbour.write_text(text)
        neighbour.replace(path)
        _drop_oldest(folder)
    else:
        os.utime(path)
    spec = importlib.util.spec_from_file_location(f"_privopt_kernel_{name}", path)
    assert spec is not None  # noqa: S101 - a .py file has a loader
    assert spec.loader is not None  # noqa: S101 - as above
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what numba keeps on disk names the module that it belongs to
    # No bytecode file beside it: numba's own files are the cache.
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    kernel: Callable[..., None] = module.kernel
    return kernel


def _drop_oldest(folder: Path) -> None:
    kernels = sorted(folder.glob("k*.py"), key=lambda p: p.stat().st_mtime)
    for old in kernels[:-KEPT]:
        _drop(folder, old.stem)


def _drop(folder: Path, name: str) -> None:
    for path in [folder / f"{name}.py", *(folder / "__pycache__").glob(f"{name}.*")]:
        path.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """Where kernels are kept: None if there is no folder that is the user's alone."""
    named = os.environ.get("PRIVOPT_CACHE_DIR")
    if named == "":
        return None
    try:
        if named is None:
            named = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
            named = str(Path(named) / "privopt")
        folder = Path(named) / "kernels"
        # What numba keeps beside the texts is run as well.
        for each in (folder, folder / "__pycache__"):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = each.stat()
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder
