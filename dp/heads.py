"""Heads of ledgers as peers keep them: what finds that a ledger was put back to an older state.

Place in the picture: a holder owns its ledger's key, so it could restore an old copy and sign on from there.
Each round `Ledger.head` is told to a peer (the server, a notary), which countersigns it and keeps it in a
`HeadKeeper`; whoever audits the ledger later holds it against what was kept.
"""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec

from .errors import LedgerError
from .records import Hash, canonical
from .records import Sequence as Number
from .signing import HEAD, PEER, LedgerKey, is_stated, sync_folder

__all__ = [
    "Compared",
    "CountersignedHead",
    "HeadKeeper",
    "SignedHead",
    "compare_heads",
    "countersign",
    "read_heads",
    "sign_head",
]

FOUND: Final = "Restore the newest copy, and count what was released since."
MAX_LINE: Final = 4096
MAX_BYTES: Final = 1 << 28

Signature = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")]
Time = Annotated[str, msgspec.Meta(max_length=64)]


class _Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both statements share: canonical JSON, and a signature over all of it but itself."""

    signature: Signature

    def to_bytes(self) -> bytes:
        """Canonical JSON, one line without its end."""
        return canonical(msgspec.to_builtins(self))

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            LedgerError: If the bytes are anything else, also another layout of the same JSON.
        """
        if len(body) > MAX_LINE:
            raise LedgerError(f"Expected a ledger's head of at most {MAX_LINE} bytes, got {len(body)}.")
        try:
            found = msgspec.json.decode(body, type=cls)
        except (ValueError, RecursionError) as error:
            raise LedgerError(f"Expected the bytes of a ledger's head, got others: {error}.") from error
        if found.to_bytes() != body:
            raise LedgerError("Expected a ledger's head in canonical form.")
        return found

    def _body(self) -> bytes:
        values = msgspec.to_builtins(self)
        del values["signature"]
        return canonical(values)


class SignedHead(_Statement, frozen=True, kw_only=True):
    """The newest record of a ledger at a time, in its holder's words.

    Attributes:
        public_key: The ledger's key, hexadecimal.
        ledger: Id of the ledger, from its first record.
        sequence: Number of its newest record.
        hash: That record's hash, which stands for all before it.
        time: When it was told, UTC, by the holder's clock; says nothing that is relied upon.
        signature: The ledger key's, Ed25519 (RFC 8032) under a domain of its own.
    """

    public_key: Hash
    ledger: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    sequence: Number
    hash: Hash
    time: Time

    def is_signed(self) -> bool:
        """Whether the signature is that of the key that the head names."""
        return is_stated(bytes.fromhex(self.public_key), HEAD, self._body(), bytes.fromhex(self.signature))


class CountersignedHead(_Statement, frozen=True, kw_only=True):
    """A head and a peer's word that it keeps it.

    Attributes:
        format: Of this statement.
        head: What the holder said.
        peer: The peer's public key, hexadecimal.
        time: When it was kept, UTC, by the peer's clock.
        signature: The peer's, over the head, the holder's signature included.
    """

    format: Literal[1] = 1
    head: SignedHead
    peer: Hash
    time: Time

    def is_signed(self) -> bool:
        """Whether both signatures are those of the keys that are named."""
        own = is_stated(bytes.fromhex(self.peer), PEER, self._body(), bytes.fromhex(self.signature))
        return own and self.head.is_signed()


def sign_head(key: LedgerKey, ledger: str, sequence: int, own_hash: str) -> SignedHead:
    """The holder's statement about its newest record; `dp.Ledger.head` is what a holder calls."""
    values: dict[str, Any] = {
        "public_key": key.public_key.hex(),
        "ledger": ledger,
        "sequence": sequence,
        "hash": own_hash,
        "time": _now(),
    }
    return SignedHead(**values, signature=key.sign_statement(HEAD, canonical(values)).hex())


def countersign(head: SignedHead, key: LedgerKey) -> CountersignedHead:
    """A peer's signature on a head. It says that the head was seen, and is worth what the peer keeps.

    Args:
        head: What a holder told.
        key: The peer's key.

    Returns:
        The head with the peer's signature. `HeadKeeper.keep` makes it durable before it is handed out.

    Raises:
        LedgerError: If the head is not signed by the key that it names.
    """
    if not head.is_signed():
        raise LedgerError(
            f"Expected a head signed by the ledger's key {head.public_key[:16]}…, got another signature."
        )
    values: dict[str, Any] = {"head": head, "peer": key.public_key.hex(), "time": _now()}
    body = canonical(msgspec.to_builtins({"format": 1, **values}))
    return CountersignedHead(**values, signature=key.sign_statement(PEER, body).hex())


