"""The file that a ledger is kept in: SQLite, its transactions, and what is checked whenever it is read.

Place in the picture: below `dp.ledger`, which decides what may be written. Nothing here knows of budgets.
"""

from __future__ import annotations

import datetime
import errno
import os
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from .errors import LedgerError
from .records import FORMAT, Export, Head, History, Record, Stored, hash_body
from .signing import LedgerKey, is_signed, sync_folder

__all__ = ["RecordFile"]

Row: TypeAlias = tuple[int, bytes, str, bytes]

BUSY_SECONDS: Final = 30.0

# The triggers stop accidents and honest code. Whoever can write the file can drop them; the chain and the
# signatures are what finds that.
_SCHEMA: Final = """
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY, body BLOB NOT NULL, hash TEXT NOT NULL, signature BLOB NOT NULL
);
CREATE TRIGGER no_update BEFORE UPDATE ON records BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON records BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER in_order BEFORE INSERT ON records
WHEN NEW.sequence IS NOT (SELECT coalesce(max(sequence), 0) + 1 FROM records)
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END
"""


class RecordFile:
    """Records in a file: appended under one lock, read under a snapshot, chained and signed.

    Guarantees:
        - What `writing` wrote is on disk once it is left (write-ahead log, full sync), all of it or nothing.
        - Inside `reading` and `writing`, `history` holds every record of the file, and the newest one's
          signature was checked; what the file said before may not have changed since.

    Args:
        path: The file; begun where there is none.
        key: The holder's key.

    Attributes:
        history: What the records say.

    Raises:
        LedgerError: If the file is no ledger, belongs to another key, or its last record is not signed.
        OSError: If it cannot be read or written, or there is no space.
    """

    def __init__(self, path: Path, key: LedgerKey) -> None:
        self.path = path
        self.key = key
        self.history = History()
        self._unsure = False
        self._pid = os.getpid()
        self._lock = threading.RLock()
        fresh = not path.exists()
        # Made by us so that it is the holder's alone from the first moment; SQLite's others follow its mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if fresh:
            sync_folder(path.parent)
        with _in_our_words(path):
            self._connection = _connect(path)
        self._finalizer = weakref.finalize(self, _close, self._connection, self._pid)
        try:
            self._begin()
            self._verify_tail()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._finalizer()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A snapshot of the file, everything new in it taken in."""
        with self._transaction():
            self._catch_up()
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The one writer's place, everything new taken in; durable once it is left."""
        with self._transaction("IMMEDIATE"):
            self._catch_up()
            yield

    def append(self, kind: str, **fields: Any) -> None:
        """Write the next record, inside `writing`; one that contradicts the history raises LedgerError."""
        history = self.history
        record = Record(
            sequence=history.sequence + 1,
            previous=history.head,
            kind=kind,  # type: ignore[arg-type]  # History.apply refuses unknown ones
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            versions=_versions(),
            **fields,
        )
        body = record.to_bytes()
        own_hash = hash_body(body)
        self._unsure = True
        # Read back from its bytes: what could not be read later must not be written now.
        history.apply(Record.from_bytes(body), own_hash)
        signature = self.key.sign_head(record.sequence, bytes.fromhex(own_hash))
        self._connection.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?)", (record.sequence, body, own_hash, signature)
        )

    def verify(self) -> list[str]:
        """Check every record and every signature; LedgerError names the first that is wrong.

        Returns:
            The hashes of all records, in order.
        """
        history, hashes = History(), []
        with self._transaction():
            for row in self._rows(0):
                self._verify_row(history, row)
                self._verify_signature(row)
                hashes.append(row[2])
            self._verify_known()
            self._catch_up()
        return hashes

    def export(self) -> Export:
        """All records, with the signature of the newest."""
        records, signature = [], b""
        with self.reading():
            for _, body, own_hash, signature in self._rows(0):  # noqa: B007 - the last one's is used
                record = Record.from_bytes(body)
                fields = {name: getattr(record, name) for name in Record.__struct_fields__}
                records.append(Stored(**fields, hash=own_hash))
        head = Head(records[-1].sequence, records[-1].hash, signature.hex())
        return Export(FORMAT, self.key.public_key.hex(), records, head)

    # ---- checks -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make the table and the first record, unless another process was faster."""
        with self._transaction("IMMEDIATE"):
            if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return
            for statement in _SCHEMA.strip().split(";\n"):
                self._connection.execute(statement)
            self.append("create", ledger=secrets.token_hex(16), public_key=self.key.public_key.hex())

    def _verify_tail(self) -> None:
        """The cheap check at opening: whose ledger it is, and that its last record is chained and signed."""
        with self._transaction():
            first = list(self._rows(0, "ORDER BY sequence LIMIT 1"))
            rows = list(self._rows(0, "ORDER BY sequence DESC LIMIT 2"))
        if not first or first[0][0] != 1:
            raise self._wrong("lacks its first record", 1)
        owner = Record.from_bytes(first[0][1]).public_key
        if owner != self.key.public_key.hex():
            raise LedgerError(
                f"Expected {self.path} to be a ledger of the key {self.key.public_key.hex()[:16]}…, it is of "
                f"{str(owner)[:16]}…. Use the key that it was begun with, or another file."
            )
        last, *before = rows
        if hash_body(last[1]) != last[2]:
            raise self._wrong("has an altered record", last[0])
        self._verify_signature(last)
        # The last record is as it was signed, so what does not fit to it is what stands before.
        for earlier in before:
            if earlier[0] != last[0] - 1:
                raise self._wrong("lacks a record", last[0] - 1)
            if earlier[2] != Record.from_bytes(last[1]).previous:
                raise self._wrong("has an altered record", earlier[0])

    def _catch_up(self) -> None:
        """Take what was written since, by whomever; inside a transaction."""
        self._verify_known()
        self._unsure = True
        newest = None
        for row in self._rows(self.history.sequence):
            self._verify_row(self.history, row)
            newest = row
        if newest is not None:
            # One signature is enough here: it is on the head, whose hash covers all before it.
            self._verify_signature(newest)
        self._unsure = False

    def _rows(self, after: int, order: str = "ORDER BY sequence") -> Iterator[Row]:
        for row in self._connection.execute(
            f"SELECT sequence, body, hash, signature FROM records WHERE sequence > ? {order}",
            (after,),
        ):
            # SQLite keeps any type in any column.
            if [type(value) for value in row] != [int, bytes, str, bytes]:
                raise self._wrong("has an altered record", row[0])
            yield row

    def _verify_row(self, history: History, row: Row) -> None:
        sequence, body, own_hash, _ = row
        if sequence != history.sequence + 1:
            raise self._wrong("lacks a record", history.sequence + 1)
        if hash_body(body) != own_hash:
            raise self._wrong("has an altered record", sequence)
        try:
            history.apply(Record.from_bytes(body), own_hash)
        except LedgerError as error:
            raise LedgerError(f"{self.path}: {error}", error.record or sequence) from error

    def _verify_signature(self, row: Row) -> None:
        if not is_signed(self.key.public_key, row[0], bytes.fromhex(row[2]), row[3]):
            raise self._wrong("has a record that is not signed by its key", row[0])

    def _verify_known(self) -> None:
        """What was read before must still be there: a file that was put back to an older one is found."""
        known = self.history
        if known.sequence:
            found = [row[2] for row in self._rows(known.sequence - 1, "ORDER BY sequence LIMIT 1")]
            if found != [known.head]:
                raise self._wrong("was put back or replaced while in use", known.sequence)

    def _wrong(self, what: str, record: int) -> LedgerError:
        return LedgerError(
            f"Expected {self.path} as its key's holder wrote it, but it {what}: record {record}. "
            "Restore it from a copy, and count what was released since.",
            record,
        )

    @contextmanager
    def _transaction(self, mode: str = "DEFERRED") -> Iterator[None]:
        if os.getpid() != self._pid:
            raise LedgerError(
                f"Expected {self.path} to be used by the process that opened it, got a fork. Open it again."
            )
        with self._lock, _in_our_words(self.path):
            if not self._finalizer.alive:
                raise LedgerError(f"Expected an open ledger, got one that was closed: {self.path}.")
            if self._connection.in_transaction:
                raise LedgerError(f"Expected one use of {self.path} at a time, got one inside another.")
            self._connection.execute(f"BEGIN {mode}")
            try:
                yield
                self._connection.execute("COMMIT")
                self._unsure = False
            finally:
                if self._unsure:
                    # What the history took from this transaction may never have come to be: read it anew.
                    self.history, self._unsure = History(), False
                self._connection.rollback()  # does nothing after a commit


