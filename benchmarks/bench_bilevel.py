"""One training step of UCMKD against a plain cross-entropy step and a feature-KD step of the same student.

    python benchmarks/bench_bilevel.py [--json results/bilevel.json]

Cached teacher features (D = 512), student MLP 768 -> 1024 -> 512 -> 10 with BatchNorm, SGD momentum 0.9, clip 5,
float32. ``without FA``: the FA loss replaced by a mean of the features, so that its own time is apart.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, compare, table, write
from torch import Tensor, nn

from ucmkd_fast import alignment
from ucmkd_fast.bilevel import step as step_module
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.methods import FrozenTeacher, Step, build_method
from ucmkd_fast.models import Classifier

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


def stepper(name: str, with_fa: bool) -> Callable[[Batch], Tensor]:
    """One whole step: gradients, clip, optimiser."""
    method_name, options = METHODS[name]
    model = student()
    teacher = FrozenTeacher(Classifier(nn.Identity(), nn.Linear(WIDTH, CLASSES)))
    method = build_method(method_name, **options)
    method.setup(model, teacher, batch(2, 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = Step(student=model, teacher=teacher, learning_rate=0.01)
    modules = [alignment, step_module]

    def run(data: Batch) -> Tensor:
        real = [module.feature_alignment for module in modules]
        if not with_fa:
            for module in modules:
                module.feature_alignment = lambda step, feature, target, transport: feature.mean()
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


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for n in arguments.batches:
        contenders = {
            "ce": stepper("ce", True),
            "published-code, without FA": stepper("published-code", False),
            "paper, without FA": stepper("paper", False),
            "feature": stepper("feature", True),
            "published-code": stepper("published-code", True),
            "paper": stepper("paper", True),
        }
        # Different methods: nothing to agree on; each must give a finite loss.
        timings = compare(
            contenders,
            lambda seed, n=n: (batch(n, seed),),
            lambda ours, theirs: 0.0 if bool(theirs.isfinite()) else float("inf"),
            dict.fromkeys(contenders, 0.0),
            rounds=15,
            seconds=40,
        )
        by_name = {t.name: t for t in timings}
        extra = {
            f"{name} / feature": round(by_name[name].median_ms / by_name["feature"].median_ms, 2)
            for name in ("published-code", "paper")
        }
        rows.append(Row({"batch": n}, timings, extra))
        print(table(rows[-1:]), flush=True)
    if arguments.json:
        write(arguments.json, "bilevel", rows)


if __name__ == "__main__":
    main()
