"""One training step of UCMKD against a plain cross-entropy step and a feature-KD step of the same student.

Cached teacher features (D = 512), student MLP 768 -> 1024 -> 512 -> 10 with BatchNorm, SGD momentum 0.9, clip 5,
float32. ``without FA``: the FA loss replaced by a mean of the features, so that its own time is apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import alignment
from ..bilevel import step as step_module
from ..data.batch import Batch
from ..methods import FrozenTeacher, Step, build_method
from ..models import Classifier
from .harness import Row, compare

BATCHES = (64, 256, 1024)
INPUTS, WIDTH, CLASSES = 768, 512, 10
METHODS = {
    "published-code": ("ucmkd", {"preset": "published-code"}),
    "paper": ("ucmkd", {"preset": "paper"}),
    "feature": ("feature", {}),
    "ce": ("ce", {}),
}


def student() -> Classifier:
    """The MLP that is measured: two hidden layers, a linear head."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Linear(INPUTS, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, WIDTH), nn.ReLU()
    )
    return Classifier(encoder, nn.Linear(WIDTH, CLASSES))


def batch(n: int, seed: int) -> Batch:
    """Random samples and cached teacher features."""
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(CLASSES, (n,), generator=generator) for _ in range(2)]
    return Batch(
        x=torch.randn(n, INPUTS, generator=generator),
        y=labels[0],
        teacher_feature=torch.randn(n, WIDTH, generator=generator).relu(),
        teacher_y=labels[1],
    )


def inputs(n: int, seed: int) -> tuple[Batch]:
    """As `compare` takes them."""
    return (batch(n, seed),)


def stepper(name: str, with_fa: bool, device: str = "cpu") -> Callable[[Batch], Tensor]:
    """One whole step on batches of that device: gradients, clip, optimiser."""
    method_name, options = METHODS[name]
    model = student().to(device)
    teacher = FrozenTeacher(Classifier(nn.Identity(), nn.Linear(WIDTH, CLASSES).to(device)))
    method = build_method(method_name, **options)
    method.setup(model, teacher, batch(2, 0).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = Step(student=model, teacher=teacher, learning_rate=0.01)
    modules: list[Any] = [alignment, step_module]

    def run(data: Batch) -> Tensor:
        real = [module.feature_alignment for module in modules]
        if not with_fa:
            for module in modules:
                module.feature_alignment = lambda step, batch, feature, target, transport: feature.mean()
        try:
            model.train()
            parts = method.backward(step, data)
        finally:
            for module, function in zip(modules, real, strict=True):
                module.feature_alignment = function
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return parts["loss"]

    return run


def rows(quick: bool) -> Iterator[Row]:
    """A row a batch size."""
    for n in BATCHES[:1] if quick else BATCHES:
        contenders = {
            "ce": stepper("ce", True),
            "published-code, without FA": stepper("published-code", False),
            "paper, without FA": stepper("paper", False),
            "feature": stepper("feature", True),
            "published-code": stepper("published-code", True),
            "paper": stepper("paper", True),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Different methods: nothing to agree on; each must give a finite loss.
            timings = compare(
                contenders,
                partial(inputs, n),
                lambda ours, theirs: 0.0 if bool(theirs.isfinite()) else float("inf"),
                dict.fromkeys(contenders, 0.0),
                rounds=5 if quick else 15,
                seconds=40,
            )
        yield Row({"batch": n}, timings, ratios({t.name: t.median_ms for t in timings}))


def ratios(ms: dict[str, float]) -> dict[str, float]:
    """To a step of ``ce`` and of ``feature``, and the latter ratio if all but the passes of the student were free.

    A step is two passes forward and backward in the published code's order (one of them serves both label steps),
    three in the paper's, which moves the encoder in each; one of them has the FA loss, as that of ``feature``.
    """
    found = {}
    alignment_ms = ms["feature"] - ms["ce"]
    for name, passes in (("published-code", 2), ("paper", 3)):
        found[f"{name}, without FA / ce"] = ms[f"{name}, without FA"] / ms["ce"]
        found[f"{name} / feature"] = ms[name] / ms["feature"]
        found[f"{passes} steps of ce and FA / feature"] = (passes * ms["ce"] + alignment_ms) / ms["feature"]
    return {key: round(value, 2) for key, value in found.items()}
