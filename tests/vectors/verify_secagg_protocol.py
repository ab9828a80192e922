"""A second implementation of the protocol, from `docs/secagg-protocol.md` alone, that checks the vectors.

It shares no code with the package and uses no library beyond Python's own: slow, small and made for reading.
It is no implementation to deploy: nothing here runs in constant time, and it reads secrets from a file.

    python tests/vectors/verify_secagg_protocol.py [secagg_protocol.json]

prints what it checked, and exits 0 if all of it holds, 1 at the first thing that does not. In order:

    curves      X25519 (RFC 7748) and Ed25519 (RFC 8032)
    ciphers     AES, its counter mode (SP 800-38A) and GCM (SP 800-38D)
    ML-KEM-768  (FIPS 203)
    bytes       L, H, HKDF (RFC 5869), msgpack, bit sets
    messages    the ten kinds, signed
    protocol    keys, boxes, shares, graph
    cases       one check for each kind of case in the file
    rounds      a whole round, from what went over the wire and the participants' secrets
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import math
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class MismatchError(Exception):
    """Something in the file is not what the page says."""


def need(condition: bool, what: str) -> None:
    if not condition:
        raise MismatchError(what)


# Curves ---------------------------------------------------------------------------------------------------

P25519 = 2**255 - 19
BASE = (9).to_bytes(32, "little")


@functools.cache
def x25519(private: bytes, public: bytes = BASE) -> bytes:
    """RFC 7748, section 5: the Montgomery ladder."""
    need(len(private) == len(public) == 32, "X25519 keys have 32 bytes")
    k = int.from_bytes(private, "little") & (2**255 - 8) | 2**254
    x1 = int.from_bytes(public, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap, p = 1, 0, x1, 1, 0, P25519
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % p, b * b % p, d * a % p, c * b % p
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
    if swap:
        x2, z2 = x3, z3
    shared = (x2 * pow(z2, -1, p) % p if z2 % p else 0).to_bytes(32, "little")
    need(shared != bytes(32), "an all-zero X25519 secret is refused")
    return shared


Point = tuple[int, int, int, int]  # extended coordinates: x = X/Z, y = Y/Z, xy = T/Z
ED_ORDER = 2**252 + 27742317777372353535851937790883648493
ED_D = -121665 * pow(121666, -1, P25519) % P25519


def ed_add(a: Point, b: Point) -> Point:
    """RFC 8032, section 5.1.4."""
    p = P25519
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % p, (a[1] + a[0]) * (b[1] + b[0]) % p
    g, h = 2 * ED_D * a[3] * b[3] % p, 2 * a[2] * b[2] % p
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % p, g * h % p, f * g % p, e * h % p


def ed_multiply(pairs: Sequence[tuple[int, Point]]) -> Point:
    """The sum of scalar times point, all scalars read together from the highest bit."""
    total: Point = (0, 1, 1, 0)
    for bit in reversed(range(256)):
        total = ed_add(total, total)
        for scalar, point in pairs:
            if scalar >> bit & 1:
                total = ed_add(total, point)
    return total


def ed_decode(data: bytes) -> Point:
    """RFC 8032, section 5.1.3."""
    need(len(data) == 32, "an Ed25519 point has 32 bytes")
    p = P25519
    sign, y = data[31] >> 7, int.from_bytes(data, "little") & (2**255 - 1)
    need(y < p, "an Ed25519 point is reduced")
    x2 = (y * y - 1) * pow(ED_D * y * y + 1, -1, p) % p
    x = pow(x2, (p + 3) // 8, p)
    if (x * x - x2) % p:
        x = x * pow(2, (p - 1) // 4, p) % p
    need((x * x - x2) % p == 0 and not (x == 0 and sign), "an Ed25519 point lies on the curve")
    x = p - x if x & 1 != sign else x
    return x, y, 1, x * y % p


def ed_encode(point: Point) -> bytes:
    inverse = pow(point[2], -1, P25519)
    x, y = point[0] * inverse % P25519, point[1] * inverse % P25519
    return (y | (x & 1) << 255).to_bytes(32, "little")


ED_BASE = ed_decode((4 * pow(5, -1, P25519) % P25519).to_bytes(32, "little"))


def ed_hash(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % ED_ORDER


@functools.cache
def ed25519_public(private: bytes) -> bytes:
    scalar = int.from_bytes(hashlib.sha512(private).digest()[:32], "little") & (2**255 - 8) | 2**254
    return ed_encode(ed_multiply([(scalar, ED_BASE)]))


@functools.cache
def ed25519_sign(private: bytes, message: bytes) -> bytes:
    """RFC 8032, section 5.1.6."""
    head, prefix = hashlib.sha512(private).digest()[:32], hashlib.sha512(private).digest()[32:]
    scalar = int.from_bytes(head, "little") & (2**255 - 8) | 2**254
    nonce = ed_hash(prefix, message)
    commitment = ed_encode(ed_multiply([(nonce, ED_BASE)]))
    answer = (nonce + ed_hash(commitment, ed25519_public(private), message) * scalar) % ED_ORDER
    return commitment + answer.to_bytes(32, "little")


@functools.cache
def ed25519_verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """RFC 8032, section 5.1.7, without cofactor: S B - k A must be R, byte for byte."""
    answer = int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or answer >= ED_ORDER:
        return False
    x, y, z, t = ed_decode(public)
    challenge = ed_hash(signature[:32], public, message)
    total = ed_multiply([(answer, ED_BASE), (challenge, (P25519 - x, y, z, P25519 - t))])
    return ed_encode(total) == signature[:32]


# Ciphers --------------------------------------------------------------------------------------------------


def xtime(a: int) -> int:
    return (a << 1) ^ (0x11B if a & 0x80 else 0)


def make_sbox() -> bytes:
    """FIPS 197, section 5.1.1: the inverse in GF(2^8), then the affine map; 3 generates the field."""
    powers = [1]
    for _ in range(254):
        powers.append(powers[-1] ^ xtime(powers[-1]))
    box = bytearray([0x63] * 256)
    for exponent, value in enumerate(powers):
        inverse = powers[-exponent % 255]
        for turn in range(5):
            box[value] ^= (inverse << turn | inverse >> (8 - turn)) & 255
    return bytes(box)


SBOX = make_sbox()
# MixColumns of a byte after SubBytes, as a big-endian word; the tables of the other rows are rotations of it.
MIX = [(xtime(s) << 24) | (s << 16) | (s << 8) | (s ^ xtime(s)) for s in SBOX]
MIXES = [[(m >> 8 * row | m << (32 - 8 * row)) & 0xFFFFFFFF for m in MIX] for row in range(4)]


@functools.cache
def aes_schedule(key: bytes) -> list[int]:
    """FIPS 197, section 5.2: the round keys, as words."""
    need(len(key) in (16, 32), "AES keys have 16 or 32 bytes")
    words = list(struct.unpack(f">{len(key) // 4}I", key))
    size, constant = len(words), 1
    while len(words) < 4 * (size + 7):
        word = words[-1]
        if len(words) % size == 0:
            word = (word << 8 | word >> 24) & 0xFFFFFFFF
        if len(words) % size == 0 or (size == 8 and len(words) % 8 == 4):
            word = int.from_bytes(bytes(SBOX[b] for b in word.to_bytes(4, "big")), "big")
        if len(words) % size == 0:
            word, constant = word ^ constant << 24, xtime(constant)
        words.append(words[-size] ^ word)
    return words


def aes(key: bytes, block: int) -> int:
    """One block, as a big-endian number."""
    keys, (m0, m1, m2, m3) = aes_schedule(key), MIXES
    state = [(block >> (96 - 32 * c) & 0xFFFFFFFF) ^ keys[c] for c in range(4)]
    for at in range(4, len(keys) - 4, 4):
        a, b, c, d = state
        state = [
            m0[a >> 24] ^ m1[b >> 16 & 255] ^ m2[c >> 8 & 255] ^ m3[d & 255] ^ keys[at],
            m0[b >> 24] ^ m1[c >> 16 & 255] ^ m2[d >> 8 & 255] ^ m3[a & 255] ^ keys[at + 1],
            m0[c >> 24] ^ m1[d >> 16 & 255] ^ m2[a >> 8 & 255] ^ m3[b & 255] ^ keys[at + 2],
            m0[d >> 24] ^ m1[a >> 16 & 255] ^ m2[b >> 8 & 255] ^ m3[c & 255] ^ keys[at + 3],
        ]
    rows = [SBOX[state[(c + row) % 4] >> (24 - 8 * row) & 255] for c in range(4) for row in range(4)]
    last = keys[-4] << 96 | keys[-3] << 64 | keys[-2] << 32 | keys[-1]
    return int.from_bytes(bytes(rows), "big") ^ last


@functools.cache
def aes_ctr(key: bytes, length: int, counter: int = 0) -> bytes:
    """The keystream; the counter block is one number of 128 bits."""
    blocks = range(counter, counter + -(-length // 16))
    return b"".join(aes(key, block % 2**128).to_bytes(16, "big") for block in blocks)[:length]


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def ghash(subkey: int, associated: bytes, ciphertext: bytes) -> int:
    """SP 800-38D, section 6.4; the first bit of a block is the coefficient of 1."""
    padded = associated + bytes(-len(associated) % 16) + ciphertext + bytes(-len(ciphertext) % 16)
    padded += struct.pack(">QQ", 8 * len(associated), 8 * len(ciphertext))
    multiples = [subkey]  # of the subkey by 1, x, x^2, ...
    for _ in range(127):
        multiples.append(multiples[-1] >> 1 ^ (0xE1 << 120 if multiples[-1] & 1 else 0))
    total = 0
    for at in range(0, len(padded), 16):
        block, total = total ^ int.from_bytes(padded[at : at + 16], "big"), 0
        for bit in range(128):
            if block >> (127 - bit) & 1:
                total ^= multiples[bit]
    return total


@functools.cache
def gcm_seal(key: bytes, plain: bytes, associated: bytes, nonce: bytes = bytes(12)) -> bytes:
    """AES-GCM: ciphertext and tag of 16 bytes."""
    start = int.from_bytes(nonce + b"\0\0\0\1", "big")
    ciphertext = xor(plain, aes_ctr(key, len(plain), start + 1))
    tag = aes(key, start) ^ ghash(aes(key, 0), associated, ciphertext)
    return ciphertext + tag.to_bytes(16, "big")


@functools.cache
def gcm_open(key: bytes, sealed: bytes, associated: bytes, nonce: bytes = bytes(12)) -> bytes:
    start = int.from_bytes(nonce + b"\0\0\0\1", "big")
    ciphertext, tag = sealed[:-16], sealed[-16:]
    expected = aes(key, start) ^ ghash(aes(key, 0), associated, ciphertext)
    need(tag == expected.to_bytes(16, "big"), "a box opens")
    return xor(ciphertext, aes_ctr(key, len(ciphertext), start + 1))


# ML-KEM-768 -----------------------------------------------------------------------------------------------

Q = 3329
Poly = list[int]


def bit_reversed(i: int) -> int:
    return int(f"{i:07b}"[::-1], 2)


ZETAS = [pow(17, bit_reversed(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * bit_reversed(i) + 1, Q) for i in range(128)]


def ntt(values: Poly) -> Poly:
    """FIPS 203, algorithm 9."""
    f, i, length = list(values), 1, 128
    while length >= 2:
        for start in range(0, 256, 2 * length):
            zeta, i = ZETAS[i], i + 1
            for j in range(start, start + length):
                t = zeta * f[j + length] % Q
                f[j], f[j + length] = (f[j] + t) % Q, (f[j] - t) % Q
        length //= 2
    return f


def inverse_ntt(values: Poly) -> Poly:
    """FIPS 203, algorithm 10."""
    f, i, length = list(values), 127, 2
    while length <= 128:
        for start in range(0, 256, 2 * length):
            zeta, i = ZETAS[i], i - 1
            for j in range(start, start + length):
                t = f[j]
                f[j], f[j + length] = (t + f[j + length]) % Q, zeta * (f[j + length] - t) % Q
        length *= 2
    return [3303 * x % Q for x in f]


def plus(*terms: Poly) -> Poly:
    return [sum(column) % Q for column in zip(*terms, strict=True)]


def dot(a: Sequence[Poly], b: Sequence[Poly]) -> Poly:
    """The inner product in the transformed domain (algorithms 11 and 12)."""
    total = [0] * 256
    for f, g in zip(a, b, strict=True):
        for i, gamma in enumerate(GAMMAS):
            f0, f1, g0, g1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
            total[2 * i] += f0 * g0 + f1 * g1 * gamma
            total[2 * i + 1] += f0 * g1 + f1 * g0
    return [x % Q for x in total]


def pack(bits: int, polys: Iterable[Poly]) -> bytes:
    """ByteEncode of compressed values; 12 bits are not compressed (algorithms 5 and 4.2.1)."""
    out = b""
    for poly in polys:
        if bits < 12:
            poly = [((x << bits) + Q // 2) // Q % 2**bits for x in poly]
        out += sum(x << bits * i for i, x in enumerate(poly)).to_bytes(32 * bits, "little")
    return out


def unpack(bits: int, data: bytes) -> list[Poly]:
    polys = []
    for at in range(0, len(data), 32 * bits):
        number = int.from_bytes(data[at : at + 32 * bits], "little")
        poly = [number >> bits * i & (2**bits - 1) for i in range(256)]
        polys.append(poly if bits == 12 else [(x * Q + 2 ** (bits - 1)) >> bits for x in poly])
    return polys


def sample_ntt(seed: bytes) -> Poly:
    """Algorithm 7: rejection from SHAKE128; 840 bytes are enough except with probability 2^-39."""
    size, out = 840, list[int]()
    while len(out) < 256:
        stream, out = hashlib.shake_128(seed).digest(size), []
        for a, b, c in zip(stream[::3], stream[1::3], stream[2::3], strict=True):
            out += [x for x in (a + 256 * (b % 16), b // 16 + 16 * c) if x < Q]
        size *= 2
    return out[:256]


def sample_cbd(seed: bytes, n: int) -> Poly:
    """Algorithm 8 with eta = 2, of SHAKE256(seed || n)."""
    number = int.from_bytes(hashlib.shake_256(seed + bytes([n])).digest(128), "little")
    quads = (number >> 4 * i for i in range(256))
    return [((x & 1) + (x >> 1 & 1) - (x >> 2 & 1) - (x >> 3 & 1)) % Q for x in quads]


def matrix(rho: bytes) -> list[list[Poly]]:
    return [[sample_ntt(rho + bytes([column, row])) for column in range(3)] for row in range(3)]


class KemKey(NamedTuple):
    public: bytes  # 1184
    secret: list[Poly]
    rejection: bytes  # z


@functools.cache
def kem_key(seed: bytes) -> KemKey:
    """Algorithms 13 and 16 from the seed d || z."""
    need(len(seed) == 64, "an ML-KEM seed has 64 bytes")
    expanded = hashlib.sha3_512(seed[:32] + b"\3").digest()
    rho, sigma = expanded[:32], expanded[32:]
    secret = [ntt(sample_cbd(sigma, i)) for i in range(3)]
    noise = [ntt(sample_cbd(sigma, 3 + i)) for i in range(3)]
    product = [plus(dot(row, secret), e) for row, e in zip(matrix(rho), noise, strict=True)]
    return KemKey(pack(12, product) + rho, secret, seed[32:])


def pke_encrypt(public: bytes, message: bytes, coins: bytes) -> bytes:
    """Algorithm 14."""
    key, rho = unpack(12, public[:1152]), public[1152:]
    y = [ntt(sample_cbd(coins, i)) for i in range(3)]
    columns = zip(*matrix(rho), strict=True)
    u = [plus(inverse_ntt(dot(c, y)), sample_cbd(coins, 3 + i)) for i, c in enumerate(columns)]
    v = plus(inverse_ntt(dot(key, y)), sample_cbd(coins, 6), unpack(1, message)[0])
    return pack(10, u) + pack(4, [v])


@functools.cache
def kem_encapsulate(public: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Algorithm 17: the ciphertext (1088 bytes) and the secret (32)."""
    need(len(public) == 1184 and pack(12, unpack(12, public[:1152])) == public[:1152], "an ML-KEM key")
    need(max(map(max, unpack(12, public[:1152]))) < Q, "an ML-KEM key is reduced")
    expanded = hashlib.sha3_512(message + hashlib.sha3_256(public).digest()).digest()
    return pke_encrypt(public, message, expanded[32:]), expanded[:32]


