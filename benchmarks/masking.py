"""Masks and the encoding of one client against AES-CTR keystream of the same bytes, Flower and declearn."""

from __future__ import annotations

import functools
import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from secagg import Encoding, Schema, summed
from secagg.client import fresh_rounding
from secagg.masks import Mask, Masks, add_masks

from .harness import Benchmark, Case, Disagreement, against_limit, compare
from .secagg_peers import BOUND, DeclearnMasks, FlowerMasks

VECTOR = 40_000_000
"""Bytes of the vector that is masked: 10 M words of 32 bits."""
PACKED = 26_666_672
"""Bytes of 10 M values of 16 bits and 32 clients, three to a word of 64 bits."""
SHORT = 400_000
"""Bytes of a vector as in Bonawitz's table, 100 k entries."""
OVER_RAW = 1.3
THREADS_OVER_ONE = 1 / 1.7
CLIENT_OVER_RAW = 200 / 90
FLOWER, DECLEARN = 1 / 15, 1 / 40
_BLOCK = 1 << 18
_ZEROS = memoryview(bytes(_BLOCK))


def raw_keystream(num_bytes: int, keys: int, key_bytes: int = 16, start: int = 0) -> None:
    """What the masks cannot do without: the keystream itself, into one block that stays in cache."""
    out = memoryview(bytearray(_BLOCK + 16))
    for _ in range(keys):
        counter = modes.CTR((start // 16).to_bytes(16, "big"))
        cipher = Cipher(algorithms.AES(os.urandom(key_bytes)), counter).encryptor()
        for low in range(0, num_bytes, _BLOCK):
            cipher.update_into(_ZEROS[: min(_BLOCK, num_bytes - low)], out)


def raw_keystream_on_two(num_bytes: int, keys: int) -> None:
    """The same on two threads, each of which makes half of every keystream."""
    half = num_bytes // 32 * 16
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(raw_keystream, num_bytes - half, keys, start=half)
        raw_keystream(half, keys)
        other.result()


def cases() -> Iterator[Benchmark]:
    """Masks of k peers on 40 MB, in bulk on a short vector, against peers; a whole client of 10 M float32."""
    measures: dict[str, Callable[[str], Case]] = {
        f"{k} pair masks on 40 MB": functools.partial(_masks, k=k) for k in (10, 50, 100)
    }
    measures |= {
        "10 pair masks on 40 MB, AES-256": functools.partial(_masks, k=10, key_bytes=32),
        "50 pair masks on 40 MB, 2 threads on both sides": functools.partial(_masks, k=50, threads=2),
        "50 pair masks on 40 MB, 2 threads against 1": functools.partial(_threads, size=VECTOR, k=50),
        "1,000 pair masks on 400 KB": functools.partial(_masks, k=1000, size=SHORT),
        "1,000 pair masks on 400 KB, 2 threads against 1": functools.partial(
            _threads, size=SHORT, k=1000, bar=None
        ),
        "10 masks on 10 M values of 16 bits, as sent": functools.partial(_flower, size=PACKED, bar=FLOWER),
        "10 masks on 10 M words of 32 bits": functools.partial(_flower, size=VECTOR, bar=None),
        "encode and mask 1 M float32, 10 peers": _declearn,
        "encode and mask 10 M float32, 31 peers": _client,
        "encode and mask 10 M float32, 31 peers: memory": _memory,
        "encode 10 M float32, 32 clients: bytes a parameter": _wire,
    }
    for case, measure in measures.items():
        yield Benchmark(case, functools.partial(measure, case))


def _random_masks(k: int, key_bytes: int = 16) -> list[Mask]:
    return [Mask(os.urandom(key_bytes), 1 if i % 2 else -1) for i in range(k)]


def _masks(case: str, *, k: int, size: int = VECTOR, key_bytes: int = 16, threads: int = 1) -> Case:
    words = np.zeros(size // 8, np.uint64)

    def masked() -> None:
        add_masks(words, _random_masks(k, key_bytes), threads=threads)

    raw = functools.partial(raw_keystream, size, k, key_bytes)
    if threads == 2:
        raw = functools.partial(raw_keystream_on_two, size, k)
    return compare(case, masked, raw, "raw keystream", runs=7, bar=OVER_RAW)


def _threads(case: str, *, size: int, k: int, bar: float | None = THREADS_OVER_ONE) -> Case:
    words = np.zeros(size // 8, np.uint64)

    def masked(threads: int) -> None:
        add_masks(words, _random_masks(k), threads=threads)

    two, one = functools.partial(masked, 2), functools.partial(masked, 1)
    return compare(case, two, one, "one thread", runs=7, bar=bar)


def _flower(case: str, *, size: int, bar: float | None) -> Case:
    """Ten masks on 10 M values: theirs each in an int64, ours in `size` bytes."""
    FlowerMasks.verify()
    values = np.random.default_rng(0).integers(0, 2**16, 10_000_000, dtype=np.int32)
    words = np.zeros(size // 8, np.uint64)

    def masked() -> None:
        add_masks(words, _random_masks(10))

    return compare(case, masked, FlowerMasks.random(values, 10), "flower", runs=5, seconds=0, bar=bar)


def _declearn(case: str) -> Case:
    """From floats to what is sent, at either library's usual precision: ours 16 bits, theirs 60."""
    DeclearnMasks.verify()
    values = _values(1_000_000)
    theirs = DeclearnMasks.random(values["update"], 10)
    return compare(case, _client_of(values, 10), theirs, "declearn", runs=5, seconds=0, bar=DECLEARN)


def _client(case: str) -> Case:
    """Bound, round, pack and mask: 200 ms where the keystream of the packed bytes takes 90."""
    values = _values(10_000_000)
    client, packed = _client_of(values, 31), 8 * _encoding(values, 32).words
    return compare(
        case,
        client,
        lambda: raw_keystream(packed, 31),
        "raw keystream",
        runs=7,
        bar=CLIENT_OVER_RAW,
    )


def _memory(case: str) -> Case:
    """Peak of what Python and numpy allocate, beyond the values, the vector and what was there before."""
    client = _client_of(_values(10_000_000), 31)
    beyond = []
    for _ in range(2):
        gc.collect()
        tracemalloc.start()
        try:
            vector = client()
            beyond.append((tracemalloc.get_traced_memory()[1] - vector.nbytes) / 1e6)
        finally:
            tracemalloc.stop()
        del vector
    return against_limit(case, beyond, 64, "MB")


def _wire(case: str) -> Case:
    values = _values(10_000_000)
    return against_limit(case, [_client_of(values, 31)().nbytes / 10_000_000], 2.67, "B")


def _values(size: int) -> dict[str, NDArray[np.float32]]:
    return {"update": np.random.default_rng(0).standard_normal(size).astype(np.float32)}


def _encoding(values: dict[str, NDArray[np.float32]], num_clients: int) -> Encoding:
    shape = values["update"].shape
    return Encoding(Schema(update=summed(BOUND, bits=16, shape=shape)), num_clients)


def _client_of(values: dict[str, NDArray[np.float32]], k: int) -> Callable[[], NDArray[np.uint64]]:
    """What a client does with its values before it sends them, checked on a pair of clients."""
    _verify_pair({"update": values["update"][:1000]})
    encoding = _encoding(values, k + 1)

    def client() -> NDArray[np.uint64]:
        vector = encoding.encode(values, fresh_rounding(bytes(16), 1))
        Masks(_random_masks(k)).apply(vector)
        return vector

    return client


def _verify_pair(values: dict[str, NDArray[np.float32]]) -> None:
    """Raise Disagreement unless the masks of two clients cancel and their sum decodes to the values' sum."""
    encoding, key = _encoding(values, 2), os.urandom(16)
    total: Any = 0
    for mask in (Mask(key, 1), Mask(key, -1)):
        vector = encoding.encode(values, fresh_rounding(bytes(16), 1))
        Masks([mask]).apply(vector)
        total = total + vector
    clipped = np.clip(values["update"], -BOUND, BOUND)
    decoded = encoding.decode(total, 2).values["update"]
    if np.abs(decoded - 2.0 * clipped).max() > encoding.error_bound("update", 2):
        raise Disagreement("two clients' vectors do not add up to their values.")
