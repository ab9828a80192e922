"""The command line: floor 7, the front door for people who run a federation or audit one.

Contents: the parser with its examples, then one function a command. Commands load what they need when they
run, so that ``--help`` is instant; `privopt.cli.failures` turns an error into one paragraph and an exit code.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import plan
from .failures import AUDIT, BUG, EXIT_CODES, INTERRUPTED, OK, USAGE, exit_code, told, told_warnings
from .ledgers import EXAMPLES, add_arguments, run_ledger

if TYPE_CHECKING:
    from ..setup.tables import Config

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As on the command line, without the program's name; ``sys.argv`` by default.

    Returns:
        The exit code, one of `privopt.cli.failures.EXIT_CODES`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an old terminal shows "?" for ε rather than a traceback
    options = _options(arguments)
    with told_warnings():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has gone (`privopt modules | head`): nothing is left to say, and nobody to say
        # it to. Standard output is pointed elsewhere so that the interpreter's last flush is silent too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        # A known mistake becomes one paragraph and an exit code; anything else is a bug and is raised again.
        code = exit_code(error)
        if code == BUG or options.debug:
            raise
        return _fail(told(error), code)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed arguments; ``key=value`` may stand before and after options, which argparse alone refuses."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(options, "settings") or any(text.startswith("-") for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.settings += rest
    return options


def _fail(text: str, code: int) -> int:
    print(f"privopt: {text}", file=sys.stderr)
    return code


# --- the parser -------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Errors in one paragraph, as everywhere."""

    def error(self, message: str) -> NoReturn:
        self.exit(_fail(f"{message[0].upper()}{message[1:]}. `{self.prog} --help` shows examples.", USAGE))


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog="privopt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train together, rows stay home: local differential privacy, secure sums, an audit.",
        epilog=f"""\
first steps:
  privopt train                      the built-in run: 8 clients, handwritten digits, ε ≤ 8, masks on
  privopt audit runs/<id>            recompute what it spent from the signed ledgers
  privopt init my.toml               a commented configuration; then: privopt train my.toml

exit codes:
{codes}

`privopt COMMAND --help` shows the examples of a command.""",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], short: str, examples: str) -> _Parser:
        sub: _Parser = commands.add_parser(
            name,
            help=short,
            description=short[0].upper() + short[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
        )
        sub.set_defaults(run=run)
        sub.add_argument(
            "--format", choices=("text", "json"), default="text", help="what to print (default: text)"
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    train = command(
        "train",
        _train,
        "run a federation on this machine, or go on with one",
        """
        privopt train                                   the built-in run, about a minute
        privopt train my.toml rounds=20 dp.epsilon=4    a configuration, with keys overridden
        privopt train data.name=breast_cancer model.name=mlp
        privopt train 'client.optimizer.modules=["adam"]' 'server.optimizer.modules=[]'
        privopt train --resume runs/2026-11-21-digits-1
        """,
    )
    _config_arguments(train)
    train.add_argument("--resume", metavar="RUN", type=Path, help="go on with the run in this folder")

    audit = command(
        "audit",
        _audit,
        "recompute what a run spent, and check that its records hold together",
        """
        privopt audit runs/2026-11-21-digits-1          a table; exit code 6 if anything does not hold
        privopt audit runs/2026-11-21-digits-1 --format json | jq .problems
        """,
    )
    audit.add_argument("folder", type=Path, help="a run's folder")

    explain = command(
        "explain",
        _explain,
        "say what the server would learn, and at which precision, before anything is sent",
        """
        privopt explain                                 of the built-in run
        privopt explain my.toml masks.bits=20
        """,
    )
    _config_arguments(explain)

    plan.add_arguments(command("plan", plan.run, plan.SHORT, plan.EXAMPLES))

    init = command(
        "init",
        _init,
        "write a commented configuration to start from",
        """
        privopt init my.toml
        privopt train my.toml
        """,
    )
    init.add_argument(
        "path", type=Path, nargs="?", default=Path("privopt.toml"), help="default: privopt.toml"
    )
    init.add_argument("--force", action="store_true", help="replace the file if there is one")

    modules = command(
        "modules",
        _modules,
        "list what can be plugged into an optimizer or a federation, with parameters and defaults",
        """
        privopt modules                                 modules, regularizers, schedules, aggregators
        privopt modules adam                            one of them, in full
        privopt modules cosine --format json | jq .[0].parameters
        """,
    )
    modules.add_argument("name", nargs="?", help="show only this one")

    report = command(
        "report",
        _report,
        "write a run's report.html again",
        """
        privopt report runs/2026-11-21-digits-1
        """,
    )
    report.add_argument("folder", type=Path, help="a run's folder")

    add_arguments(command("ledger", run_ledger, "show, verify or budget a client's ledger", EXAMPLES))
    return parser


def _version() -> str:
    from .. import __version__

    return f"privopt {__version__}"


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG | key=value",
        help="a TOML file (none: the built-in run), and keys of it to override",
    )


def _config(options: argparse.Namespace) -> Config:
    from ..setup.config import ConfigError, check_plugins, load

    files = [text for text in options.settings if "=" not in text]
    if len(files) > 1:
        raise ConfigError(
            f"Expected one configuration file, got {' and '.join(files)}. Overrides are written key=value, "
            "without spaces around the sign."
        )
    config = load(files[0] if files else None, [text for text in options.settings if "=" in text])
    check_plugins(config)
    return config


# --- commands ---------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    from ..setup.config import ConfigError
    from .console import Console

    if options.resume is not None and options.settings:
        raise ConfigError(
            f"Expected --resume alone, got also {' '.join(options.settings)}. A run goes on with the "
            "configuration it was started with; start a new one to change it."
        )
    config = None if options.resume is not None else _config(options)
    with Console(as_json=options.format == "json", folder=options.resume) as console:
        try:
            if config is None:
                from ..report.folder import read_run

                read_run(options.resume)
                from ..federation.run import resume

                resume(options.resume, observer=console)
            else:
                from ..federation.run import train

                train(config, observer=console)
        except KeyboardInterrupt:
            if console.folder is None:
                raise
            return _fail(f"Interrupted. To go on: privopt train --resume {console.folder}", INTERRUPTED)
    return OK


def _audit(options: argparse.Namespace) -> int:
    from ..report.audit import audit_run
    from .console import Console

    found = audit_run(options.folder)
    console = Console(as_json=options.format == "json")
    console.say(str(found))
    console.give(found.to_dict())
    return OK if found.ok else AUDIT


def _explain(options: argparse.Namespace) -> int:
    from .console import Console
    from .explain import explain_config

    found = explain_config(_config(options))
    console = Console(as_json=options.format == "json")
    console.say(str(found))
    console.give(found.to_dict())
    return OK


def _init(options: argparse.Namespace) -> int:
    from ..checkpoint import write_atomic
    from ..setup.config import ConfigError, template
    from .console import Console

    if options.path.exists() and not options.force:
        raise ConfigError(
            f"Expected a new file, got {options.path} which exists. Choose another name, or add --force."
        )
    write_atomic(options.path, template().encode())
    console = Console(as_json=options.format == "json")
    console.say(f"Wrote {options.path}. Change what you like, then: privopt train {options.path}")
    console.give({"path": str(options.path)})
    return OK


def _modules(options: argparse.Namespace) -> int:
    from ..setup.config import ConfigError
    from .console import Console
    from .listing import described, nearest

    plugins = described()
    full = options.name is not None
    if full:
        near = nearest(options.name, plugins)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        if options.name.lower() == "sgd":
            hint = " Plain SGD is an optimizer without modules: modules = []."
        plugins = [plugin for plugin in plugins if plugin.name == options.name]
        if not plugins:
            raise ConfigError(
                f"Expected a plug-in's name, got {options.name!r}.{hint} `privopt modules` lists them."
            )
    console = Console(as_json=options.format == "json")
    for kind in dict.fromkeys(plugin.kind for plugin in plugins):
        console.say(f"{kind}s")
        for plugin in plugins:
            if plugin.kind == kind:
                console.say(plugin.text(full=full))
        console.say("")
    if not full:
        console.say(
            'In a configuration: modules = ["name", ["name", {parameter = value}]], aggregator = "name".'
        )
    console.give([plugin.to_dict(full=full) for plugin in plugins])
    return OK


def _report(options: argparse.Namespace) -> int:
    from ..report.page import write_report
    from .console import Console

    path = write_report(options.folder)
    console = Console(as_json=options.format == "json")
    console.say(f"Wrote {path}")
    console.give({"path": str(path)})
    return OK
