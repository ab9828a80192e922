"""Masks: the standard's keystream, however it is cut or shared out, from every bit of a key used once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import combinations
from types import FrameType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import secagg.masks
from secagg import RoundReused
from secagg.masks import (
    BATCH,
    BLOCK_BYTES,
    WORTH_THREADS,
    KeystreamRounding,
    Mask,
    Masks,
    add_keystreams,
    add_masks,
    keystream,
)
from tests.statistical import assert_distribution, assert_rejects, assert_uniform_bits

BLOCK_WORDS = BLOCK_BYTES // 8
SIZES = [0, 1, 2, 7, 100_003, BLOCK_WORDS - 1, BLOCK_WORDS, BLOCK_WORDS + 1, 3 * BLOCK_WORDS + 5]


def stream_words(key: bytes, n: int) -> np.ndarray:
    """The simplest version: the whole keystream in one call."""
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * n)), "<u8").astype(np.uint64)


def random_masks(number: int, length: int = 16) -> list[Mask]:
    return [Mask(os.urandom(length), 1 if i % 3 else -1) for i in range(number)]


def slowly_masked(words: np.ndarray, masks: list[Mask]) -> np.ndarray:
    """One whole mask after another."""
    out = words.copy()
    for mask in masks:
        term = stream_words(mask.key, words.size)
        out = out + term if mask.sign > 0 else out - term
    return out


# ---- the keystream ----------------------------------------------------------------------------------------

# NIST SP 800-38A, F.5.1 and F.5.5: https://doi.org/10.6028/NIST.SP.800-38A
COUNTER = 0xF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF
PLAINTEXT = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710"
)
VECTORS = {
    "2b7e151628aed2a6abf7158809cf4f3c": (
        "874d6191b620e3261bef6864990db6ce 9806f66b7970fdff8617187bb9fffdff"
        "5ae4df3edbd5d35e5b4f09020db03eab 1e031dda2fbe03d1792170a0f3009cee"
    ),
    "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4": (
        "601ec313775789a5b7a7f504bbf3d228 f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988d dfc9c58db67aada613c2dd08457941a6"
    ),
}


@pytest.mark.parametrize(("key", "ciphertext"), VECTORS.items(), ids=["AES-128", "AES-256"])
def test_the_keystream_is_that_of_the_standard(key, ciphertext):
    """In counter mode the keystream is plaintext XOR ciphertext: what is added to words of zero."""
    words = np.zeros(8, np.uint64)
    add_keystreams(words, [(keystream(bytes.fromhex(key), COUNTER), 1)])
    expected = bytes(a ^ b for a, b in zip(PLAINTEXT, bytes.fromhex(ciphertext), strict=True))
    assert words.astype("<u8").tobytes() == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [16, 32])
def test_blocked_masks_equal_the_whole_keystream(size, length):
    masks = random_masks(3, length)
    words = np.arange(size, dtype=np.uint64)
    expected = slowly_masked(words, masks)
    Masks(masks).apply(words)
    assert np.array_equal(words, expected)


def test_a_keystream_may_start_anywhere():
    words = np.zeros(100, np.uint64)
    add_keystreams(words[40:], [(keystream(bytes(16), 20), 1)])
    assert np.array_equal(words[40:], stream_words(bytes(16), 100)[40:])


def assert_every_bit_matters(length: int, words_of: Callable[[bytes], np.ndarray]) -> None:
    """R1: a key and all its neighbours at one bit's distance give keystreams of which no two are equal."""
    key = os.urandom(length)
    number = int.from_bytes(key, "little")
    keys = [key] + [(number ^ 1 << bit).to_bytes(length, "little") for bit in range(8 * length)]
    assert len({words_of(key).tobytes() for key in keys}) == 8 * length + 1


def masked_zeros(key: bytes) -> np.ndarray:
    words = np.zeros(2, np.uint64)
    Masks([Mask(key, 1)]).apply(words)
    return words


@pytest.mark.parametrize("length", [16, 32])
def test_every_bit_of_a_key_matters(length):
    assert_every_bit_matters(length, masked_zeros)


