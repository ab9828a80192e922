"""What a client keeps secret in a round: dealt, opened, masked with and given away, without the messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import RoundAborted, shamir
from secagg.ephemeral import CONTRIBUTION_BYTES, RECEIPT_BYTES, Binding, MaskKey, PublicKeys
from secagg.graph import Graph, threshold
from secagg.sharing import MASK_SEED, SELF_SEED, SHARE_BYTES, RoundSecrets, box_bytes, hash_seed

BINDING = Binding(bytes(16), 1, b"r" * 32, b"c" * 32, b"d" * 32)
both_kinds = pytest.mark.parametrize("hybrid", [False, True], ids=["x25519", "hybrid"])


@dataclass
class Dealt:
    """The secrets of several clients after they dealt, and what they sealed for each other."""

    graph: Graph
    threshold: int
    clients: dict[str, RoundSecrets]
    publics: dict[str, PublicKeys]
    seeds: dict[str, bytes]
    mask_seeds: dict[str, bytes]
    hashes: dict[str, bytes]
    boxes: dict[tuple[str, str], bytes]

    def deliver(self, senders: Collection[str] | None = None, changed: Mapping[Any, bytes] = {}) -> None:
        """Everybody opens the boxes of those neighbours that are among `senders`."""
        for name in self.clients if senders is None else senders:
            self.open(name, senders, changed)

    def shares(self, holder: str) -> dict[str, Any]:
        """The shares of others that a holder has, and of itself."""
        return dict(self.clients[holder]._shares or {})

    def open(self, name: str, senders: Collection[str] | None = None, changed: Any = {}) -> None:  # noqa: B006
        peers = [p for p in self.graph.neighbours(name) if senders is None or p in senders]
        boxes = {**self.boxes, **changed}
        self.clients[name].accept(peers, b"".join(boxes[peer, name] for peer in peers))


def dealt(graph: Graph, t: int, hybrid: bool = False, cipher: Any = "AES-128") -> Dealt:
    clients = {name: RoundSecrets(name, hybrid) for name in graph.names}
    publics = {name: secrets.public for name, secrets in clients.items()}
    seeds = {name: secrets._seed or b"" for name, secrets in clients.items()}
    masks = {name: secrets._mask_key.seed for name, secrets in clients.items() if secrets._mask_key}
    made = Dealt(graph, t, clients, publics, seeds, masks, {}, {})
    size = box_bytes(hybrid)
    for name, secrets in clients.items():
        theirs = {peer: publics[peer] for peer in graph.holders(name)}
        made.hashes[name], boxes = secrets.deal(graph, t, theirs, BINDING, cipher)
        neighbours = graph.neighbours(name)
        assert len(boxes) == size * len(neighbours)
        for place, peer in enumerate(neighbours):
            made.boxes[name, peer] = boxes[place * size : (place + 1) * size]
    return made


def names(n: int) -> list[str]:
    return [f"c{i:02}" for i in range(n)]


def some(hybrid: bool = False, n: int = 4, t: int = 3) -> Dealt:
    return dealt(Graph.complete(names(n)), t, hybrid)


GRAPHS = st.one_of(
    st.integers(2, 9).map(lambda n: Graph.complete(names(n))),
    st.tuples(st.integers(8, 14), st.sampled_from([2, 4, 6]), st.binary(min_size=4, max_size=4)).map(
        lambda drawn: Graph.harary(names(drawn[0]), drawn[1], drawn[2])
    ),
)


@given(GRAPHS, st.floats(0.1, 1), st.booleans())
@settings(max_examples=30)
def test_the_holders_shares_give_both_secrets_back_at_their_places(
    graph: Graph, fraction: float, hybrid: bool
) -> None:
    """A holder's point is its place among the owner's holders, from 1: any `threshold` of them suffice."""
    t = threshold(fraction, len(graph.holders(graph.names[0])))
    made = dealt(graph, t, hybrid)
    made.deliver()
    for owner in graph.names:
        holders = graph.holders(owner)
        shares = np.stack([made.shares(holder)[owner] for holder in holders])
        points = list(range(1, len(holders) + 1))
        for chosen in (points[:t], points[-t:], points):
            rows = shares[[point - 1 for point in chosen]]
            assert shamir.reconstruct(chosen, rows) == [made.seeds[owner], made.mask_seeds[owner]]
        assert made.hashes[owner] == hash_seed(BINDING, owner, made.seeds[owner])
        assert MaskKey(made.mask_seeds[owner], hybrid).public == made.publics[owner].mask


@given(GRAPHS, st.integers(0, 2**32), st.booleans(), st.sampled_from(["AES-128", "AES-256"]))
@settings(max_examples=30)
def test_the_masks_of_all_who_shared_cancel_but_for_their_self_masks(
    graph: Graph, seed: int, hybrid: bool, cipher: str
) -> None:
    """Each mask but the first of every client stands with both signs, among those who were delivered."""
    rng = np.random.default_rng(seed)
    senders = [name for name in graph.names if rng.random() < 0.8]
    made = dealt(graph, 1, hybrid, cipher)
    made.deliver(senders)
    seen: dict[bytes, int] = {}
    own = []
    for name in senders:
        assert made.clients[name].senders == {name, *graph.neighbours(name)} & set(senders)
        first, *pairs = made.clients[name].masks()._masks or ()
        assert len(pairs) == len(made.clients[name].senders) - 1
        assert first.sign == 1
        own.append(first.key)
        for mask in pairs:
            seen[mask.key] = seen.get(mask.key, 0) + mask.sign
            assert len(mask.key) == {"AES-128": 16, "AES-256": 32}[cipher]
    assert set(seen.values()) <= {0}
    assert len(seen) == sum(b in graph.neighbours(a) for a, b in combinations(senders, 2))
    assert len({*seen, *own}) == len(seen) + len(senders), "no keystream belongs to two pairs or clients"


@both_kinds
def test_which_share_is_given_follows_from_the_survivors(hybrid: bool) -> None:
    made = some(hybrid)
    made.deliver()
    held = made.shares("c01")
    given_shares = made.clients["c01"].unmask(frozenset({"c01", "c03"}))
    rows = [given_shares[i : i + SHARE_BYTES] for i in range(0, 4 * SHARE_BYTES, SHARE_BYTES)]
    which = [MASK_SEED, SELF_SEED, MASK_SEED, SELF_SEED]
    assert rows == [held[peer][what].tobytes() for peer, what in zip(names(4), which, strict=True)]


def test_each_step_works_once_and_in_its_order() -> None:
    """The state machine above sees to the order; these are the invariants that it rests on."""
    made = some()
    secrets = made.clients["c00"]
    with pytest.raises(AssertionError):
        RoundSecrets("c00", False).masks()
    with pytest.raises(AssertionError):
        RoundSecrets("c00", False).unmask(frozenset())
    made.deliver()
    secrets.masks()
    with pytest.raises(AssertionError):
        secrets.masks()
    with pytest.raises(AssertionError):
        made.open("c00")
    secrets.unmask(frozenset())
    with pytest.raises(AssertionError):
        secrets.unmask(frozenset(names(4)))
    assert secrets.senders == frozenset()


@both_kinds
@pytest.mark.parametrize("at", [0, 50, -1])
def test_all_boxes_that_do_not_open_are_named(hybrid: bool, at: int) -> None:
    made = some(hybrid, 5)
    spoilt = {}
    for peer in ("c01", "c04"):
        box = bytearray(made.boxes[peer, "c02"])
        box[at] ^= 1
        spoilt[peer, "c02"] = bytes(box)
    with pytest.raises(RoundAborted, match=r"the shares of \['c01', 'c04'\] for 'c02' do not open") as info:
        made.open("c02", None, spoilt)
    assert info.value.blame == ("c01", "c04")
    made.open("c03")


@both_kinds
def test_a_box_moved_to_another_pair_does_not_open(hybrid: bool) -> None:
    """R8, every way to swap: another sender, another receiver, the way back, another round."""
    made, other = some(hybrid), some(hybrid)
    for moved in (
        made.boxes["c01", "c02"],
        made.boxes["c03", "c00"],
        made.boxes["c00", "c01"],
        other.boxes["c01", "c00"],
    ):
        with pytest.raises(RoundAborted) as info:
            made.open("c00", None, {("c01", "c00"): moved})
        assert info.value.blame == ("c01",)
    made.open("c00")


def test_a_hybrid_box_whose_contribution_was_moved_does_not_open() -> None:
    made = some(True)
    box = made.boxes["c01", "c00"]
    theirs = made.boxes["c02", "c00"]
    mixed = theirs[:CONTRIBUTION_BYTES] + box[CONTRIBUTION_BYTES:]
    with pytest.raises(RoundAborted) as info:
        made.open("c00", None, {("c01", "c00"): mixed})
    assert info.value.blame == ("c01",)


def test_shares_outside_the_prime_are_refused() -> None:
    made = some()
    plain = np.zeros(2 * shamir.LIMBS, "<u4")
    plain[-1] = shamir.PRIME
    assert made.clients["c01"]._transport is not None
    box = made.clients["c01"]._transport.seal("c01", "c00", made.publics["c00"], BINDING, plain.tobytes())[0]
    with pytest.raises(RoundAborted) as info:
        made.open("c00", None, {("c01", "c00"): box})
    assert info.value.blame == ("c01",)


def test_a_peer_whose_key_gives_no_secret_is_named() -> None:
    secrets = RoundSecrets("c00", False)
    good = RoundSecrets("c01", False).public
    graph = Graph.complete(names(3))
    for bad in (PublicKeys(bytes(32), good.transport), PublicKeys(good.mask, bytes(32))):
        publics = {"c00": secrets.public, "c01": good, "c02": bad}
        with pytest.raises(RoundAborted, match="'c02': The peer's ephemeral key has low order") as info:
            secrets.deal(graph, 2, publics, BINDING, "AES-128")
        assert info.value.blame == ("c02",)


def test_a_seeds_hash_is_bound_to_its_owner_and_round() -> None:
    base = (bytes(16), 1, bytes(32), bytes(32), bytes(32))
    hashes = {
        hash_seed(Binding(*base), "a", b"s" * 32),
        hash_seed(Binding(*base), "b", b"s" * 32),
        hash_seed(Binding(*base), "a", b"t" * 32),
        hash_seed(Binding(b"x" * 16, *base[1:]), "a", b"s" * 32),
        hash_seed(Binding(base[0], 2, *base[2:]), "a", b"s" * 32),
        hash_seed(Binding(*base[:2], b"x" * 32, *base[3:]), "a", b"s" * 32),
    }
    assert len(hashes) == 6


@both_kinds
def test_receipts_are_known_to_the_sender_and_to_whoever_opened_the_box(hybrid: bool) -> None:
    made = some(hybrid)
    made.deliver(["c00", "c01", "c02"])
    from_c01 = made.clients["c01"].receipts()  # for the boxes of c00 and c02
    assert len(from_c01) == 2 * RECEIPT_BYTES
    for_c00, for_c02 = from_c01[:RECEIPT_BYTES], from_c01[RECEIPT_BYTES:]
    assert made.clients["c00"].verify(["c01"], for_c00) == []
    assert made.clients["c02"].verify(["c01"], for_c02) == []
    for wrong in (for_c02, bytes(16), for_c00[:-1] + bytes([for_c00[-1] ^ 1])):
        assert made.clients["c00"].verify(["c01"], wrong) == ["c01"]
    own = made.clients["c00"].receipts()[:RECEIPT_BYTES]  # for the box of c01: the way back is another
    assert made.clients["c00"].verify(["c01"], own) == ["c01"]
    assert made.clients["c00"].verify(["c01", "c03"], for_c00 + for_c00) == ["c03"]
    assert made.clients["c01"].receipts() == b"", "they leave with one vector"


def test_a_box_has_the_bytes_that_the_table_says() -> None:
    """Two shares of nine 31-bit limbs, a tag; in a hybrid round two ciphertexts, a contribution, its tag."""
    assert SHARE_BYTES == 36
    assert box_bytes(False) == 2 * 36 + 16
    assert box_bytes(True) == 2 * 36 + 16 + 2 * 1088 + 32 + 16
