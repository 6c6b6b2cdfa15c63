"""The pictures of docs/concepts.md, computed by the library: python docs/concepts.py (needs matplotlib)."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ucmkd_fast as uk

DOCS = Path(__file__).parent
STUDENT, TEACHER, CLASSES = "#0072B2", "#D55E00", ("#0072B2", "#E69F00", "#009E73")


def figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A row of panels."""
    one = Figure(figsize=(3.2 * panels, 3.0), layout="constrained")
    axes = [one.add_subplot(1, panels, k + 1) for k in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return one, axes


def save(one: Figure, name: str) -> None:
    """Into docs/."""
    one.savefig(DOCS / f"concepts-{name}.png", dpi=110, metadata={"Software": ""})


def draw_plan(ax: Axes, x: Tensor, y: Tensor, plan: Tensor) -> None:
    """A line from each x (N, 2) to each y (M, 2), as dark as the mass that goes there."""
    most = plan.max()
    for i, j in (plan > 0.02 * most).nonzero().tolist():
        ax.plot(
            *torch.stack([x[i], y[j]]).T,
            color="black",
            alpha=float(plan[i, j] / most) * 0.7,
            lw=0.8,
            zorder=0,
        )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal")


def transport() -> None:
    """The plan between two sets, at three regularisations."""
    torch.manual_seed(0)
    x, y = torch.randn(14, 2), torch.randn(18, 2) + torch.tensor([4.0, 1.0])
    one, axes = figure(3)
    for ax, reg in zip(axes, (0.02, 0.5, 5.0), strict=True):
        result = uk.sinkhorn_loss(x, y, metric="l2", reg=reg, max_iter=2000, return_result=True)
        draw_plan(ax, x, y, result.plan())
        ax.scatter(*x.T, color=STUDENT, s=18, label="student")
        ax.scatter(*y.T, color=TEACHER, s=18, marker="s", label="teacher")
        ax.set_title(f"reg = {reg:g}, <P, C> = {float(result.value):.2f}", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False, loc="lower right")
    save(one, "transport")


def classes() -> None:
    """Marginal transport matches clusters that lie near each other, of whatever class."""
    torch.manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [0.0, 2.2], [0.0, 4.4]])
    k = torch.arange(18) % 3
    x = centres[k] + 0.3 * torch.randn(18, 2)
    y = centres[(k + 1) % 3] + torch.tensor([3.5, 0.0]) + 0.3 * torch.randn(18, 2)
    marginal = uk.sinkhorn_loss(x, y, metric="l2", reg=0.1, max_iter=500, return_result=True)
    by_class = uk.class_conditional_loss(
        x, y, k, k, classes=3, metric="l2", reg=0.1, max_iter=500, return_result=True
    )
    one, axes = figure(2)
    for ax, result, name in zip(axes, (marginal, by_class), ("marginal", "class by class"), strict=True):
        plan = result.plan()
        draw_plan(ax, x, y, plan)
        for label in range(3):
            ax.scatter(*x[k == label].T, color=CLASSES[label], s=18)
            ax.scatter(*y[k == label].T, color=CLASSES[label], s=18, marker="s")
        wrong = float((plan * (k[:, None] != k)).sum())
        ax.set_title(f"{name}: {100 * wrong:.0f} % to another class", fontsize=9)
    save(one, "classes")


def kappa() -> None:
    """The teacher's term of LA, and its derivative by the teacher's logit of the label, both variants."""
    p = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    two = torch.stack([p.log(), (1 - p).log()], 1).requires_grad_()
    zero, y = torch.zeros(400, 2, dtype=torch.float64), torch.zeros(400, dtype=torch.int64)
    one, (left, right) = figure(2)
    for variant, colour in (("detached", STUDENT), ("live", TEACHER)):
        loss = uk.label_transport_loss(zero, two, y, kappa=variant, reduction="none")
        (slope,) = torch.autograd.grad(loss.sum(), two)
        right.plot(p, -slope[:, 0], color=colour, label=f'kappa="{variant}"')
    left.plot(p, (p * p.log()), color="black")
    left.set_title("the teacher's part of LA", fontsize=9)
    left.axvline(1 / torch.e, color="grey", lw=0.7, ls=":")
    right.axhline(0, color="grey", lw=0.7)
    right.set_title("step on its logit of the label", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    for ax in (left, right):
        ax.set_xlabel("kappa = p_T(y | student's feature)", fontsize=8)
    save(one, "kappa")


def bilevel() -> None:
    """A student of two weights: down FA, then down LA, and cross-entropy's gradient there."""
    one, (ax,) = figure(1)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-2, 2, 80)] * 2, indexing="xy"), -1)

    def ce(w: Tensor) -> Tensor:
        return (w[..., 0] - 1) ** 2 + 0.5 * (w[..., 1] + 0.6 * w[..., 0] ** 2) ** 2

    w = torch.tensor([-1.2, 1.2])
    fa, la = torch.tensor([1.1, 0.2]), torch.tensor([0.25, -0.9])
    ax.contour(grid[..., 0], grid[..., 1], ce(grid), 12, colors="#BBBBBB", linewidths=0.7)
    points = [w, w + fa, w + fa + la]
    for start, end, name in zip(points, points[1:], ("inner: FA", "inner: LA"), strict=False):
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": STUDENT, "lw": 1.6})
        middle = (start + end) / 2
        ax.text(
            middle[0] + 0.08, middle[1] + (0.18 if "FA" in name else 0.0), name, fontsize=8, color=STUDENT
        )
    there = points[-1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ce(there), there)
    step = -0.35 * gradient
    for start, style in ((points[-1], ":"), (w, "-")):
        arrow = {"arrowstyle": "->", "color": TEACHER, "lw": 1.6, "ls": style}
        ax.annotate("", start + step, start, arrowprops=arrow)
    ax.text(
        *(points[-1] + step + torch.tensor([-0.3, -0.25])),
        "down CE, seen from there",
        fontsize=8,
        color=TEACHER,
    )
    ax.text(*(w + step + torch.tensor([-0.75, -0.3])), "the step that is taken", fontsize=8, color=TEACHER)
    ax.plot(*w, "o", color="black", ms=5)
    ax.set_xticks([])
    ax.set_yticks([])
    save(one, "bilevel")


if __name__ == "__main__":
    for picture in (transport, classes, kappa, bilevel):
        picture()