@functools.cache
def kem_decapsulate(seed: bytes, ciphertext: bytes) -> bytes:
    """Algorithm 18; a wrong ciphertext gives another secret, not an error."""
    need(len(ciphertext) == 1088, "an ML-KEM ciphertext has 1088 bytes")
    key = kem_key(seed)
    u, v = unpack(10, ciphertext[:960]), unpack(4, ciphertext[960:])[0]
    product = inverse_ntt(dot(key.secret, [ntt(x) for x in u]))
    message = pack(1, [[(a - b) % Q for a, b in zip(v, product, strict=True)]])
    expanded = hashlib.sha3_512(message + hashlib.sha3_256(key.public).digest()).digest()
    if pke_encrypt(key.public, message, expanded[32:]) == ciphertext:
        return expanded[:32]
    return hashlib.shake_256(key.rejection + ciphertext).digest(32)


# Bytes ----------------------------------------------------------------------------------------------------

PROTOCOL = "secagg/2"
Part = str | bytes


def u32(x: int) -> bytes:
    return x.to_bytes(4, "little")


def u64(x: int) -> bytes:
    return x.to_bytes(8, "little")


def L(*parts: Part) -> bytes:  # noqa: N802  # as the page calls it
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(u64(len(part)) + part for part in raw)


def H(purpose: str, *parts: Part) -> bytes:  # noqa: N802
    return hashlib.sha256(L(PROTOCOL, purpose, *parts)).digest()


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 without salt, which is a salt of zero bytes."""
    key = hmac.digest(bytes(32), secret, "sha256")
    out = block = b""
    for i in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([i]), "sha256")
        out += block
    return out[:length]


def packed(value: Any) -> bytes:
    """Msgpack, each value in its shortest form."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return packed_integer(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        head = bytes([0xA0 + len(text)]) if len(text) < 32 else sized(len(text), 0xD9, 0xDA, 0xDB)
        return head + text
    if isinstance(value, bytes):
        return sized(len(value), 0xC4, 0xC5, 0xC6) + value
    if isinstance(value, list):
        head = bytes([0x90 + len(value)]) if len(value) < 16 else sized(len(value), None, 0xDC, 0xDD)
        return head + b"".join(map(packed, value))
    need(isinstance(value, dict), "msgpack of what the page uses")
    head = bytes([0x80 + len(value)]) if len(value) < 16 else sized(len(value), None, 0xDE, 0xDF)
    return head + b"".join(packed(key) + packed(item) for key, item in value.items())


