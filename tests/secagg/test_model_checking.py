"""Model checking: every order in which a malicious server can hand messages to three honest clients.

The machines are the real ones, with real keys and signatures. A state of one client is all that its object
holds, by content; what one message does to a client in one state is run once and remembered, and states of
the three together with what the attacker has are explored until there is no new one. A message may be left
out, or come any number of times, at any time; the server may deliver several sets of boxes, name several
sets of survivors, offer the round twice, and hand over any of the signatures that it has.

At n = 3 no set but all three passes a policy, so the smallest cohort is lowered to two here: then it is the
protocol alone that has to hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secagg import Client, ClientPhase, MemoryRegister, Policy, SecAggError
from secagg.client import _Round
from secagg.cohort import hash_survivors
from secagg.ephemeral import RECEIPT_BYTES, MaskKey, TransportKey
from secagg.graph import threshold
from secagg.messages import Consistency, Masked, Shares, Unmask, signature_of, to_bits
from secagg.sharing import MASK_SEED, SELF_SEED, SHARE_BYTES, RoundSecrets
from tests.secagg.threats.attacker import SCHEMA, Attacker, secret_values
from tests.secagg.threats.snapshots import copied, snapshot

NAMES = ("c0", "c1", "c2")
ALL = frozenset(NAMES)
TWO_SETS = (ALL, frozenset({"c0", "c1"}))
EVERY_SET = tuple(frozenset(s) for k in (2, 3) for s in combinations(NAMES, k))
VALUES = secret_values(NAMES)
OTHERS = {name: {**each, "n": 1} for name, each in VALUES.items()}


class Two(Policy):
    """Sums of two are allowed: the protocol must hold without the policy's help."""

    __slots__ = ()

    def __post_init__(self) -> None:
        pass


TWO = Two(min_clients=2, threshold_fraction=2 / 3, colluders=0)
Fact = tuple[Any, ...]


def content(thing: Any) -> Any:
    """All that an object holds, by value."""
    match thing:
        case Ed25519PrivateKey() | X25519PrivateKey():
            return thing.private_bytes_raw()
        case np.ndarray():
            return thing.tobytes()
        case dict():
            return tuple(sorted((key, content(value)) for key, value in thing.items()))
        case set() | frozenset():
            return tuple(sorted(thing))
        case Client():
            return thing.name, content({k: v for k, v in thing.__dict__.items() if k not in FIXED})
        case MemoryRegister():
            return content(thing._used)
        case _Round() | RoundSecrets() | MaskKey() | TransportKey():
            slots = (s for s in type(thing).__slots__ if s not in FIXED and hasattr(thing, s))
            return (type(thing).__name__, *((slot, content(getattr(thing, slot))) for slot in slots))
        case _:
            return repr(thing)


FIXED = {"_guard", "_identity", "_roster", "_schema", "_policy", "_rounding", "schema", "encoding", "offer"}
"""The same in every state of one client: not part of what tells two states apart."""


def fingerprint(client: Client) -> bytes:
    return hashlib.sha256(repr(content(client)).encode()).digest()


class Broken(AssertionError):  # noqa: N818  # it names what happened
    """A state that must not be reachable, and the messages that lead there."""


