"""Reads what a run left in its folder: floor 7, typed, for the report and the audit.

A folder may come from someone else, so every file is decoded into declared types and nothing in it is
executed, imported or used as a path. Keys that are not known are left alone: a later version may add some.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

__all__ = [
    "ClientRound",
    "Learned",
    "MasksFacts",
    "Participant",
    "PrivacyFacts",
    "Release",
    "RoundLine",
    "RunFacts",
    "RunFolder",
    "RunFolderError",
    "read_run",
]

_T = TypeVar("_T")


class RunFolderError(ValueError):
    """A folder that is not, or not wholly, a run's."""


class Participant(msgspec.Struct, frozen=True):
    """A client as the server knows it.

    Attributes:
        id: Its name.
        public_key: Pinned Ed25519 key of its messages, hex.
        rows: Its public row count, if that is public.
        ledger_key: Pinned Ed25519 key of its ledger, hex; None without DP.
        dataset: Name of its data set in its ledger.
    """

    id: str
    public_key: str
    rows: int | None = None
    ledger_key: str | None = None
    dataset: str | None = None


class ServerKey(msgspec.Struct, frozen=True):
    """The server's pinned Ed25519 key (hex)."""

    public_key: str


class ModelFacts(msgspec.Struct, frozen=True):
    """How many parameters were trained, and the SHA-256 of the file that holds them, once the run ended."""

    parameters: int
    sha256: str | None = None


class PrivacyFacts(msgspec.Struct, frozen=True):
    """The privacy plan, the same for every client; all of it public constants."""

    unit: str
    neighboring: str
    epsilon: float
    delta: float
    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    steps: int
    rounds: int
    planned_steps: int
    num_steps: int | None = None


class Learned(msgspec.Struct, frozen=True):
    """One field of the masked vector: what its sum tells the server, and at which precision."""

    field: str
    reduction: str
    learned: str
    quantum: float | None = None
    bits: int | None = None


class MasksFacts(msgspec.Struct, frozen=True):
    """How a round's vector was encoded and masked."""

    bits: int
    words: int | None = None
    bytes_per_value: float | None = None
    explain: list[Learned] = []


class Twin(msgspec.Struct, frozen=True):
    """The same run without privacy."""

    accuracy: float | None = None


class RunFacts(msgspec.Struct, frozen=True):
    """What ``run.json`` holds."""

    format: int
    id: str
    created: Any
    privopt_version: str
    clients: list[Participant]
    server: ServerKey
    model: ModelFacts
    session: str | None = None
    data: str | None = None
    dp: PrivacyFacts | None = None
    masks: MasksFacts | None = None
    disclosed: list[Any] = []
    twin: Twin | None = None


class ClientRound(msgspec.Struct, frozen=True):
    """One client in one round: how it went, and what it has spent and released so far.

    `dropped` is the stage from which on nothing of it came in time, `late` whether something came later.
    """

    status: str
    dropped: str | None = None
    late: bool = False
    epsilon: float | None = None
    steps: int | None = None


class Release(msgspec.Struct, frozen=True):
    """One entry of a client's releases in a round, as the run recorded it."""

    event: dict[str, Any]
    steps: int
    sampler: str | None = None
    sample_rate: float | None = None
    clip_norm: float | None = None
    noise_multiplier: float | None = None
    ledger_sequence: int | None = None


class RoundLine(msgspec.Struct, frozen=True):
    """One line of ``metrics.jsonl``."""

    round: int
    status: Literal["ok", "aborted"]
    reason: str | None = None
    accuracy: float | None = None
    loss: float | None = None
    training_loss: float | None = None
    clients: dict[str, ClientRound] = {}
    releases: dict[str, list[Release]] = {}
    clipped: dict[str, int] = {}
    bounds: dict[str, float] = {}
    faulty: list[str] = []
    bytes_up: int | None = None
    bytes_down: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder tells it.

    Attributes:
        path: The folder.
        config: ``config.json``, as it is.
        run: ``run.json``.
        rounds: ``metrics.jsonl``, one entry a round, in order.
        ledgers: ``ledgers/<client>.json`` of each client that has one.
        strays: Names of files in ``ledgers/`` that are no client's.
        config_text: ``config.json``, to be read strictly.
    """

    path: Path
    config: dict[str, Any]
    run: RunFacts
    rounds: list[RoundLine]
    ledgers: dict[str, Path]
    strays: list[str]
    config_text: bytes


def read_run(folder: str | Path) -> RunFolder:
    """A run's folder, every file decoded.

    Args:
        folder: Where `privopt train` kept the run.

    Returns:
        Its content. A last line of ``metrics.jsonl`` that a kill cut short is left out.

    Raises:
        RunFolderError: Naming the file and what is wrong with it; caused by an OSError if unreadable.
    """
    path = Path(folder)
    run = _decoded(path / "run.json", RunFacts)
    if run.format != 1:
        raise RunFolderError(
            f"Expected format 1 in {path / 'run.json'}, got {run.format}: the run was written by privopt "
            f"{run.privopt_version}. Use that version, or a newer one."
        )
    if len({client.id for client in run.clients}) != len(run.clients):
        raise RunFolderError(f"Expected distinct client ids in {path / 'run.json'}, got one twice.")
    config = _decoded(path / "config.json", dict[str, Any])
    ledgers = {}
    for client in run.clients:
        # An id is another's text: only one that names a file right here is looked for.
        if client.id == Path(client.id).name and (path / "ledgers" / f"{client.id}.json").is_file():
            ledgers[client.id] = path / "ledgers" / f"{client.id}.json"
    rounds = _read_rounds(path / "metrics.jsonl")
    strays = _strays(path / "ledgers", {file.name for file in ledgers.values()})
    return RunFolder(path, config, run, rounds, ledgers, strays, _read(path / "config.json"))


def _strays(folder: Path, known: set[str]) -> list[str]:
    """What else lies there; a hidden file is one whose writing was cut short."""
    if not folder.is_dir():
        return []
    return sorted(f.name for f in folder.iterdir() if f.name not in known and not f.name.startswith("."))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunFolderError(
            f"Expected the folder of a run, got {path.parent} with no readable {path.name} "
            f"({error.strerror}). `privopt train` says at its end where it kept the run, by default "
            "below runs/."
        ) from error


def _decoded(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(_read(path), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"Expected {path.name} as `privopt train` writes it, got {path} which is damaged or "
            f"edited: {error}."
        ) from None


def _read_rounds(path: Path) -> list[RoundLine]:
    if not path.exists():
        return []
    *whole, _torn = _read(path).split(b"\n")
    rounds = []
    for number, line in enumerate(whole, start=1):
        try:
            rounds.append(msgspec.json.decode(line, type=RoundLine))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunFolderError(
                f"Expected one JSON object a line in {path}, got a damaged or edited line {number}: {error}."
            ) from None
    return rounds
