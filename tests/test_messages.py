"""Refusals say what is there, and where; a mistyped name is answered with the nearest one."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
from torch import nan

import ucmkd_fast as uk
from ucmkd_fast.cli import main
from ucmkd_fast.compare import Experiment
from ucmkd_fast.config import TrainConfig
from ucmkd_fast.data import TensorData, open_data, split_by_group
from ucmkd_fast.methods import available_methods, build_method
from ucmkd_fast.models import build_model
from ucmkd_fast.names import nearest
from ucmkd_fast.run import RunConfig

inf = math.inf
PACKAGE = Path(__file__).parents[1] / "ucmkd_fast"
DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(4, 3, generator=DRAW)
POINTS = torch.randn(4, 5, generator=DRAW)
TARGET = torch.tensor([0, 1, 2, -100])


def put(z, place, value):
    z = z.clone()
    z[place] = value
    return z


def refused(call, *words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value), str(error.value)


def logits_loss(student, teacher, **options):
    return uk.label_transport_loss(student, teacher, TARGET, **options)


def linear_loss(student, teacher, **options):
    """The same logits from heads on an identity feature, whose gradients lie over the logits."""
    feature = torch.eye(4, requires_grad=True)
    weights = (z.T.nan_to_num(0, 0, 0).contiguous() for z in (student, teacher))
    biases = []
    for z in (student, teacher):
        bad = ~z.isfinite()
        biases.append(torch.where(bad.any(0), z[bad][0] if bad.any() else 0.0, 0.0))
    student_weight, teacher_weight = weights
    return uk.linear_label_transport_loss(
        feature, student_weight, biases[0], teacher_weight, biases[1], TARGET, **options
    )


@pytest.mark.parametrize("name", ["student_logits", "teacher_logits"])
@pytest.mark.parametrize(("value", "said"), [(nan, "got NaN"), (inf, "got +inf")])
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"kappa": "live"}, {"label_smoothing": 0.1}])
def test_a_logit_that_is_no_number_is_named(name, value, said, options):
    wrong = {
        "student_logits": (put(LOGITS, (1, 2), value), LOGITS),
        "teacher_logits": (LOGITS, put(LOGITS, (1, 2), value)),
    }
    refused(lambda: logits_loss(*wrong[name], **options), name, said, "in row 1, class 2")


def test_minus_infinity_at_the_label_is_not_called_nan():
    """Of the teacher; other classes may be masked, and the student's loss there is inf, as in cross-entropy."""
    refused(
        lambda: logits_loss(LOGITS, put(LOGITS, (1, 1), -inf)),
        "teacher_logits",
        "at the label",
        "got -inf in row 1, class 1",
    )
    assert logits_loss(LOGITS, put(LOGITS, (1, 0), -inf)).isfinite()
    assert logits_loss(put(LOGITS, (1, 1), -inf), LOGITS).item() == inf
    assert logits_loss(put(LOGITS, (3, 1), nan), put(LOGITS, (3, 0), -inf)).isfinite()  # that row is ignored
    masked = put(LOGITS, 2, -inf)
    refused(lambda: logits_loss(LOGITS, masked), "teacher_logits must have a class above -inf", "in row 2")
    refused(lambda: logits_loss(masked, LOGITS), "student_logits must have a class above -inf", "in row 2")
    both = put(LOGITS, (0, 1), -inf)
    refused(
        lambda: logits_loss(both, both, label_smoothing=0.1),
        "with label_smoothing > 0",
        "got -inf in row 0, class 1",
    )


@pytest.mark.parametrize(("value", "said"), [(nan, "got NaN"), (inf, "got +inf")])
def test_the_linear_form_looks_at_its_logits_again(value, said):
    """Its gradients lie over them by then; the bias has the value in every row, so the first is named."""
    wrong = put(LOGITS, (1, 2), value)
    refused(lambda: linear_loss(wrong, LOGITS), "student_logits", said, "in row 0, class 2")
    refused(lambda: linear_loss(LOGITS, wrong), "teacher_logits", said, "in row 0, class 2")
    at_label = put(LOGITS, (1, 1), -inf)
    refused(lambda: linear_loss(LOGITS, at_label), "at the label", "got -inf in row 1, class 1")


