"""The page itself: one HTML file with everything inside, its pictures beside it, its numbers as JSON."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...text import in_html
from ...training.checkpoint import write_bytes, write_text
from ..plain import as_plain
from ..theory import BoundParts
from . import figures
from .gather import BetweenModalities, RunReport

FOLDER = "report"  # in the run's


@dataclass(frozen=True)
class _Section:
    title: str
    picture: tuple[str, bytes] | None  # name and PNG
    caption: str  # HTML: what is seen, and how it was made
    after: str = ""  # HTML


def write_report(report: RunReport, output: Path | None = None) -> Path:
    """Write ``index.html``, the pictures and ``report.json``, each beside and renamed, the page last.

    Args:
        report: what `gather` measured.
        output: a folder; None: ``report`` in the run's.

    Returns:
        The page's path.

    Raises:
        ImportError: matplotlib or scikit-learn is not installed.
        OSError: the folder cannot be written; an earlier page is intact.
    """
    output = output or report.folder / FOLDER
    sections = [section for make in _SECTIONS if (section := make(report)) is not None]
    page = _page(report, sections)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for section in sections:
            if section.picture is not None:
                write_bytes(output / f"{section.picture[0]}.png", section.picture[1])
        write_text(output / "report.json", json.dumps(numbers(report), indent=2, allow_nan=False) + "\n")
        write_text(output / "index.html", page)
    except OSError as error:
        raise OSError(f"could not write the report to {output}: {error}") from error
    return output / "index.html"


def numbers(report: RunReport) -> dict[str, Any]:
    """What the page shows, as plain values."""
    found: dict[str, Any] = {
        "run": str(report.folder),
        "part": report.part,
        "classes": report.classes,
        **report.measured,
        "history": report.history,
    }
    between = report.between
    if between is not None:
        means = _by_class(between.kappa, between.student.labels.numpy(), len(report.classes))
        found |= {
            "transport": between.transport,
            "marginal_error": between.marginal_error,
            "plan_by_class": between.plan_by_class.tolist(),
            "kappa_by_class": means,
            "teacher_reads": between.teacher_reads,
            "bound": _plain_bound(between.bound),
            "bound_by_epoch": {str(epoch): _plain_bound(parts) for epoch, parts in between.bounds.items()},
        }
        if between.sample_terms is not None and between.constants is not None:
            terms = {**asdict(between.sample_terms), "total": between.sample_terms.total}
            found |= {"sample_terms": terms, "constants": asdict(between.constants)}
    return as_plain(found)


def _plain_bound(parts: BoundParts) -> dict[str, float]:
    return {**asdict(parts), "feature_alignment": parts.feature_alignment, "bound": parts.bound}


def _by_class(values: np.ndarray, labels: np.ndarray, classes: int) -> list[float | None]:
    return [float(values[labels == k].mean()) if (labels == k).any() else None for k in range(classes)]


def _curves(report: RunReport) -> _Section:
    if not report.history:
        return _Section("Learning curves", None, "The run has no checkpoint left, which holds them.")
    caption = (
        f"Means over each of the {len(report.history)} epochs, as the method reports them; "
        f"{report.result['seconds']:.0f} s of training."
    )
    return _Section("Learning curves", ("curves", figures.learning_curves(report.history)), caption)


def _confusion(report: RunReport) -> _Section:
    counts = report.measured["confusion"]
    rows = sorted(
        (
            (accuracy, report.classes[k], sum(counts[k]))
            for k, accuracy in enumerate(report.measured["per_class_accuracy"])
            if accuracy is not None
        ),
    )
    table = _table(
        ("class", "accuracy", "samples"), [(name, f"{100 * accuracy:.1f} %", n) for accuracy, name, n in rows]
    )
    return _Section(
        "Who is taken for whom",
        ("confusion", figures.confusion(counts, report.classes)),
        f"Counts on the {report.measured['samples']} {in_html(report.part)} samples; colour is the share of the row.",
        f"<details><summary>Accuracy by class, worst first</summary>{table}</details>",
    )


def _plan(report: RunReport) -> _Section:
    between = report.between
    if between is None:
        return _missing("Transport plan by class", report)
    on_own = float(np.trace(between.plan_by_class) / between.plan_by_class.sum())
    how = ", ".join(f"{name} {value}" for name, value in between.transport.items())
    whose = (
        "the method's own" if between.by_method else "the method has none of its own; this one is cosine FA"
    )
    caption = (
        "How much of its mass each student class sends to each teacher class, in per cent of the row. "
        f"{100 * on_own:.0f} % of all mass goes to the class of the same name. "
        f"Were classes matched, the diagonal would be dark. Transport: {in_html(how)} ({whose}); "
        f"marginal error {between.marginal_error:.1e}; {len(between.student.x)} of the student's "
        f"{in_html(report.part)} samples, {len(between.teacher.x)} of the teacher's held-out ones."
    )
    return _Section(
        "Transport plan by class",
        ("plan", figures.plan_by_class(between.plan_by_class, report.classes)),
        caption,
    )


def _kappa(report: RunReport) -> _Section | None:
    between = report.between
    if between is None:
        return None
    labels = between.student.labels.numpy()
    caption = (
        "Kappa is the probability that the teacher's head gives a student feature's own class: the weight of label "
        "transport. Box: quartiles; whiskers: 5th to 95th percentile; dotted: chance. "
        f"The head reads {100 * between.teacher_reads:.0f} % of the student's features right "
        f"(chance: {100 / len(report.classes):.0f} %)."
    )
    picture = figures.kappa_by_class(between.kappa, labels, report.classes)
    return _Section("Kappa by class", ("kappa", picture), caption)


def _features(report: RunReport) -> _Section | None:
    between = report.between
    if between is None:
        return None
    picture = figures.features(
        between.teacher.x.numpy(), between.teacher.labels.numpy(),
        between.student.x.numpy(), between.student.labels.numpy(),
    )  # fmt: skip
    key = ", ".join(f"{k} {in_html(name)}" for k, name in enumerate(report.classes) if name != str(k))
    caption = (
        "t-SNE of unit-length features of both modalities, up to 300 of each. Dots and round labels: the teacher's; "
        "crosses and square labels: the student's. Distances in such a plane mean little; neighbours mean more."
        + (f" Classes: {key}." if key else "")
    )
    return _Section("Features of both modalities", ("features", picture), caption)


def _theory(report: RunReport) -> _Section | None:
    between = report.between
    if between is None:
        return None
    caption = (
        f"err<sub>S</sub> ≤ err<sub>T</sub> + FA + LA, each estimated on up to 400 of the student's "
        f"{in_html(report.part)} samples and as many of the teacher's held-out ones. "
        "FA = τ·W₁. <b>τ</b>, the Lipschitz constant of the teacher's cross-entropy, is estimated as the largest "
        "gradient norm of the teacher head's entropy over all features at hand (its own probabilities stand for the "
        "true ones): it may be steeper between the features than at them, so the inequality is observed, not "
        "guaranteed. <b>W₁</b> is the entropic transport cost, l2 metric, at reg = 1 % of the mean distance."
    )
    table = _bound_table(between)
    if len(between.bounds) < 2:
        caption += (
            " The bound from epoch to epoch needs the students of the epochs: train with "
            "<code>train.keep_weights_every=1</code>."
        )
        return _Section("Theorem 2.6 in numbers", None, caption, table + _sample_terms(between))
    picture = figures.bound_by_epoch(between.bounds, len(report.classes))
    return _Section(
        "Theorem 2.6 from epoch to epoch", ("bound", picture), caption, table + _sample_terms(between)
    )


def _bound_table(between: BetweenModalities) -> str:
    epoch = "" if between.final_epoch is None else f" (epoch {between.final_epoch})"
    rows = [(f"the student of this run{epoch}", between.bound)]
    if len(between.bounds) > 1:
        first = next(iter(between.bounds))
        rows.insert(0, (f"epoch {first}", between.bounds[first]))
    return _table(
        ("", "teacher's error", "+ FA", "+ LA", "= bound", "student's error", "τ", "W₁"),
        [
            (
                name, *(f"{value:.3f}" for value in (
                    b.teacher_error, b.feature_alignment, b.label_alignment, b.bound, b.student_error, b.tau,
                    b.wasserstein,
                )),
            )
            for name, b in rows
        ],
    )  # fmt: skip


def _sample_terms(between: BetweenModalities) -> str:
    terms, constants = between.sample_terms, between.constants
    if terms is None or constants is None:
        return ""
    said = ", ".join(
        f"{name} = {'largest on these samples' if value is None else f'{value:g}'}"
        for name, value in asdict(constants).items()
    )
    table = _table(
        ("Theorem 2.7 adds", "nats"),
        [
            ("τ · concentration of both samples", f"{terms.feature_concentration:.3f}"),
            ("τ · (C1 n_S^(-1/s1) + C2 n_T^(-1/s2))", f"{terms.feature_dimension:.3f}"),
            ("C3 · complexity of the students", f"{terms.label_complexity:.3f}"),
            ("C3 · concentration of the labels", f"{terms.label_concentration:.3f}"),
            ("together", f"{terms.total:.3f}"),
            ("bound with them", f"{between.bound.bound + terms.total:.3f}"),
        ],
    )
    return (
        f"{table}<p class='caption'>With probability 1 - 3 δ, at constants that the theorem leaves open and that "
        f"were said on the command line: {in_html(said)}.</p>"
    )


def _missing(title: str, report: RunReport) -> _Section:
    assert report.why_not_between is not None
    what = "Transport plan, kappa, features and the theorem's bound are left out. "
    return _Section(title, None, what + in_html(report.why_not_between))


_SECTIONS: tuple[Callable[[RunReport], _Section | None], ...] = (
    _curves, _confusion, _plan, _kappa, _features, _theory,
)  # fmt: skip


def _page(report: RunReport, sections: list[_Section]) -> str:
    name = report.folder.resolve().name
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{in_html(name)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{style}</style></head><body><main>\n{_head(report, name)}\n"
        + "\n".join(_section(section) for section in sections)
        + f"\n{_settings(report)}</main></body></html>\n"
    )


def _head(report: RunReport, name: str) -> str:
    method, student, teacher = (report.config[key] for key in ("method", "student", "teacher"))
    who = f"<b>{in_html(_called(student['model']))}</b> on {in_html(_called(student['data']))}"
    if teacher is not None:
        who += (
            f", taught by <b>{in_html(_called(teacher['model']))}</b> on {in_html(_called(teacher['data']))}"
        )
        if teacher["control"] is not None:
            who += f" (control: {in_html(teacher['control'])})"
    tiles = [(f"{100 * report.measured['accuracy']:.1f} %", f"accuracy, {report.part}")]
    tiles.append((f"{report.measured['loss']:.2f}", f"cross-entropy, {report.part}"))
    if report.result["val_accuracy"] is not None and report.part != "val":
        tiles.append((f"{100 * report.result['val_accuracy']:.1f} %", "accuracy, val"))
    if report.result.get("teacher_accuracy") is not None:
        tiles.append(
            (f"{100 * report.result['teacher_accuracy']:.1f} %", "teacher's accuracy on its own data")
        )
    if report.between is not None:
        tiles.append(
            (f"{100 * report.between.teacher_reads:.0f} %", "of student features read right by the teacher")
        )
    shown = "".join(
        f"<div class='tile'><b>{in_html(value)}</b><span>{in_html(what)}</span></div>"
        for value, what in tiles
    )
    return (
        f"<header><h1>{in_html(name)}</h1><p>{who}, by <b>{in_html(_called(method))}</b>; "
        f"seed {report.config['seed']}.</p>"
        f"<div class='tiles'>{shown}</div></header>"
    )


def _called(value: Any) -> str:
    """The name of a data set, a model or a method."""
    if isinstance(value, dict):
        return str(value["name"]) if "name" in value else _called(value["train"])
    return str(value)


def _section(section: _Section) -> str:
    picture = ""
    if section.picture is not None:
        name, png = section.picture
        data = base64.b64encode(png).decode()
        width = round(int.from_bytes(png[16:20], "big") * 96 / figures.DPI)  # a PNG's width is there
        picture = (
            f"<img id='{name}' width='{width}' alt='{in_html(section.title)}' "
            f"src='data:image/png;base64,{data}'>"
        )
    return (
        f"<section><h2>{in_html(section.title)}</h2>{picture}<p class='caption'>{section.caption}</p>"
        f"{section.after}</section>"
    )


def _settings(report: RunReport) -> str:
    record = report.record
    facts = {**record.get("versions", {}), "device": record.get("device"), "started": record.get("started")}
    if record.get("git"):
        facts["git"] = f"{record['git']['commit'][:12]}, {record['git']['changed_files']} changed files"
    rows = [(key, value) for key, value in facts.items() if value is not None]
    settings = html.escape(yaml.safe_dump(report.config, sort_keys=False, allow_unicode=True))
    return (
        f"<section><h2>What ran</h2><details><summary>Settings</summary><pre>{settings}</pre></details>"
        f"<details><summary>Versions</summary>{_table(('', ''), rows)}</details></section>"
    )


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    titles = "".join(f"<th>{in_html(one)}</th>" for one in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{in_html(str(one))}</td>" for one in row) + "</tr>" for row in rows
    )
    return f"<div class='wide'><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"
