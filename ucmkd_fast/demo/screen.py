"""What the demo says on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..report import Compared
from ..report.tables import accuracy_table, bound_table
from .files import PICTURE, RESULTS, STUDENT
from .settings import BASELINE, CONTENDERS, STEPS_PER_EPOCH, Contender, DemoSettings
from .task import Task
from .verdict import EXPECTATION

_LEGEND = """\
[bold]Accuracy[/]: on voices never heard, mean ± deviation over seeds. [bold]vs ce[/]: paired difference, points ± \
standard error; bold where it exceeds its 95 % margin. [bold]FA[/]: cosine transport cost from the student's test \
features to the teacher's held-out ones; 0 = they coincide. [bold]LA[/]: label alignment on the test voices, nats. \
[bold]Read[/]: how often the teacher's own head names the digit from the student's test feature; chance is \
{chance:.0f} %. [bold]s/epoch[/]: {steps} steps on one thread. [bold]Permuted[/]: the control, a teacher as accurate \
as the real one, with every class renamed to another."""

_BOUND_LEGEND = """\
Means over seeds, on test voices and held-out handwriting. [bold]FA[/] = tau x W1: tau is estimated as the largest \
gradient norm of the teacher head's entropy over both modalities' features, W1 by entropic transport with the l2 \
metric, reg 1 % of the mean distance. So the bound is an estimate too."""


def introduce(console: Console, task: Task, settings: DemoSettings) -> None:
    """Who teaches, who learns, and from what."""
    voices = task.voices(settings.labels_per_class, 0)
    train, val, test = (len(set(part.groups or ())) for part in (voices.labelled, voices.val, voices.test))
    console.print(f"[bold]Students hear[/] {task.description}", highlight=False)
    console.print(
        f"[bold]The teacher reads[/] handwriting, {100 * task.teacher.accuracy():.1f} % of "
        f"{len(task.teacher.held_out)} held-out digits right. It never hears a voice, and no sample has a partner.",
        highlight=False,
    )
    console.print(
        f"[bold]Each student[/] has {settings.labels_per_class} labelled recordings per digit and "
        f"{STEPS_PER_EPOCH * settings.epochs} steps. Voices, drawn anew by each seed ({settings.seeds}): {train} to "
        f"train on, {val} kept for validation, {test} to test on. All knobs were fixed beforehand; the student after "
        "the last step counts.",
        highlight=False,
    )


@contextmanager
def runs(console: Console, settings: DemoSettings) -> Iterator[Callable[[Contender, int], None]]:
    """A bar over all runs; gives the function to call after each."""
    with Progress(
        TextColumn("Students"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[last]}"),
        console=console,
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=settings.seeds * len(CONTENDERS), last="")
        yield lambda contender, seed: progress.update(bar, advance=1, last=f"{contender.label}, seed {seed}")


def show(
    console: Console,
    task: Task,
    settings: DemoSettings,
    methods: Sequence[Compared],
    conclusions: Sequence[str],
) -> None:
    """Tables, what they mean, and what they say."""
    console.print()
    console.print(accuracy_table(methods, BASELINE))
    legend = _LEGEND.format(chance=100 / len(task.speech.classes), steps=STEPS_PER_EPOCH)
    console.print(legend, style="dim", highlight=False)
    console.print()
    console.print(bound_table(methods))
    console.print(_BOUND_LEGEND, style="dim", highlight=False)
    console.print(f"\n[bold]What these numbers say[/] (seeds: {settings.seeds})", highlight=False)
    for sentence in conclusions:
        console.print(f"  • {sentence}", highlight=False)
    console.print(f"\n{EXPECTATION}", highlight=False)


def say_where(console: Console, folder: Path, seconds: Mapping[str, float]) -> None:
    """The files, and how to load the student."""
    console.print(f"\n[bold]Written to {folder}[/] after {sum(seconds.values()):.0f} s:", highlight=False)
    console.print(f"  {PICTURE}           features, accuracies, theorem", highlight=False)
    console.print(f"  {RESULTS}          every number, setting and version", highlight=False)
    console.print(f"  {STUDENT}   the ucmkd student of seed 0; to load it:", highlight=False)
    lines = (
        "from safetensors.torch import load_file",
        "from ucmkd_fast.models import speech_cnn",
        "student = speech_cnn()",
        f'student.load_state_dict(load_file("{folder / STUDENT}"))',
    )
    for line in lines:
        console.print(f"      {line}", highlight=False, soft_wrap=True, markup=False)
