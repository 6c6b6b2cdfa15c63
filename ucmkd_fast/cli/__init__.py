"""The command ``ucmkd``: a file a command, each a small function that imports what it needs inside."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from . import bench, compare, demo, doctor, estimate, export, extract, prepare, report, running

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
        app(args=arguments, prog_name="ucmkd")
    except SystemExit as end:
        if end.code == 130:  # typer's, after Ctrl-C
            _fail("stopped", 130)
        raise
    except USER_ERRORS as error:
        if os.environ.get("UCMKD_TRACEBACK"):
            raise
        _fail(str(error) or type(error).__name__, 2)
    sys.exit(0)


def _fail(message: str, status: int) -> NoReturn:
    from ..text import visible

    line = visible(" ".join(message.split()))
    print(f"ucmkd: {line}", file=sys.stderr)
    sys.exit(status)


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
