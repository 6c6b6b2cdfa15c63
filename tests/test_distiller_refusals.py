"""What the loop refuses, and the sentence that it says."""

import pytest
import torch
from accelerate.state import AcceleratorState
from distiller_problem import STUDENT_TRAIN, STUDENT_VAL, TEACHER_TRAIN, blobs, student, teacher
from torch import nn

from ucmkd_fast.config import TrainConfig
from ucmkd_fast.data import FeatureBank, TensorData
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.training import distributed, tracking
from ucmkd_fast.training.distributed import make_accelerator


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"method": "ucmdk"}, ValueError, "method must be one of"),
        ({"method": "vanillaKD"}, ValueError, "is called 'kd' here"),
        ({"preset": "papers"}, ValueError, "preset"),
        ({"method": "kd", "preset": "published-code"}, ValueError, "method 'kd' has no presets"),
        ({"method": "kd", "draw": "independent"}, ValueError, "must be drawn 'class-matched' or 'paired'"),
        ({"method": "kd", "method_options": {"temprature": 2.0}}, ValueError, "did you mean 'temperature'"),
        ({"method_options": {"reg": -1.0}}, ValueError, "reg"),
        ({"epoch": 3}, ValueError, "did you mean 'epochs'"),
        ({"teacher": None}, ValueError, "method 'ucmkd' needs a teacher, got None"),
        ({"teacher": nn.Linear(2, 2)}, TypeError, "teacher must have encode"),
        ({"student": "resnet"}, TypeError, "student must be a torch.nn.Module, got str"),
        ({"trackers": "tensorbord"}, ValueError, "trackers must be among"),
        ({"trackers": "tensorboard"}, ValueError, "needs an output_dir"),
        ({"config": {"epochs": 3}}, TypeError, "config must be a TrainConfig, got dict"),
        ({"mixed_precision": "fp16"}, ValueError, "gradient scaling"),
    ],
)
def test_wrong_arguments(arguments, error, said):
    arguments = {"student": student(), "teacher": teacher(), **arguments}
    with pytest.raises(error) as caught:
        Distiller(**arguments)
    assert said in str(caught.value)


def test_a_tracker_that_is_not_installed_is_said_and_only_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    Distiller(student(), method="ce", output_dir=tmp_path)
    with pytest.raises(ValueError, match="'tensorboard' was asked for and its package is not installed"):
        Distiller(student(), method="ce", output_dir=tmp_path, trackers="tensorboard")


def test_the_draw_follows_the_method_where_none_is_asked_for():
    assert Distiller(student(), teacher(), "kd").config.draw == "class-matched"
    assert Distiller(student(), teacher(), "kd", draw="paired").config.draw == "paired"
    assert Distiller(student(), teacher(), "ucmkd").config.draw == "independent"
    assert Distiller(student(), teacher(), "ucmkd", draw="class-matched").config.draw == "class-matched"


