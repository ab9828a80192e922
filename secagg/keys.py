"""Keys: long-lived identities that sign, the pinned roster of their public halves, and how keys are derived.

Nothing is trusted on first use: a party knows the others' public keys before the first message. Secrets have
no repr, refuse to be pickled or copied, and never enter an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import IdentityError

PROTOCOL: Final = b"secagg/2"
KEY_BYTES: Final = 32
MAX_ID: Final = 128


def length_prefixed(*parts: bytes) -> bytes:
    """Join byte strings so that no two different lists give the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def hash_parts(purpose: str, *parts: bytes) -> bytes:
    """SHA-256 of length-prefixed parts, separated by protocol and purpose."""
    return hashlib.sha256(length_prefixed(PROTOCOL, purpose.encode(), *parts)).digest()


def hkdf(secret: bytes, info: bytes, length: int, salt: bytes | None = None) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def verify_id(what: str, name: Any) -> None:
    """Raise IdentityError unless `name` can identify a participant."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID or not name.isprintable():
        raise IdentityError(f"Expected {what} to be 1..{MAX_ID} printable characters, got {name!r}.")


class Secret:
    """Base of objects that hold secrets: no pickle, no copy, and a repr that says only what they are."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: secret>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds secrets and cannot be pickled or copied.")


class Identity(Secret):
    """A participant's Ed25519 key pair and its name.

    Guarantees:
        - The private key leaves only through `save`, into a file that its owner alone can read.
        - The repr shows the name and the fingerprint of the public key; pickling and copying raise TypeError.

    Example:
        >>> identity = Identity.generate("clinic-0")
        >>> verify_signature(identity.public_key, identity.sign(b"data"), b"data")
        True
    """

    __slots__ = ("_private", "name", "public_key")

    def __init__(self, name: str, private_bytes: bytes) -> None:
        verify_id("an identity's name", name)
        if len(private_bytes) != KEY_BYTES:
            raise IdentityError(f"Expected a private key of {KEY_BYTES} bytes, got {len(private_bytes)}.")
        self._private = Ed25519PrivateKey.from_private_bytes(private_bytes)
        self.name = name
        self.public_key: bytes = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, name: str) -> Identity:
        """A fresh identity from the operating system's randomness."""
        return cls(name, secrets.token_bytes(KEY_BYTES))

    @property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the public key's SHA-256, to compare by eye."""
        return hashlib.sha256(self.public_key).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, fingerprint={self.fingerprint})"

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature of `data` (RFC 8032), 64 bytes."""
        return self._private.sign(data)

    def save(self, path: str | Path) -> None:
        """Write the identity to a new file that only its owner can read, durably and all at once.

        Args:
            path: File to create; an existing one is never overwritten.

        Raises:
            IdentityError: If the file exists.
            OSError: If it cannot be written.
        """
        path = Path(path)
        secret = self._private.private_bytes_raw().hex()
        text = json.dumps({"format": 1, "name": self.name, "private_key": secret}) + "\n"
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, fails where a key already lies.
            path.hardlink_to(temporary)
        except FileExistsError as error:
            raise IdentityError(
                f"Expected a new file for the key of {self.name!r}, found one at {path}. Load it, or move "
                "it away."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Read an identity that `save` wrote.

        Args:
            path: File to read.

        Returns:
            The identity.

        Raises:
            IdentityError: If others can read the file, or it holds no identity.
            OSError: If it cannot be read.
        """
        path = Path(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name == "posix" and mode & 0o077:
            raise IdentityError(
                f"Expected {path} to be readable by its owner only, got mode {mode:04o}. chmod 600."
            )
        identity = cls._read(path)
        if identity is None:
            raise IdentityError(
                f"Expected a key file written by Identity.save, got something else in {path}. Restore it "
                "from a copy, or make a new identity and have its public key pinned."
            )
        return identity

    @classmethod
    def _read(cls, path: Path) -> Identity | None:
        """The identity in a file, None if there is none.

        No error leaves here: its cause, or the variables of this frame, would quote a file that holds a key.
        """
        try:
            stored = json.loads(path.read_text("utf-8"))
            return cls(stored["name"], bytes.fromhex(stored["private_key"]))
        except (ValueError, TypeError, KeyError, RecursionError, IdentityError):
            return None


def sync_folder(folder: Path) -> None:
    """Make a new directory entry durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify_signature(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is valid (Ed25519); for callers that turn False into their one refusal."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Roster:
    """The public keys that a participant has pinned: one server, and every client by its id.

    Args:
        server: Ed25519 public key of the server, 32 bytes.
        clients: Ed25519 public keys by client id, 32 bytes each, all different.

    Raises:
        IdentityError: If an id or a key is bad, or one key stands twice (one party under two names).

    Example:
        >>> server, client = Identity.generate("server"), Identity.generate("c0")
        >>> Roster(server.public_key, {"c0": client.public_key})
        Roster(1 clients, fingerprint=...)
    """

    server: bytes
    clients: Mapping[str, bytes]

    def __post_init__(self) -> None:
        """Verify ids and keys, and freeze them in the order of ids."""
        for name in self.clients:
            verify_id("a client id", name)
        owners: dict[bytes, str] = {}
        for name, key in [("the server", self.server), *sorted(self.clients.items())]:
            if not isinstance(key, bytes) or len(key) != KEY_BYTES:
                raise IdentityError(f"Expected the public key of {name!r} as {KEY_BYTES} bytes.")
            if key in owners:
                raise IdentityError(
                    f"Expected different keys, got the key of {owners[key]!r} again for {name!r}: "
                    "one party would count twice."
                )
            owners[key] = name
        object.__setattr__(self, "clients", MappingProxyType(dict(sorted(self.clients.items()))))

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of a hash of all keys and ids, to compare by eye."""
        clients = (part for name, key in self.clients.items() for part in (name.encode(), key))
        return hash_parts("roster of identities", self.server, *clients).hex()[:16]

    def __repr__(self) -> str:
        return f"Roster({len(self.clients)} clients, fingerprint={self.fingerprint})"

    def __hash__(self) -> int:
        return hash((self.server, tuple(self.clients.items())))

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse."""
        clients = {name: key.hex() for name, key in self.clients.items()}
        return json.dumps({"format": 1, "server": self.server.hex(), "clients": clients}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Roster:
        """Inverse of `to_json`; raises IdentityError for anything else."""
        try:
            stored = json.loads(text, object_pairs_hook=_each_once)
            if stored.keys() != {"format", "server", "clients"} or stored["format"] != 1:
                raise ValueError("another format")
            server = bytes.fromhex(stored["server"])
            clients = {name: bytes.fromhex(key) for name, key in stored["clients"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise IdentityError(
                "Expected a roster of format 1, written by Roster.to_json, with each client once; got "
                "something else."
            ) from error
        return cls(server, clients)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file, all at once: a reader finds the roster before or this one."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with temporary.open("x", encoding="utf-8") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: str | Path) -> Roster:
        """Read a file that `save` wrote.

        Raises:
            IdentityError: If it holds no roster.
            OSError: If it cannot be read.
        """
        try:
            return cls.from_json(Path(path).read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise IdentityError(
                f"Expected a roster written by Roster.save in {path}, got no text."
            ) from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys differ; readers that keep the first or the last of two would differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found
