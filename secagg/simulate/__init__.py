"""Simulation: many clients in one process, to see what a round costs and that it gives the exact sum.

A simulation protects nobody from the process that it runs in: all values and keys are in its memory.
"""

from .machines import STAGES as STAGES
from .machines import Costs as Costs
from .machines import run_round as run_round
from .outcome import Party as Party
from .outcome import Simulation as Simulation
from .simulation import simulate as simulate