@pytest.mark.parametrize(("value", "said"), [(nan, "NaN"), (-inf, "-inf")])
def test_a_cost_is_named_with_its_place(value, said):
    cost = torch.rand(3, 4, generator=DRAW)
    refused(lambda: uk.sinkhorn(put(cost, (1, 2), value)), f"got {said} at cost[1, 2]")
    refused(
        lambda: uk.sinkhorn(torch.stack([cost, put(cost, (1, 2), value)])), f"got {said} at cost[1, 1, 2]"
    )


@pytest.mark.parametrize(
    "how", [{}, {"memory_budget": 400}, {"offsets": (torch.tensor([0, 4]), torch.tensor([0, 4]))}]
)
def test_features_masses_and_costs_by_class_are_named_with_their_place(how):
    def call(x=POINTS, y=POINTS, a=None, b=None, **options):
        return uk.sinkhorn_loss(x, y, a, b, **options, **how)

    quarter = torch.full((4,), 0.25)
    for value, said in ((nan, "NaN"), (inf, "+inf"), (-inf, "-inf")):
        refused(lambda: call(x=put(POINTS, (2, 3), value)), f"got {said} at x[2, 3]")  # noqa: B023
        refused(lambda: call(y=put(POINTS, (2, 3), value)), f"got {said} at y[2, 3]")  # noqa: B023
        refused(lambda: call(a=put(quarter, 1, value)), f"got {said} at a[1]")  # noqa: B023
        refused(lambda: call(b=put(quarter, 1, value)), f"got {said} at b[1]")  # noqa: B023
    refused(lambda: call(a=put(quarter, 1, -0.5)), "got a negative one, -0.5 at a[1]")
    refused(lambda: call(x=put(POINTS, (2, 3), 1e30)), "a squared norm that overflows in row 2")
    refused(lambda: call(a=2 * quarter), "got 2 and 1")
    costs, labels = torch.rand(4, 3, generator=DRAW), torch.tensor([0, 1, 2, 0])
    for value, said in ((nan, "NaN"), (-inf, "-inf")):
        wrong = put(costs, (2, 1), value)
        refused(lambda: call(class_cost=wrong, y_labels=labels), f"got {said} at class_cost[2, 1]")  # noqa: B023
    refused(lambda: call(class_cost=costs, y_labels=put(labels, 3, 7)), "got 7 at y_labels[3] for K = 3")


def test_rows_and_columns_without_a_pair_are_named():
    cost = torch.rand(3, 4, generator=DRAW)
    refused(lambda: uk.sinkhorn(put(cost, 1, inf)), "row 1 has none")
    refused(lambda: uk.sinkhorn(put(cost, (slice(None), 2), inf)), "column 2 has none")
    refused(lambda: uk.sinkhorn(cost, torch.zeros(3)), "got an all-zero a")
    refused(lambda: uk.sinkhorn(cost, None, torch.zeros(4)), "got an all-zero b")


@pytest.mark.parametrize(("value", "said"), [(nan, "NaN"), (inf, "+inf"), (-inf, "-inf")])
def test_a_sample_is_named(value, said):
    refused(lambda: TensorData(put(POINTS, (2, 1), value), torch.arange(4)), f"got {said} in sample 2")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ucmdk", "ucmkd"), ("UCMKD", "ucmkd"), ("ucmkd_plus", "ucmkd-plus"), ("Label Aware FA", "label-aware-fa"),
        ("ec", "ce"), ("dk", "kd"), ("rdk", "rkd"), ("self-trainig", "self-training"), ("xyzzy", None), ("", None),
        (5, None), (None, None),
    ],
)  # fmt: skip
def test_the_nearest_name(typed, meant):
    assert nearest(typed, available_methods()) == meant


RUN = {
    "student": {"data": "digits", "model": "digit-cnn"},
    "teacher": {"data": "digits", "model": "digit-cnn", "train": {"epochs": 1}},
    "method": "ucmkd",
}


def run(**changes):
    return lambda: RunConfig.read({**RUN, **changes})


