"""What the demo says on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..report import Compared
from ..report.tables import accuracy_table, bound_table
from ..report.words import resolution
from ..terminal import Bar, Part, Terminal, bold
from .files import PICTURE, RESULTS, STUDENT
from .settings import BASELINE, CONTENDERS, STEPS_PER_EPOCH, Contender, DemoSettings
from .task import Task
from .verdict import EXPECTATION

#: Words of the tables, and what they mean.
_LEGEND = (
    ("Accuracy", "on voices never heard ({test_set}), mean ± deviation over seeds."),
    (
        "vs ce",
        "paired difference, points ± standard error; bold beyond its 95 % margin (Student's t over the "
        "seeds) and at least one test sample.",
    ),
    (
        "FA",
        "cosine transport cost from the student's test features to the teacher's held-out ones; 0 = they coincide.",
    ),
    ("LA", "label alignment on the test voices, nats."),
    (
        "Read",
        "how often the teacher's own head names the digit from the student's test feature; chance is {chance:.0f} %.",
    ),
    ("s/epoch", "{steps} steps on one thread."),
    ("Permuted", "the control, a teacher as accurate as the real one, with every class renamed to another."),
)

_BOUND_LEGEND = (
    "Means over seeds, on test voices and held-out handwriting.",
    "= tau x W1: tau is estimated as the largest gradient norm of the teacher head's entropy over both modalities' "
    "features, W1 by entropic transport with the l2 metric, reg 1 % of the mean distance. So the bound is an estimate "
    "too.",
)


def introduce(terminal: Terminal, task: Task, settings: DemoSettings) -> None:
    """Who teaches, who learns, and from what."""
    voices = task.voices(settings.labels_per_class, 0)
    train, val, test = (len(set(part.groups or ())) for part in (voices.labelled, voices.val, voices.test))
    terminal.say(bold("Students hear"), f" {task.description}")
    terminal.say(
        bold("The teacher reads"),
        f" handwriting, {100 * task.teacher.accuracy():.1f} % of "
        f"{len(task.teacher.held_out)} held-out digits right. It never hears a voice, and no sample has a partner.",
    )
    terminal.say(
        bold("Each student"),
        f" has {settings.labels_per_class} labelled recordings per digit and "
        f"{STEPS_PER_EPOCH * settings.epochs} steps. Voices, drawn anew by each seed ({settings.seeds}): {train} to "
        f"train on, {val} kept for validation, {test} to test on. All knobs were fixed beforehand; the student after "
        "the last step counts.",
    )


@contextmanager
def runs(terminal: Terminal, settings: DemoSettings) -> Iterator[Callable[[Contender, int], None]]:
    """A bar over all runs; gives the function to call after each."""
    with Bar(terminal, "Students", settings.seeds * len(CONTENDERS)) as bar:

        def on_done(contender: Contender, seed: int) -> None:
            bar.note(f"{contender.label}, seed {seed}")
            bar.advance()

        yield on_done


def show(
    terminal: Terminal,
    task: Task,
    settings: DemoSettings,
    methods: Sequence[Compared],
    conclusions: Sequence[str],
) -> None:
    """Tables, what they mean, and what they say."""
    terminal.say()
    accuracy_table(terminal, methods, BASELINE)
    facts = {
        "chance": 100 / len(task.speech.classes),
        "steps": STEPS_PER_EPOCH,
        "test_set": resolution(count for method in methods for count in method.test_samples),
    }
    legend: list[Part] = []
    for word, meaning in _LEGEND:
        legend += [bold(word), f": {meaning.format(**facts)} "]
    terminal.say(*legend, style="dim")
    terminal.say()
    bound_table(terminal, methods)
    first, rest = _BOUND_LEGEND
    terminal.say(f"{first} ", bold("FA"), f" {rest}", style="dim")
    terminal.say()
    terminal.say(bold("What these numbers say"), f" (seeds: {settings.seeds})")
    for sentence in conclusions:
        terminal.say(f"  • {sentence}")
    terminal.say()
    terminal.say(EXPECTATION)


def say_where(terminal: Terminal, folder: Path, seconds: Mapping[str, float]) -> None:
    """The files, and how to load the student."""
    terminal.say()
    terminal.say(bold(f"Written to {folder}"), f" after {sum(seconds.values()):.0f} s:")
    terminal.say(f"  {PICTURE}           features, accuracies, theorem")
    terminal.say(f"  {RESULTS}          every number, setting and version")
    terminal.say(f"  {STUDENT}   the ucmkd student of seed 0; to load it:")
    lines = (
        "from safetensors.torch import load_file",
        "from ucmkd_fast.models import speech_cnn",
        "student = speech_cnn()",
        f'student.load_state_dict(load_file("{folder / STUDENT}"))',
    )
    for line in lines:
        terminal.say(f"      {line}", wrap=False)
