"""Data, banks and models in any floating dtype: what is cast, and that nothing else changes."""

import json
import warnings

import numpy as np
import pytest
import torch
from distiller_problem import (
    STUDENT_TRAIN,
    STUDENT_UNLABELLED,
    STUDENT_VAL,
    TEACHER_TRAIN,
    student,
    teacher,
    weights,
)
from torch import nn

from ucmkd_fast.alignment import class_means
from ucmkd_fast.data import FeatureBank, TensorData, open_data
from ucmkd_fast.data.extract import extract
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.methods import FrozenTeacher, available_methods, method_class
from ucmkd_fast.methods.divergence import kl_without
from ucmkd_fast.models import Classifier, MappedClassifier
from ucmkd_fast.models.precision import SeenIn, dtype_of, head_in, inputs_for, seen_in
from ucmkd_fast.report import class_agreement
from ucmkd_fast.report.theory import bound_parts
from ucmkd_fast.run.measure import alignment, features_of
from ucmkd_fast.training.metrics import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MAPPED = ("c2kd", "reviewkd")
CASES = [
    *((name, {}) for name in available_methods()),
    ("ucmkd", {"order": 2}),
    ("prototype-kd", {"feature_weight": 1.0}),
    ("fitnet", {"layer": 0}),
]


def mapped(inputs, seed):
    torch.manual_seed(seed)
    layers = [nn.Unflatten(1, (1, inputs)), nn.Conv1d(1, 6, 3), nn.ReLU(), nn.Conv1d(6, 8, 3)]
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
    return MappedClassifier(encoder, nn.Linear(8, 4), ["2", "3"])


def models(name, options, student_dtype, teacher_dtype):
    if name in MAPPED or "layer" in options:
        return mapped(6, 1).to(student_dtype), mapped(9, 2).to(teacher_dtype)
    return student().to(student_dtype), teacher().to(teacher_dtype)


