"""Data and layers that are not quite as the loop has them: graphs, inference mode, statistics of the batch."""

import math

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
from map_models import image_teacher, samples, series_student
from torch import nn

from ucmkd_fast.data import FeatureBank, LabelledData, TensorData
from ucmkd_fast.data.batch import row_batches
from ucmkd_fast.data.extract import extract
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.methods import available_methods, method_class

pytestmark = pytest.mark.usefixtures("one_thread")
settings = {"epochs": 2, "batch_size": 32, "lr": 0.02, "progress": False, "diagnose": False}


class Encoded(LabelledData):
    """A data set that runs a layer on its samples, and does not detach what comes out."""

    def __init__(self, x, y):
        self.layer, self.x, self.labels = nn.Linear(x.shape[1], x.shape[1]), x, y
        self.classes = ["0", "1", "2", "3"]
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def __getitem__(self, index):
        return self.layer(self.x[index]), self.labels[index]


def as_leaf(x, y):
    return x.clone().requires_grad_(), y


def with_graph(x, y):
    return (x.clone().requires_grad_() * 1.0), y


def in_inference_mode(x, y):
    with torch.inference_mode():
        return x * 1.0, y


@pytest.mark.parametrize("method", ["joint", "ucmkd", "ucmkd-plus"])
@pytest.mark.parametrize(
    "made", [as_leaf, with_graph, in_inference_mode, Encoded], ids=lambda made: made.__name__
)
def test_data_are_constants_whatever_graph_they_carry(made, method):
    ends, held = [], []
    for make in (lambda x, y: (x, y), made):
        own = student()
        distiller = Distiller(own, teacher(), method, **settings)
        more = {}
        if distiller.method.uses_unlabelled:
            more["student_unlabelled"] = make(STUDENT_UNLABELLED, torch.arange(len(STUDENT_UNLABELLED)) % 4)
        held = [make(*STUDENT_TRAIN), make(*TEACHER_TRAIN), make(*STUDENT_VAL)]
        distiller.fit(*held, **more)
        ends.append(weights(own))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)
    if made is as_leaf:
        assert all(x.grad is None for x, _ in held)
    if made is Encoded:
        assert all(data.layer.weight.grad is None for data in held)


def test_a_bank_of_features_with_a_graph_is_a_constant():
    model = teacher()
    bank = FeatureBank(model.encode(TEACHER_TRAIN[0]), TEACHER_TRAIN[1])
    history = Distiller(student(), model, "joint", **settings).fit(STUDENT_TRAIN, bank).history
    assert len(history) == 2 and model.encoder[0].weight.grad is None


def batch_statistics(model):
    """Batch norm without running statistics in the place of the others: the same in train and eval mode."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(module, name, type(child)(child.num_features, track_running_stats=False))
    return model


@pytest.mark.parametrize("method", available_methods())
def test_layers_that_normalise_by_the_batch_alone(method):
    if method in ("c2kd", "reviewkd"):
        own, other = batch_statistics(series_student()), batch_statistics(image_teacher())
        data = samples(48, 1, 12, seed=3), samples(40, 1, 6, 6, seed=4), samples(33, 1, 12, seed=6)
    else:
        own, other = batch_statistics(student(norm=True)), batch_statistics(teacher(norm=True))
        data = STUDENT_TRAIN, TEACHER_TRAIN, tuple(t[:17] for t in STUDENT_VAL)  # 17: one is left over at 16
    uses = method_class(method).uses_teacher
    distiller = Distiller(own, other if uses else None, method, **{**settings, "batch_size": 16, "epochs": 2})
    more = {"student_unlabelled": STUDENT_UNLABELLED} if distiller.method.uses_unlabelled else {}
    history = distiller.fit(data[0], data[1] if uses else None, data[2], **more).history
    assert math.isfinite(history[-1]["loss"]) and 0 <= history[-1]["val_accuracy"] <= 1


def test_features_of_a_left_over_sample_come_with_the_batch_before_it(tmp_path):
    model, data = batch_statistics(student(norm=True)), TensorData(*(t[:9] for t in STUDENT_TRAIN))
    bank = FeatureBank.from_model(model, data, batch_size=4)
    model.eval()
    expected = torch.cat([model.encode(data.x[:4]), model.encode(data.x[4:])])
    torch.testing.assert_close(bank.x, expected)
    extract(model, data, tmp_path / "kept", {}, batch_size=4)
    torch.testing.assert_close(FeatureBank.load(tmp_path / "kept").x, expected.detach())


@pytest.mark.parametrize(
    ("samples", "size", "sizes"),
    [
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
        (4, 9, [4]),
        (5, 4, [5]),
    ],
)
def test_batches_in_order(samples, size, sizes):
    batches = row_batches(samples, size)
    assert [len(rows) for rows in batches] == sizes
    assert torch.cat(batches).tolist() == list(range(samples))