def _connect(path: Path) -> sqlite3.Connection:
    # One object may serve several threads, in turn: `Ledger` holds a lock.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _use_wal(connection)
        # FULL: a commit that returned survives the loss of power, not only of the process.
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn on the write-ahead log; SQLite does not wait for others here, so we do."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if (
                _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                or time.monotonic() > deadline
            ):
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise LedgerError(
                f"Expected a file system on which SQLite can keep a write-ahead log, got {mode!r}."
            )
        return


def _close(connection: sqlite3.Connection, pid: int) -> None:
    # A fork must not touch its parent's connection, not even to close it.
    if os.getpid() == pid:
        connection.close()


@contextmanager
def _in_our_words(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into those that a caller acts on."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, "No space left to write the ledger", str(path)) from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise PermissionError(
                errno.EACCES, "The ledger cannot be opened for writing", str(path)
            ) from error
        if code == sqlite3.SQLITE_IOERR:
            raise OSError(errno.EIO, "The ledger could not be read or written", str(path)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LedgerError(
                f"Expected {path} to be free within {BUSY_SECONDS:g} s, another process kept it. Try again."
            ) from error
        raise LedgerError(f"Expected a ledger in {path}, SQLite says: {error}.") from error


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@cache
def _versions() -> dict[str, str]:
    import importlib.metadata  # reads the mail parser: a tenth of what importing dp takes

    found = {"ledger": str(FORMAT)}
    for name in ("privopt", "dp-accounting"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