def experiment(**changes):
    base = {key: value for key, value in RUN.items() if key != "method"}
    return lambda: Experiment.read({"base": base, "methods": {"ce": "ce", "kd": "kd"}, **changes})


VOICES = TensorData(POINTS, torch.arange(4), groups=["ann", "bob", "cat", "dan"])
MISTYPED = {
    "method": (run(method="ucmdk"), "ucmkd"),
    "method in Python": (lambda: build_method("ucmdk"), "ucmkd"),
    "option": (lambda: build_method("kd", temprature=1), "temperature"),
    "preset": (run(method={"name": "ucmkd", "preset": "papr"}), "paper"),
    "option of a run": (run(method={"name": "ucmkd", "inner_lrr": 1}), "inner_lr"),
    "kappa": (lambda: logits_loss(LOGITS, LOGITS, kappa="detatched"), "detached"),
    "reduction": (lambda: logits_loss(LOGITS, LOGITS, reduction="Mean"), "mean"),
    "metric": (lambda: uk.sinkhorn_loss(POINTS, POINTS, metric="cosin"), "cosine"),
    "metric's case": (lambda: uk.sinkhorn_loss(POINTS, POINTS, metric="L2"), "l2"),
    "objective": (lambda: uk.sinkhorn_loss(POINTS, POINTS, objective="divergance"), "divergence"),
    "grad": (lambda: uk.sinkhorn(LOGITS, grad="implict"), "implicit"),
    "model": (run(student={"data": "digits", "model": "digitcnn"}), "digit-cnn"),
    "model in Python": (lambda: build_model({"name": "resnet-18"}), "resnet18"),
    "data": (lambda: open_data({"name": "digit"}), "digits"),
    "key of data": (lambda: open_data({"name": "digits", "spilt": "train"}), "split"),
    "split": (lambda: open_data({"name": "digits", "split": "tain"}), "train"),
    "setting": (run(trian={}), "train"),
    "training setting": (lambda: TrainConfig.from_dict({"epoch": 3}), "epochs"),
    "optimizer": (lambda: TrainConfig(optimizer="adam"), "adamw"),
    "control": (run(teacher={**RUN["teacher"], "control": "permutted"}), "permuted"),
    "head": (run(student={**RUN["student"], "head": "teacher_frozen"}), "teacher-frozen"),
    "baseline": (experiment(baseline="kdd"), "kd"),
    "method of a comparison": (experiment(methods={"a": "ucmdk"}), "ucmkd"),
    "options for a method": (experiment(settings={"a": {"options": {"ucmdk": {}}}}), "ucmkd"),
    "options for a preset": (experiment(settings={"a": {"options": {"ucmkd/papr": {}}}}), "paper"),
    "root": (experiment(roots={"spokn-digits": "here"}), "spoken-digits"),
    "group": (lambda: split_by_group(VOICES, ["anna"], ["bob"]), "ann"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTYPED)
def test_a_mistyped_name_is_answered_with_the_nearest(what):
    call, meant = MISTYPED[what]
    refused(call, f"did you mean {meant!r}?")


def test_what_is_no_name_is_refused_like_one():
    refused(lambda: build_method(["ucmkd"]), "method must be one of", "got ['ucmkd']")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("distil",), "distill"),
        (("demo", "--sedes", "3"), "--seeds"),
        (("bench", "sinkhron"), "sinkhorn"),
        (("prepare", "ravdes", "--root", "."), "ravdess"),
        (("compare", "digits/ablatoin"), "digits/ablation"),
        (("eval", ".", "--part", "tset"), "test"),
        (("estimate", "--n", "9", "--m", "9", "--d", "9", "--dtype", "flaot32"), "float32"),
    ],
)
def test_so_is_one_on_the_command_line(arguments, meant, capsys):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    err = capsys.readouterr().err
    assert (
        end.value.code == 2 and meant in err and ("did you mean" in err.lower() or "Possible options" in err)
    )


def test_close_names_are_looked_for_in_one_place():
    for path in PACKAGE.rglob("*.py"):
        imports = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import)
        ]
        assert path.name == "names.py" or not any(
            one.name == "difflib" for node in imports for one in node.names
        ), path
