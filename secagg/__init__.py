"""Secure sums: many clients send masked vectors, a server learns their sum and nothing else.

A schema says how each field combines; clients and servers are state machines that take and give bytes.
Imports neither `dp` nor `privopt`.
"""

from .client import Client as Client
from .client import ClientPhase as ClientPhase
from .encoding import Encoding as Encoding
from .encoding import Reduced as Reduced
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
from .explain import Explanation as Explanation
from .explain import explain as explain
from .fields import adaptive as adaptive
from .fields import argmax as argmax
from .fields import averaged as averaged
from .fields import concatenated as concatenated
from .fields import counted as counted
from .fields import local as local
from .fields import product as product
from .fields import public as public
from .fields import same as same
from .fields import summed as summed
from .fields import union as union
from .keys import Identity as Identity
from .keys import Roster as Roster
from .keys import verify_signature as verify_signature
from .policy import Policy as Policy
from .reductions import Adaptive as Adaptive
from .reductions import Reduction as Reduction
from .reductions import verify_reduction as verify_reduction
from .register import FileRegister as FileRegister
from .register import MemoryRegister as MemoryRegister
from .register import Register as Register
from .schema import Schema as Schema
from .schema import reduce_clear as reduce_clear
from .server import Result as Result
from .server import Server as Server
from .server import ServerPhase as ServerPhase