@pytest.mark.parametrize("length", [16, 32])
def test_keys_that_are_folded_or_cut_would_be_seen(length):
    """The test above finds each: XOR of 4-byte pieces (so a peer makes seeds), a lost half, a lost bit."""

    def folded(key: bytes) -> np.ndarray:
        seed = np.bitwise_xor.reduce(np.frombuffer(key, "<u4"))
        return masked_zeros(int(seed).to_bytes(length, "little"))

    def halved(key: bytes) -> np.ndarray:
        return masked_zeros(key[: length // 2].ljust(length, b"\0"))

    def one_bit_less(key: bytes) -> np.ndarray:
        return masked_zeros(bytes([key[0] & 0xFE]) + key[1:])

    for weakened in (folded, halved, one_bit_less):
        assert_rejects(assert_every_bit_matters, length, weakened)


# ---- many masks -------------------------------------------------------------------------------------------


@given(st.integers(2, 12), st.integers(0, 300), st.integers(0, 2**32))
@settings(max_examples=60)
def test_pairwise_masks_cancel_in_the_sum_in_any_order(n, size, seed):
    rng = np.random.default_rng(seed)
    plain = [rng.integers(0, 2**64, size, dtype=np.uint64) for _ in range(n)]
    keys = {pair: rng.bytes(16) for pair in combinations(range(n), 2)}
    masked = []
    for i in range(n):
        words = plain[i].copy()
        Masks([Mask(key, 1 if i == pair[0] else -1) for pair, key in keys.items() if i in pair]).apply(words)
        masked.append(words)
    total = np.sum([masked[i] for i in rng.permutation(n)], axis=0, dtype=np.uint64)
    assert np.array_equal(total, np.sum(plain, axis=0, dtype=np.uint64))


@pytest.mark.parametrize("number", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_masks_beyond_a_batch_are_all_added(number):
    masks = random_masks(number)
    words = np.arange(50, dtype=np.uint64)
    expected = slowly_masked(words, masks)
    add_masks(words, iter(masks))
    assert np.array_equal(words, expected)


def test_a_server_that_derives_keys_as_it_goes_holds_a_batch_of_them():
    held, most = 0, 0

    class Counted:
        """A mask that counts how many of its kind are alive."""

        sign = 1

        def __init__(self) -> None:
            nonlocal held, most
            held += 1
            most = max(most, held)
            self.key = bytes(16)

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    add_masks(np.zeros(1, np.uint64), (Counted() for _ in range(10 * BATCH)))
    assert most == BATCH


# ---- threads ----------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch) -> list[threading.Thread]:
    """The threads that were started."""
    seen: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(self: threading.Thread) -> None:
        seen.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", noted)
    return seen


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 7, 2_001, BLOCK_WORDS, BLOCK_WORDS + 1, 2 * BLOCK_WORDS + 77])
def test_any_number_of_threads_gives_the_same_words(size, threads, monkeypatch, started):
    monkeypatch.setattr(secagg.masks, "WORTH_THREADS", 0)
    masks = random_masks(4)
    words = np.arange(size, dtype=np.uint64)
    expected = slowly_masked(words, masks)
    Masks(masks).apply(words, threads=threads)
    assert np.array_equal(words, expected)
    assert started, "The case was to run on threads."
    assert not any(thread.is_alive() for thread in started), "No thread outlives the call."


def test_threads_share_several_batches_of_masks(started):
    size, number = WORTH_THREADS // BATCH // 8 + 1, 2 * BATCH + 1
    masks = random_masks(number)
    words = np.arange(size, dtype=np.uint64)
    expected = slowly_masked(words, masks)
    add_masks(words, iter(masks), threads=2)
    assert np.array_equal(words, expected)
    assert len(started) == 1, "One thread beside this one, for all batches; the last mask is not worth one."


def test_little_work_starts_no_thread(started):
    Masks(random_masks(3)).apply(np.zeros(WORTH_THREADS // 8 // 3, np.uint64), threads=2)
    assert not started


def test_what_fails_on_a_thread_is_raised_and_leaves_no_thread(monkeypatch, started):
    calls: list[int] = []

    def failing(words: np.ndarray, streams: object) -> None:
        calls.append(words.size)
        if threading.current_thread() in started:
            raise MemoryError("no room")

    monkeypatch.setattr(secagg.masks, "add_keystreams", failing)
    masks = Masks(random_masks(4))
    words = np.zeros(WORTH_THREADS // 8, np.uint64)
    with pytest.raises(MemoryError, match="no room"):
        masks.apply(words, threads=2)
    assert len(calls) == 2
    assert not any(thread.is_alive() for thread in started)
    with pytest.raises(RoundReused):
        masks.apply(words)


FORK = """
import os, numpy as np
from secagg.masks import WORTH_THREADS, Mask, Masks

def masked():
    words = np.zeros(WORTH_THREADS // 8, np.uint64)
    Masks([Mask(bytes(16), 1), Mask(b"k" * 16, -1)]).apply(words, threads=2)
    return words

before = masked()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(masked(), before) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(masked(), before)
"""


def test_threads_work_on_both_sides_of_a_fork():
    """A pool that outlived its call would hang in the child."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


# ---- draws for rounding -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50) | st.sampled_from([16_383, 16_384, 16_385, 40_000]), max_size=6))
@settings(max_examples=30)
def test_draws_are_the_high_bits_of_the_keystream(sizes):
    """As many as are asked for, and the next call goes on from there."""
    key = os.urandom(16)
    draws = KeystreamRounding(key)
    drawn = [draws.random(dtype=np.float32, out=np.empty(size, np.float32)) for size in sizes]
    integers = stream_words(key, sum(sizes) // 2 + 1).astype("<u8").view("<u4")[: sum(sizes)]
    expected = [(int(integer) >> 8) / 2**24 for integer in integers]
    assert np.concatenate([np.empty(0), *drawn]).tolist() == expected


def test_draws_are_uniform_and_never_one():
    draws = KeystreamRounding(b"insecure test ke").random(dtype=np.float32, out=np.empty(200_000, np.float32))
    assert draws.min() >= 0
    assert draws.max() < 1
    bits = (draws * 2**24).astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3]
    assert_distribution(draws, stats.uniform.cdf)
    assert_uniform_bits(bits)
    assert_rejects(assert_distribution, draws**1.05, stats.uniform.cdf)
    assert_rejects(assert_uniform_bits, bits & np.uint8(0xFE))


def test_two_sources_of_draws_differ():
    first, second = (KeystreamRounding().random(dtype=np.float32, out=np.empty(9, np.float32)) for _ in "ab")
    assert not np.any(first == second), "Two of 2^24 values are equal with probability 9 / 2^24."


# ---- once -------------------------------------------------------------------------------------------------


USES = {
    "apply": lambda masks: masks.apply(np.zeros(4, np.uint64)),
    "apply on threads": lambda masks: masks.apply(np.zeros(4, np.uint64), threads=2),
    "stream": lambda masks: masks.stream(),
    "stream, closed": lambda masks: masks.stream().close(),
}


@pytest.mark.parametrize("first", USES)
@pytest.mark.parametrize("second", USES)
def test_masks_are_used_once(first, second):
    masks = Masks(random_masks(2))
    USES[first](masks)
    with pytest.raises(RoundReused, match="a second would reveal both"):
        USES[second](masks)


def test_a_second_use_changes_nothing():
    masks = Masks([Mask(bytes(16), 1)])
    words = np.zeros(4, np.uint64)
    masks.apply(words)
    before = words.copy()
    with pytest.raises(RoundReused):
        masks.apply(words)
    assert np.array_equal(words, before)


def uses_when_interrupted(moment: int) -> tuple[int, bool]:
    """How many of two threads got to use the same masks, if the first is interrupted at this instruction.

    Also whether that instruction exists. The second thread's use runs inside the first's, from a trace.
    """
    masks, used, instructions = Masks(random_masks(1)), 0, 0

    def use() -> None:
        nonlocal used
        try:
            masks.stream()
            used += 1
        except RoundReused:
            return

    def interrupt(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        nonlocal instructions
        frame.f_trace_opcodes = frame.f_code is Masks._take.__code__
        if event == "opcode":
            instructions += 1
            if instructions == moment:
                use()
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        use()
    finally:
        sys.settrace(before)
    return used, instructions >= moment


def test_of_two_threads_one_gets_the_masks_wherever_the_other_is_interrupted():
    moment, exists = 0, True
    while exists:
        moment += 1
        used, exists = uses_when_interrupted(moment)
        assert used == 1, f"Used {used} times when interrupted at instruction {moment}."
    assert moment > 10, "The instructions were to be gone through one by one."


def test_words_that_cannot_be_masked_are_refused_before_the_masks_are_used():
    masks = Masks([Mask(bytes(16), 1)])
    frozen = np.zeros(4, np.uint64)
    frozen.flags.writeable = False
    wrong = [np.zeros(4), np.zeros(4, np.int64), np.zeros((2, 2), np.uint64), np.zeros(4, ">u8"), frozen]
    for words in wrong:
        with pytest.raises(ValueError, match="Expected writeable uint64 words"):
            masks.apply(words)
    for threads in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="Expected threads to be a positive integer"):
            masks.apply(np.zeros(4, np.uint64), threads=threads)
    words = np.zeros(4, np.uint64)
    masks.apply(words)
    assert np.array_equal(words, stream_words(bytes(16), 4))


def test_a_key_is_forgotten_when_its_vector_is_masked(monkeypatch):
    monkeypatch.setattr(secagg.masks, "WORTH_THREADS", 0)
    key = os.urandom(16)
    alone = sys.getrefcount(key)
    for threads in (1, 2):
        masks = Masks([Mask(key, 1)])
        assert sys.getrefcount(key) > alone
        masks.apply(np.zeros(4, np.uint64), threads=threads)
        assert sys.getrefcount(key) == alone
    stream = Masks([Mask(key, 1)]).stream()
    assert sys.getrefcount(key) == alone + 1, "The cipher holds it while the vector is under way."
    stream.close()
    assert sys.getrefcount(key) == alone


# ---- chunk by chunk ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40) | st.just(BLOCK_WORDS + 1), max_size=12), st.integers(0, 4))
@settings(max_examples=40)
def test_chunks_of_any_length_get_what_the_whole_vector_gets(lengths, number):
    """An odd number of words ends inside a block of the cipher."""
    masks = random_masks(number)
    words = np.arange(sum(lengths), dtype=np.uint64)
    expected = slowly_masked(words, masks)
    low = 0
    with Masks(masks).stream() as stream:
        for length in lengths:
            stream.add(words[low : low + length])
            low += length
    assert np.array_equal(words, expected)


def test_a_closed_stream_masks_nothing():
    stream = Masks([Mask(bytes(16), 1)]).stream()
    with stream:
        stream.add(np.zeros(3, np.uint64))
    words = np.zeros(3, np.uint64)
    with pytest.raises(RoundReused, match="closed"):
        stream.add(words)
    assert not words.any()


def test_a_stream_that_failed_within_a_chunk_is_closed(monkeypatch):
    """Some masks would be ahead of others, so what came after could never be unmasked."""
    stream = Masks([Mask(bytes(16), 1)]).stream()

    def failing(words: np.ndarray, streams: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(secagg.masks, "add_keystreams", failing)
    with pytest.raises(KeyboardInterrupt):
        stream.add(np.zeros(3, np.uint64))
    monkeypatch.undo()
    with pytest.raises(RoundReused, match="closed"):
        stream.add(np.zeros(3, np.uint64))


def test_a_chunk_that_is_refused_leaves_the_stream_where_it_was():
    words = np.zeros(6, np.uint64)
    with Masks([Mask(bytes(16), 1)]).stream() as stream:
        stream.add(words[:3])
        with pytest.raises(ValueError, match="Expected writeable uint64 words"):
            stream.add(np.zeros(3))
        stream.add(words[3:])
    assert np.array_equal(words, stream_words(bytes(16), 6))
