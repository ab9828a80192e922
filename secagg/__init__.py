"""Secure sums: many clients send masked vectors, a server learns their sum and nothing else.

A schema says how each field combines; clients and servers are state machines that take and give bytes.
Imports neither `dp` nor `privopt`. The vocabulary of fields is loaded at once, because declaring them needs
nothing else; what runs a round, with its cryptography, when it is first asked for.
"""

from typing import TYPE_CHECKING

from .errors import CohortError as CohortError
from .errors import EncodingError as EncodingError
from .errors import IdentityError as IdentityError
from .errors import MessageError as MessageError
from .errors import PhaseError as PhaseError
from .errors import PolicyError as PolicyError
from .errors import RegisterError as RegisterError
from .errors import RoundAborted as RoundAborted
from .errors import RoundReused as RoundReused
from .errors import SchemaError as SchemaError
from .errors import SecAggError as SecAggError
from .fields import adaptive as adaptive
from .fields import all_ as all_
from .fields import any_ as any_
from .fields import argmax as argmax
from .fields import averaged as averaged
from .fields import concatenated as concatenated
from .fields import counted as counted
from .fields import histogram as histogram
from .fields import local as local
from .fields import maximum as maximum
from .fields import minimum as minimum
from .fields import moments as moments
from .fields import product as product
from .fields import public as public
from .fields import quantile as quantile
from .fields import same as same
from .fields import sparse as sparse
from .fields import summed as summed
from .fields import true_count as true_count
from .fields import union as union
from .reductions import Adaptive as Adaptive
from .reductions import Reduction as Reduction
from .reductions import verify_reduction as verify_reduction

if TYPE_CHECKING:
    from .client import Client as Client
    from .client import ClientPhase as ClientPhase
    from .encoding import Encoding as Encoding
    from .encoding import Reduced as Reduced
    from .explanation import Explanation as Explanation
    from .explanation import explain as explain
    from .graph import Plan as Plan
    from .graph import plan as plan
    from .keys import Identity as Identity
    from .keys import Roster as Roster
    from .keys import verify_signature as verify_signature
    from .policy import Policy as Policy
    from .register import FileRegister as FileRegister
    from .register import MemoryRegister as MemoryRegister
    from .register import Register as Register
    from .schema import Schema as Schema
    from .schema import reduce_clear as reduce_clear
    from .server import Result as Result
    from .server import Server as Server
    from .server import ServerPhase as ServerPhase
else:  # hidden from type checkers, so that a misspelt name is an error to them
    from importlib import import_module

    _LATER = {
        "client": ["Client", "ClientPhase"],
        "encoding": ["Encoding", "Reduced"],
        "explanation": ["Explanation", "explain"],
        "graph": ["Plan", "plan"],
        "keys": ["Identity", "Roster", "verify_signature"],
        "policy": ["Policy"],
        "register": ["FileRegister", "MemoryRegister", "Register"],
        "schema": ["Schema", "reduce_clear"],
        "server": ["Result", "Server", "ServerPhase"],
    }
    """What is loaded when asked for: the public names of each module, as imported above."""
    _HOMES = {name: module for module, names in _LATER.items() for name in names}

    __all__ = [
        "Adaptive",
        "CohortError",
        "EncodingError",
        "IdentityError",
        "MessageError",
        "PhaseError",
        "PolicyError",
        "Reduction",
        "RegisterError",
        "RoundAborted",
        "RoundReused",
        "SchemaError",
        "SecAggError",
        "adaptive",
        "all_",
        "any_",
        "argmax",
        "averaged",
        "concatenated",
        "counted",
        "histogram",
        "local",
        "maximum",
        "minimum",
        "moments",
        "product",
        "public",
        "quantile",
        "same",
        "sparse",
        "summed",
        "true_count",
        "union",
        "verify_reduction",
        *_HOMES,
    ]

    def __getattr__(name: str) -> object:
        if name in _LATER or name in ("bitwise", "simulate"):
            return import_module(f".{name}", __name__)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER, *__all__})
