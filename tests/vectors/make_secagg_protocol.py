"""Write `secagg_protocol.json`: derivations, messages and whole rounds, as the package makes them.

    python -m tests.vectors.make_secagg_protocol

The same file comes out every time: what is random in a round is drawn from `InsecureSource` while this script
runs, and nowhere else. Every case says all that went in, secrets included, so that another implementation can
follow it byte by byte; `verify_secagg_protocol.py` is one. It lends this script one thing: `cryptography` has
no encapsulation with given randomness, so ciphertexts of ML-KEM-768 are made there, and the package, which
opens them in every hybrid round, confirms them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secagg import (
    Client,
    Encoding,
    Identity,
    MemoryRegister,
    Policy,
    Roster,
    Schema,
    Server,
    averaged,
    counted,
    ephemeral,
    public,
    same,
    shamir,
)
from secagg.cohort import bind_beacon, hash_context, hash_roster, hash_same, hash_survivors
from secagg.ephemeral import Binding, MaskKey, PublicKeys, TransportKey, pair_mask_key, self_mask_key
from secagg.graph import draw, threshold
from secagg.keys import hash_parts, length_prefixed
from secagg.masks import CIPHER_KEY_BYTES, keystream
from secagg.messages import (
    Advert,
    Agreement,
    Consistency,
    Delivery,
    Masked,
    Message,
    Offer,
    Opened,
    RosterMessage,
    Shares,
    Survivors,
    Unmask,
    seal,
    to_bits,
)
from secagg.sharing import hash_seed
from tests.secagg.parties import Parties, run_round
from tests.vectors.verify_secagg_protocol import kem_encapsulate

PATH = Path(__file__).with_name("secagg_protocol.json")
Case = dict[str, Any]


def fixed(label: str, size: int = 32) -> bytes:
    """Bytes that follow from a label alone."""
    return hashlib.shake_256(f"secagg vectors: {label}".encode()).digest(size)


# Randomness that repeats ----------------------------------------------------------------------------------


@dataclass
class InsecureSource:
    """Draws that follow from the case, from who draws, for what, and how often before."""

    label: str
    who: str = ""
    drawn: dict[tuple[str, str], list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def draw(self, purpose: str, size: int) -> bytes:
        past = self.drawn[self.who, purpose]
        past.append(fixed(f"{self.label}: {self.who}: {purpose}: {len(past)}", size))
        return past[-1]

    def clamped(self, size: int) -> bytes:
        """An X25519 private key with the bits that RFC 7748 ignores as it sets them."""
        number = int.from_bytes(self.draw("unclamped", size), "little") & (2**255 - 8) | 2**254
        self.drawn[self.who, "transport"].append(number.to_bytes(size, "little"))
        return self.drawn[self.who, "transport"][-1]

    def only(self, who: str, purpose: str) -> bytes:
        """What was drawn for this; no bytes where nothing was."""
        past = self.drawn.get((who, purpose), [b""])
        assert len(past) == 1
        return past[0]


@contextmanager
def replayable(source: InsecureSource) -> Iterator[None]:
    """Let all that the protocol draws come from `source`, inside this block only."""

    def bytes_for(purpose: str) -> SimpleNamespace:
        def drawn(size: int) -> bytes:
            return source.draw(purpose, size)

        return SimpleNamespace(token_bytes=drawn, urandom=drawn)

    x25519 = SimpleNamespace(
        generate=lambda: X25519PrivateKey.from_private_bytes(source.clamped(32)),
        from_private_bytes=X25519PrivateKey.from_private_bytes,
    )
    ml_kem = SimpleNamespace(
        generate=lambda: MLKEM768PrivateKey.from_seed_bytes(source.draw("transport kem", 64)),
        from_seed_bytes=MLKEM768PrivateKey.from_seed_bytes,
    )
    kem_public = ephemeral._kem_public

    def encapsulator(key: bytes) -> SimpleNamespace:
        kem_public(key)

        def encapsulate() -> tuple[bytes, bytes]:
            ciphertext, secret = kem_encapsulate(key, source.draw("encapsulation", 32))
            return secret, ciphertext

        return SimpleNamespace(encapsulate=encapsulate)

    with ExitStack() as stack:
        for target, replacement in (
            ("secagg.sharing.secrets", bytes_for("self seed")),
            ("secagg.ephemeral.secrets", bytes_for("mask seed")),
            ("secagg.shamir.os", bytes_for("shares")),
            ("secagg.ephemeral.X25519PrivateKey", x25519),
            ("secagg.ephemeral.MLKEM768PrivateKey", ml_kem),
            ("secagg.ephemeral._kem_public", encapsulator),
        ):
            stack.enter_context(mock.patch(target, replacement))
        yield


class HashedRounding:
    """Uniform multiples of 2^-24, the same wherever it runs."""

    def __init__(self, label: str) -> None:
        self.label, self.count = label, 0

    def random(self, *, dtype: type[np.float32], out: np.ndarray) -> None:
        self.count += 1
        drawn = np.frombuffer(fixed(f"{self.label}: {self.count}", 4 * out.size), "<u4") >> 8
        out[:] = drawn.astype(np.float32) * np.float32(2**-24)


# Derivations ----------------------------------------------------------------------------------------------

SESSION, ROUND = fixed("session", 16), 2**53 - 1
IDS = ["Zürich", "c10", "c2", "å", "￮", "😀"]
"""Sorted by code point the last two stand as here; by UTF-16, as some languages sort, the other way round."""


def binding(label: str) -> Binding:
    roster, context, config = (fixed(f"{label}: {part}") for part in ("roster", "context", "config"))
    return Binding(fixed(f"{label}: session", 16), ROUND, roster, context, config)


def keyring(bound: Binding) -> Case:
    return {
        "session": bound.session.hex(),
        "round": bound.round,
        "roster": bound.roster.hex(),
        "context": bound.context.hex(),
        "config": bound.config.hex(),
    }


def list_cases() -> Iterator[Case]:
    for parts in ([], [b""], [b"a", b"", bytes(300)]):
        hexadecimal = [part.hex() for part in parts]
        name = f"{len(parts)} parts"
        yield {"check": "list", "name": name, "parts": hexadecimal, "output": length_prefixed(*parts).hex()}
        output = hash_parts("a purpose", *parts).hex()
        yield {
            "check": "hash",
            "name": name,
            "purpose": "a purpose",
            "parts": hexadecimal,
            "output": output,
        }


def hash_cases() -> Iterator[Case]:
    """Every hash that a message or a key rests on."""
    where: Case = {"session": SESSION.hex(), "round": ROUND}
    for application in (b"", fixed("application", 70)):
        output = hash_context(SESSION, ROUND, application).hex()
        yield {
            "check": "context",
            "name": f"{len(application)} bytes",
            **where,
            "application": application.hex(),
            "output": output,
        }
    for value in ("résumé", "a" * 40, -129, 2**63 - 1, 1, 1.0, True, fixed("same value", 33)):
        yield {
            "check": "same",
            "name": type(value).__name__,
            **where,
            "field": "größe",
            "type": type(value).__name__,
            "value": value.hex() if isinstance(value, bytes) else value,
            "packed": msgspec.msgpack.encode([type(value).__name__, value]).hex(),
            "output": hash_same(SESSION, ROUND, "größe", value).hex(),
        }
    schema = Schema(update=averaged(1.0, weight="n", shape=(3,)), n=counted())
    yield {
        "check": "config",
        "name": "of a schema",
        "schema": schema.to_bytes().hex(),
        "output": schema.digest.hex(),
    }
    digests = {name: fixed(f"advert of {name}") for name in IDS}
    opened = {name: Opened(mock.sentinel.advert, memoryview(b""), digests[name]) for name in reversed(IDS)}
    roster, beacon = hash_roster(fixed("offer"), opened), fixed("beacon", 64)
    yield {
        "check": "roster",
        "name": "with and without a beacon",
        "offer": fixed("offer").hex(),
        "adverts": [digests[name].hex() for name in IDS],
        "output": roster.hex(),
        "beacon": beacon.hex(),
        "with_beacon": bind_beacon(roster, beacon).hex(),
    }
    bound, seed = binding("self seed"), fixed("self seed")
    where = {"session": bound.session.hex(), "round": bound.round, "roster": bound.roster.hex()}
    output = hash_seed(bound, "å", seed).hex()
    yield {"check": "self seed", "name": "its hash", **where, "id": "å", "seed": seed.hex(), "output": output}
    ids = sorted([*IDS, "c0", "c1", "c3", "c4", "c5"])
    survivors = [name for i, name in enumerate(ids) if i not in (0, 7, 9)]
    bits = to_bits(ids, survivors)
    yield {
        "check": "survivors",
        "name": f"{len(survivors)} of {len(ids)}",
        "roster": roster.hex(),
        "ids": ids,
        "survivors": survivors,
        "bits": bits.hex(),
        "output": hash_survivors(roster, bits).hex(),
    }


def key_cases() -> Iterator[Case]:
    for i in range(2):
        key = MaskKey(fixed(f"mask seed {i}"), hybrid=True)
        assert key._kem is not None
        yield {
            "check": "mask keys",
            "name": f"seed {i}",
            "seed": key.seed.hex(),
            "receiver": IDS[i],
            "private": key._private.private_bytes_raw().hex(),
            "public": key.public.hex(),
            "kem_seed": key._kem.private_bytes_raw().hex(),
            "kem_public": key.kem_public.hex(),
            "contribution": key.contribution(IDS[i]).hex(),
        }
    bound, publics = binding("info"), [fixed("a public key"), b"", fixed("another")]
    for purpose, ids in (
        ("self mask", ["å"]),
        ("pair mask", ["c10", "c2"]),
        ("share box", ["c2", "c10"]),
        ("contribution", ["å", "c2"]),
    ):
        yield {
            "check": "info",
            "name": purpose,
            "keyring": keyring(bound),
            "purpose": purpose,
            "ids": ids,
            "publics": [part.hex() for part in publics],
            "output": bound.info(purpose, ids, publics).hex(),
        }


def pair_case(cipher: str, hybrid: bool, names: tuple[str, str]) -> Case:
    """All that two clients derive, through the objects that hold their keys."""
    label = f"pair with {cipher}, {'hybrid' if hybrid else 'X25519 alone'}"
    source, bound, length = InsecureSource(label), binding(label), CIPHER_KEY_BYTES[cipher]
    with replayable(source):
        masks, transports, publics = {}, {}, {}
        for source.who in names:
            masks[source.who], transport = MaskKey.generate(hybrid), TransportKey(hybrid)
            transports[source.who] = transport
            x25519, kem = transport.keys
            own = masks[source.who]
            publics[source.who] = PublicKeys(own.public, x25519, own.kem_public, kem)
        source.who, (u, v) = names[0], names
        plain = fixed(f"{label}: shares", 72)
        box, receipt = transports[u].seal(u, v, publics[v], bound, plain)
        sealed = masks[u].seal_contribution(u, v, publics[v], bound) if hybrid else b""
    assert transports[v].open(v, u, publics[u], bound, box) == (plain, receipt)
    given = {u: masks[u].contribution(v), v: masks[v].contribution(u)} if hybrid else {u: b"", v: b""}
    sides = [(name, publics[name], given[name]) for name in names]
    key = pair_mask_key(masks[u].exchange(publics[v].mask), sides[0], sides[1], bound, length)
    clients = {}
    for name in names:
        seed = fixed(f"{label}: self seed of {name}")
        own_key = self_mask_key(seed, name, publics[name], bound, length)
        clients[name] = {
            "mask_seed": masks[name].seed.hex(),
            "self_seed": seed.hex(),
            "transport": source.only(name, "transport").hex(),
            "transport_kem": source.only(name, "transport kem").hex(),
            "public": [
                getattr(publics[name], key).hex()
                for key in ("mask", "transport", "mask_kem", "transport_kem")
            ],
            "self_key": own_key.hex(),
            "self_stream": keystream(own_key).update(bytes(64)).hex(),
        }
    return {
        "check": "pair",
        "name": label,
        "keyring": keyring(bound),
        "cipher": cipher,
        "clients": clients,
        "pair_key": key.hex(),
        "pair_stream": keystream(key).update(bytes(64)).hex(),
        "plain": plain.hex(),
        "sealed": sealed.hex(),
        "box": box.hex(),
        "receipt": receipt.hex(),
    }


def graph_cases() -> Iterator[Case]:
    for n, degree in ((40, 8), (33, 32), (32, 8), (40, 0)):
        ids = [*IDS, *(f"c{i}" for i in range(20, 14 + n))]
        roster = bind_beacon(fixed("roster of a graph"), fixed("beacon", 64))
        ring = sorted(ids, key=lambda name: hash_parts("graph position", roster, name.encode()))
        graph = draw(ids, degree, roster)
        yield {
            "check": "graph",
            "name": f"{n} clients, degree {degree}",
            "roster": roster.hex(),
            "ids": ids,
            "degree": degree,
            "order": ring,
            "neighbours": {name: list(graph.neighbours(name)) for name in ids[:12]},
        }
    for fraction, holders in (
        (2 / 3, 3),
        (2 / 3, 5),
        (0.6, 5),
        (0.55, 100),
        (0.7, 10),
        (1.0, 7),
        (99 / 139, 139),
    ):
        t = threshold(fraction, holders)
        yield {
            "check": "threshold",
            "name": f"{t} of {holders}",
            "fraction": fraction,
            "holders": holders,
            "threshold": t,
        }


def share_cases() -> Iterator[Case]:
    for secret, t, holders in ((fixed("secret"), 1, 2), (b"\xff" * 32, 3, 5), (fixed("secret"), 4, 4)):
        with replayable(InsecureSource(f"shares {t}")):
            rows = shamir.split([secret], holders, t)[:, 0].astype("<u4")
        points = list(range(holders, holders - t, -1))
        chosen = rows[[x - 1 for x in points]][:, None]
        assert shamir.reconstruct(points, chosen) == [secret]
        yield {
            "check": "shares",
            "name": f"{t} of {holders}",
            "secret": secret.hex(),
            "threshold": t,
            "coefficients": coefficients(secret, rows[: t - 1].tolist()),
            "shares": [row.tobytes().hex() for row in rows],
            "from": points,
        }


def coefficients(secret: bytes, shares: Sequence[Sequence[int]]) -> list[list[int]]:
    """Those of x, x^2, ... of the polynomials through the secret at 0 and shares at 1, 2, ...

    The package draws the first shares and not the coefficients; the one follows from the other.
    """
    prime = shamir.PRIME
    number = int.from_bytes(secret, "little")
    rows = [[number >> 30 * j & (2**30 - 1) for j in range(shamir.LIMBS)], *map(list, shares)]
    found = []
    for limb in zip(*rows, strict=True):
        # Newton's divided differences, then expanded into powers.
        differences, n = list(limb), len(limb)
        for step in range(1, n):
            for i in range(n - 1, step - 1, -1):
                differences[i] = (differences[i] - differences[i - 1]) * pow(step, -1, prime) % prime
        powers = [0] * n
        for i in range(n - 1, -1, -1):
            powers = [(low - i * high) % prime for low, high in zip([0, *powers[:-1]], powers, strict=True)]
            powers[0] = (powers[0] + differences[i]) % prime
        found.append(powers[1:])
    return [list(row) for row in zip(*found, strict=True)]


# Messages -------------------------------------------------------------------------------------------------


def message_cases() -> Iterator[Case]:
    server, client = Identity("server", fixed("server")), Identity("å", fixed("client"))
    roster, hashed, tail = fixed("roster"), fixed("hash"), fixed("tail", 216)
    theirs, mine = (SESSION, ROUND, ""), (SESSION, 7, client.name)
    schema = Schema(update=averaged(1.0, weight="n", shape=(3,)), n=counted()).to_bytes()
    keys = (fixed("mask key"), fixed("transport key"))
    advert = Advert(
        *mine,
        fixed("offer"),
        *keys,
        b"",
        b"",
        fixed("context"),
        same={"model": hashed, "größe": roster},
        public={"site": "Zürich", "rows": 70_000, "offset": -129, "rate": 0.1, "on": True},
        public_bytes={"key": fixed("public bytes", 40)},
    )
    hybrid = msgspec.structs.replace(
        advert,
        mask_kem=fixed("mask kem", 1184),
        transport_kem=fixed("transport kem", 1184),
        same={},
        public={},
    )
    adverts = [seal(client, one)[0] for one in (advert, hybrid)]
    for identity, message, rest in (
        (server, Offer(*theirs, schema, 300, 5, 2 / 3, 0, "AES-128", False), b""),
        (server, Offer(*theirs, b"", 2**31, 2**16, 1.0, 138, "AES-256", True), b""),
        (client, advert, b""),
        (client, hybrid, b""),
        (server, RosterMessage(*theirs, adverts), b""),
        (client, Shares(*mine, roster, hashed), tail[:176]),
        (server, Delivery(*theirs, roster, b"\x05"), tail[:176]),
        (client, Masked(*mine, roster, 0, fixed("receipts", 48)), tail),
        (client, Masked(*mine, roster, 2**20, b""), tail),
        (server, Survivors(*theirs, roster, b"\xfe\xff\x01"), b""),
        (client, Consistency(*mine, roster, hashed), b""),
        (server, Agreement(*theirs, roster, b"\x81\x01"), tail[:208]),
        (client, Unmask(*mine, roster, hashed), tail[:108]),
    ):
        yield message_case(identity, message, rest)


def message_case(identity: Identity, message: Message, tail: bytes) -> Case:
    data, digest = seal(identity, message, tail)
    names = message.__struct_fields__
    return {
        "check": "message",
        "name": f"{type(message).__name__}, {len(data)} bytes",
        "kind": type(message).__name__,
        "identity": identity._private.private_bytes_raw().hex(),
        "session": message.session.hex(),
        "round": message.round,
        "sender": message.sender,
        "entries": {name: in_json(getattr(message, name)) for name in names[3:]},
        "tail": tail.hex(),
        "digest": digest.hex(),
        "bytes": data.hex(),
    }


def in_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: in_json(item) for key, item in value.items()}
    return [in_json(item) for item in value] if isinstance(value, list) else value


# Rounds ---------------------------------------------------------------------------------------------------


@dataclass
class Recorded:
    """A party whose calls say who draws randomness, and whose messages are kept if the server got them."""

    party: Any
    source: InsecureSource
    messages: list[Case]
    everybody: list[str]
    who: str = ""
    part_words: int = 0
    server: Any = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.party, name)
        return self._calling(name, found) if callable(found) else found

    def _calling(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.source.who = self.who
            answer = method(*args, **kwargs)
            if not self.who:
                self._keep(name, args, answer)
            return answer

        return call

    def _keep(self, name: str, args: Sequence[Any], answer: Any) -> None:
        """What the server took and what it sent; one message to several clients once."""
        if name == "receive":
            self.messages.append({"to": [], "bytes": args[0].hex()})
        if name == "open":
            self.messages.append({"to": self.everybody, "bytes": answer.hex()})
        if name == "advance":
            together: dict[bytes, list[str]] = defaultdict(list)
            for client, message in sorted(answer.items()):
                together[message].append(client)
            self.messages += [{"to": names, "bytes": m.hex()} for m, names in together.items()]

    def submit(self, values: Mapping[str, Any]) -> bytes:
        """In one message, or in several of which all but the last go to the server at once."""
        self.source.who = self.who
        if not self.part_words:
            return self.party.submit(values)
        *parts, last = self.party.submit_parts(values, part_words=self.part_words)
        for part in parts:
            self.server.receive(part)
        return last


@dataclass
class Setting:
    """What a round of the file is about."""

    name: str
    ids: list[str]
    policy: Policy
    drops: dict[str, str]
    degree: int = 0
    beacon: bytes | None = None
    in_parts: str = ""


SCHEMA = Schema(
    update=averaged(1.0, weight="n", shape=(5,)),
    n=counted(),
    model=same(),
    layers=same(),
    site=public(),
    rate=public(),
    seal=public(),
)
SETTINGS = [
    Setting(
        "complete graph, one client lost before its vector and one before it unmasks",
        ["å", "c10", "c2", "￮", "😀"],
        Policy(min_clients=3, allow_three=True, threshold_fraction=0.6, colluders=0),
        {"c2": "vector", "å": "unmask"},
        in_parts="c10",
    ),
    Setting(
        "sparse graph, clients lost at every stage",
        [f"c{i}" for i in range(40)],
        Policy(min_clients=3, allow_three=True, cipher="AES-256", colluders=0, sparse=True),
        {
            "c3": "advert",
            "c1": "shares",
            "c10": "vector",
            "c20": "vector",
            "c30": "consistency",
            "c5": "unmask",
        },
        degree=6,
        beacon=fixed("beacon of the sparse round 3", 64),
    ),
    Setting(
        "hybrid keys, one client lost before its vector",
        ["c0", "c1", "c2", "c3"],
        Policy(min_clients=3, allow_three=True, colluders=0, hybrid=True),
        {"c1": "vector"},
    ),
]


def round_case(setting: Setting) -> Case:
    source, messages = InsecureSource(setting.name), list[Case]()
    identities = {name: Identity(name, fixed(f"identity of {name}")) for name in setting.ids}
    boss = Identity("server", fixed("identity of the server"))
    roster = Roster(boss.public_key, {name: one.public_key for name, one in identities.items()})
    session, application = fixed(f"{setting.name}: session", 16), fixed(f"{setting.name}: application", 100)
    inner = Server(boss, roster, SCHEMA, policy=setting.policy, session=session, degree=setting.degree)
    server = Recorded(inner, source, messages, setting.ids)

    def rounding(name: str) -> Callable[[bytes, int], Any]:
        return lambda *_: HashedRounding(f"{setting.name}: rounding of {name}")

    clients = []
    for name, identity in identities.items():
        client = Client(
            identity,
            roster,
            SCHEMA,
            policy=setting.policy,
            register=MemoryRegister(),
            rounding=rounding(name),
        )
        parts = 3 if name == setting.in_parts else 0
        clients.append(Recorded(client, source, messages, setting.ids, name, parts, server))
    alike = {"model": "v3", "layers": 12}
    declared = [
        {**alike, "site": name, "rate": 0.5 + i, "seal": fixed(f"seal {i}", 8)}
        for i, name in enumerate(setting.ids)
    ]
    values = {name: values_of(f"{setting.name}: {name}") for name in setting.ids}
    parties = Parties(boss, list(identities.values()), roster, server, clients)  # type: ignore[arg-type]
    with replayable(source):
        result = run_round(
            parties,
            list(values.values()),
            3,
            drops=setting.drops,
            beacon=setting.beacon,
            context=application,
            declared=declared,
        )
    encoding = Encoding(SCHEMA, len(setting.ids))
    words = {name: encoding.encode(values[name], rounding(name)(session, 3)) for name in result.survivors}
    total = np.sum(list(words.values()), axis=0, dtype=np.uint64)
    verify_result(encoding, total, result)
    return {
        "check": "round",
        "name": setting.name,
        "session": session.hex(),
        "round": 3,
        "application": application.hex(),
        "beacon": (setting.beacon or b"").hex(),
        "server": boss._private.private_bytes_raw().hex(),
        "same": {key: [type(value).__name__, value] for key, value in alike.items()},
        "clients": {
            name: client_case(
                source, identities[name], declared[i], words.get(name), setting.drops.get(name, "")
            )
            for i, name in enumerate(setting.ids)
            if setting.drops.get(name) != "advert"
        },
        "messages": messages,
        "survivors": list(result.survivors),
        "transcript": result.transcript.hex(),
        "sum": total.astype("<u8").tobytes().hex(),
    }


def values_of(label: str) -> dict[str, Any]:
    drawn = np.frombuffer(fixed(label, 24), "<u4").astype(np.float64)
    return {"update": drawn[:5] / 2**31 - 1, "n": int(drawn[5]) % 1000 + 1}


def verify_result(encoding: Encoding, total: np.ndarray, result: Any) -> None:
    """The package's own result is that of these words."""
    decoded = encoding.decode(total.copy(), len(result.survivors)).values
    assert decoded.keys() == result.values.keys()
    assert all(np.array_equal(decoded[key], result.values[key]) for key in decoded)


