"""Unmasking: shares of the survivors take the remaining masks off the sum.

Pair masks of two survivors have cancelled. What is left is the self mask of each survivor, which follows from
its seed, and the pair masks between a survivor and a client that dropped, which follow from the dropped
client's mask key. Of each client one of the two is put together, never both.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Final

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray

from . import shamir
from .encoding import Words
from .ephemeral import CONTRIBUTION_BYTES, Binding, MaskKey, PublicKeys, pair_mask_key, self_mask_key
from .errors import IdentityError, RoundAborted
from .graph import Graph
from .keys import Secret
from .masks import CIPHER_KEY_BYTES, CipherName, Mask, Sign, add_masks
from .sharing import SHARE_BYTES, hash_seed

_AT_ONCE: Final = 256
"""Secrets of a sparse graph that are put together at once."""
Sealed = Callable[[str, str], bytes]
"""What (sender, receiver) contributed in a hybrid round, as it was sealed."""


class Unmasking(Secret):
    """The shares that survivors gave, and what they give back.

    Args:
        graph: Who holds whose shares.
        threshold: Shares that give a secret back.
        shared: Clients whose boxes were delivered (U2).
        survivors: Clients whose vectors are in the sum (U3).
        publics: Ephemeral public keys of all clients.
        seeds: Hashes of the self-mask seeds.
        binding: The round.
        cipher: Mask cipher.
        hybrid: Whether keys are X25519 and ML-KEM-768 together.
        sealed: Finds a sealed contribution in a hybrid round.
    """

    __slots__ = (
        "_binding",
        "_cipher",
        "_everybody",
        "_given",
        "_graph",
        "_hybrid",
        "_publics",
        "_sealed",
        "_seeds",
        "_shared",
        "_survivors",
        "_threshold",
        "faulty",
    )

    def __init__(
        self,
        graph: Graph,
        threshold: int,
        shared: frozenset[str],
        survivors: frozenset[str],
        publics: Mapping[str, PublicKeys],
        seeds: Mapping[str, bytes],
        binding: Binding,
        cipher: CipherName,
        hybrid: bool,
        sealed: Sealed,
    ) -> None:
        self._graph, self._threshold = graph, threshold
        self._shared, self._survivors = shared, survivors
        self._publics, self._seeds, self._binding = publics, seeds, binding
        self._cipher, self._hybrid, self._sealed = cipher, hybrid, sealed
        self._given: dict[str, tuple[dict[str, int], bytes]] = {}
        # In the complete graph everybody has the same peers, all that shared: they are sorted out once.
        self._everybody = {} if graph.degree else self._placed(graph.names)
        self.faulty: set[str] = set()

    def peers(self, holder: str) -> list[str]:
        """Whose shares `holder` gives, in their order."""
        return list(self._places(holder))

    def _places(self, holder: str) -> dict[str, int]:
        """The same with their places."""
        return self._placed(self._graph.holders(holder)) if self._graph.degree else self._everybody

    def _placed(self, holders: tuple[str, ...]) -> dict[str, int]:
        shared = (name for name in holders if name in self._shared)
        return {name: place for place, name in enumerate(shared)}

    def take(self, holder: str, data: Any) -> str | None:
        """Keep one survivor's shares; returns what is wrong with them, or None."""
        peers = self._places(holder)
        view = memoryview(data).cast("B")
        if view.nbytes != SHARE_BYTES * len(peers):
            return f"expected {len(peers)} shares of {SHARE_BYTES} bytes, got {view.nbytes} bytes"
        given = bytes(view)
        if given and int(_limbs(given).max()) >= shamir.PRIME:
            return "a share is out of its range"
        self._given[holder] = (peers, given)
        return None

    @property
    def answered(self) -> frozenset[str]:
        """Who gave shares."""
        return frozenset(self._given)

    def lacking(self) -> dict[str, int]:
        """Clients of which too few shares are there, and how many are."""
        if not self._graph.degree:
            few = len(self._given) < self._threshold
            return dict.fromkeys(self._needed(), len(self._given)) if few else {}
        counts = dict(zip(self._graph.names, self._graph.count_near(self._given).tolist(), strict=True))
        return {name: counts[name] for name in self._needed() if counts[name] < self._threshold}

    def _needed(self) -> Iterator[str]:
        """Survivors, and those dropped clients that have pair masks with a survivor."""
        near = self._graph.count_near(self._survivors)
        for name, survivors in zip(self._graph.names, near.tolist(), strict=True):
            if name in self._shared and survivors:
                yield name

    def remove(self, total: Words, threads: int = 1) -> None:
        """Take all masks off `total`, in place, in so many threads; nothing may be `lacking`.

        Raises:
            RoundAborted: If shares do not give a secret back; `.blame` names whose it was.
        """
        add_masks(total, self._masks(), threads=threads)

    def _masks(self) -> Iterator[Mask]:
        """What takes off every mask that is still in the sum."""
        length = CIPHER_KEY_BYTES[self._cipher]
        for name, secret in self._secrets():
            if name in self._survivors:
                yield Mask(self_mask_key(secret, name, self._publics[name], self._binding, length), -1)
                continue
            key = MaskKey(secret, self._hybrid)
            for peer in self._graph.neighbours(name):
                if peer in self._survivors:
                    sign: Sign = -1 if peer < name else 1  # the lesser id had added it
                    yield Mask(self._pair_key(key, name, peer, length), sign)

    def _pair_key(self, key: MaskKey, name: str, peer: str, length: int) -> bytes:
        """The key of a dropped client's mask with a survivor."""
        keys, part, peers_part = self._publics, b"", b""
        try:
            secret = key.exchange(keys[peer].mask)
            if self._hybrid:
                part = key.contribution(peer)
                sealed = self._sealed(peer, name)[:CONTRIBUTION_BYTES]
                peers_part = key.open_contribution(name, peer, keys[peer], self._binding, sealed)
        except (IdentityError, InvalidTag, ValueError):
            raise RoundAborted(
                f"Round {self._binding.round}: {peer!r} sealed no usable contribution for {name!r}, which "
                "dropped. Nothing is released.",
                [peer],
            ) from None
        return pair_mask_key(
            secret, (name, keys[name], part), (peer, keys[peer], peers_part), self._binding, length
        )

    def _secrets(self) -> Iterator[tuple[str, bytes]]:
        """Every secret that is needed, checked."""
        waiting = list(self._needed())
        while waiting:
            waiting = yield from self._until_more_are_faulty(waiting)

    def _until_more_are_faulty(self, names: list[str]) -> Generator[tuple[str, bytes], None, list[str]]:
        """Secrets of clients in their order; returns those that are left once a wrong share was found.

        Finding out who gave it takes long. Those that are left are put together without its giver, so that
        one liar costs one search and not one for each client.
        """
        known = len(self.faulty)
        batched = self._from_ring(names) if self._graph.degree else self._from_all(names)
        for done, (name, secret) in enumerate(batched, start=1):
            right = secret is not None and self._is_secret(name, secret)
            yield name, secret if right and secret is not None else self._corrected(name)
            if len(self.faulty) > known:
                return names[done:]
        return []

    def _from_all(self, names: list[str]) -> Iterator[tuple[str, bytes | None]]:
        """What shares give in the complete graph, where all secrets have the same holders."""
        points = self._points(names[0])[: self._threshold]
        chosen = [self._everybody[name] for name in names]
        given = (self._given[self._graph.names[point - 1]][1] for point in points)
        rows = np.stack([_limbs(shares)[chosen] for shares in given])
        try:
            found: list[bytes | None] = list(shamir.reconstruct(points, rows))
        except ValueError:  # one of them is no secret: which?
            each = np.tile(np.array(points), (len(names), 1))
            found = shamir.reconstruct_each(each, rows.transpose(1, 0, 2), len(self._graph.names))
        yield from zip(names, found, strict=True)

    def _from_ring(self, names: list[str]) -> Iterator[tuple[str, bytes | None]]:
        """What shares give on a ring, where each secret has other holders, many at a time."""
        for low in range(0, len(names), _AT_ONCE):
            some = names[low : low + _AT_ONCE]
            points = [self._points(name)[: self._threshold] for name in some]
            rows = np.stack([self._rows(*each) for each in zip(some, points, strict=True)])
            found = shamir.reconstruct_each(np.array(points), rows, self._graph.degree + 1)
            yield from zip(some, found, strict=True)

    def _points(self, owner: str) -> tuple[int, ...]:
        """Points of one client's holders whose shares are there; last those that gave a wrong one before."""
        holders = self._graph.holders(owner)
        points = (point for point, holder in enumerate(holders, start=1) if holder in self._given)
        return tuple(sorted(points, key=lambda point: holders[point - 1] in self.faulty))

    def _rows(self, owner: str, points: tuple[int, ...]) -> NDArray[np.uint32]:
        """Shares of one client's secret at these points."""
        holders, shares = self._graph.holders(owner), []
        for point in points:
            places, given = self._given[holders[point - 1]]
            start = SHARE_BYTES * places[owner]
            shares.append(given[start : start + SHARE_BYTES])
        return _limbs(b"".join(shares))

    def _is_secret(self, name: str, secret: bytes) -> bool:
        """Whether it is what the client's advert or hash says."""
        if name in self._survivors:
            return hmac.compare_digest(hash_seed(self._binding, name, secret), self._seeds[name])
        key = MaskKey(secret, self._hybrid)
        public = self._publics[name]
        return (key.public, key.kem_public) == (public.mask, public.mask_kem)

    def _corrected(self, name: str) -> bytes:
        """The secret in spite of wrong shares, if enough right ones are there; names who gave wrong ones."""
        holders, points = self._graph.holders(name), self._points(name)
        try:
            secret, wrong = shamir.reconstruct_verified(
                points,
                self._rows(name, points)[:, None, :],
                self._threshold,
                lambda s: self._is_secret(name, s),
            )
        except ValueError:
            raise RoundAborted(
                f"Round {self._binding.round}: the {len(points)} shares of {name!r} do not give its secret "
                "back: it dealt wrong ones, or holders altered them. Nothing is released; open the next "
                "round without it.",
                [name],
            ) from None
        self.faulty |= {holders[point - 1] for point in wrong}
        return secret


def _limbs(shares: bytes) -> NDArray[np.uint32]:
    """Shares as they came, a row each."""
    return np.frombuffer(shares, "<u4").reshape(-1, shamir.LIMBS)
