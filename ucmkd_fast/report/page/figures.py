"""The pictures of a run's page, each a PNG (matplotlib; scikit-learn for the plane of features)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ...extras import need
from ...text import visible
from ..figures import draw_features, plainly, project
from ..theory import BoundParts

_INK, _ACCENT, _SECOND = "#222222", "#0072B2", "#E69F00"
_TEACHER_ERROR, _FA, _LA = "#009E73", "#E69F00", "#CC79A7"
DPI = 144  # of the pictures; the page shows an inch as 96 of its pixels
_SHOWN = 300  # features of each modality in the plane
_NOT_CURVES = ("epoch", "seconds", "lr", "val_loss")  # val_loss is drawn with loss
_TITLES = {  # other names are words
    "fa": "FA", "la": "LA", "ce": "cross-entropy", "fa_iterations": "FA iterations", "probe_fa": "probe FA",
    "probe_fa_pull": "probe FA pull",
}  # fmt: skip
_NAMED = 25  # classes at most whose names are written along an axis


@plainly
def learning_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Every figure of every epoch, a small panel each; validation loss with the training loss."""
    names = [name for name in dict.fromkeys(key for one in history for key in one) if name not in _NOT_CURVES]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(3.0 * columns, 2.0 * rows)
    figure.get_layout_engine().set(hspace=0.06, h_pad=0.08)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    epochs = [one["epoch"] for one in history]
    for axes, name in zip(panels, names, strict=False):
        axes.plot(epochs, [one.get(name, np.nan) for one in history], color=_ACCENT, **_mark(history))
        if name == "loss" and "val_loss" in history[0]:
            axes.plot(
                epochs,
                [one["val_loss"] for one in history],
                color=_SECOND,
                label="validation",
                **_mark(history),
            )
            axes.lines[0].set_label("training")
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(_TITLES.get(name, visible(name).replace("_", " ")), fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch", fontsize=9)
    return _png(figure)


@plainly
def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """Who is taken for whom: a row a label, a column a prediction, shares of the row."""
    table = np.asarray(counts, dtype=np.float64)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    return _matrix(shares, classes, "label", "prediction", table)


@plainly
def plan_by_class(mass: np.ndarray, classes: Sequence[str]) -> bytes:
    """Where each student class sends its mass: a row a student class, a column a teacher class, shares of the row."""
    shares = mass / np.maximum(mass.sum(1, keepdims=True), 1e-12)
    return _matrix(shares, classes, "student's class", "teacher's class", None)


@plainly
def kappa_by_class(kappa: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """The spread of kappa in every class: quartiles, whiskers from the 5th to the 95th percentile."""
    figure = _figure(max(5.0, min(13.0, 2.2 + 0.5 * len(classes))), 3.2)
    axes = figure.subplots()
    groups = [kappa[labels == k] for k in range(len(classes))]
    axes.boxplot(
        [group if len(group) else [np.nan] for group in groups], whis=(5, 95), showfliers=False, widths=0.55,
        patch_artist=True, boxprops={"facecolor": "#A6C8DD", "edgecolor": _INK}, medianprops={"color": _INK},
    )  # fmt: skip
    axes.axhline(1 / len(classes), color=_INK, linestyle=":", linewidth=1.2)
    axes.annotate(
        "chance", (1, 1 / len(classes)), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        fontsize=8, va="center",
    )  # fmt: skip
    axes.set(ylim=(-0.02, 1.02), ylabel="kappa")
    _name_axis(axes.set_xticks, np.arange(1, len(classes) + 1), classes)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


@plainly
def features(teacher: np.ndarray, teacher_y: np.ndarray, student: np.ndarray, student_y: np.ndarray) -> bytes:
    """Both modalities in one plane: dots are the teacher's, crosses the student's."""
    random = np.random.default_rng(0)
    rows = random.permutation(len(student))[:_SHOWN]
    others = random.permutation(len(teacher))[:_SHOWN]
    flat_teacher, flat_student = project(teacher[others], student[rows])
    figure = _figure(7.2, 5.6)
    draw_features(figure.subplots(), flat_teacher, teacher_y[others], flat_student, student_y[rows], "")
    return _png(figure)


@plainly
def bound_by_epoch(bounds: Mapping[int, BoundParts], classes: int) -> bytes:
    """Theorem 2.6 from epoch to epoch: the bound's parts stacked, the student's error as a line."""
    figure = _figure(8.4, 4.0)
    axes = figure.subplots()
    epochs = np.array(list(bounds))
    parts = list(bounds.values())
    stack = (
        ("teacher's error", _TEACHER_ERROR, [b.teacher_error for b in parts]),
        ("label alignment LA", _LA, [b.label_alignment for b in parts]),
        ("feature alignment FA = τ·W₁", _FA, [b.feature_alignment for b in parts]),
    )
    # LA can be negative, so parts are laid on the running sum and not stacked from zero.
    base = np.zeros(len(epochs))
    for name, colour, values in stack:
        top = base + np.asarray(values)
        axes.fill_between(epochs, base, top, color=colour, alpha=0.75, label=name, linewidth=0)
        base = top
    axes.plot(epochs, base, color=_INK, linewidth=1, linestyle="--", label="the bound")
    axes.plot(epochs, [b.student_error for b in parts], color=_INK, linewidth=2.2, label="student's error")
    guess = float(np.log(classes))
    axes.axhline(guess, color=_INK, linestyle=":", linewidth=1)
    axes.annotate(
        f"guessing\n{guess:.2f}", (1, guess), (4, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=8, va="center",
    )  # fmt: skip
    axes.set(xlabel="epoch (0: first weights)", ylabel="cross-entropy, nats")
    axes.set_xlim(epochs[0], epochs[-1])
    axes.set_ylim(bottom=min(0.0, base.min()))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncol=3, frameon=False, fontsize=9)
    return _png(figure)


def _matrix(
    shares: np.ndarray, classes: Sequence[str], rows: str, columns: str, counts: np.ndarray | None
) -> bytes:
    """A square of shares in [0, 1], written out where there is room for it."""
    side = max(3.4, min(8.4, 1.6 + 0.36 * len(classes)))
    figure = _figure(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _name_axis(axes.set_xticks, np.arange(len(classes)), classes)
    _name_axis(axes.set_yticks, np.arange(len(classes)), classes, upright=True)
    axes.set(xlabel=columns, ylabel=rows)
    if len(classes) <= 15:
        for i, j in np.ndindex(shares.shape):
            said = f"{100 * shares[i, j]:.0f}" if counts is None else f"{counts[i, j]:.0f}"
            if said != "0":
                colour = "white" if shares[i, j] > 0.55 else _INK
                axes.text(j, i, said, ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, fraction=0.046, pad=0.03)
    bar.set_label("share of the row")
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    return _png(figure)


def _name_axis(set_ticks: Any, places: np.ndarray, classes: Sequence[str], *, upright: bool = False) -> None:
    if len(classes) > _NAMED:
        return
    names = [name if len(name) <= 16 else name[:15] + "…" for name in map(visible, classes)]
    turned = not upright and max(map(len, names)) > 3
    set_ticks(places, names, fontsize=9, **({"rotation": 45, "ha": "right"} if turned else {}))


def _mark(history: Sequence[Any]) -> dict[str, Any]:
    """A line, and dots on it while there are few."""
    return {"linewidth": 1.6, **({"marker": "o", "markersize": 3} if len(history) <= 12 else {})}


def _figure(width: float, height: float) -> Any:
    return need("matplotlib.figure").Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _png(figure: Any) -> bytes:
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
