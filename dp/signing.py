"""The key that signs a ledger's head: the data holder owns it, an auditor pins its public half.

Place in the picture: `dp` keeps a ledger of what was spent; this is what makes its records attributable.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import LedgerError

__all__ = ["HEAD", "PEER", "LedgerKey", "head_bytes", "is_signed", "is_stated", "write_atomic"]

KEY_BYTES: Final = 32
_HEAD: Final = b"privopt dp ledger head 1\x00"
HEAD: Final = b"privopt dp ledger head told 1\x00"
"""Domain of a head as its holder tells it to a peer."""
PEER: Final = b"privopt dp ledger head kept 1\x00"
"""Domain of a peer's word that it keeps a head."""


class LedgerKey:
    """An Ed25519 key pair that signs the head of one data holder's ledgers, or countersigns those of others.

    Guarantees:
        - The private key leaves only through `save`, into a file that its owner alone can read.
        - The repr shows the public key only; pickling and copying raise TypeError.

    Attributes:
        public_key: The public half, 32 bytes.

    Example:
        >>> key = LedgerKey.generate()
        >>> len(key.public_key)
        32
    """

    __slots__ = ("_private", "public_key")

    def __init__(self, private_bytes: bytes) -> None:
        if len(private_bytes) != KEY_BYTES:
            raise LedgerError(f"Expected a private key of {KEY_BYTES} bytes, got {len(private_bytes)}.")
        self._private = Ed25519PrivateKey.from_private_bytes(private_bytes)
        self.public_key: bytes = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> LedgerKey:
        """A fresh key from the operating system's randomness."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def __repr__(self) -> str:
        return f"LedgerKey(public_key={self.public_key.hex()})"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("LedgerKey holds a secret and cannot be pickled or copied.")

    def sign_head(self, sequence: int, head: bytes) -> bytes:
        """Ed25519 signature (RFC 8032) of a ledger's head, 64 bytes; signs nothing but heads."""
        return self._private.sign(head_bytes(sequence, head))

    def sign_statement(self, domain: bytes, body: bytes) -> bytes:
        """Ed25519 signature of a statement under its domain, `HEAD` or `PEER`, 64 bytes."""
        if domain not in (HEAD, PEER):
            raise ValueError("Expected the domain of a statement about heads, got another.")
        return self._private.sign(domain + body)

    def save(self, path: str | Path) -> None:
        """Write the key to a new file that only its owner can read, durably and all at once.

        Args:
            path: File to create; an existing one is never overwritten.

        Raises:
            LedgerError: If the file exists.
            OSError: If it cannot be written.
        """
        path = Path(path)
        secret = self._private.private_bytes_raw().hex()
        text = json.dumps({"format": 1, "kind": "ledger-key", "private_key": secret}) + "\n"
        temporary = _write_beside(path, text.encode(), 0o600)
        try:
            # A link, unlike a rename, fails where a key already lies.
            path.hardlink_to(temporary)
        except FileExistsError as error:
            raise LedgerError(
                f"Expected a new file for a ledger's key, found one at {path}. Load it, or move it away."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: str | Path) -> LedgerKey:
        """Read a key that `save` wrote.

        Args:
            path: File to read.

        Returns:
            The key.

        Raises:
            LedgerError: If others can read the file, or it holds no ledger key.
            OSError: If it cannot be read.
        """
        path = Path(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name == "posix" and mode & 0o077:
            raise LedgerError(
                f"Expected {path} to be readable by its owner only, got mode {mode:04o}. chmod 600."
            )
        try:
            stored = json.loads(path.read_text("utf-8"))
            if stored["kind"] != "ledger-key":
                raise ValueError
            secret = bytes.fromhex(stored["private_key"])
        except (ValueError, TypeError, KeyError):
            # Not chained: the cause would quote the file, and the file holds a key.
            raise LedgerError(
                f"Expected a key file written by LedgerKey.save, got something else in {path}."
            ) from None
        return cls(secret)


def head_bytes(sequence: int, head: bytes) -> bytes:
    """What a head's signature covers: a domain, so that no other protocol's signature fits, and the head."""
    return _HEAD + sequence.to_bytes(8, "big") + head


def is_signed(public_key: bytes, sequence: int, head: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's on this head; for callers that turn False into their one refusal."""
    return _verifies(public_key, signature, head_bytes(sequence, head))


def is_stated(public_key: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's on a statement under a domain."""
    return _verifies(public_key, signature, domain + body)


def _verifies(public_key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file durably and all at once: a reader sees the old one or the new one, never a part."""
    temporary = _write_beside(path, data, 0o644)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a new directory entry durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
