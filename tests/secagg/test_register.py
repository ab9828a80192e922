"""The register: no round twice, across restarts, processes, torn writes and full disks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import FileRegister, MemoryRegister, RegisterError, RoundReused

A, B = bytes(16), b"\xff" * 16


@pytest.fixture(params=["memory", "file"])
def register(request, tmp_path):
    return MemoryRegister() if request.param == "memory" else FileRegister(tmp_path / "used")


def test_a_round_is_claimed_once(register):
    register.claim(A, 1)
    register.claim(A, 2)
    register.claim(B, 1)
    for session, number in ((A, 1), (A, 2), (B, 1)):
        with pytest.raises(RoundReused, match=f"Round {number} of session"):
            register.claim(session, number)


def test_a_claim_survives_a_restart(tmp_path):
    FileRegister(tmp_path / "used").claim(A, 7)
    with pytest.raises(RoundReused):
        FileRegister(tmp_path / "used").claim(A, 7)
    FileRegister(tmp_path / "used").claim(A, 8)


def test_two_registers_of_one_file_see_each_other(tmp_path):
    one, two = FileRegister(tmp_path / "used"), FileRegister(tmp_path / "used")
    one.claim(A, 1)
    two.claim(A, 2)
    for register in (one, two):
        for number in (1, 2):
            with pytest.raises(RoundReused):
                register.claim(A, number)


@given(st.lists(st.integers(0, 2**53 - 1), min_size=2, max_size=5, unique=True), st.integers(1, 45))
@settings(max_examples=60)
def test_a_torn_tail_is_cut_off_and_the_rest_stays(tmp_path_factory, rounds, torn):
    path = tmp_path_factory.mktemp("register") / "used"
    register = FileRegister(path)
    for number in rounds[:-1]:
        register.claim(A, number)
    whole = path.read_bytes()
    register.claim(A, rounds[-1])
    length = len(path.read_bytes()) - len(whole)
    path.write_bytes(path.read_bytes()[: len(whole) + min(torn, length - 1)])
    again = FileRegister(path)
    again.claim(A, rounds[-1])  # It was never acknowledged.
    for number in rounds:
        with pytest.raises(RoundReused):
            again.claim(A, number)
    assert path.read_bytes().count(b"\n") == len(rounds)


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"\n", b"00 1 .\n", b"0" * 32 + b" 1\n", b"0" * 32 + b" x .\n"]
)
def test_a_damaged_file_vouches_for_nothing(tmp_path, line):
    path = tmp_path / "used"
    FileRegister(path).claim(A, 1)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(RegisterError, match="no record"):
        FileRegister(path).claim(A, 2)


def refuses_and_keeps(path, content):
    """Whether a claim on a file of this content is refused, and every byte of the file stays."""
    path.write_bytes(content)
    with pytest.raises(RegisterError, match="no record of a used round"):
        FileRegister(path).claim(A, 2)
    return path.read_bytes() == content


def test_another_file_is_refused_and_keeps_every_byte(tmp_path):
    path = tmp_path / "model.bin"
    assert refuses_and_keeps(path, b"precious data " * 14)
    assert refuses_and_keeps(path, b"precious data " * 14 + b"\n" + b"ab")  # its tail could be a torn record
    assert refuses_and_keeps(path, b"\x00" * 57)
    assert refuses_and_keeps(path, b"7" * 33)


WHOLE = re.compile(rb"[0-9a-f]{32} [0-9]{1,20} \.")
ENDINGS = [b"0" * length + b" 0 ." for length in range(33)] + [b"0 .", b" .", b".", b""]


def is_torn(tail):
    """Whether something may follow that makes it one record: the definition, tried out."""
    return any(WHOLE.fullmatch(tail + ending) for ending in ENDINGS)


RECORD = bytes(range(16)).hex().encode() + b" 12345678901234567890 ."


@given(
    st.one_of(
        st.binary(max_size=70).filter(lambda tail: b"\n" not in tail),
        st.text("0123456789abcdef .", max_size=60).map(str.encode),
        st.integers(0, len(RECORD)).map(lambda length: RECORD[:length]),
        st.tuples(st.integers(0, len(RECORD)), st.sampled_from([b"g", b" ", b".", b"7", b"A", b"\0"])).map(
            lambda cut: RECORD[: cut[0]] + cut[1]
        ),
    )
)
@settings(max_examples=200)
def test_only_what_a_torn_record_can_be_is_cut_off(tmp_path_factory, tail):
    path = tmp_path_factory.mktemp("register") / "used"
    before = bytes(16).hex().encode() + b" 1 .\n"
    if is_torn(tail):
        path.write_bytes(before + tail)
        FileRegister(path).claim(A, 2)
        assert path.read_bytes() == before + bytes(16).hex().encode() + b" 2 .\n"
    else:
        assert refuses_and_keeps(path, before + tail)


def test_every_beginning_of_a_record_is_torn():
    assert all(is_torn(RECORD[:length]) for length in range(len(RECORD) + 1))
    assert not any(is_torn(RECORD + more) for more in (b".", b" ", b"0"))


def test_a_file_that_became_shorter_vouches_for_nothing(tmp_path):
    register = FileRegister(tmp_path / "used")
    register.claim(A, 1)
    (tmp_path / "used").write_bytes(b"")
    with pytest.raises(RegisterError, match="became shorter"):
        register.claim(A, 2)


def test_a_write_that_fails_claims_nothing_and_leaves_the_file_whole(tmp_path, monkeypatch):
    register = FileRegister(tmp_path / "used")
    register.claim(A, 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
    with pytest.raises(OSError, match="No space left to record round 2"):
        register.claim(A, 2)
    monkeypatch.undo()
    register.claim(A, 2)
    assert (tmp_path / "used").read_bytes().count(b"\n") == 2


def test_of_many_processes_one_wins_each_round(tmp_path):
    script = (
        "import sys; from secagg import FileRegister, RoundReused\n"
        "r = FileRegister(sys.argv[1]); won = 0\n"
        "for i in range(40):\n"
        "    try: r.claim(bytes(16), i); won += 1\n"
        "    except RoundReused: pass\n"
        "print(won)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "used")]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) for _ in range(3)]
    won = [int(process.communicate()[0]) for process in running]
    assert sum(won) == 40


def test_of_two_threads_one_gets_the_round(register):
    """Both look whether it was used before either says that it is, unless one is kept waiting."""
    both_look = threading.Barrier(2)

    class Session(bytes):
        def __hash__(self):
            with contextlib.suppress(threading.BrokenBarrierError):
                both_look.wait(0.3)
            return super().__hash__()

    def claim(_):
        try:
            register.claim(Session(A), 1)
        except RoundReused:
            return "refused"
        return "got it"

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(claim, range(2))) == ["got it", "refused"]


def test_a_claim_waits_while_another_process_claims(tmp_path):
    path = tmp_path / "used"
    FileRegister(path).claim(A, 1)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=FileRegister(path).claim, args=(A, 2))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        assert path.read_bytes().count(b"\n") == 1
    waiting.join(10)
    assert not waiting.is_alive()
    assert path.read_bytes().count(b"\n") == 2


def test_a_claim_is_on_disk_before_it_returns(tmp_path, monkeypatch):
    """The record and, the first time, the folder's entry."""
    path, synced = tmp_path / "used", []
    fsync = os.fsync

    def recording(descriptor):
        synced.append((Path(f"/proc/self/fd/{descriptor}").resolve(), path.read_bytes().count(b"\n")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    register = FileRegister(path)
    register.claim(A, 1)
    assert synced == [(path, 1), (tmp_path, 1)]
    register.claim(A, 2)
    assert synced[2:] == [(path, 2)]


def test_the_file_is_private(tmp_path):
    register = FileRegister(tmp_path / "used")
    register.claim(A, 1)
    assert (tmp_path / "used").stat().st_mode & 0o077 == 0
    assert repr(register) == f"FileRegister({str(tmp_path / 'used')!r})"


@pytest.mark.parametrize("round", [-1, True, 1.5, "a", 2**53, 10**25])
def test_a_round_that_could_not_be_read_again_is_not_written(tmp_path, round):
    register = FileRegister(tmp_path / "rounds")
    register.claim(bytes(16), 1)
    before = (tmp_path / "rounds").read_bytes()
    for session, number in ((bytes(16), round), (bytes(15), 2)):
        with pytest.raises(ValueError, match="Expected a session of 16 bytes and a round in"):
            register.claim(session, number)
    assert (tmp_path / "rounds").read_bytes() == before
    FileRegister(tmp_path / "rounds").claim(bytes(16), 2)


def test_a_register_without_a_folder_says_so(tmp_path):
    with pytest.raises(RegisterError, match="Make it"):
        FileRegister(tmp_path / "missing" / "rounds").claim(bytes(16), 1)
