"""The command line: floor 7, the front door for people who run a federation or audit one."""

from .commands import main as main