# ---- comparing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """What kept heads say about one ledger.

    Attributes:
        held: How many of them the ledger holds.
        last: Number of the newest record that one of them vouches for; 0 if none does.
        problems: Number of the first record that is missing or another (None where the head itself is
            wrong), and what is wrong; the first record first.
        peers: Keys of the peers whose heads were held against it, hexadecimal.
    """

    held: int
    last: int
    problems: list[tuple[int | None, str]] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)


def compare_heads(
    heads: Iterable[CountersignedHead],
    *,
    public_key: bytes,
    ledger: str | None,
    hashes: Sequence[str],
    peers: Collection[bytes] | None = None,
) -> Compared:
    """Hold a ledger against the heads that peers kept of it.

    Args:
        heads: What was kept; heads of other ledgers' keys are passed over.
        public_key: The ledger's key.
        ledger: Its id.
        hashes: Hashes of its records, in order, as recomputed from their bytes.
        peers: Keys of the trusted peers; None trusts the one that each head names.

    Returns:
        What was found.
    """
    own = sorted(
        (kept for kept in heads if kept.head.public_key == public_key.hex()),
        key=lambda kept: kept.head.sequence,
    )
    trusted = None if peers is None else {peer.hex() for peer in peers}
    signed = [kept for kept in own if kept.is_signed() and (trusted is None or kept.peer in trusted)]
    held = [
        kept.head.sequence
        for kept in signed
        if kept.head.ledger == ledger and hashes[kept.head.sequence - 1 :][:1] == [kept.head.hash]
    ]
    problems: list[tuple[int | None, str]] = []
    if unsigned := [kept.head.sequence for kept in own if kept not in signed]:
        what = f"(record {unsigned[0]}) is not signed by the ledger's key and a trusted peer's"
        problems.append((None, what))
    for kept in signed:
        before = max((number for number in held if number <= kept.head.sequence), default=0)
        if found := _compare_one(kept, ledger, hashes, before):
            problems.append(found)
            break  # what stands behind the first is not to be trusted, so nothing is said about it
    last = max(held, default=0)
    return Compared(len(held), last, problems, sorted({kept.peer for kept in own}))


def _compare_one(
    kept: CountersignedHead, ledger: str | None, hashes: Sequence[str], before: int
) -> tuple[int, str] | None:
    """What a ledger has otherwise than a kept head; records up to `before` are vouched for by others."""
    number, when = kept.head.sequence, f"a peer kept the head of record {kept.head.sequence} at {kept.time}"
    if kept.head.ledger != ledger:
        return 1, f"begins another ledger than the one of which {when}"
    if number > len(hashes):
        unsure = f"; nobody vouches for those after {before}" if before < len(hashes) else ""
        return len(hashes) + 1, f"is missing: {when}{unsure}"
    if hashes[number - 1] == kept.head.hash:
        return None
    if before == number:
        return number, f"has two stories: {when}, and it is another than this one, which a peer kept too"
    which = "" if before == number - 1 else f" (or one after it, up to {number})"
    return before + 1, f"is another than it was{which}: {when}"


# ---- keeping ----------------------------------------------------------------------------------------------


class HeadKeeper:
    """A peer's file of heads: appended to, never rewritten; one line a head.

    Guarantees:
        - `keep` returns only once the head is on disk. A process killed at any instruction leaves a file that
          opens with every head that was handed out.
        - A head that does not extend the last one of the same ledger key is refused: a smaller number,
          another hash at the same number, another ledger.
        - Several processes may keep heads in one file, in turn.

    Note:
        That a larger number extends the last head by the same records, only the records can show; they are
        held against every kept head by `Ledger.verify`, `dp.audit` and ``privopt ledger verify --heads``.

    Args:
        path: The file, in a folder that exists; begun where there is none.
        key: The peer's key.

    Raises:
        LedgerError: If the file holds anything but heads that this key countersigned.
        OSError: If it cannot be read or written.
    """

    def __init__(self, path: str | Path, key: LedgerKey) -> None:
        self.path = Path(path)
        self.key = key
        self._newest: dict[str, CountersignedHead] = {}
        self._read = 0
        with self._locked():
            pass

    def __repr__(self) -> str:
        return f"HeadKeeper({self.path.name!r}, public_key={self.key.public_key.hex()[:16]}…)"

    def keep(self, head: SignedHead) -> CountersignedHead:
        """Keep a head, durably, and countersign it; one that is kept already is answered again.

        Args:
            head: What a holder told; the caller knows from elsewhere that the key is that holder's.

        Returns:
            The head with this peer's signature.

        Raises:
            LedgerError: If it is not signed, or does not extend the last one of its key.
            OSError: If it cannot be written; it is not kept then.
        """
        kept = countersign(head, self.key)
        with self._locked() as file:
            last = self._newest.get(head.public_key)
            if last is not None:
                _verify_extends(last.head, head)
                if last.head.sequence == head.sequence:
                    return last
            line = kept.to_bytes() + b"\n"
            try:
                written = os.write(file, line)
                if written != len(line):
                    raise OSError(f"Only {written} of {len(line)} bytes could be written to {self.path}.")
                os.fsync(file)
            except BaseException:
                os.ftruncate(file, self._read)
                raise
            self._read += len(line)
            self._newest[head.public_key] = kept
        return kept

    def newest(self, public_key: bytes) -> CountersignedHead | None:
        """The newest head of a ledger's key; None where none was kept."""
        with self._locked():
            return self._newest.get(public_key.hex())

    def heads(self) -> list[CountersignedHead]:
        """All heads, in the order in which they were kept."""
        with self._locked():
            return read_heads(self.path)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, alone, everything new in it taken in."""
        fresh = not self.path.exists()
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if fresh:
                sync_folder(self.path.parent)
            self._catch_up(file)
            yield file
        finally:
            os.close(file)  # and the lock with it

    def _catch_up(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size < self._read:
            raise LedgerError(
                f"Expected {self.path} to grow only, got {size} bytes after {self._read}. Restore it."
            )
        new = os.pread(file, size - self._read, self._read)
        whole = new.rfind(b"\n") + 1
        changed: dict[str, CountersignedHead] = {}
        for line in new[:whole].split(b"\n")[:-1]:
            try:
                kept = CountersignedHead.from_bytes(line)
                last = changed.get(kept.head.public_key, self._newest.get(kept.head.public_key))
                if last is not None:
                    _verify_extends(last.head, kept.head)
            except LedgerError as error:
                raise LedgerError(f"Expected {self.path} as it was written: {error}") from error
            changed[kept.head.public_key] = kept
        for kept in changed.values():  # the newest of each stands for those before, as they were checked then
            if kept.peer != self.key.public_key.hex() or not kept.is_signed():
                raise LedgerError(
                    f"Expected heads in {self.path} that were kept under the key "
                    f"{self.key.public_key.hex()[:16]}…, got one of {kept.peer[:16]}… or an altered one."
                )
        self._newest |= changed
        self._read += whole
        if whole < len(new):
            # A line without its end was cut short by a kill, so its head was never handed out.
            os.ftruncate(file, self._read)
            os.fsync(file)


def read_heads(path: str | Path) -> list[CountersignedHead]:
    """Read the heads that a peer kept, for an audit.

    Args:
        path: A keeper's file. A last line that a kill cut short is left out.

    Returns:
        The heads, both signatures of each checked against the keys that it names.

    Raises:
        LedgerError: Naming the line that is no head, or not signed.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise LedgerError(f"Expected kept heads of at most {MAX_BYTES} bytes, {path.name} has more.")
    data = path.read_bytes()
    found = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            kept = CountersignedHead.from_bytes(line)
            if not kept.is_signed():
                raise LedgerError("Expected both signatures of a head to fit, got others.")
        except LedgerError as error:
            raise LedgerError(f"{path}, line {number}: {error}") from error
        found.append(kept)
    return found


def _verify_extends(last: SignedHead, head: SignedHead) -> None:
    if head.ledger != last.ledger:
        what = f"a head of ledger {head.ledger[:8]}…, of which none was kept"
    elif head.sequence < last.sequence:
        what = f"record {head.sequence}: the first that it lacks is record {head.sequence + 1}"
    elif head.sequence == last.sequence and head.hash != last.hash:
        what = f"another record {head.sequence}"
    else:
        return
    raise LedgerError(
        f"Expected a head that extends record {last.sequence} of ledger {last.ledger[:8]}… (key "
        f"{head.public_key[:16]}…), got {what}. The holder put back an older copy or another file. {FOUND}",
        min(head.sequence + 1, last.sequence) if head.ledger == last.ledger else 1,
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
