"""Machine code from LLVM's text, kept on disk so that only the first run of a chain pays for compiling it.

An object file is named by the hash of all that it depends on (its text, the processor, LLVM's version) and
begins with a hash of its own bytes. The folder must belong to the user and be writable by nobody else, since
what lies in it is run; where that cannot be had, kernels live in memory only. ``PRIVOPT_CACHE_DIR`` names
another folder; empty, it turns the disk off.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm

__all__ = ["KEPT", "Kernel", "cache_folder", "compiled"]

KEPT = 256
"""Most kernels that stay on disk; the least recently used go first."""

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_HOUR = 3600.0
_lock = threading.RLock()
# A fork while another thread compiles would leave the child this lock, and LLVM's, held for ever.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Kernel(NamedTuple):
    """Machine code that takes one pointer and returns nothing."""

    address: int
    call: Callable[[Any], None]
    owner: Any
    """The code is there for as long as somebody refers to this."""


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
        return tuple(Kernel(address, _FUNCTION(address), engine) for address in addresses)


@functools.lru_cache(maxsize=1024)
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
        with path.open("rb") as file:
            # The file itself: the folder may be another by now, if what it lies in is not ours.
            if not _is_ours(os.fstat(file.fileno())):
                return None
            data = file.read()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a read-only disk, from which nothing is dropped either
        os.utime(path)
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
        neighbour.touch(mode=0o600, exist_ok=False)  # whatever the umask: see `_is_ours`
        neighbour.write_bytes(hashlib.sha256(code).digest() + code)
        neighbour.replace(folder / name)
        _drop_oldest(folder)
    except OSError:  # a full or read-only disk, on which removing what is not there is an error too
        with contextlib.suppress(OSError):
            neighbour.unlink(missing_ok=True)


def _drop_oldest(folder: Path) -> None:
    used = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process drops them too
            used[path] = path.stat().st_mtime
    kernels = sorted((path for path in used if path.match("k*.o")), key=used.__getitem__)
    # What a process wrote that ended before it was done.
    torn = [path for path in used if path.match(".k*.o.*") and used[path] < time.time() - _HOUR]
    for old in [*kernels[:-KEPT], *torn]:
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
        return folder if _is_ours(folder.stat()) else None
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None


def _is_ours(status: os.stat_result) -> bool:
    """Whether only this user can have written it."""
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
