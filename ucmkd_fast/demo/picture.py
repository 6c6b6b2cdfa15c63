"""The demo's picture: features before and after, accuracies, and the theorem's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch

from ..data import FeatureBank
from ..extras import need
from ..report import Compared
from ..report.figures import draw_accuracies, draw_bounds, draw_features, plainly, project
from ..text import visible
from .settings import BASELINE, DemoSettings
from .student import Portrait, new_student
from .task import Task

_AFTER = ("ucmkd", "feature")
_SHOWN = 300  # student's samples in a panel
_CAPTION = (
    "kd: logits of class-matched samples. feature, joint: alignment in one loss with cross-entropy. ucmkd: alignment "
    "in an inner loop. permuted: the control, a teacher as accurate as the real one with every class renamed to "
    "another.\n"
    "τ: the largest gradient norm of the teacher head's entropy over the features of both modalities, an estimate of "
    "the Lipschitz constant of Theorem 2.6 (the teacher's own probabilities stand for the true ones). W₁: by entropic\n"
    "transport, l2 metric, reg 1 % of the mean distance. The theorem's parts are means over seeds, on test voices and "
    "held-out handwriting. Upper row: seed 0, t-SNE of unit-length features, each panel on its own."
)


@plainly
def draw(
    task: Task,
    settings: DemoSettings,
    methods: Sequence[Compared],
    portraits: Mapping[str, Portrait],
) -> bytes:
    """The picture, as a PNG file's bytes."""
    figure = need("matplotlib.figure").Figure(figsize=(13, 10.2), dpi=110, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.12))
    _draw_feature_panels(top, task, settings, methods, portraits)
    left, right = bottom.subplots(1, 2, sharey=True)
    classes = len(task.speech.classes)
    draw_accuracies(left, methods, BASELINE, 1 / classes)
    left.set_title(
        f"Accuracy on voices never heard\nbar: mean, whisker: deviation, dot: one of {settings.seeds} seeds, dashed: ce"
    )
    draw_bounds(right, methods, classes)
    right.set_title("Theorem 2.6: student's error (black)\n≤ teacher's error + LA + FA (stacked)")
    figure.suptitle(
        "Does a teacher of handwriting help students of speech, when not one sample is paired?\n"
        f"{visible(task.description)} {settings.labels_per_class} labelled recordings per digit.",
        fontsize=12,
    )
    figure.supxlabel(_CAPTION, fontsize=8, ha="left", x=0.01)
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _draw_feature_panels(
    figure: Any,
    task: Task,
    settings: DemoSettings,
    methods: Sequence[Compared],
    portraits: Mapping[str, Portrait],
) -> None:
    """Before training, after ucmkd, after feature alignment alone."""
    teacher = task.teacher.held_out
    test = task.voices(settings.labels_per_class, 0).test
    rows = np.random.default_rng(0).permutation(len(test))[:_SHOWN]
    shown = test.subset(torch.from_numpy(rows))
    before = FeatureBank.from_model(new_student(task, 0), shown)
    panels = [("Before training\n", before.x.numpy(), before.labels.numpy())]
    for method in methods:
        if method.key in _AFTER:
            fa, reads = method.figures["fa"][0], method.figures["teacher_reads"][0]
            title = (
                f"After {method.label}\nFA {fa:.2f}; the teacher's head reads {100 * reads:.0f} % of it right"
            )
            portrait = portraits[method.key]
            panels.append((title, portrait.features[rows], portrait.labels[rows]))
    for axes, (title, features, labels) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        flat_teacher, flat_student = project(teacher.x.numpy(), features)
        draw_features(axes, flat_teacher, teacher.labels.numpy(), flat_student, labels, title)
    figure.supxlabel(
        "● with round label: the teacher's feature of a handwritten digit     ✕ with square label: the student's "
        "feature of a spoken digit     colour and label: the digit",
        fontsize=10,
    )
