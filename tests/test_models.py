"""The small backbones: shapes, seeds, and that they learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ucmkd_fast.data import UnpairedLoader, split_digits
from ucmkd_fast.models import Classifier, check_model, digit_cnn, mlp, reuse_head, speech_cnn

MODELS = [
    (lambda: digit_cnn(7, 32), (1, 8, 8)),
    (lambda: speech_cnn(7, 32), (1, 40, 48)),
    (lambda: speech_cnn(7, 32, mels=24), (1, 24, 9)),
    (lambda: mlp(20, 7, 32), (20,)),
    (lambda: mlp(20, 7, 32, hidden=()), (20,)),
    (lambda: mlp(20, 7, 32, hidden=(50, 30)), (20,)),
]
IDS = ["digit", "speech", "speech-24", "mlp", "linear", "mlp-2"]


@pytest.mark.parametrize(("make", "shape"), MODELS, ids=IDS)
def test_features_and_logits_have_their_widths(make, shape):
    model = make()
    check_model(model, "student")
    x = torch.randn(5, *shape)
    feature = model.encode(x)
    assert feature.shape == (5, 32) and (feature < 0).any() and (feature > 0).any()
    assert model(x).shape == (5, 7)
    model.eval()
    assert torch.equal(model(x), model.head(model.encode(x)))
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("make", "shape"), MODELS, ids=IDS)
def test_the_seed_decides_the_weights(make, shape):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in make().parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("make", [digit_cnn, speech_cnn])
@pytest.mark.parametrize("sizes", [{"classes": 0}, {"width": 0}, {"width": -1}])
def test_sizes_that_are_none_are_refused(make, sizes):
    with pytest.raises(ValueError, match="must be an integer >= 1"):
        make(**sizes)


def test_a_model_without_the_contract_is_refused_with_advice():
    with pytest.raises(TypeError, match="student must be a torch.nn.Module"):
        check_model(3, "student")
    with pytest.raises(TypeError, match="teacher must have encode.*wrap it in"):
        check_model(nn.Linear(2, 2), "teacher")
    check_model(Classifier(nn.Identity(), nn.Linear(2, 2)), "teacher")


def test_the_digit_teacher_reads_handwriting():
    pytest.importorskip("sklearn", reason="scikit-learn carries the handwritten digits")
    train, _, test = split_digits(seed=0)
    torch.manual_seed(0)
    model = digit_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in UnpairedLoader(train, batch_size=64, steps_per_epoch=120):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(test.x).argmax(1) == test.labels).float().mean()
    assert accuracy > 0.95


def test_the_head_of_the_teacher_in_the_student():
    teacher, student = digit_cnn(width=8), speech_cnn(width=8)
    drawn = student.head.weight.clone()
    assert reuse_head(student, teacher, frozen=True) is student
    assert torch.equal(student.head.weight, teacher.head.weight) and not torch.equal(
        student.head.weight, drawn
    )
    assert not any(p.requires_grad for p in student.head.parameters())
    assert all(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        reuse_head(student, teacher).head.weight.zero_()
    assert teacher.head.weight.abs().max() > 0 and student.head.weight.requires_grad
    with pytest.raises(ValueError, match=r"\(10, 9\).*got.*\(10, 8\)"):
        reuse_head(student, digit_cnn(width=9))
    with pytest.raises(TypeError, match="teacher must have encode"):
        reuse_head(student, torch.nn.Linear(8, 10))