def packed_integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b" if value < 0 else ">B", value)
    if value >= 0:
        return sized(value, 0xCC, 0xCD, 0xCE, 0xCF)
    width = next(w for w in range(4) if value >= -(2 ** (8 * 2**w - 1)))
    return bytes([0xD0 + width]) + struct.pack(">" + "bhiq"[width], value)


def sized(value: int, *codes: int | None) -> bytes:
    """The first code whose width (1, 2, 4, 8 bytes) holds `value`, and the value, big-endian."""
    width = next(w for w, code in enumerate(codes) if code is not None and value < 256**2**w)
    code = codes[width]
    return bytes([code or 0]) + value.to_bytes(2**width, "big")


def unpacked(data: bytes) -> Any:
    """The value of exactly these bytes, which must be its shortest form."""
    value, end = unpack_at(data, 0)
    need(end == len(data) and packed(value) == data, "msgpack in its shortest form")
    return value


def unpack_at(data: bytes, at: int) -> tuple[Any, int]:
    code, at = data[at], at + 1
    if code < 0x80 or code >= 0xE0:
        return (code if code < 0x80 else code - 256), at
    if code < 0xC0:
        return unpack_items(
            data,
            at,
            code & (31 if code >= 0xA0 else 15),
            "str" if code >= 0xA0 else "map" if code < 0x90 else "array",
        )
    if code in (0xC2, 0xC3):
        return code == 0xC3, at
    if code == 0xCB:
        return struct.unpack_from(">d", data, at)[0], at + 8
    if 0xCC <= code <= 0xD3:
        return struct.unpack_from(">" + "BHIQbhiq"[code - 0xCC], data, at)[0], at + 2 ** (code & 3)
    first, kind = next(
        (first, kind)
        for first, last, kind in (
            (0xC4, 0xC6, "bin"),
            (0xD9, 0xDB, "str"),
            (0xDC, 0xDD, "array"),
            (0xDE, 0xDF, "map"),
        )
        if first <= code <= last
    )
    width = 2 ** (code - first + (first in (0xDC, 0xDE)))
    return unpack_items(data, at + width, int.from_bytes(data[at : at + width], "big"), kind)


def unpack_items(data: bytes, at: int, count: int, kind: str) -> tuple[Any, int]:
    need(at + count <= len(data), "msgpack ends where it says")
    if kind in ("bin", "str"):
        raw = data[at : at + count]
        return (raw if kind == "bin" else raw.decode()), at + count
    items = []
    for _ in range(count * (2 if kind == "map" else 1)):
        item, at = unpack_at(data, at)
        items.append(item)
    return (items if kind == "array" else dict(zip(items[::2], items[1::2], strict=True))), at