class Flat(nn.Module):
    """Gives features of three dimensions."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)

    def encode(self, x):
        return x[:, None]


FIVE = blobs(20, 6, seed=1)[0], torch.arange(20) % 5


@pytest.mark.parametrize(
    ("models", "data", "method", "said"),
    [
        ({"teacher": teacher(classes=5)}, {}, "kd", "the student's head has 4, the teacher's 5"),
        ({"teacher": teacher(width=7)}, {}, "ucmkd", "the student's is 8, the teacher's 7"),
        ({"teacher": teacher(width=7)}, {}, "feature", "compares features"),
        ({}, {"student_train": FIVE}, "ce", "labels must be from 0 to 3"),
        ({}, {"student_val": FIVE}, "ce", "got 4"),
        ({}, {"teacher_train": (TEACHER_TRAIN[0], TEACHER_TRAIN[1] + 1)}, "kd", "got 4"),
        ({}, {"teacher_train": None}, "kd", "method 'kd' needs teacher_train, got None"),
        ({}, {"student_train": blobs(20, 5, seed=1)}, "ce", "does not take a sample of shape (1, 5)"),
        ({}, {"teacher_train": FeatureBank(torch.randn(8, 7), torch.arange(8) % 4)}, "kd", "shape (1, 7)"),
        ({"student": Flat()}, {}, "ce", "gave (2, 1, 6)"),
    ],
)
def test_data_and_models_that_do_not_fit(models, data, method, said, tmp_path):
    models = {"student": student(), "teacher": teacher(), **models}
    distiller = Distiller(**models, method=method, epochs=1, output_dir=tmp_path / "run")
    data = {
        "student_train": STUDENT_TRAIN,
        "teacher_train": TEACHER_TRAIN,
        "student_val": STUDENT_VAL,
        **data,
    }
    with pytest.raises(ValueError) as caught:
        distiller.fit(**data)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_widths_may_differ_where_only_logits_meet():
    Distiller(student(), teacher(width=7), "kd", epochs=1, batch_size=16).fit(STUDENT_TRAIN, TEACHER_TRAIN)


def test_a_frozen_student_is_refused():
    frozen = student().requires_grad_(False)
    with pytest.raises(ValueError, match="must have a parameter that requires a gradient"):
        Distiller(frozen, method="ce").fit(STUDENT_TRAIN)


def test_an_empty_validation_set_is_refused():
    empty = TensorData(*STUDENT_VAL)  # which itself cannot be made empty
    empty._samples, empty.labels = empty.x[:0], empty.labels[:0]
    with pytest.raises(ValueError, match="empty"):
        Distiller(student(), method="ce").evaluate(empty)


@pytest.mark.parametrize("data", [STUDENT_TRAIN[0], list(STUDENT_TRAIN), "images/", (*STUDENT_TRAIN, 3)])
def test_what_is_no_data_set_is_refused(data):
    with pytest.raises(TypeError, match="must be a LabelledData or a pair of tensors"):
        Distiller(student(), method="ce").fit(data)


def test_settings_that_a_method_without_teacher_cannot_honour_are_refused():
    for setting in ({"draw": "class-matched"}, {"teacher_batch_size": 8}):
        with pytest.raises(ValueError, match="draw and teacher_batch_size need teacher_data"):
            Distiller(student(), method="ce", epochs=1, **setting).fit(STUDENT_TRAIN, TEACHER_TRAIN)


def test_one_process_has_one_precision():
    Distiller(student(), method="ce", mixed_precision="no")
    with pytest.raises(ValueError, match="mixed_precision='bf16' was asked for.*runs this process with 'no'"):
        Distiller(student(), method="ce", mixed_precision="bf16")
    assert Distiller(student(), method="ce").config.mixed_precision == "no"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "accelerate is set to 'fp16'"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", "gradient accumulation must be 1 step"),
    ],
)
def test_what_a_launcher_may_ask_for_and_the_loop_cannot_do(monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    kept = dict(AcceleratorState._shared_state)
    AcceleratorState._shared_state.clear()
    try:
        with pytest.raises(ValueError, match=said):
            make_accelerator()
    finally:
        AcceleratorState._shared_state.clear()
        AcceleratorState._shared_state.update(kept)


def test_sharded_training_is_refused(monkeypatch):
    from accelerate.utils import DistributedType

    class Sharded:
        mixed_precision, gradient_accumulation_steps, distributed_type = "no", 1, DistributedType.FSDP

    monkeypatch.setattr(distributed, "Accelerator", lambda **options: Sharded)
    with pytest.raises(ValueError, match="accelerate is set to FSDP"):
        make_accelerator()


def test_train_options_change_a_config():
    config = TrainConfig(lr=0.3, epochs=7)
    changed = Distiller(student(), method="ce", config=config, epochs=9).config
    assert (changed.lr, changed.epochs, config.epochs) == (0.3, 9, 7)
