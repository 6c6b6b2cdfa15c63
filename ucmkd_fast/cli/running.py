"""``ucmkd pretrain``, ``ucmkd distill`` and ``ucmkd eval``: one run from one YAML file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .messages import in_our_words
from .terminal import AsJson, console, print_json

if TYPE_CHECKING:
    from ..run import RunConfig

Config = Annotated[Path, typer.Argument(help="The run's settings, a YAML file.", show_default=False)]
Changes = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to them: key.path=value, such as train.epochs=5.", show_default=False),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would happen, and what is missing; do nothing.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier call was stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]


def pretrain(
    config: Config,
    changes: Changes = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train a run's teacher by itself; `distill` with the same settings then finds it."""
    from ..run.job import TEACHER, pretrain

    run = _load(config, changes)
    if run.teacher is None:
        raise ValueError(f"{config}: expected a teacher, there is none")
    if dry_run:
        _say_plan(run.teacher.as_run(), as_json)
        return
    _say(
        pretrain(run, _output(run) / TEACHER, resume=resume, overwrite=overwrite),
        _output(run) / TEACHER,
        as_json,
    )


def distill(
    config: Config,
    changes: Changes = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train a student under a teacher, which is trained first where that is not done yet."""
    from ..run.job import distill

    run = _load(config, changes)
    if dry_run:
        _say_plan(run, as_json)
        return
    _say(distill(run, _output(run), resume=resume, overwrite=overwrite), _output(run), as_json)


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    changes: Changes = None,
    part: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    as_json: AsJson = False,
) -> None:
    """Measure a finished run's student: accuracy, by class, and who is taken for whom."""
    from ..run.evaluation import evaluate_run, show
    from ..run.settings import read_changes

    found = evaluate_run(run, part, read_changes(changes or []))
    if as_json:
        print_json(found)
    else:
        show(console(False), found)


def _load(path: Path, changes: list[str] | None) -> RunConfig:
    """The run, with curves for TensorBoard where that is installed and nothing is said about trackers."""
    from ..run import RunConfig
    from ..run.settings import load_settings, read_changes, with_changes

    values = with_changes(load_settings(path), read_changes(changes or []))
    if find_spec("tensorboard") is not None:
        for side in (values, values.get("teacher")):
            train = side.get("train") if isinstance(side, dict) else None
            if isinstance(train, dict):
                train.setdefault("trackers", ["tensorboard"])
    return RunConfig.read(values)


def _output(run: RunConfig) -> Path:
    if run.output is None:
        raise ValueError(
            "expected a folder to keep the run in: output in the settings, or output=FOLDER here"
        )
    return Path(run.output)


def _say_plan(run: RunConfig, as_json: bool) -> None:
    """What would happen; exit status 1 where something is missing for it to."""
    from ..run.plan import plan, show

    found = plan(run)
    found["missing"] = [in_our_words(sentence) for sentence in found["missing"]]
    if as_json:
        print_json(found)
    else:
        show(console(False), found)
    if found["missing"]:
        raise typer.Exit(1)


def _say(result: dict[str, Any], folder: Path, as_json: bool) -> None:
    from ..report.plain import as_plain

    result = {**result, "folder": str(folder)}
    if as_json:
        print_json(as_plain(result))
        return
    out = console(False)
    for part, key in (("test", "accuracy"), ("validation", "val_accuracy")):
        if result[key] is not None:
            out.say(f"Accuracy on {part} data: {100 * result[key]:.1f} %")
    taught = result.get("teacher_seconds")  # results of before do not say it
    of_teacher = "" if taught is None else f", its teacher after {taught:.0f} s"
    weights = folder / result["weights"]
    out.say(f"{weights} after {result['seconds']:.0f} s of training{of_teacher}", wrap=False)
