"""The losses of the methods from their definitions, sample by sample where that is plainer; the slow twin."""

from __future__ import annotations

import ot
import torch
import torch.nn.functional as F
from bilevel_models import CLASSES

N = 7


def log_p(logits):
    """Logarithms of the softmax, written out."""
    return logits - logits.exp().sum(1, keepdim=True).log()


def cross_entropy(logits, y, smoothing=0.0):
    q = F.one_hot(y, CLASSES).to(logits) * (1 - smoothing) + smoothing / CLASSES
    return -(q * log_p(logits)).sum(1)


def pot_alignment(z, zt, reg):
    """What the published code calls."""
    mass = torch.full((len(z),), 1 / len(z), dtype=z.dtype)
    return ot.sinkhorn2(mass, mass, torch.cdist(z, zt), reg, numItermax=100, stopThr=0.0, warn=False)


def expected_ce(student, teacher, batch, label_smoothing):
    return {"ce": cross_entropy(student(batch.x), batch.y, label_smoothing).mean()}


def expected_kd(student, teacher, batch, alpha, temperature):
    logits, other = student(batch.x), teacher.head(batch.teacher_feature)
    p = (other / temperature).softmax(1)
    kl = (p * (p.log() - log_p(logits / temperature))).sum(1).mean()
    ce = cross_entropy(logits, batch.y).mean()
    return {"loss": (1 - alpha) * ce + alpha * temperature**2 * kl, "ce": ce, "kl": kl}


def expected_feature(student, teacher, batch, fa_weight, metric, reg):
    z = student.encode(batch.x)
    ce, fa = cross_entropy(student.head(z), batch.y).mean(), pot_alignment(z, batch.teacher_feature, reg)
    return {"loss": ce + fa_weight * fa, "ce": ce, "fa": fa, **expected_reading(teacher, z, batch)}


def expected_joint(student, teacher, batch, fa_weight, la_weight, metric, reg):
    z = student.encode(batch.x)
    parts = expected_feature(student, teacher, batch, fa_weight, metric, reg)
    kappa = teacher.head(z).softmax(1)[torch.arange(N), batch.y].detach()
    la = (cross_entropy(student.head(z), batch.y) - kappa * cross_entropy(teacher.head(z), batch.y)).mean()
    return parts | {"la": la, "loss": parts["loss"] + la_weight * la}


def expected_dkd(student, teacher, batch, alpha, beta, temperature):
    """The parts by their definitions, sample by sample, on probabilities."""
    logits, other = student(batch.x), teacher.head(batch.teacher_feature)
    p, q = (logits / temperature).softmax(1), (other / temperature).softmax(1)
    target = non_target = torch.zeros((), dtype=logits.dtype)
    for i, y in enumerate(batch.y.tolist()):
        rest = [k for k in range(CLASSES) if k != y]
        target = (
            target + divergence(torch.stack([q[i, y], 1 - q[i, y]]), torch.stack([p[i, y], 1 - p[i, y]])) / N
        )
        non_target = non_target + divergence(q[i, rest] / q[i, rest].sum(), p[i, rest] / p[i, rest].sum()) / N
    ce = cross_entropy(logits, batch.y).mean()
    loss = ce + temperature**2 * (alpha * target + beta * non_target)
    return {"loss": loss, "ce": ce, "target": target, "non_target": non_target}


def expected_rld(student, teacher, batch, alpha, beta, temperature, confidence_temperature):
    logits, other = student(batch.x), teacher.head(batch.teacher_feature)
    p, q = (logits / confidence_temperature).softmax(1), (other / confidence_temperature).softmax(1)
    confidence = correlation = torch.zeros((), dtype=logits.dtype)
    kept = []
    for i, y in enumerate(batch.y.tolist()):
        top = q[i].max()
        confidence = (
            confidence + divergence(torch.stack([top, 1 - top]), torch.stack([p[i, y], 1 - p[i, y]])) / N
        )
        below = [k for k in range(CLASSES) if other[i, k] < other[i, y]]
        kept.append(len(below))
        ours, theirs = (logits[i, below] / temperature).softmax(0), (other[i, below] / temperature).softmax(0)
        correlation = correlation + divergence(theirs, ours) / N
    assert 0 in kept and CLASSES - 1 in kept, "the case must have right and utterly wrong teachers"
    ce = cross_entropy(logits, batch.y).mean()
    loss = ce + alpha * confidence_temperature**2 * confidence + beta * temperature**2 * correlation
    return {"loss": loss, "ce": ce, "confidence": confidence, "correlation": correlation}


def divergence(q, p):
    return (q * (q / p).log()).sum()


def expected_rkd(student, teacher, batch, distance_weight, angle_weight):
    z, zt = student.encode(batch.x), batch.teacher_feature

    def relations(f):
        pairs = torch.stack([(f[i] - f[j]).norm() for i in range(N) for j in range(N) if i != j])
        angles = [
            torch.cosine_similarity(f[i] - f[j], f[k] - f[j], dim=0)
            for i in range(N)
            for j in range(N)
            for k in range(N)
            if i != j and k != j
        ]
        return pairs / pairs.mean(), torch.stack(angles)

    def huber(a, b):
        gap = (a - b).abs()
        return torch.where(gap <= 1, gap**2 / 2, gap - 0.5).sum()

    (d, a), (dt, at) = relations(z), relations(zt)
    distance, angle = huber(d, dt) / N**2, huber(a, at) / N**3
    ce = cross_entropy(student.head(z), batch.y).mean()
    loss = ce + distance_weight * distance + angle_weight * angle
    return {"loss": loss, "ce": ce, "distance": distance, "angle": angle}


def expected_reading(teacher, z, batch):
    logits = teacher.head(z).detach()
    return {
        "kappa": logits.softmax(1)[torch.arange(N), batch.y].mean(),
        "teacher_head_accuracy": (logits.argmax(1) == batch.y).double().mean().float(),
    }


EXPECTED = {
    "ce": expected_ce,
    "kd": expected_kd,
    "feature": expected_feature,
    "joint": expected_joint,
    "dkd": expected_dkd,
    "rld": expected_rld,
    "rkd": expected_rkd,
}
