"""Parts of a report's pictures, each drawn into axes that it is given (matplotlib and scikit-learn, extras).

Colours are Paul Tol's and Okabe and Ito's, which people with any colour vision can tell apart; modality is told
by the marker as well, and every group of points carries its class's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..extras import need
from .comparison import Compared, mean_bound
from .statistics import PairedDifference

Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")

CLASS_COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777",
)  # fmt: skip
_METHOD, _BASELINE, _CONTROL = "#0072B2", "#444444", "#A6C8DD"
_TEACHER_ERROR, _FA, _LA, _STUDENT = "#009E73", "#E69F00", "#CC79A7", "#222222"


def plainly(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """Decorator of what draws a picture: its texts are shown as they stand, none is read as a formula or as TeX."""

    @wraps(draw)
    def drawn(*args: Arguments.args, **options: Arguments.kwargs) -> Drawn:
        with need("matplotlib").rc_context({"text.parse_math": False, "text.usetex": False}):
            return draw(*args, **options)

    return drawn


def project(teacher: np.ndarray, student: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Both modalities' features (m, D), (n, D) in one plane, (m, 2), (n, 2), by t-SNE of their directions.

    Rows are brought to unit length first: what is shown is what a cosine cost sees.
    """
    manifold = need("sklearn.manifold")
    both = np.concatenate([teacher, student]).astype(np.float64)
    both /= np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(both) - 1) / 3)
    flat = manifold.TSNE(init="pca", perplexity=perplexity, random_state=seed, n_jobs=1).fit_transform(both)
    return flat[: len(teacher)], flat[len(teacher) :]


def draw_features(
    axes: Any,
    teacher: np.ndarray,
    teacher_y: np.ndarray,
    student: np.ndarray,
    student_y: np.ndarray,
    title: str,
) -> None:
    """Features in a plane: the teacher's as dots, the student's as crosses, coloured by class.

    Args:
        axes: matplotlib's.
        teacher: (m, 2).
        teacher_y: (m,) classes.
        student: (n, 2).
        student_y: (n,) classes.
        title: of the panel.
    """
    for k in np.unique(np.concatenate([teacher_y, student_y])):
        colour = CLASS_COLOURS[k % len(CLASS_COLOURS)]
        own, other = teacher[teacher_y == k], student[student_y == k]
        axes.scatter(*own.T, s=16, marker="o", color=colour, alpha=0.55, linewidths=0)
        axes.scatter(*other.T, s=16, marker="x", color=colour, alpha=0.75, linewidths=0.9)
        for group, shape in ((own, "circle,pad=0.25"), (other, "square,pad=0.25")):
            if len(group):
                axes.text(
                    *np.median(group, axis=0), str(k), ha="center", va="center", fontsize=8, color="white",
                    fontweight="bold", bbox={"boxstyle": shape, "fc": colour, "ec": "white", "lw": 0.8},
                )  # fmt: skip
    axes.set(xticks=[], yticks=[], title=title)


def draw_accuracies(axes: Any, methods: Sequence[Compared], baseline: str, chance: float) -> None:
    """A bar per method with its deviation, a dot per seed; lines at the baseline's mean and at chance."""
    rows = np.arange(len(methods))
    for row, method in zip(rows, methods, strict=True):
        values = 100 * np.asarray(method.accuracy)
        spread = method.spread
        colour = _BASELINE if method.key == baseline else _CONTROL if method.control else _METHOD
        deviation = None if np.isnan(spread.deviation) else 100 * spread.deviation
        axes.barh(row, 100 * spread.mean, height=0.68, color=colour, xerr=deviation, capsize=3)
        offsets = row + np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [row]
        axes.scatter(values, offsets, s=14, color="white", edgecolors="black", linewidths=0.7, zorder=3)
        axes.text(
            1.5, row, f"{100 * spread.mean:.1f}", va="center", color="black" if method.control else "white"
        )
        if method.difference is not None:
            axes.text(98.5, row, _points(method.difference), va="center", ha="right", fontsize=8.5)
        if method.key == baseline:
            axes.axvline(100 * spread.mean, color=_BASELINE, linestyle="--", linewidth=1, zorder=0)
            what = f"paired difference to {baseline}\n± standard error"
            axes.text(98.5, row, what, va="center", ha="right", fontsize=7.5)
    axes.axvline(100 * chance, color="black", linestyle=":", linewidth=1.2, zorder=4)
    axes.text(100 * chance, -0.75, " chance", fontsize=8, va="center")
    axes.set_yticks(rows, [method.label for method in methods])
    axes.set(xlim=(0, 100), ylim=(len(methods) - 0.4, -1.1), xlabel="test accuracy, %")


def draw_bounds(axes: Any, methods: Sequence[Compared], classes: int) -> None:
    """Theorem 2.6: the bound's parts in a stack, above it the student's error; means over seeds, nats."""
    rows = np.arange(len(methods))
    bounds = [mean_bound(method.bounds) for method in methods]
    teacher = [b.teacher_error for b in bounds]
    left = np.zeros(len(methods))
    stack = (
        (f"teacher's error ({teacher[0]:.2f})", _TEACHER_ERROR, teacher),
        ("label alignment LA", _LA, [b.label_alignment for b in bounds]),
        ("feature alignment FA = τ·W₁", _FA, [b.feature_alignment for b in bounds]),
    )
    for name, colour, values in stack:
        axes.barh(rows + 0.17, values, left=left, height=0.34, color=colour, label=name)
        left += np.asarray(values)
    axes.barh(
        rows - 0.2, [b.student_error for b in bounds], height=0.26, color=_STUDENT, label="student's error"
    )
    for row, parts in zip(rows, bounds, strict=True):
        for value, height in ((parts.bound, 0.17), (parts.student_error, -0.2)):
            axes.annotate(
                f"{value:.2f}", (value, row + height), (3, 0), textcoords="offset points", fontsize=8,
                va="center", bbox={"fc": "white", "ec": "none", "pad": 0.6},
            )  # fmt: skip
    guess = float(np.log(classes))
    axes.axvline(guess, color="black", linestyle=":", linewidth=1.2)
    axes.text(guess, -0.75, f" error of guessing: {guess:.2f}", fontsize=8, va="center")
    axes.set_yticks(rows, [method.label for method in methods])
    axes.set(ylim=(len(methods) - 0.4, -1.1), xlabel="cross-entropy, nats")
    axes.margins(x=0.1)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2, frameon=False)


def _points(difference: PairedDifference) -> str:
    error = "" if np.isnan(difference.standard_error) else f" ± {100 * difference.standard_error:.1f}"
    return f"{100 * difference.mean:+.1f}{error}"
