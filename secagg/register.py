"""Register: which rounds were ever used, so that no round's keys and masks are made twice.

The first line is that round secrets live in memory only; the register is the second: it survives restarts
and refuses a replayed offer for as long as its file lives.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from threading import Lock
from typing import Final, Protocol

from .errors import RegisterError, RoundReused
from .keys import sync_folder
from .messages import MAX_ROUND

# The dot ends a record: a torn one lacks it and was never acknowledged.
_RECORD: Final = re.compile(rb"([0-9a-f]{32}) (\d{1,20}) \.")
_TORN: Final = re.compile(rb"[0-9a-f]{0,31}|[0-9a-f]{32}( (\d{0,20}|\d{1,20} \.?))?")
"""What a write that broke off leaves of one record; nothing else is ever cut off."""


class Register(Protocol):
    """What a client asks before it makes keys for a round."""

    def claim(self, session: bytes, round: int) -> None:
        """Mark a round as used, durably, before returning; raises RoundReused if it already was."""


class MemoryRegister:
    """A register for one process: simulations and tests.

    Guarantees:
        - Of threads that claim one round, one gets it.

    Example:
        >>> register = MemoryRegister()
        >>> register.claim(bytes(16), 1)
        >>> register.claim(bytes(16), 1)
        Traceback (most recent call last):
        ...
        secagg.errors.RoundReused: Round 1 of session 00000000… was already used here. The ...
    """

    def __init__(self) -> None:
        self._used: set[tuple[bytes, int]] = set()
        self._lock = Lock()

    def claim(self, session: bytes, round: int) -> None:
        """Mark a round as used; raises RoundReused if it already was."""
        with self._lock:
            if (session, round) in self._used:
                raise _reused(session, round)
            self._used.add((session, round))


class FileRegister:
    """A register in an append-only file, shared by any number of processes of one client.

    Guarantees:
        - A claim that returned is on disk: after a crash at any instruction it is refused again.
        - A record torn by a crash or a full disk was never acknowledged; it is cut off, the rest stays. A
          file that holds, or ends in, anything else is refused and not changed.
        - Of two processes that claim one round, one is refused.

    Args:
        path: File; made on the first claim, in a folder that exists.

    Raises:
        RegisterError: On a claim, if the file holds anything but records, and stays as it is; or if there is
            no folder for it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._used: set[tuple[bytes, int]] = set()
        self._read = 0

    def __repr__(self) -> str:
        return f"FileRegister({str(self._path)!r})"

    def claim(self, session: bytes, round: int) -> None:
        """Mark a round as used, durably; raises RoundReused if it already was."""
        if len(session) != 16 or type(round) is not int or not 0 <= round < MAX_ROUND:
            raise ValueError(
                f"Expected a session of 16 bytes and a round in 0..{MAX_ROUND - 1}, got {len(session)} bytes "
                f"and {round!r}."
            )
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except FileNotFoundError:
            raise RegisterError(f"Expected a folder for the register {self._path}. Make it.") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            first = self._read == 0
            self._catch_up(descriptor)
            if (session, round) in self._used:
                raise _reused(session, round)
            record = f"{session.hex()} {round} .\n".encode()
            # What a failed write leaves is cut off, or found complete and so refused, by the next claim.
            if os.write(descriptor, record) != len(record):
                raise OSError(f"No space left to record round {round} in {self._path}.")
            os.fsync(descriptor)
            self._read += len(record)
            self._used.add((session, round))
        finally:
            os.close(descriptor)
        if first:
            sync_folder(self._path.parent)

    def _catch_up(self, descriptor: int) -> None:
        """Read what was appended since the last claim, by whomever; cut off a torn tail."""
        size = os.fstat(descriptor).st_size
        if size < self._read:
            raise RegisterError(
                f"{self._path} became shorter: used rounds were lost. Restore it, or use new keys."
            )
        added = b""
        while len(added) < size - self._read:
            chunk = os.pread(descriptor, size - self._read - len(added), self._read + len(added))
            if not chunk:
                raise RegisterError(f"{self._path} could not be read to its end.")
            added += chunk
        complete, tail = added[: added.rfind(b"\n") + 1], added[added.rfind(b"\n") + 1 :]
        used = [self._parsed(line) for line in complete.splitlines()]
        if _TORN.fullmatch(tail) is None:
            raise RegisterError(
                f"{self._path} ends in something that is no record of a used round. Is it a register?"
            )
        if tail:  # Only now: a file that is no register is never written to.
            os.ftruncate(descriptor, self._read + len(complete))
        self._used.update(used)
        self._read += len(complete)

    def _parsed(self, line: bytes) -> tuple[bytes, int]:
        record = _RECORD.fullmatch(line)
        if record is None:
            raise RegisterError(
                f"{self._path} holds a line that is no record of a used round. Is it a register?"
            )
        return bytes.fromhex(record[1].decode()), int(record[2])


def _reused(session: bytes, round: int) -> RoundReused:
    return RoundReused(
        f"Round {round} of session {session.hex()[:8]}… was already used here. The server has to open a "
        "later round."
    )
