"""Machine code from LLVM's text, kept on disk so that only the first run of a chain pays for compiling it.

An object file is named by the hash of all that it depends on (its text, the processor, LLVM's version) and
begins with a hash of its own bytes. The folder must belong to the user and be writable by nobody else, since
what lies in it is run; where that cannot be had, kernels live in memory only. ``PRIVOPT_CACHE_DIR`` names
another folder; empty, it turns the disk off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm

__all__ = ["KEPT", "Kernel", "cache_folder", "compiled"]

KEPT = 256
"""Most kernels that stay on disk; the least recently used go first."""

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_lock = threading.RLock()
_engines: list[Any] = []
"""What owns the machine code: it lives as long as the process, since addresses of it are handed out."""


class Kernel(NamedTuple):
    """Machine code that takes one pointer and returns nothing."""

    address: int
    call: Callable[[Any], None]


def compiled(text: str, *names: str) -> tuple[Kernel, ...]:
    """The functions that a text defines.

    Args:
        text: A module in LLVM's language.
        names: Its functions, each taking one pointer and returning nothing.

    Guarantees:
        - Damaged files in the cache, or a full disk, cost a compilation, never a step.
    """
    with _lock:
        engine = _engine(text)
        addresses = [int(engine.get_function_address(name)) for name in names]
        return tuple(Kernel(address, _FUNCTION(address)) for address in addresses)


@functools.lru_cache(maxsize=4096)
def _engine(text: str) -> Any:
    machine = _machine()
    code = _kept(text)
    if code is None:
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        module.verify()
        code = machine.emit_object(module)
        _keep(text, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _new_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return engine


@functools.cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return _new_machine()


def _new_machine() -> Any:
    # An engine owns the machine that it is given, so each gets one.
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


# ---- on disk ----------------------------------------------------------------------------------------------


@functools.cache
def _compiler() -> str:
    """What machine code depends on beside the text."""
    machine = _machine()
    version = ".".join(map(str, llvm.llvm_version_info))
    processor = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    return f"{llvmlite.__version__} {version} {machine.triple} {processor}"


def _name(text: str) -> str:
    whole = f"{_compiler()}\n{text}"
    return f"k{hashlib.sha256(whole.encode()).hexdigest()[:32]}.o"


def _kept(text: str) -> bytes | None:
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / _name(text)
    try:
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(text: str, code: bytes) -> None:
    folder = cache_folder()
    if folder is None:
        return
    name = _name(text)
    neighbour = folder / f".{name}.{secrets.token_hex(4)}"
    try:
        # Whole or not at all, since another process may read it; after a crash it is written again.
        neighbour.write_bytes(hashlib.sha256(code).digest() + code)
        neighbour.replace(folder / name)
        _drop_oldest(folder)
    except OSError:  # a full or read-only disk
        neighbour.unlink(missing_ok=True)


def _drop_oldest(folder: Path) -> None:
    kernels = sorted(folder.glob("k*.o"), key=lambda p: p.stat().st_mtime)
    for old in kernels[:-KEPT]:
        old.unlink(missing_ok=True)


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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder
