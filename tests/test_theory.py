"""The parts of Theorem 2.6 against direct computation, finite differences and exact transport."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ucmkd_fast.report.theory import bound_parts, largest_entropy_gradient


def problem(n=40, m=30, width=6, classes=4):
    torch.manual_seed(0)
    heads = nn.Linear(width, classes), nn.Linear(width, classes)
    centres = 2 * torch.randn(classes, width)
    sets = []
    for count, shift in ((n, 0.5), (m, 0.0)):
        y = torch.arange(count) % classes
        sets += [centres[y] + shift + torch.randn(count, width), y]
    return *heads, *sets


def entropy(head, z):
    log_p = F.log_softmax(head(z), -1)
    return -(log_p.exp() * log_p).sum(-1)


def test_parts_are_what_they_are_called():
    student_head, teacher_head, x, y, z, w = problem()
    parts = bound_parts(student_head, teacher_head, x, y, z, w)
    with torch.no_grad():
        s, q, t = student_head(x), teacher_head(x), teacher_head(z)
        kappa = q.softmax(-1)[torch.arange(len(y)), y]
        la = F.cross_entropy(s, y, reduction="none") - kappa * F.cross_entropy(q, y, reduction="none")
        assert parts.student_error == pytest.approx(F.cross_entropy(s, y).item(), rel=1e-5)
        assert parts.teacher_error == pytest.approx(F.cross_entropy(t, w).item(), rel=1e-5)
        assert parts.label_alignment == pytest.approx(la.mean().item(), rel=1e-4)
    assert parts.feature_alignment == parts.tau * parts.wasserstein
    assert parts.bound == parts.teacher_error + parts.feature_alignment + parts.label_alignment
    assert parts.slack == parts.bound - parts.student_error


def test_tau_is_the_steepest_slope_of_the_entropy_at_the_features():
    _, head, x, *_ = problem()
    head, x = head.double(), x.double()
    h, slopes = 1e-6, []
    with torch.no_grad():
        for axis in torch.eye(x.shape[1], dtype=torch.float64):
            slopes.append((entropy(head, x + h * axis) - entropy(head, x - h * axis)) / (2 * h))
    expected = torch.stack(slopes, 1).norm(dim=1).max().item()
    assert largest_entropy_gradient(head, x) == pytest.approx(expected, rel=1e-6)
    assert all(p.grad is None for p in head.parameters())


def test_the_distance_is_just_above_the_exact_one():
    ot = pytest.importorskip("ot", reason="POT, which computes the exact distance, is not installed")
    student_head, teacher_head, x, y, z, w = problem()
    exact = ot.emd2([], [], torch.cdist(x, z).double().numpy())
    found = bound_parts(student_head, teacher_head, x, y, z, w)
    assert exact * 0.999 <= found.wasserstein <= exact * 1.05
    assert found.marginal_error < 2e-3


def test_equal_features_are_at_no_distance():
    student_head, teacher_head, x, y, *_ = problem()
    parts = bound_parts(student_head, teacher_head, x, y, x, y)
    assert parts.wasserstein < 0.05 * torch.cdist(x, x).mean().item()


def test_what_does_not_fit_is_refused():
    student_head, teacher_head, x, y, z, w = problem()
    with pytest.raises(ValueError, match="same width"):
        bound_parts(student_head, nn.Linear(5, 4), x, y, z[:, :5], w)