class Model:
    """The three clients, and everything that the server can do to them.

    Args:
        client: Their class: ours, or a mutant.
        sets: Which sets of survivors and of boxes the server may name.
        policy: What the clients insist on.
        **offer: What is offered, where not what the policy says.
    """

    def __init__(
        self,
        client: type[Client] = Client,
        sets: Iterable[frozenset[str]] = TWO_SETS,
        policy: Policy = TWO,
        **offer: Any,
    ) -> None:
        self.server = Attacker(3, SCHEMA, client=client, policy=policy)
        self.sets = tuple(sets)
        self.offers = {"again": self.server.offer(**offer, capacity=4), "offer": self.server.offer(**offer)}
        self.threshold = threshold(self.server.now.offer.threshold_fraction, 3)
        self.machines: list[Client] = []
        self.places: dict[bytes, int] = {}
        self.facts: list[Fact] = []
        self.bits: dict[Fact, int] = {}
        self.made: dict[str, bytes | None] = {}
        self.offered: dict[tuple[str, int], list[str]] = {}
        self.steps: dict[tuple[int, str], tuple[int, int]] = {}
        self.receipts: dict[tuple[str, str], bytes] = {}

    def known(self, client: Client) -> int:
        """The number of a client's state; a new one if no client was ever in it."""
        mark = fingerprint(client)
        if mark not in self.places:
            self.places[mark] = len(self.machines)
            self.machines.append(client)
        return self.places[mark]

    def gain(self, facts: Iterable[Fact]) -> int:
        """Facts as bits of a number."""
        gained = 0
        for fact in facts:
            if fact not in self.bits:
                self.bits[fact] = 1 << len(self.facts)
                self.facts.append(fact)
            gained |= self.bits[fact]
        return gained

    def facts_of(self, have: int) -> set[Fact]:
        return {fact for fact, bit in self.bits.items() if have & bit}

    def labels(self, who: str, have: int) -> list[str]:
        """What the server, who has these facts, can do to a client; each message is made once."""
        if (who, have) not in self.offered:
            found = dict(self.messages(who, self.facts_of(have)))
            for label, make in found.items():
                if label not in self.made:
                    self.made[label] = make()
            self.offered[who, have] = list(found)
        return self.offered[who, have]

    def messages(self, who: str, facts: set[Fact]) -> Iterator[tuple[str, Callable[[], bytes | None]]]:
        """Every message that can be made, and the application's calls (None)."""
        server = self.server
        for name, offer in self.offers.items():
            yield name, partial(bytes, offer)
        yield "submit", lambda: None
        yield "submit others", lambda: None
        if not {("advert", name) for name in NAMES} <= facts:
            return
        yield "roster", server.roster_message
        for chosen in self.sets:
            named = "+".join(sorted(chosen))
            yield f"survivors {named}", partial(server.survivors, chosen)
            if all(("boxes", name) in facts for name in chosen - {who}):
                yield f"boxes of {named} for {who}", partial(server.delivery, who, chosen - {who})
            signers = sorted(fact[1] for fact in facts if fact[0] == "signed" and fact[2] == chosen)
            receipts = sorted(h for h in chosen if ("receipt", h, who) in facts)
            for size in range(1, len(signers) + 1):
                for some in combinations(signers, size):
                    yield (
                        f"agreement on {named} by {'+'.join(some)} for {who}, receipts {'+'.join(receipts)}",
                        partial(self.agreement, who, chosen, some, receipts),
                    )

    def agreement(self, who: str, chosen: frozenset[str], signers: Any, holders: list[str]) -> bytes:
        """With these signatures, and the receipts of these holders for the client's boxes."""
        self.server.now.receipts = {(h, who): self.receipts[h, who] for h in holders}
        return self.server.agreement(who, chosen, signers)

    def step(self, who: str, mark: int, label: str) -> tuple[int, int]:
        """What a message does to a client in one state: its next state, and what the attacker gets."""
        if (mark, label) not in self.steps:
            client = snapshot(self.machines[mark])
            gained = self.gain(self.act(who, client, label))
            self.steps[mark, label] = self.known(client), gained
        return self.steps[mark, label]

    def act(self, who: str, client: Client, label: str) -> list[Fact]:
        """Hand a message to a machine; returns what the attacker learns."""
        shares = dict((client._round.secrets._shares if client._round else None) or {})
        message = self.made[label]
        try:
            if message is None:
                answer = client.submit((OTHERS if label == "submit others" else VALUES)[who])
            else:
                answer = client.receive(message)
        except SecAggError:
            return []
        return [] if answer is None else list(self.learnt(who, label, answer, shares))

    def learnt(self, who: str, label: str, answer: bytes, shares: dict[str, Any]) -> Iterator[Fact]:
        """What an answer gives to the attacker, read out of its bytes."""
        server, opened = self.server, self.server.opened(answer)
        match opened.message:
            case Shares():
                server.now.boxes[who] = opened
                yield "boxes", who
            case Masked():
                yield "masked", who, hashlib.sha256(opened.tail).digest()
                receipts = opened.message.receipts
                for place, peer in enumerate(sorted(shares.keys() - {who})):
                    self.receipts[who, peer] = receipts[place * RECEIPT_BYTES : (place + 1) * RECEIPT_BYTES]
                    yield "receipt", who, peer
            case Consistency(survivors=signed):
                server.now.signatures[who, self.set_of(signed)] = signature_of(answer)
                yield "signed", who, self.set_of(signed)
            case Unmask(survivors=signed):
                yield "gave", who, self.set_of(signed)
                rows = np.frombuffer(bytes(opened.tail), "<u4").reshape(-1, SHARE_BYTES // 4)
                for peer, row in zip(sorted(shares), rows, strict=True):
                    for which in (SELF_SEED, MASK_SEED):
                        if np.array_equal(shares[peer][which], row):
                            yield "share", who, peer, which
            case _ if label == "offer":  # for the other offer no roster is made
                server.take_advert(answer)
                yield "advert", who

    def set_of(self, signed: bytes) -> frozenset[str]:
        """The set that a hash is of."""
        roster = self.server.now.roster
        return next(s for s in self.sets if hash_survivors(roster, to_bits(NAMES, s)) == signed)

    def broken(self, have: int) -> Iterator[str]:
        """The invariants that do not hold where the attacker has these facts."""
        facts = self.facts_of(have)
        for who in NAMES:
            if len({fact for fact in facts if fact[:2] == ("signed", who)}) > 1:
                yield f"{who} signed two sets"
            if len({fact for fact in facts if fact[:2] == ("masked", who)}) > 1:
                yield f"{who} masked two vectors"
            held = {
                which: len(facts.intersection(("share", h, who, which) for h in NAMES)) for which in (0, 1)
            }
            if min(held.values()) >= self.threshold:
                yield f"both secrets of {who} are known"
        if len({fact[2] for fact in facts if fact[0] == "gave"}) > 1:
            yield "shares were given for two sets"

    def explore(self, looking_for: str = "") -> int:
        """Visit every reachable state, depth first; returns how many there are.

        Raises:
            Broken: If one of them breaks an invariant (that holds `looking_for` in its name).
        """
        start = (*(self.known(client) for client in self.server.clients.values()), 0)
        before: dict[tuple[int, ...], tuple[Any, str]] = {start: (None, "")}
        verified, stack = {0}, [start]
        while stack:
            state = stack.pop()
            for place, who in enumerate(NAMES):
                mark = state[place]
                for label in self.labels(who, state[3]):
                    after, gained = self.step(who, mark, label)
                    have = state[3] | gained
                    if after == mark and have == state[3]:
                        continue
                    following = (*state[:place], after, *state[place + 1 : 3], have)
                    if following in before:
                        continue
                    before[following] = state, f"{label} → {who}"
                    stack.append(following)
                    if have not in verified:
                        verified.add(have)
                        for what in self.broken(have):
                            if looking_for in what:
                                raise Broken(f"{what}: {'; '.join(path(before, following))}")
        return len(before)

    def __str__(self) -> str:
        return f"{len(self.machines)} states of one client, {len(self.steps)} steps of the real machine"


def path(before: dict[Any, Any], state: Any) -> list[str]:
    """The steps that led to a state."""
    steps = []
    while before[state][0] is not None:
        state, step = before[state]
        steps.append(step)
    return steps[::-1]


@pytest.fixture(scope="module")
def explored() -> tuple[Model, int]:
    model = Model()
    return model, model.explore()


def test_no_order_of_messages_gives_two_secrets_two_sets_or_two_vectors(explored, capsys):
    model, states = explored
    with capsys.disabled():
        print(f"\n{states} states of three clients; {model}")
    assert states > 5_000
    done = model.facts
    assert {fact[1:] for fact in done if fact[0] == "gave"} == {
        (name, chosen) for chosen in TWO_SETS for name in chosen
    }, "either set can be agreed upon, by everybody in it"
    assert {fact[3] for fact in done if fact[0] == "share"} == {SELF_SEED, MASK_SEED}


def test_under_a_policy_of_three_one_set_is_all_that_is_ever_signed(capsys):
    policy = Policy(min_clients=3, allow_three=True, colluders=0)
    model = Model(sets=EVERY_SET, policy=policy)
    states = model.explore()
    with capsys.disabled():
        print(f"\n{states} states of three clients; {model}")
    assert {fact[2] for fact in model.facts if fact[0] == "signed"} == {ALL}
    assert {fact[3] for fact in model.facts if fact[0] == "share"} == {SELF_SEED}


class SignsAgain(Client):
    """Signs whatever set it is shown."""

    def _accept_survivors(self, state, message):
        answer = super()._accept_survivors(state, message)
        self._phase = ClientPhase.SUBMITTED
        return answer


class Trusting(Client):
    """Gives shares for its set, whoever signed it."""

    def _verify_agreement(self, *_):
        pass


class GivesAgain(Client):
    """Keeps a round's shares when it has given them, and goes back to where it was."""

    def _accept_agreement(self, state, message, signatures):
        kept = copied(state.secrets)
        answer = super()._accept_agreement(state, message, signatures)
        self._round, state.secrets, self._phase = state, kept, ClientPhase.SUBMITTED
        return answer


class MasksAgain(Client):
    """Keeps a vector's masks when it has used them."""

    def _take_masks(self, state):
        kept = copied(state.secrets)
        masks = super()._take_masks(state)
        state.secrets, self._phase = kept, ClientPhase.READY
        return masks


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        (SignsAgain, "signed two sets"),
        (Trusting, "shares were given for two sets"),
        (GivesAgain, "both secrets of c2 are known"),
        (MasksAgain, "masked two vectors"),
    ],
)
def test_a_client_without_one_defence_is_found_out(mutant, what):
    with pytest.raises(Broken, match=rf"{what}: offer → c\d; "):
        Model(mutant).explore(what)


