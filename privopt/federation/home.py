"""A participant's own folder: keys, ledger and state, kept between runs and never sent: floor 6."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

import dp
import secagg

from ..checkpoint import read_state, write_state
from .privacy import Policy

__all__ = ["Home"]


class Home:
    """The folder of one client (or the server), readable by its owner alone.

    Files: ``policy.json`` (what its owner allows, if anything is limited), ``identity.key`` (signs messages),
    ``ledger.key`` and ``ledger.sqlite`` (what was spent), ``register`` (rounds whose masks were used),
    ``state-<run>.safetensors`` (the optimizer's state).

    Args:
        folder: The folder; made with mode 0700 where it does not exist.
        name: Id of the participant.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(folder, 0o700)  # noqa: PTH101 - mkdir's mode is cut by the umask only when it is made

    def __repr__(self) -> str:
        return f"Home({self.name!r})"

    def identity(self) -> secagg.Identity:
        """The participant's signing identity, made on first use."""
        path = self.folder / "identity.key"
        if not path.exists():
            secagg.Identity.generate(self.name).save(path)
        return secagg.Identity.load(path)

    def ledger(self) -> dp.Ledger:
        """The participant's ledger, made on first use with a key of its own; close it after use."""
        path = self.folder / "ledger.key"
        if not path.exists():
            dp.LedgerKey.generate().save(path)
        return dp.Ledger.open(self.folder / "ledger.sqlite", dp.LedgerKey.load(path))

    def policy(self) -> Policy:
        """What the holder allows, from ``policy.json``, such as ``{"epsilon": 4, "delta": 1e-5}``.

        Keys are those of `Policy` and may be left out; without the file anything is allowed.

        Raises:
            ValueError: If the file holds anything else.
        """
        path = self.folder / "policy.json"
        if not path.exists():
            return Policy()
        try:
            return msgspec.json.decode(path.read_bytes(), type=Policy)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f'Expected a policy such as {{"epsilon": 4.0, "delta": 1e-5}} in {path}, got {error}.'
            ) from error

    def register(self) -> secagg.FileRegister:
        """The durable register of masked rounds."""
        return secagg.FileRegister(self.folder / "register")

    def read_state(self, run: str) -> dict[str, Any] | None:
        """The state kept for a run; None where the run has none yet."""
        path = self._state(run)
        return read_state(path) if path.exists() else None

    def write_state(self, run: str, state: dict[str, Any]) -> None:
        """Keep the state for a run, atomically."""
        write_state(self._state(run), state, mode=0o600)

    def _state(self, run: str) -> Path:
        return self.folder / f"state-{run}.safetensors"
