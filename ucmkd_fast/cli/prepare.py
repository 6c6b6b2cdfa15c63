"""``ucmkd prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import AsJson, console, print_json

if TYPE_CHECKING:
    from ..data.prepare import Report
    from ..terminal import Terminal

_SHOWN = 10  # sentences of a kind


def prepare(
    dataset: Annotated[str, typer.Argument(help="ravdess, crema-d, ave or vggsound.")],
    root: Annotated[Path, typer.Option(help="The data set's folder.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Examine, and write nothing.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Bad files and lines are reported and no failure.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Examine a data set's folder and make its audio pickles arrays, without running what is in them."""
    from ..data.prepare import clip_count
    from ..data.prepare import prepare as run
    from ..terminal import Bar

    screen = console(as_json)
    with Bar(screen, dataset, clip_count(dataset, root), silent=not screen.is_terminal) as bar:
        report = run(dataset, root, dry_run=dry_run, advance=bar.advance)
    if as_json:
        print_json({**report.to_dict(), "dry_run": dry_run})
    else:
        _show(report, screen, dry_run)
    if report.problems and not skip_bad:
        raise typer.Exit(1)


def _show(report: Report, screen: Terminal, dry_run: bool) -> None:
    def say(line: str) -> None:
        screen.say(line, wrap=False)

    sizes = ", ".join(f"{split} {count}" for split, count in report.clips.items())
    say(f"{report.dataset} in {report.root}: {len(report.classes)} classes; clips: {sizes}")
    verb = "to convert" if dry_run else "converted"
    say(f"sounds: {report.ready} ready, {report.converted} {verb}; pictures read: {report.pictures}")
    for note in report.notes:
        say(f"note: {note}")
    kinds = {"missing": report.missing, "broken": report.broken, "bad line": report.bad_lines}
    for kind, sentences in kinds.items():
        for sentence in sentences[:_SHOWN]:
            say(f"{kind}: {sentence}")
        if len(sentences) > _SHOWN:
            say(f"{kind}: {len(sentences) - _SHOWN} more (--json lists all)")
    say(f"{report.problems} bad files and lines" if report.problems else "all files are good")
