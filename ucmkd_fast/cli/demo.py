"""``ucmkd demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import AsJson, console, print_json


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
        int | None,
        typer.Option(
            min=1, help="Students trained at the same time.", show_default="one a core; with a GPU, one"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, to see that all works.")] = False,
    as_json: AsJson = False,
) -> None:
    """A teacher of handwriting, students of speech, not one paired sample: six ways, two controls."""
    from ..demo import DemoSettings, run_demo

    settings = DemoSettings(
        audio=audio,
        labels_per_class=labels_per_class,
        seeds=seeds or (2 if quick else 5),
        epochs=epochs or (6 if quick else 30),
        jobs=jobs,
    )
    result = run_demo(settings, output, console(as_json))
    if as_json:
        print_json(result.numbers)
