"""Empirical audit: lower bounds on epsilon from what a mechanism was seen to do.

An accountant says what a mechanism costs at the most, an audit what it costs at the least: where the audit's
figure is above the accountant's, the mechanism is not the one that was priced.
"""

from .bounds import bound_from_guesses as bound_from_guesses
from .bounds import bound_from_rates as bound_from_rates
from .scores import EmpiricalBound as EmpiricalBound
from .scores import attack as attack
from .scores import bound_from_scores as bound_from_scores
