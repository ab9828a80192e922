"""Sharing: what a client keeps secret in a round, from its ephemeral keys to the one share a peer it gives.

    made        a seed for the self mask, a mask key, a transport key
    deal        pair keys and boxes are derived; the mask key's seed leaves in shares only, and is forgotten
    accept      neighbours' boxes are opened; the transport key is forgotten
    masks       the masks of the one vector; pair keys and the self-mask seed are forgotten
    receipts    what proves whose boxes were opened, and so whose pair masks are on the vector
    verify      the same of the surviving neighbours: each has put its mask with this client on
    unmask      one share of each peer: of its self-mask seed if it survived, of its mask key if it dropped

Each call happens once, in this order, and each object is let go as soon as the next stage can do without it.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray

from . import shamir
from .ephemeral import (
    CONTRIBUTION_BYTES,
    KEM_CIPHERTEXT_BYTES,
    RECEIPT_BYTES,
    SEED_BYTES,
    TAG_BYTES,
    Binding,
    MaskKey,
    PublicKeys,
    TransportKey,
    pair_mask_key,
    self_mask_key,
)
from .errors import IdentityError, RoundAborted
from .graph import Graph
from .keys import Secret, hash_parts
from .masks import CIPHER_KEY_BYTES, CipherName, Mask, Masks

SHARE_BYTES: Final = 4 * shamir.LIMBS
_BOX_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
_HYBRID_BOX_BYTES: Final = _BOX_BYTES + KEM_CIPHERTEXT_BYTES + CONTRIBUTION_BYTES
SELF_SEED, MASK_SEED = 0, 1
"""Which of a peer's two secrets a share is of."""


def box_bytes(hybrid: bool) -> int:
    """Bytes of one client's box for another."""
    return _HYBRID_BOX_BYTES if hybrid else _BOX_BYTES


def hash_seed(binding: Binding, name: str, seed: bytes) -> bytes:
    """Hash of a client's self-mask seed, bound to the round; the seed has 256 bits, so it tells nothing."""
    number = binding.round.to_bytes(8, "little")
    return hash_parts("self seed", binding.session, number, binding.roster, name.encode(), seed)