def client_case(
    source: InsecureSource,
    identity: Identity,
    declared: Mapping[str, Any],
    words: np.ndarray | None,
    lost: str,
) -> Case:
    """The secrets of a client that messages depend on, and what it declared."""
    stated = {key: declared[key] for key in ("site", "rate", "seal")}
    name = identity.name
    return {
        "identity": identity._private.private_bytes_raw().hex(),
        "mask_seed": source.only(name, "mask seed").hex(),
        "self_seed": "" if lost == "shares" else source.only(name, "self seed").hex(),
        "transport": source.only(name, "transport").hex(),
        "transport_kem": source.only(name, "transport kem").hex(),
        "public": {key: value for key, value in stated.items() if not isinstance(value, bytes)},
        "public_bytes": {key: value.hex() for key, value in stated.items() if isinstance(value, bytes)},
        "words": "" if words is None else words.astype("<u8").tobytes().hex(),
    }


# The file -------------------------------------------------------------------------------------------------


def cases() -> list[Case]:
    return [
        *list_cases(),
        *hash_cases(),
        *key_cases(),
        pair_case("AES-128", False, ("c10", "c2")),
        pair_case("AES-256", False, ("😀", "￮")),
        pair_case("AES-256", True, ("c2", "c10")),
        *graph_cases(),
        *share_cases(),
        *message_cases(),
        *map(round_case, SETTINGS),
    ]


def text() -> str:
    """The file's text."""
    document = {
        "source": "docs/secagg-protocol.md, as this package implements it",
        "url": "https://doi.org/10.1145/3133956.3133982",
        "generator": "python -m tests.vectors.make_secagg_protocol",
        "cases": cases(),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), "utf-8")
