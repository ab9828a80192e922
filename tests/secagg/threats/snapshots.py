"""Snapshots of machines: what `Secret` keeps users from making, to try many ways from one state."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np

from secagg import Client, MemoryRegister, Server
from secagg.guard import Guard

Machine = TypeVar("Machine", Client, Server)


def copied(thing: Any) -> Any:
    """The object again, with containers and arrays of its own; what they hold is never changed in place."""
    twin = object.__new__(type(thing))
    for slot in type(thing).__slots__:
        if hasattr(thing, slot):
            value = getattr(thing, slot)
            own = isinstance(value, (dict, list, set, np.ndarray))
            object.__setattr__(twin, slot, value.copy() if own else value)
    return twin


def snapshot(client: Client) -> Client:
    """A client in the same state, which goes its own way from here."""
    twin: Any = _twin(client)
    register: Any = client._register
    twin._register = MemoryRegister()
    twin._register._used = set(register._used)
    if client._round is not None:
        twin._round = copied(client._round)
        if client._round.secrets is not None:
            twin._round.secrets = copied(client._round.secrets)
    return cast(Client, twin)


def snapshot_of_server(server: Server) -> Server:
    """A server in the same state; vectors that came in parts are not in it."""
    twin: Any = _twin(server)
    if server._round is not None:
        twin._round = copied(server._round)
        twin._round.spools = {}
        if server._round.unmasking is not None:
            twin._round.unmasking = copied(server._round.unmasking)
    return cast(Server, twin)


def _twin(machine: Machine) -> Machine:
    twin: Any = object.__new__(type(machine))
    twin.__dict__.update(machine.__dict__)
    twin._guard = Guard()
    return cast(Machine, twin)
