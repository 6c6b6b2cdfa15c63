"""The command ``ucmkd``: a file a command, each a small function that imports what it needs inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NoReturn

import typer

from . import bench, compare, demo, doctor, estimate, export, extract, prepare, report, running
from .messages import after_ctrl_c, say, warnings_as_sentences

app = typer.Typer(
    name="ucmkd",
    help="Cross-modal knowledge distillation without paired data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

#: What a user can cause, and put right: told in one line (``UCMKD_TRACEBACK=1`` shows where it came from).
#: Anything else is our mistake and keeps its traceback.
USER_ERRORS = (
    ValueError, OSError, ImportError, FloatingPointError, NotImplementedError, MemoryError,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; exits with 0, 1 (a check failed), 2 (wrong usage or input) or 130 (Ctrl-C)."""
    from ..terminal import write_what_can_be_written

    write_what_can_be_written()
    try:
        with warnings_as_sentences():
            app(args=arguments, prog_name="ucmkd")
    except SystemExit as end:
        if end.code == 130:  # typer's, after Ctrl-C
            _fail(after_ctrl_c(sys.argv[1:] if arguments is None else arguments, _commands()), 130)
        raise
    except USER_ERRORS as error:
        if os.environ.get("UCMKD_TRACEBACK"):
            raise
        _fail(str(error) or type(error).__name__, 2)
    sys.exit(0)


def _fail(message: str, status: int) -> NoReturn:
    say(message)
    sys.exit(status)


def _commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each command's name and function."""
    for command in app.registered_commands:
        if command.callback is not None:
            yield command.name or command.callback.__name__, command.callback


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"ucmkd-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Cross-modal knowledge distillation without paired data."""


# In the order of --help.
app.command()(demo.demo)
app.command()(prepare.prepare)
app.command()(running.pretrain)
app.command()(extract.extract)
app.command()(running.distill)
app.command("eval")(running.evaluate)
app.command()(export.export)
app.command()(report.report)
app.command()(compare.compare)
app.command()(bench.bench)
app.command()(estimate.estimate)
app.command()(doctor.doctor)
