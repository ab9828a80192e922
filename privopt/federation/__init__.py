"""Rounds between data holders and a server, from one process to a folder that can be audited: floor 6."""

from .client import Client as Client
from .federation import Federation as Federation
from .federation import build_federation as build_federation
from .home import Home as Home
from .privacy import Policy as Policy
from .privacy import Privacy as Privacy
from .privacy import PrivacyPlan as PrivacyPlan
from .problem import Problem as Problem
from .problem import TorchProblem as TorchProblem
from .reports import RoundReport as RoundReport
from .server import Server as Server
from .settings import Dropouts as Dropouts
from .settings import EarlyStop as EarlyStop
from .settings import Selection as Selection
