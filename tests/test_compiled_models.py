"""Models that torch.compile wraps: whole, or modules inside them. Files hold the names of plain ones."""

import warnings

import pytest
import torch
from distiller_problem import STUDENT_TRAIN, STUDENT_VAL, TEACHER_TRAIN, student, teacher, weights
from safetensors.torch import load_file
from torch import nn

from ucmkd_fast.distiller import Distiller
from ucmkd_fast.models import LayerEncoder, MappedClassifier, reuse_head
from ucmkd_fast.models.weights import load_state, plain_name, state_of
from ucmkd_fast.run.files import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def compiled(module):
    return torch.compile(module, backend="eager")  # wraps as any backend does


def whole(**options):
    return compiled(student(**options))


def inside(**options):
    model = student(**options)
    model.encoder, model.head = compiled(model.encoder), compiled(model.head)
    return model


def both(**options):
    return compiled(inside(**options))


KINDS = [student, whole, inside, both]


def distiller(model, folder, **settings):
    options = {"epochs": 2, "batch_size": 32, "lr": 0.05, "progress": False, "diagnose": False, **settings}
    return Distiller(model, teacher(), "ucmkd", output_dir=folder, **options)


DATA = (STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_files_of_a_run_have_plain_names_and_plain_models_read_them(tmp_path, kind):
    plain, model = student(norm=True), kind(norm=True)
    distiller(plain, tmp_path / "plain", keep_weights_every=1).fit(*DATA)
    distiller(model, tmp_path / "run", keep_weights_every=1).fit(*DATA)
    for name in ("best.safetensors", "last.safetensors", "weights/epoch-000001.safetensors"):
        assert load_file(tmp_path / "run" / name).keys() == plain.state_dict().keys()
        for other in KINDS:
            read = other(norm=True)
            load_weights(read, tmp_path / "run" / name)
            load_weights(read, tmp_path / "plain" / name)
    torch.testing.assert_close(weights(model), weights(plain))


@pytest.mark.parametrize("then", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_a_run_goes_on_with_the_other_kind(tmp_path, first, then):
    without_pause = student()
    distiller(without_pause, None, epochs=3, warmup_epochs=1).fit(*DATA)
    stopped = distiller(first(), tmp_path / "run", epochs=3, warmup_epochs=1)
    evaluate, calls = stopped.evaluate, []

    def stop_in_the_second_epoch(data):
        calls.append(data)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(data)

    stopped.evaluate = stop_in_the_second_epoch
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(*DATA)
    model = then()
    distiller(model, tmp_path / "run", epochs=3, warmup_epochs=1).fit(*DATA, resume=True)
    torch.testing.assert_close(weights(model), weights(without_pause))


def test_a_checkpoint_from_before_with_the_wrapper_in_its_names_is_read():
    model = student()
    load_state(model, both().state_dict())
    assert "_orig_mod.encoder._orig_mod.0.weight" in both().state_dict()
    assert plain_name("_orig_mod.encoder._orig_mod.0.weight") == "encoder.0.weight"
    assert state_of(both()).keys() == student().state_dict().keys()
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state(model, {"_orig_mod.head.weight": torch.zeros(4, 8)})


def test_the_head_of_a_compiled_teacher_serves_a_plain_student_and_the_other_way_round():
    for own, other in ((student(), inside()), (inside(), student())):
        nn.init.constant_(other.head.bias, 7.0)
        reuse_head(own, other)
        assert torch.equal(own.head.bias, other.head.bias)


def test_maps_and_layers_go_by_plain_names_whenever_the_encoder_was_compiled():
    def encoder():
        torch.manual_seed(0)
        return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.Conv1d(4, 8, 3), nn.Flatten())

    x, head = torch.randn(3, 6), nn.Linear(16, 4)
    feature, maps = MappedClassifier(encoder(), head, ["1", "2"]).encode_with_maps(x)
    before = MappedClassifier(compiled(encoder()), head, ["1", "2"])
    after = MappedClassifier(encoder(), head, ["1", "2"])
    after.encoder = compiled(after.encoder)
    for model in (before, after):
        model.encode(x)  # it is compiled now, without hooks
        found, seen = model.encode_with_maps(x)
        torch.testing.assert_close([found, *seen], [feature, *maps])
    wrapped = compiled(encoder())
    wrapped(x)
    torch.testing.assert_close(LayerEncoder(wrapped, "2")(x), LayerEncoder(encoder(), "2")(x))


@pytest.mark.parametrize(("preset", "order"), [("paper", 1), ("paper", 2), ("published-code", 1)])
def test_a_compiled_student_under_a_compiled_teacher_learns_what_a_plain_one_does(preset, order):
    ends = []
    for wrap in (lambda model: model, compiled):
        own, other = wrap(student(norm=True)), teacher()
        other.encoder = wrap(other.encoder)
        settings = {"epochs": 1, "batch_size": 32, "progress": False, "method_options": {"order": order}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Distiller(own, other, "ucmkd", preset, **settings).fit(*DATA[:2])
        ends.append(weights(own))
    torch.testing.assert_close(*ends)