class RoundSecrets(Secret):
    """One client's secrets of one round.

    Guarantees:
        - A mask key's seed and a self-mask seed of the same peer never both leave: `unmask` gives one share
          of each peer, once.
        - The masks are made once (R15).

    Args:
        name: Id of the client.
        hybrid: Whether keys are X25519 and ML-KEM-768 together.
    """

    __slots__ = (
        "_awaited",
        "_binding",
        "_cipher",
        "_graph",
        "_hybrid",
        "_mask_key",
        "_name",
        "_own_contributions",
        "_pair_keys",
        "_publics",
        "_receipts",
        "_seed",
        "_shares",
        "_transport",
        "public",
    )

    def __init__(self, name: str, hybrid: bool) -> None:
        self._name = name
        self._hybrid = hybrid
        self._seed: bytes | None = secrets.token_bytes(SEED_BYTES)
        self._mask_key: MaskKey | None = MaskKey.generate(hybrid)
        self._transport: TransportKey | None = TransportKey(hybrid)
        transport, transport_kem = self._transport.keys
        self.public = PublicKeys(self._mask_key.public, transport, self._mask_key.kem_public, transport_kem)
        self._pair_keys: dict[str, bytes] | None = None
        self._shares: dict[str, NDArray[np.uint32]] | None = None
        self._receipts: dict[str, bytes] = {}
        self._awaited: dict[str, bytes] = {}

    def deal(
        self,
        graph: Graph,
        threshold: int,
        publics: Mapping[str, PublicKeys],
        binding: Binding,
        cipher: CipherName,
    ) -> tuple[bytes, bytes]:
        """Stage 3: a box for each neighbour, and the hash of the self-mask seed.

        Args:
            graph: Who holds whose shares.
            threshold: Shares that give a secret back.
            publics: Ephemeral public keys of all clients.
            binding: The round.
            cipher: Mask cipher.

        Returns:
            The hash, and the boxes in the order of the neighbours' ids.

        Raises:
            RoundAborted: If a neighbour's key gives no usable secret; names it.
        """
        assert self._mask_key is not None  # noqa: S101  # our invariant: stages come in order
        assert self._transport is not None  # noqa: S101
        assert self._seed is not None  # noqa: S101
        name, holders = self._name, graph.holders(self._name)
        self._graph, self._publics, self._binding, self._cipher = graph, publics, binding, cipher
        split = shamir.split([self._seed, self._mask_key.seed], len(holders), threshold).astype("<u4")
        boxes, pairs, contributions = [], {}, {}
        for place, peer in enumerate(holders):
            if peer == name:
                self._shares = {name: split[place].copy()}  # a view would keep all shares
                continue
            try:
                pairs[peer] = self._mask_key.exchange(publics[peer].mask)
                if self._hybrid:
                    contributions[peer] = self._mask_key.contribution(peer)
                    sealed = self._mask_key.seal_contribution(name, peer, publics[peer], binding)
                    boxes.append(sealed)
                plain = split[place].tobytes()
                box, self._awaited[peer] = self._transport.seal(name, peer, publics[peer], binding, plain)
                boxes.append(box)
            except IdentityError as error:
                raise RoundAborted(f"Round {binding.round}: {peer!r}: {error}", [peer]) from None
        self._pair_keys, self._own_contributions = pairs, contributions
        if not self._hybrid:  # A hybrid round's contributions are still to be opened with it.
            self._mask_key = None
        return hash_seed(binding, name, self._seed), b"".join(boxes)

    def accept(self, senders: Sequence[str], boxes: Any) -> None:
        """Stage 3: open the boxes of the neighbours whose shares the server has.

        Args:
            senders: Neighbours that sent a box, in the order of ids.
            boxes: Their boxes, one after another; the length was checked.

        Raises:
            RoundAborted: If a box does not open or holds no shares; names its sender.
        """
        view, size = memoryview(boxes), box_bytes(self._hybrid)
        theirs: dict[str, bytes] = {}
        failed = [
            peer
            for place, peer in enumerate(senders)
            if not self._open(peer, bytes(view[place * size : (place + 1) * size]), theirs)
        ]
        if failed:
            theirs.clear()
            # One that all fail is due to nobody in particular.
            whole = len(failed) == len(senders)
            hint = " Or the whole delivery was another client's." if whole else ""
            raise RoundAborted(
                f"Round {self._binding.round}: the shares of {failed} for {self._name!r} do not open. They "
                f"or the server altered them, or they hold another roster.{hint} Open the next round, "
                "without them if it comes again.",
                [] if whole else failed,
            )
        self._transport = self._mask_key = None
        kept = {peer: self._pair_key(peer, theirs[peer]) for peer in senders}
        self._pair_keys, self._own_contributions = kept, {}

    def _open(self, peer: str, box: bytes, theirs: dict[str, bytes]) -> bool:
        """Keep what a neighbour's box holds, its contribution in `theirs`; False if it does not open.

        In a function of its own: an error that `accept` raises leads to that one's variables, not to these.
        """
        assert self._transport is not None  # noqa: S101  # our invariant: stages come in order
        assert self._shares is not None  # noqa: S101
        theirs[peer] = b""
        try:
            if self._hybrid:
                sealed, box = box[:CONTRIBUTION_BYTES], box[CONTRIBUTION_BYTES:]
                theirs[peer] = self._open_contribution(peer, sealed)
            plain, self._receipts[peer] = self._transport.open(
                self._name, peer, self._publics[peer], self._binding, box
            )
        except (InvalidTag, ValueError):
            return False
        self._shares[peer] = np.frombuffer(plain, "<u4").reshape(2, shamir.LIMBS)
        return int(self._shares[peer].max()) < shamir.PRIME

    def _open_contribution(self, peer: str, sealed: bytes) -> bytes:
        assert self._mask_key is not None  # noqa: S101  # our invariant: kept in hybrid rounds
        return self._mask_key.open_contribution(self._name, peer, self._publics[peer], self._binding, sealed)

    def _pair_key(self, peer: str, theirs: bytes) -> bytes:
        assert self._pair_keys is not None  # noqa: S101  # our invariant: stages come in order
        return pair_mask_key(
            self._pair_keys[peer],
            (self._name, self._publics[self._name], self._own_contributions.get(peer, b"")),
            (peer, self._publics[peer], theirs),
            self._binding,
            CIPHER_KEY_BYTES[self._cipher],
        )

    def masks(self) -> Masks:
        """Stage 4: the self mask, and a mask with each neighbour: the lesser id adds it, the greater
        subtracts it."""  # noqa: D205, D209
        pairs, seed, self._pair_keys, self._seed = self._pair_keys, self._seed, None, None
        assert pairs is not None  # noqa: S101  # our invariant: stages come in order
        assert seed is not None  # noqa: S101
        length = CIPHER_KEY_BYTES[self._cipher]
        own = self_mask_key(seed, self._name, self.public, self._binding, length)
        return Masks(
            [Mask(own, 1), *(Mask(key, 1 if self._name < peer else -1) for peer, key in pairs.items())]
        )

    def receipts(self) -> bytes:
        """One for each box that was opened, by the ids of their senders; 16 bytes each."""
        receipts, self._receipts = self._receipts, {}
        return b"".join(receipts[peer] for peer in sorted(receipts))

    def verify(self, peers: Sequence[str], receipts: Any) -> list[str]:
        """Those of `peers` whose receipts are not the ones that came with this client's boxes for them.

        Args:
            peers: Neighbours, by id.
            receipts: Theirs, one after another; the length was checked.
        """
        view = memoryview(receipts)
        parts = (bytes(view[i * RECEIPT_BYTES : (i + 1) * RECEIPT_BYTES]) for i in range(len(peers)))
        return [
            peer
            for peer, receipt in zip(peers, parts, strict=True)
            if not hmac.compare_digest(receipt, self._awaited.get(peer, b""))
        ]

    def forget(self) -> None:
        """Let everything go; whoever still holds this object holds nothing of the round."""
        self._seed = self._mask_key = self._transport = self._pair_keys = self._shares = None
        self._receipts, self._awaited, self._own_contributions = {}, {}, {}

    @property
    def senders(self) -> frozenset[str]:
        """The neighbours whose boxes were opened, and this client."""
        return frozenset(self._shares or ())

    def unmask(self, survivors: Collection[str]) -> bytes:
        """Stage 6: one share of each peer, by id; 36 bytes each.

        Args:
            survivors: The set that the neighbourhood agreed upon.
        """
        shares, self._shares = self._shares, None
        assert shares is not None  # noqa: S101  # our invariant: once, and after `accept`
        which = {True: SELF_SEED, False: MASK_SEED}
        return b"".join(shares[peer][which[peer in survivors]].tobytes() for peer in sorted(shares))
