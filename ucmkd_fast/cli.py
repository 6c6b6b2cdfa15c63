"""The command ``ucmkd``: one small function a command; what a command needs is imported inside it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="ucmkd",
    help="Cross-modal knowledge distillation without paired data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

#: What a user can cause, and put right: told in one line (``UCMKD_TRACEBACK=1`` shows where it came from).
#: Anything else is our mistake and keeps its traceback.
USER_ERRORS = (
    ValueError, OSError, ImportError, FloatingPointError, NotImplementedError,
)  # fmt: skip

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; exits with 0, 1 (a check failed), 2 (wrong usage or input) or 130 (Ctrl-C)."""
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
    line = " ".join(message.split())
    print(f"ucmkd: {line}", file=sys.stderr)
    sys.exit(status)


def _console(as_json: bool) -> Console:
    """Where a command talks: stdout, or stderr where stdout is for JSON."""
    from rich.console import Console

    return Console(stderr=as_json)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _show_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"ucmkd-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Cross-modal knowledge distillation without paired data."""


@app.command()
def demo(
    audio: Annotated[
        Path | None,
        typer.Option(
            help="Folder of recordings {digit}_{speaker}_{index}.wav, as the Free Spoken Digit Dataset.",
            show_default="that data set, downloaded, or else synthetic speech",
        ),
    ] = None,
    labels_per_class: Annotated[int, typer.Option(min=1, help="Labelled recordings of each digit.")] = 5,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions.", show_default="5, quick: 2")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of 5 steps.", show_default="30, quick: 6")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for results, picture and student.")] = Path(
        "runs/demo"
    ),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Students trained at the same time.", show_default="one a core")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, to see that all works.")] = False,
    as_json: AsJson = False,
) -> None:
    """A teacher of handwriting, students of speech, not one paired sample: six ways, two controls."""
    from .demo import DemoSettings, run_demo

    settings = DemoSettings(
        audio=audio,
        labels_per_class=labels_per_class,
        seeds=seeds or (2 if quick else 5),
        epochs=epochs or (6 if quick else 30),
        jobs=jobs,
    )
    result = run_demo(settings, output, _console(as_json))
    if as_json:
        _print_json(result.numbers)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What was built, what was found, and whether the ops compute what they should."""
    from .doctor import examine, show

    report = examine()
    if as_json:
        _print_json(report)
    else:
        show(report, _console(False))
    if not report["healthy"]:
        raise typer.Exit(1)