def test_a_threshold_of_one_is_found_out():
    class One(Two):
        __slots__ = ()

        def verify_graph(self, *_):
            pass

        def verify_offer(self, _):
            pass

    policy = One(min_clients=2, colluders=0)
    with pytest.raises(Broken, match="both secrets of c2 are known: "):
        Model(policy=policy, threshold_fraction=1 / 3).explore("both secrets")


def test_snapshots_stand_for_the_machines(explored):
    """Random walks of machines that are not copied between steps go where the model says.

    But where keys or shares are drawn: there they go on with the ones that the model saw.
    """
    model, _ = explored
    rng = np.random.default_rng(1)
    for _ in range(20):
        clients = [snapshot(model.machines[place]) for place in range(3)]
        marks, have = [0, 1, 2], 0
        for _ in range(40):
            place = int(rng.integers(3))
            labels = model.labels(NAMES[place], have)
            label = labels[int(rng.integers(len(labels)))]
            draws = label in model.offers or (label == "roster" and marks[place] not in (0, 1, 2))
            if draws:
                marks[place], gained = model.step(NAMES[place], marks[place], label)
                clients[place], have = snapshot(model.machines[marks[place]]), have | gained
                continue
            gained = model.gain(model.act(NAMES[place], clients[place], label))
            marks[place], expected = model.step(NAMES[place], marks[place], label)
            assert gained == expected
            assert fingerprint(clients[place]) == fingerprint(model.machines[marks[place]])
            have |= gained


@pytest.mark.slow
def test_no_order_of_messages_breaks_anything_where_every_set_may_be_named(capsys):
    model = Model(sets=EVERY_SET)
    states = model.explore()
    with capsys.disabled():
        print(f"\n{states} states of three clients; {model}")
    assert states > 50_000