def bits_of(members: Iterable[str], ids: Sequence[str]) -> bytes:
    chosen, out = set(members), bytearray(-(-len(ids) // 8))
    need(chosen <= set(ids), "a set of ids is of known ids")
    for i, name in enumerate(ids):
        out[i // 8] |= (name in chosen) << i % 8
    return bytes(out)


def members_of(bits: bytes, ids: Sequence[str]) -> list[str]:
    chosen = [name for i, name in enumerate(ids) if i // 8 < len(bits) and bits[i // 8] >> i % 8 & 1]
    need(bits_of(chosen, ids) == bits, "bits are as many as the ids, padded with zeros")
    return chosen


# Messages -------------------------------------------------------------------------------------------------

MAGIC = b"SAG\x02"
# The further entries of each kind's header; `map` stands for a map from text.
ENTRIES: dict[str, dict[str, type]] = {
    "Offer": {
        "schema": bytes,
        "capacity": int,
        "min_clients": int,
        "threshold_fraction": float,
        "degree": int,
        "cipher": str,
        "hybrid": bool,
    },
    "Advert": {
        "offer": bytes,
        "mask_key": bytes,
        "transport_key": bytes,
        "mask_kem": bytes,
        "transport_kem": bytes,
        "context": bytes,
        "same": dict,
        "public": dict,
        "public_bytes": dict,
    },
    "RosterMessage": {"adverts": list},
    "Shares": {"roster": bytes, "seed": bytes},
    "Delivery": {"roster": bytes, "present": bytes},
    "Masked": {"roster": bytes, "start": int, "receipts": bytes},
    "Survivors": {"roster": bytes, "survivors": bytes},
    "Consistency": {"roster": bytes, "survivors": bytes},
    "Agreement": {"roster": bytes, "signers": bytes},
    "Unmask": {"roster": bytes, "survivors": bytes},
}
KINDS = list(ENTRIES)
TAILED = {"Shares", "Delivery", "Masked", "Agreement", "Unmask"}
FROM_SERVER = {"Offer", "RosterMessage", "Delivery", "Survivors", "Agreement"}


class Message(NamedTuple):
    kind: str
    session: bytes
    round: int
    sender: str
    entries: dict[str, Any]
    tail: bytes
    signature: bytes
    digest: bytes

    @property
    def signed(self) -> bytes:
        return L("secagg signed message", self.digest)


def message_body(kind: str, session: bytes, round: int, sender: str, entries: dict[str, Any]) -> bytes:
    """The bytes from 69 on, without the tail."""
    header = packed([session, round, sender, *(entries[name] for name in ENTRIES[kind])])
    return u32(len(header)) + header


def message_digest(kind: str, body: bytes) -> bytes:
    return hashlib.sha256(MAGIC + bytes([KINDS.index(kind)]) + body).digest()


def is_in_range(kind: str, name: str, value: Any) -> bool:
    """Whether an entry of the right type is one that the page allows."""
    if name in ("roster", "seed", "offer", "mask_key", "transport_key", "context"):
        return len(value) == 32
    if name == "survivors" and kind != "Survivors":  # its hash, not the set
        return len(value) == 32
    if name in ("same", "public", "public_bytes"):
        kinds = {"same": (bytes,), "public": (str, int, float, bool), "public_bytes": (bytes,)}[name]
        fields = all(type(field) is str and 1 <= len(field) <= 128 for field in value)
        sizes = all(len(x) == 32 if name == "same" else is_short(x) for x in value.values())
        return fields and len(value) <= 4096 and sizes and all(type(x) in kinds for x in value.values())
    match name:
        case "capacity" | "min_clients":
            return bool(1 <= value <= 2**31)
        case "threshold_fraction":
            return bool(0 <= value <= 1)
        case "degree":
            return bool(0 <= value <= 2**17 and value % 2 == 0)
        case "cipher":
            return value in ("AES-128", "AES-256")
        case "mask_kem" | "transport_kem":
            return len(value) in (0, 1184)
        case "start":
            return bool(value >= 0)
        case "receipts":
            return len(value) % 16 == 0
        case _:
            return True


def is_short(value: Any) -> bool:
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) not in (str, bytes) or len(value) <= 4096


def read_message(data: bytes) -> Message:
    """Take a message apart, strictly; the signature is not yet checked."""
    need(data[:4] == MAGIC and len(data) >= 73 and data[4] < len(KINDS), "magic and kind")
    kind, signature, body = KINDS[data[4]], data[5:69], data[69:]
    end = 4 + int.from_bytes(body[:4], "little")
    need(end <= len(body), "the header's length")
    header, tail = unpacked(body[4:end]), body[end:]
    need(isinstance(header, list) and len(header) == 3 + len(ENTRIES[kind]), "the header's entries")
    session, number, sender = header[:3]
    entries = dict(zip(ENTRIES[kind], header[3:], strict=True))
    need(type(session) is bytes and len(session) == 16, "session")
    need(type(number) is int and 0 <= number < 2**53, "round")
    need(type(sender) is str and len(sender) <= 128, "sender")
    need((sender == "") == (kind in FROM_SERVER), "the server's kinds come from the server alone")
    need(kind in TAILED or not tail, "a tail only where one belongs")
    for name, value in entries.items():
        need(type(value) is ENTRIES[kind][name], f"type of {name}")
        if not is_in_range(kind, name, value):
            raise MismatchError(f"range of {name}")
    digest = message_digest(kind, body)
    return Message(kind, session, number, sender, entries, tail, signature, digest)


# Protocol -------------------------------------------------------------------------------------------------


class Keyring(NamedTuple):
    """What every key of a round is bound to."""

    session: bytes
    round: int
    roster: bytes
    context: bytes
    config: bytes

    def info(self, purpose: str, ids: Sequence[str], publics: Sequence[bytes]) -> bytes:
        head = (PROTOCOL, purpose, self.session, u64(self.round))
        return L(*head, *ids, *publics, self.roster, self.context, self.config)

    def associated(self, sender: str, receiver: str) -> bytes:
        return L(self.session, u64(self.round), sender, receiver)


class Public(NamedTuple):
    """The ephemeral public keys of an advert."""

    mask: bytes
    transport: bytes
    mask_kem: bytes
    transport_kem: bytes


def mask_private(seed: bytes) -> bytes:
    return hkdf(seed, L(PROTOCOL, "mask key"), 32)


def mask_kem_seed(seed: bytes) -> bytes:
    return hkdf(seed, L(PROTOCOL, "mask kem"), 64)


def contribution(seed: bytes, receiver: str) -> bytes:
    return hkdf(seed, L(PROTOCOL, "contribution", receiver), 32)


def pair_mask_key(
    keys: Keyring, cipher: str, secret: bytes, ends: dict[str, Public], given: dict[str, bytes]
) -> bytes:
    """`secret` of X25519, the public keys of both ends, and their contributions if the round is hybrid."""
    first, second = sorted(ends)
    a, b = ends[first], ends[second]
    info = keys.info("pair mask", (first, second), (a.mask, b.mask, a.mask_kem, b.mask_kem))
    secret += given[first] + given[second]
    return hkdf(secret, info, key_length(cipher))


def self_mask_key(keys: Keyring, cipher: str, seed: bytes, name: str, mask_key: bytes) -> bytes:
    return hkdf(seed, keys.info("self mask", (name,), (mask_key,)), key_length(cipher))


def key_length(cipher: str) -> int:
    return {"AES-128": 16, "AES-256": 32}[cipher]


def box_key(
    keys: Keyring, secret: bytes, sender: tuple[str, Public], receiver: tuple[str, Public], ciphertext: bytes
) -> tuple[bytes, bytes]:
    """The key of a box, and the receipt that opening it gives."""
    (u, a), (v, b) = sender, receiver
    publics = (a.transport, a.transport_kem, b.transport, b.transport_kem, ciphertext)
    derived = hkdf(secret, keys.info("share box", (u, v), publics), 48)
    return derived[:32], derived[32:]


def contribution_key(
    keys: Keyring, secret: bytes, sender: tuple[str, Public], receiver: tuple[str, Public], ciphertext: bytes
) -> bytes:
    (u, a), (v, b) = sender, receiver
    return hkdf(secret, keys.info("contribution", (u, v), (a.mask_kem, b.mask_kem, ciphertext)), 32)


PRIME = 2**31 - 1
LIMBS = 9


def limbs(secret: bytes) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [number >> 30 * j & (2**30 - 1) for j in range(LIMBS)]


def from_limbs(values: Sequence[int]) -> bytes:
    need(len(values) == LIMBS and max(values) < 2**30, "limbs have 30 bits")
    return sum(x << 30 * j for j, x in enumerate(values)).to_bytes(32, "little")


def share_at(secret: bytes, coefficients: Sequence[Sequence[int]], point: int) -> bytes:
    """`coefficients[i][j]` belongs to the power i + 1 and limb j."""
    rows = [limbs(secret), *coefficients]
    values = (sum(row[j] * point**i for i, row in enumerate(rows)) % PRIME for j in range(LIMBS))
    return b"".join(map(u32, values))


def interpolate(shares: dict[int, bytes], at: int) -> bytes:
    """The share of point `at` on the polynomial of least degree through `shares`."""
    rows = {x: struct.unpack("<9I", share) for x, share in shares.items()}
    need(all(value < PRIME for row in rows.values() for value in row), "shares are reduced")
    totals = [0] * LIMBS
    for x, row in rows.items():
        others = [y for y in rows if y != x]
        top, bottom = math.prod(at - y for y in others), math.prod(x - y for y in others)
        weight = top * pow(bottom, -1, PRIME)
        totals = [total + weight * value for total, value in zip(totals, row, strict=True)]
    return b"".join(u32(total % PRIME) for total in totals)


def reconstruct(shares: dict[int, bytes]) -> bytes:
    return from_limbs(struct.unpack("<9I", interpolate(shares, 0)))


def threshold_of(fraction: float, holders: int) -> int:
    return max(1, math.ceil(fraction * holders - 1e-9))


def graph_order(roster: bytes, ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=lambda name: H("graph position", roster, name))


def neighbours_in(roster: bytes, ids: Iterable[str], degree: int) -> dict[str, list[str]]:
    """All others; or the `degree / 2` before and after each on the ring. Sorted by id."""
    ring = graph_order(roster, ids)
    n, near = len(ring), range(1, degree // 2 + 1)
    if degree == 0 or n <= 32 or n < degree + 2:
        near = range(1, n)
    return {
        name: sorted({ring[(at + step) % n] for step in near} | {ring[at - step] for step in near})
        for at, name in enumerate(ring)
    }


# Cases ----------------------------------------------------------------------------------------------------

Case = dict[str, Any]


def equal(one: Any, other: Any, what: str) -> None:
    need(one == other, f"{what}: {shown(one)} is not {shown(other)}")


def shown(value: Any) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def raw(text: str) -> bytes:
    need(isinstance(text, str) and text == text.lower(), "hexadecimal digits are lower case")
    return bytes.fromhex(text)


def keyring_of(case: Case) -> Keyring:
    k = case["keyring"]
    return Keyring(raw(k["session"]), k["round"], raw(k["roster"]), raw(k["context"]), raw(k["config"]))


def typed(kind: str, value: Any) -> Any:
    """A declared value; JSON has no bytes, so they are written in hexadecimal digits."""
    value = raw(value) if kind == "bytes" else value
    need(type(value).__name__ == kind, "a declared value's type")
    return value


def same_hash(session: bytes, number: int, field: str, kind: str, value: Any) -> bytes:
    return H("same", session, u64(number), field, packed([kind, typed(kind, value)]))


def config_hash(schema: bytes) -> bytes:
    return hashlib.sha256(b"secagg schema" + schema).digest()


def check_list(c: Case) -> None:
    equal(L(*map(raw, c["parts"])), raw(c["output"]), "L")


def check_hash(c: Case) -> None:
    equal(H(c["purpose"], *map(raw, c["parts"])), raw(c["output"]), "H")


def check_context(c: Case) -> None:
    got = H("context", raw(c["session"]), u64(c["round"]), raw(c["application"]))
    equal(got, raw(c["output"]), "context")


def check_same(c: Case) -> None:
    equal(packed([c["type"], typed(c["type"], c["value"])]), raw(c["packed"]), "msgpack of a same value")
    got = same_hash(raw(c["session"]), c["round"], c["field"], c["type"], c["value"])
    equal(got, raw(c["output"]), "same")


def check_config(c: Case) -> None:
    equal(config_hash(raw(c["schema"])), raw(c["output"]), "config")


def check_roster(c: Case) -> None:
    roster = H("roster", raw(c["offer"]), *map(raw, c["adverts"]))
    equal(roster, raw(c["output"]), "roster")
    equal(H("beacon", roster, raw(c["beacon"])), raw(c["with_beacon"]), "roster and beacon")


def check_self_seed(c: Case) -> None:
    got = H("self seed", raw(c["session"]), u64(c["round"]), raw(c["roster"]), c["id"], raw(c["seed"]))
    equal(got, raw(c["output"]), "hash of a self-mask seed")


def check_survivors(c: Case) -> None:
    bits = bits_of(c["survivors"], sorted(c["ids"]))
    equal(bits, raw(c["bits"]), "bits")
    equal(H("survivors", raw(c["roster"]), bits), raw(c["output"]), "survivors")


def check_mask_keys(c: Case) -> None:
    seed = raw(c["seed"])
    equal(mask_private(seed), raw(c["private"]), "mask key")
    equal(x25519(mask_private(seed)), raw(c["public"]), "public mask key")
    equal(mask_kem_seed(seed), raw(c["kem_seed"]), "seed of the ML-KEM mask key")
    equal(kem_key(mask_kem_seed(seed)).public, raw(c["kem_public"]), "public ML-KEM mask key")
    equal(contribution(seed, c["receiver"]), raw(c["contribution"]), "contribution")


def check_info(c: Case) -> None:
    got = keyring_of(c).info(c["purpose"], c["ids"], list(map(raw, c["publics"])))
    equal(got, raw(c["output"]), "info")


class Secrets(NamedTuple):
    """The ephemeral secrets of a client; without ML-KEM the last is empty."""

    mask_seed: bytes
    self_seed: bytes
    transport: bytes
    transport_kem: bytes

    @property
    def public(self) -> Public:
        hybrid = bool(self.transport_kem)
        mask_kem = kem_key(mask_kem_seed(self.mask_seed)).public if hybrid else b""
        transport_kem = kem_key(self.transport_kem).public if hybrid else b""
        return Public(x25519(mask_private(self.mask_seed)), x25519(self.transport), mask_kem, transport_kem)


def secrets_of(c: Case) -> Secrets:
    secrets = Secrets(*(raw(c[name]) for name in ("mask_seed", "self_seed", "transport", "transport_kem")))
    number = int.from_bytes(secrets.transport, "little")
    # X25519 ignores five bits; in this file they are as RFC 7748 sets them, so that every bit is checked.
    need(number == number & (2**255 - 8) | 2**254, "X25519 private keys as RFC 7748 decodes them")
    return secrets


def pair_key(keys: Keyring, cipher: str, clients: dict[str, Secrets]) -> bytes:
    (u, a), (v, b) = clients.items()
    secret = x25519(mask_private(a.mask_seed), b.public.mask)
    given = {u: b"", v: b""}
    if a.transport_kem:
        given = {u: contribution(a.mask_seed, v), v: contribution(b.mask_seed, u)}
    return pair_mask_key(keys, cipher, secret, {u: a.public, v: b.public}, given)


BOX, CIPHERTEXT, SEALED = 88, 1088, 1136


def open_box(
    keys: Keyring, box: bytes, sender: tuple[str, Public], receiver: tuple[str, Secrets]
) -> tuple[bytes, bytes]:
    """The shares that `sender` sealed for `receiver`, and the receipt."""
    (u, a), (v, b) = sender, receiver
    hybrid = bool(b.transport_kem)
    ciphertext, sealed = box[: CIPHERTEXT * hybrid], box[CIPHERTEXT * hybrid :]
    secret = x25519(b.transport, a.transport)
    secret += kem_decapsulate(b.transport_kem, ciphertext) if hybrid else b""
    key, receipt = box_key(keys, secret, sender, (v, b.public), ciphertext)
    return gcm_open(key, sealed, keys.associated(u, v)), receipt


def open_contribution(
    keys: Keyring, sealed: bytes, sender: tuple[str, Public], receiver: tuple[str, bytes, Public]
) -> bytes:
    """A contribution; a mask seed is all that it takes, so that the server opens those for who dropped."""
    (u, _), (v, seed, public) = sender, receiver
    secret = kem_decapsulate(mask_kem_seed(seed), sealed[:CIPHERTEXT])
    key = contribution_key(keys, secret, sender, (v, public), sealed[:CIPHERTEXT])
    return gcm_open(key, sealed[CIPHERTEXT:], keys.associated(u, v))


def check_pair(c: Case) -> None:
    """All that two clients derive: masks, and the boxes from the first to the second."""
    keys, clients = keyring_of(c), {name: secrets_of(x) for name, x in c["clients"].items()}
    key = pair_key(keys, c["cipher"], clients)
    equal(key, raw(c["pair_key"]), "key of a pair mask")
    equal(aes_ctr(key, 64), raw(c["pair_stream"]), "keystream of a pair mask")
    for name, x in clients.items():
        expected = c["clients"][name]
        equal([part.hex() for part in x.public], expected["public"], "public keys")
        key = self_mask_key(keys, c["cipher"], x.self_seed, name, x.public.mask)
        equal(key, raw(expected["self_key"]), "key of a self mask")
        equal(aes_ctr(key, 64), raw(expected["self_stream"]), "keystream of a self mask")
    (u, a), (v, b) = clients.items()
    plain, receipt = open_box(keys, raw(c["box"]), (u, a.public), (v, b))
    equal(plain, raw(c["plain"]), "shares in a box")
    equal(receipt, raw(c["receipt"]), "receipt of a box")
    if b.transport_kem:
        opened = open_contribution(keys, raw(c["sealed"]), (u, a.public), (v, b.mask_seed, b.public))
        equal(opened, contribution(a.mask_seed, v), "contribution in its box")
    else:
        equal(c["sealed"], "", "no contribution outside hybrid rounds")


def check_graph(c: Case) -> None:
    equal(graph_order(raw(c["roster"]), c["ids"]), c["order"], "order of the graph")
    found = neighbours_in(raw(c["roster"]), c["ids"], c["degree"])
    equal({name: found[name] for name in c["neighbours"]}, c["neighbours"], "neighbours of some")


def check_threshold(c: Case) -> None:
    equal(threshold_of(c["fraction"], c["holders"]), c["threshold"], "threshold")


def check_shares(c: Case) -> None:
    secret, rows, count = raw(c["secret"]), c["coefficients"], len(c["shares"])
    equal(len(rows), c["threshold"] - 1, "degree of the polynomials")
    shares = {x: share_at(secret, rows, x) for x in range(1, count + 1)}
    equal([share.hex() for share in shares.values()], c["shares"], "shares")
    equal(reconstruct({x: shares[x] for x in c["from"]}), secret, "reconstruction")


def named_entries(kind: str, entries: Case) -> dict[str, Any]:
    """A header's entries as JSON has them, with bytes where the page says bytes."""

    def value(name: str, item: Any) -> Any:
        if ENTRIES[kind][name] is bytes:
            return raw(item)
        if name in ("same", "public_bytes"):
            return {key: raw(x) for key, x in item.items()}
        return list(map(raw, item)) if name == "adverts" else item

    return {name: value(name, item) for name, item in entries.items()}


def check_message(c: Case) -> None:
    """Build the message from its parts, sign it, and take it apart again."""
    entries = named_entries(c["kind"], c["entries"])
    body = message_body(c["kind"], raw(c["session"]), c["round"], c["sender"], entries) + raw(c["tail"])
    digest = message_digest(c["kind"], body)
    equal(digest, raw(c["digest"]), "digest")
    signature = ed25519_sign(raw(c["identity"]), L("secagg signed message", digest))
    data = MAGIC + bytes([KINDS.index(c["kind"])]) + signature + body
    equal(data, raw(c["bytes"]), "message")
    equal(read_message(data).entries, entries, "entries of a message taken apart")


# Rounds ---------------------------------------------------------------------------------------------------

Words = list[int]


def words_of(data: bytes) -> Words:
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


def combined(words: Words, signed: Iterable[tuple[int, Words]]) -> Words:
    """`words` and each mask times its sign, modulo 2^64."""
    total = list(words)
    for sign, mask in signed:
        total = [(a + sign * b) % 2**64 for a, b in zip(total, mask, strict=True)]
    return total


class Round:
    """What went over the wire in one round, checked stage by stage in the order of the page."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.session, self.number = raw(case["session"]), case["round"]
        self.clients = {name: secrets_of(case["clients"][name]) for name in sorted(case["clients"])}
        self.words = {name: words_of(raw(x["words"])) for name, x in case["clients"].items() if x["words"]}
        self.sent: dict[str, dict[str, list[Message]]] = {kind: {} for kind in KINDS}
        for entry in case["messages"]:
            self.record(raw(entry["bytes"]), entry["to"])

    def record(self, data: bytes, receivers: Sequence[str]) -> None:
        """Keep a message by its receivers if it is the server's, else by its sender."""
        m = read_message(data)
        identity = self.case["server"] if m.sender == "" else self.case["clients"][m.sender]["identity"]
        need(ed25519_verify(ed25519_public(raw(identity)), m.signature, m.signed), "signature")
        need(m.session == self.session and m.round == self.number, "session and round")
        need(bool(receivers) == (m.sender == ""), "the server's messages go to clients")
        for name in receivers or [m.sender]:
            self.sent[m.kind].setdefault(name, []).append(m)

    def only(self, kind: str, name: str) -> Message:
        equal(len(self.sent[kind][name]), 1, f"number of {kind} messages of {name}")
        return self.sent[kind][name][0]

    def senders(self, kind: str) -> list[str]:
        return sorted(self.sent[kind])

    def check(self) -> None:
        self.check_adverts()
        self.check_roster()
        self.check_shares()
        self.check_deliveries()
        self.check_vectors()
        self.check_consistency()
        self.check_unmask()
        self.check_result()

    def check_adverts(self) -> None:
        equal(self.senders("Advert"), list(self.clients), "clients that advertise")
        first = self.only("Offer", next(iter(self.clients)))
        self.offer, self.context = (
            first.entries,
            H("context", self.session, u64(self.number), raw(self.case["application"])),
        )
        same = {f: same_hash(self.session, self.number, f, *x) for f, x in self.case["same"].items()}
        self.public: dict[str, Public] = {}
        for name, secrets in self.clients.items():
            equal(self.only("Offer", name).digest, first.digest, "offer")
            entries, given = self.only("Advert", name).entries, self.case["clients"][name]
            self.public[name] = secrets.public
            published = tuple(entries[k] for k in ("mask_key", "transport_key", "mask_kem", "transport_kem"))
            equal(published, tuple(secrets.public), "ephemeral public keys")
            equal(bool(secrets.transport_kem), self.offer["hybrid"], "ML-KEM in hybrid rounds alone")
            equal(entries["offer"], first.digest, "offer that an advert answers")
            equal(entries["context"], self.context, "context")
            equal(list(entries["same"].items()), list(same.items()), "same")
            equal(entries["public"], given["public"], "public values")
            equal(
                {k: x.hex() for k, x in entries["public_bytes"].items()},
                given["public_bytes"],
                "public bytes",
            )
        keys = [key for public in self.public.values() for key in public if key]
        equal(len(set(keys)), len(keys), "distinct ephemeral keys")

    def check_roster(self) -> None:
        adverts = [self.only("Advert", name) for name in self.clients]
        rosters = {
            m.digest: m for name in self.senders("RosterMessage") for m in [self.only("RosterMessage", name)]
        }
        for m in rosters.values():
            equal([read_message(data) for data in m.entries["adverts"]], adverts, "adverts in the roster")
        roster = H("roster", adverts[0].entries["offer"], *(advert.digest for advert in adverts))
        ids, degree = list(self.clients), self.offer["degree"]
        if degree and len(ids) > 32:
            beacon = raw(self.case["beacon"])
            need(len(beacon) >= 16, "a beacon has 16 bytes")
            roster = H("beacon", roster, beacon)
        else:
            equal(self.case["beacon"], "", "a beacon for a sparse graph alone")
        self.neighbours = neighbours_in(roster, ids, degree)
        config = config_hash(self.offer["schema"])
        self.keys = Keyring(self.session, self.number, roster, self.context, config)
        self.holders = {name: sorted([*self.neighbours[name], name]) for name in ids}
        self.threshold = {
            name: threshold_of(self.offer["threshold_fraction"], len(self.holders[name])) for name in ids
        }
        for kind in KINDS[3:]:
            for messages in self.sent[kind].values():
                need(all(m.entries["roster"] == roster for m in messages), "roster in every later message")

    def check_shares(self) -> None:
        """Open every box with its receiver's secrets; the shares lie on one polynomial with the secret."""
        size = BOX + (SEALED + CIPHERTEXT) * self.offer["hybrid"]
        self.boxes: dict[tuple[str, str], bytes] = {}
        self.shares: dict[tuple[str, str], tuple[bytes, bytes]] = {}  # (owner, holder): of b, of s
        self.receipts: dict[tuple[str, str], bytes] = {}
        for u in self.senders("Shares"):
            m, secrets = self.only("Shares", u), self.clients[u]
            seed = H("self seed", self.session, u64(self.number), self.keys.roster, u, secrets.self_seed)
            equal(m.entries["seed"], seed, "hash of the self-mask seed")
            equal(len(m.tail), size * len(self.neighbours[u]), "length of the boxes")
            for at, v in enumerate(self.neighbours[u]):
                self.boxes[u, v] = m.tail[at * size : (at + 1) * size]
                plain, self.receipts[u, v] = self.opened(u, v)
                equal(len(plain), 72, "length of two shares")
                self.shares[u, v] = plain[:36], plain[36:]
            self.check_polynomial(u)
        known = [name for name, secrets in self.clients.items() if secrets.self_seed]
        equal(self.senders("Shares"), known, "self-mask seeds of those who shared them, and of nobody else")

    def opened(self, u: str, v: str) -> tuple[bytes, bytes]:
        box, receiver = self.boxes[u, v], self.clients[v]
        if self.offer["hybrid"]:
            end = (v, receiver.mask_seed, self.public[v])
            given = open_contribution(self.keys, box[:SEALED], (u, self.public[u]), end)
            equal(given, contribution(self.clients[u].mask_seed, v), "contribution in its box")
            box = box[SEALED:]
        return open_box(self.keys, box, (u, self.public[u]), (v, receiver))

    def check_polynomial(self, u: str) -> None:
        """Through (0, secret) and t - 1 shares goes one polynomial: all others lie on it, also u's own."""
        points = {v: i for i, v in enumerate(self.holders[u], 1)}
        secrets, own = (self.clients[u].self_seed, self.clients[u].mask_seed), []
        for which, secret in enumerate(secrets):
            given = {points[v]: self.shares[u, v][which] for v in self.neighbours[u]}
            base = {0: b"".join(map(u32, limbs(secret)))} | dict(list(given.items())[: self.threshold[u] - 1])
            for x, share in given.items():
                need(x in base or interpolate(base, x) == share, "shares lie on one polynomial")
            own.append(interpolate(base, points[u]))
        self.shares[u, u] = own[0], own[1]

    def check_deliveries(self) -> None:
        """Each client gets the boxes of those neighbours whose Shares came."""
        self.peers: dict[str, list[str]] = {}  # the neighbours of u in U2
        for u in self.senders("Delivery"):
            m = self.only("Delivery", u)
            self.peers[u] = members_of(m.entries["present"], self.neighbours[u])
            equal(self.peers[u], [v for v in self.neighbours[u] if v in self.sent["Shares"]], "U2")
            equal(m.tail, b"".join(self.boxes[v, u] for v in self.peers[u]), "boxes delivered")

    def pair_mask(self, u: str, v: str) -> tuple[int, Words]:
        """The mask that u shares with v and its sign in u's vector."""
        ends = {name: self.clients[name] for name in sorted((u, v))}
        key = pair_key(self.keys, self.offer["cipher"], ends)
        return 1 if u < v else -1, words_of(aes_ctr(key, 8 * self.length))

    def check_vectors(self) -> None:
        equal(
            sorted(self.words), self.senders("Masked"), "words of those who sent a vector, and of nobody else"
        )
        self.length = len(next(iter(self.words.values())))
        self.masked: dict[str, Words] = {}
        for u in self.senders("Masked"):
            words: Words = []
            for m in self.sent["Masked"][u]:
                equal(m.entries["start"], len(words), "place of the first word")
                receipts = b"" if words else b"".join(self.receipts[v, u] for v in self.peers[u])
                equal(m.entries["receipts"], receipts, "receipts")
                words += words_of(m.tail)
            key = self_mask_key(
                self.keys, self.offer["cipher"], self.clients[u].self_seed, u, self.public[u].mask
            )
            masks = [
                (1, words_of(aes_ctr(key, 8 * self.length))),
                *(self.pair_mask(u, v) for v in self.peers[u]),
            ]
            equal(self.words[u][:2], [0, 1], "words 0 and 1")
            need(combined(self.words[u], masks) == words, f"masked words of {u}")
            self.masked[u] = words

    def check_consistency(self) -> None:
        ids, self.survivors = list(self.clients), sorted(self.masked)
        equal(self.case["survivors"], self.survivors, "survivors")
        bits = bits_of(self.survivors, ids)
        self.agreed = H("survivors", self.keys.roster, bits)
        equal(self.senders("Survivors"), self.survivors, "clients that are told the survivors")
        for u in self.survivors:
            equal(self.only("Survivors", u).entries["survivors"], bits, "bits of the survivors")
        for u in self.senders("Consistency"):
            equal(self.only("Consistency", u).entries["survivors"], self.agreed, "survivors that are signed")

    def check_unmask(self) -> None:
        for u in self.senders("Agreement"):
            m = self.only("Agreement", u)
            signers = members_of(m.entries["signers"], self.holders[u])
            need(len(signers) >= self.threshold[u] and set(signers) <= set(self.survivors), "enough signers")
            tail = [self.only("Consistency", v).signature for v in signers]
            tail += [self.receipts[u, v] for v in self.neighbours[u] if v in self.survivors]
            equal(m.tail, b"".join(tail), "signatures and receipts")
        for u in self.senders("Unmask"):
            m = self.only("Unmask", u)
            equal(m.entries["survivors"], self.agreed, "survivors that are unmasked")
            owners = sorted([*self.peers[u], u])
            given = (self.shares[v, u][v not in self.survivors] for v in owners)
            equal(m.tail, b"".join(given), "shares to unmask with")

    def recovered(self, u: str) -> bytes:
        """The secret of u that the server puts together, from t of the Unmask messages alone."""
        shares = {}
        for x, v in enumerate(self.holders[u], 1):
            if v in self.sent["Unmask"] and (v == u or u in self.peers[v]):
                at = sorted([*self.peers[v], v]).index(u)
                shares[x] = self.only("Unmask", v).tail[36 * at : 36 * at + 36]
        need(len(shares) >= self.threshold[u], "at least t shares")
        return reconstruct(dict(list(shares.items())[: self.threshold[u]]))

    def check_result(self) -> None:
        """What the server does, with nothing but the messages and public keys."""
        masks = [(-1, self.server_self_mask(u)) for u in self.survivors]
        for v in sorted(set(self.sent["Shares"]) - set(self.survivors)):
            seed = self.recovered(v)
            equal(x25519(mask_private(seed)), self.public[v].mask, "recovered mask key")
            for u in self.survivors:
                if v in self.peers[u]:
                    masks.append(self.server_pair_mask(u, v, seed))
        total = functools.reduce(lambda a, b: combined(a, [(1, b)]), self.masked.values(), [0] * self.length)
        total = combined(total, masks)
        equal(total[:2], [0, len(self.survivors)], "words 0 and 1 of the sum")
        equal(total, words_of(raw(self.case["sum"])), "sum")
        digests = (self.vector_digest(u) for u in self.survivors)
        equal(H("transcript", self.agreed, *digests), raw(self.case["transcript"]), "transcript")
        survivors = [(1, self.words[u]) for u in self.survivors]
        equal(total, combined([0] * self.length, survivors), "sum of the survivors' words")

    def vector_digest(self, u: str) -> bytes:
        digests = [m.digest for m in self.sent["Masked"][u]]
        return digests[0] if len(digests) == 1 else H("parts", *digests)

    def server_self_mask(self, u: str) -> Words:
        seed = self.recovered(u)
        stated = self.only("Shares", u).entries["seed"]
        equal(
            H("self seed", self.session, u64(self.number), self.keys.roster, u, seed),
            stated,
            "recovered seed",
        )
        key = self_mask_key(self.keys, self.offer["cipher"], seed, u, self.public[u].mask)
        return words_of(aes_ctr(key, 8 * self.length))

    def server_pair_mask(self, u: str, v: str, seed: bytes) -> tuple[int, Words]:
        """The mask between a survivor u and a dropped v, to be taken off u's vector."""
        given = {u: b"", v: b""}
        if self.offer["hybrid"]:
            sealed, end = self.boxes[u, v][:SEALED], (v, seed, self.public[v])
            opened = open_contribution(self.keys, sealed, (u, self.public[u]), end)
            given = {u: opened, v: contribution(seed, u)}
        secret = x25519(mask_private(seed), self.public[u].mask)
        ends = {name: self.public[name] for name in (u, v)}
        key = pair_mask_key(self.keys, self.offer["cipher"], secret, ends, given)
        return -1 if u < v else 1, words_of(aes_ctr(key, 8 * self.length))


def check_round(case: Case) -> None:
    Round(case).check()


CHECKS: dict[str, Callable[[Case], None]] = {
    "list": check_list,
    "hash": check_hash,
    "context": check_context,
    "same": check_same,
    "config": check_config,
    "roster": check_roster,
    "self seed": check_self_seed,
    "survivors": check_survivors,
    "mask keys": check_mask_keys,
    "info": check_info,
    "pair": check_pair,
    "graph": check_graph,
    "threshold": check_threshold,
    "shares": check_shares,
    "message": check_message,
    "round": check_round,
}
MALFORMED = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    StopIteration,
    OverflowError,
    struct.error,
)


def verify(case: Case) -> None:
    """Check one case.

    Raises:
        MismatchError: If anything in it is not what the page says.
    """
    try:
        CHECKS[case["check"]](case)
    except MALFORMED as error:
        raise MismatchError(f"malformed: {type(error).__name__}: {error}") from error


def main(arguments: Sequence[str]) -> int:
    path = Path(arguments[0]) if arguments else Path(__file__).with_name("secagg_protocol.json")
    for case in json.loads(path.read_text())["cases"]:
        label = f"{case['check']}: {case['name']}"
        try:
            verify(case)
        except MismatchError as error:
            print(f"{label}: FAILED, {error}")
            return 1
        print(f"{label}: as the page says")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