def trained(own, other, name, options=None, *, bank=None, cast=torch.float32, preset="paper"):
    """The history of two epochs; data in ``cast``, the teacher's samples or a bank of its features."""
    uses = method_class(name).uses_teacher
    distiller = Distiller(
        own, other if uses else None, name, preset, method_options=options, epochs=2, batch_size=32, lr=0.02,
        progress=False,
    )  # fmt: skip
    more = {"student_unlabelled": STUDENT_UNLABELLED.to(cast)} if distiller.method.uses_unlabelled else {}
    theirs = (TEACHER_TRAIN[0].to(cast), TEACHER_TRAIN[1]) if bank is None else bank
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return distiller.fit(
            (STUDENT_TRAIN[0].to(cast), STUDENT_TRAIN[1]),
            theirs if uses else None,
            (STUDENT_VAL[0].to(cast), STUDENT_VAL[1]),
            **more,
        ).history


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("preset", ["paper", "published-code"])
def test_a_teacher_in_another_dtype_teaches_as_its_float32_copy(name, options, preset, dtype):
    if preset != "paper" and (name != "ucmkd" or options):
        return
    own, other = models(name, options, torch.float32, dtype)
    if name == "c2kd" and dtype == torch.float16:
        with pytest.raises(ValueError, match="the teacher is trained, so its weights must not be in float16"):
            trained(own, other, name)
        return
    found = trained(own, other, name, options, preset=preset)
    own, _ = models(name, options, torch.float32, dtype)
    copy = models(name, options, torch.float32, dtype)[1].float()  # of the rounded weights
    wanted = trained(own, copy, name, options, preset=preset)
    for one, two in zip(found, wanted, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0.02)
        assert one["val_accuracy"] == pytest.approx(two["val_accuracy"], abs=0.11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", [n for n in available_methods() if n not in MAPPED])
def test_a_bank_in_another_dtype_teaches_bit_for_bit_as_its_float32_copy(name, dtype):
    bank = FeatureBank.from_model(teacher(), TensorData(*TEACHER_TRAIN)).in_dtype(dtype)
    ends = []
    for one in (bank, bank.in_dtype(torch.float32)):
        own = student()
        trained(own, teacher(), name, bank=one)
        ends.append(weights(own))
    assert bank.x.dtype == dtype and torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_student_in_another_dtype_learns_as_in_float32(name, options, dtype):
    found = trained(*models(name, options, dtype, torch.bfloat16), name, options)
    wanted = trained(*models(name, options, torch.float32, torch.bfloat16), name, options)
    assert found[0]["ce"] == pytest.approx(wanted[0]["ce"], rel=0.05)


def test_a_float16_student_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match=r"the student is trained.*call student.float\(\)"):
        Distiller(student().half(), method="ce")
    frozen = student()
    frozen.encoder.half().requires_grad_(False)
    assert trained(frozen, None, "ce")[-1]["loss"] < 2  # a frozen encoder may be, under a head of float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_samples_of_any_dtype_train_the_same_student(dtype):
    """Rounded to it before, so that the numbers are the same."""
    data = {name: (x.to(dtype), y) for name, (x, y) in (("own", STUDENT_TRAIN), ("other", TEACHER_TRAIN))}
    ends = []
    for cast in (dtype, torch.float32):
        own = student()
        (x, y), (x_t, y_t) = data["own"], data["other"]
        settings = {"epochs": 2, "batch_size": 32, "progress": False, "diagnose": False}
        Distiller(own, teacher(), "joint", **settings).fit((x.to(cast), y), (x_t.to(cast), y_t))
        ends.append(weights(own))
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", ["float16", "float64", ">f8", ">f2"])
def test_npy_files_of_any_floating_dtype_are_features_to_train_on(tmp_path, kind):
    x, y = STUDENT_TRAIN
    np.save(tmp_path / "x.npy", x.numpy().astype(kind))
    np.save(tmp_path / "y.npy", y.numpy())
    data = open_data({"name": "features", "root": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")})
    own, same = student(), student()
    settings = {"epochs": 1, "batch_size": 32, "progress": False}
    Distiller(own, method="ce", **settings).fit(data)
    Distiller(same, method="ce", **settings).fit((torch.from_numpy(x.numpy().astype(kind).astype("f4")), y))
    assert torch.equal(weights(own), weights(same))


def test_numbers_beyond_float32_and_complex_ones_are_refused():
    x = torch.zeros(3, 2, dtype=torch.float64)
    x[1, 0] = 1e39
    with pytest.raises(ValueError, match="got a number beyond float32 in sample 1"):
        TensorData(x, torch.zeros(3, dtype=torch.int64))
    x[1, 0] = float("inf")
    with pytest.raises(ValueError, match=r"got \+inf in sample 1"):
        TensorData(x, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="x must be real, got complex64"):
        TensorData(torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(3, dtype=torch.int64))


def test_integer_samples_for_a_model_of_floats_are_told_with_their_dtype():
    with pytest.raises(
        ValueError, match=r"of shape \(1, 6\) and dtype int64 .*: store measurements as floats"
    ):
        Distiller(student(), method="ce", progress=False).fit((STUDENT_TRAIN[0].long(), STUDENT_TRAIN[1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluation_features_and_extraction_take_any_dtype(tmp_path, dtype):
    device = torch.device("cpu")
    wanted = evaluate(student(), TensorData(*STUDENT_VAL), device=device, batch_size=8)
    data = TensorData(STUDENT_VAL[0].to(dtype), STUDENT_VAL[1])
    for model in (student(), student().to(dtype)):
        found = evaluate(model, data, device=device, batch_size=8)
        assert found["loss"] == pytest.approx(wanted["loss"], rel=0.03)
        bank = FeatureBank.from_model(model, data)
        assert bank.x.dtype == dtype_of(model)
        extract(model, data, tmp_path / str(dtype_of(model)), {"made": "here"})
        again = FeatureBank.load(tmp_path / str(dtype_of(model)))
        torch.testing.assert_close(again.x, bank.x.float())
        bank.save(tmp_path / "bank.safetensors")
        assert torch.equal(FeatureBank.load(tmp_path / "bank.safetensors").x, bank.x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_measures_of_a_run_take_heads_and_banks_of_any_dtype(dtype):
    own, other = student(), teacher()
    x = FeatureBank.from_model(own, TensorData(*STUDENT_TRAIN))
    z = FeatureBank.from_model(other, TensorData(*TEACHER_TRAIN))
    wanted, bound = alignment(own.head, other.head, x, z)
    found, parts = alignment(own.head, other.head.to(dtype), x, z.in_dtype(dtype))
    assert found == pytest.approx(wanted, rel=0.05, abs=0.05)
    assert json.loads(json.dumps(vars(parts))) == pytest.approx(vars(bound), rel=0.05, abs=0.05)
    mixed = bound_parts(own.head.to(dtype), other.head, x.x.to(dtype), x.labels, z.x, z.labels)
    assert mixed.wasserstein == pytest.approx(bound.wasserstein, rel=0.02)
    assert features_of(other, z.in_dtype(dtype), 10).x.dtype == torch.float32
    agreed = class_agreement(x.in_dtype(dtype), z.in_dtype(dtype))
    assert agreed.classes == 4 and abs(agreed.correlation) <= 1


def test_divergence_of_logits_of_two_dtypes_leaves_classes_out_in_each():
    s, q = torch.randn(5, 4), torch.randn(5, 4)
    left_out = torch.eye(5, 4).bool()
    wanted = kl_without(s, q.half().float(), left_out)
    torch.testing.assert_close(kl_without(s, q.half(), left_out), wanted, rtol=2e-2, atol=2e-2)


class Waves(nn.Module):
    """A front end that computes in float32 before an encoder in half precision."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(4), persistent=False)
        self.layer = nn.Linear(6, 8).bfloat16()

    def forward(self, x):
        assert x.dtype == torch.float32
        return self.layer(x.bfloat16())


def test_the_dtype_of_a_model_is_that_of_what_its_inputs_meet_first():
    model = Classifier(Waves(), nn.Linear(8, 4))
    assert dtype_of(model) == torch.float32
    assert seen_in(model, torch.float32).encode(torch.zeros(2, 6, dtype=torch.float64)).dtype == torch.float32
    assert trained(model, None, "ce")[-1]["loss"] < 2
    assert dtype_of(Classifier(nn.Identity(), nn.Linear(8, 4).double())) == torch.float64
    assert dtype_of(nn.Identity()) is None
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    assert inputs_for(student(), tokens) is tokens


def test_what_is_all_in_one_dtype_is_left_as_it_is():
    own = student()
    assert seen_in(own, torch.float32) is own and head_in(own.head, torch.float32) is own.head
    assert isinstance(seen_in(own.bfloat16(), torch.float32), SeenIn)


def test_a_teacher_that_is_cast_later_still_gives_float32():
    model = teacher()
    frozen = FrozenTeacher(model)
    x = torch.randn(3, 8)
    wanted = frozen.head(x)
    model.bfloat16()
    assert frozen.head(x).dtype == torch.float32
    torch.testing.assert_close(frozen.head(x), wanted, rtol=0.05, atol=0.05)


def test_class_means_of_half_precision_features_are_not_summed_in_it():
    many = torch.ones(5000, 2, dtype=torch.float16)
    bank = FeatureBank(many, torch.zeros(5000, dtype=torch.int64)).in_dtype(torch.float32)
    assert torch.equal(class_means(bank.x, bank.labels, 1), torch.ones(1, 2))
