import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from ucmkd_fast.config import TrainConfig, read_yaml
from ucmkd_fast.training.schedule import build_optimizer, learning_rate


@pytest.mark.parametrize(
    ("setting", "error", "said"),
    [
        ({"optimizer": "adam"}, ValueError, "did you mean 'adamw'"),
        ({"learning_rate": 0.1}, ValueError, "unknown training setting 'learning_rate'"),
        ({"warm_up_epochs": 3}, ValueError, "did you mean 'warmup_epochs'"),
        ({"lr": "0.1"}, TypeError, "lr must be a finite number > 0, got '0.1' (str)"),
        ({"lr": 0}, ValueError, "> 0, got 0"),
        ({"lr": float("nan")}, ValueError, "got nan"),
        ({"lr": True}, TypeError, "got True (bool)"),
        ({"lr": 1e-3, "min_lr": 1e-2}, ValueError, "min_lr must be at most lr = 0.001, got 0.01"),
        ({"epochs": 0}, ValueError, "epochs must be an integer >= 1, got 0"),
        ({"epochs": 2.0}, TypeError, "epochs must be an integer >= 1, got 2.0 (float)"),
        ({"epochs": 3, "warmup_epochs": 3}, ValueError, "warmup_epochs must be less than epochs = 3, got 3"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"clip_norm": 0}, ValueError, "clip_norm"),
        ({"draw": "class_matched"}, ValueError, "did you mean 'class-matched'"),
        ({"mixed_precision": "fp16"}, ValueError, "gradient scaling"),
        ({"mixed_precision": "fp32"}, ValueError, "['no', 'bf16']"),
        ({"seed": 2**31}, ValueError, "seed must be an integer from 0 to"),
        ({"trackers": 3}, TypeError, "trackers must be a list of names"),
        ({"progress": 1}, TypeError, "progress must be true or false, got 1 (int)"),
    ],
)
def test_wrong_settings_are_refused_with_what_was_expected_and_what_came(setting, error, said):
    with pytest.raises(error) as caught:
        TrainConfig.from_dict(setting)
    assert said in str(caught.value)


def test_settings_come_back_from_yaml(tmp_path):
    config = TrainConfig(lr=3e-4, min_lr=0, clip_norm=None, trackers="tensorboard", draw="paired")
    path = tmp_path / "train.yaml"
    path.write_text(config.to_yaml())
    assert TrainConfig.from_yaml(path) == config
    assert config.trackers == ("tensorboard",)


def test_yaml_reads_exponents_as_numbers_and_no_objects(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("lr: 1e-3\nmin_lr: 5E-4\nepochs: 7\n")
    assert TrainConfig.from_yaml(path) == TrainConfig(lr=1e-3, min_lr=5e-4, epochs=7)
    for text in ("lr: [", "lr: !!python/object/apply:os.getcwd []"):
        path.write_text(text)
        with pytest.raises(ValueError, match="not valid YAML"):
            TrainConfig.from_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(TypeError, match="must be a mapping"):
        TrainConfig.from_yaml(path)
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(("epochs", "warmup"), [(10, 3), (5, 0), (2, 1), (7, 1)])
def test_schedule_is_torchs_linear_warmup_then_cosine(epochs, warmup):
    config = TrainConfig(lr=0.1, min_lr=1e-3, epochs=epochs, warmup_epochs=warmup)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    cosine = CosineAnnealingLR(optimizer, epochs - warmup, eta_min=config.min_lr)
    if warmup:
        linear = LinearLR(optimizer, config.min_lr / config.lr, total_iters=warmup)
        theirs = SequentialLR(optimizer, [linear, cosine], [warmup])
    else:
        theirs = cosine
    for epoch in range(epochs):
        assert learning_rate(config, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        optimizer.step()
        theirs.step()


def test_optimizers_have_the_published_settings():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    sgd = build_optimizer(TrainConfig(weight_decay=0.1), parameters).param_groups[0]
    assert (sgd["momentum"], sgd["weight_decay"], sgd["lr"]) == (0.9, 0.1, 1e-2)
    adamw = build_optimizer(TrainConfig(optimizer="adamw", warmup_epochs=2), parameters).param_groups[0]
    assert (adamw["betas"], adamw["lr"]) == ((0.9, 0.999), 1e-5)
