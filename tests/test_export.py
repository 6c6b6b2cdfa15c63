"""A student without its run: equal outputs in every format, and nothing half written."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
from finished_runs import finished_run
from safetensors import safe_open

from ucmkd_fast.cli import main
from ucmkd_fast.export import export_run, formats, load_student
from ucmkd_fast.run.finished import open_finished


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCMKD_CACHE", str(root / "cache"))
        yield finished_run(root)


@pytest.fixture
def known(run):
    """Inputs, and what the run's student makes of them."""
    opened = open_finished(run)
    x = opened.parts.test.batch(torch.arange(7))[0]
    with torch.no_grad():
        return x, opened.student(x)


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(one) for one in arguments])
    return end.value.code, *capsys.readouterr()


def test_safetensors_holds_the_student_and_what_it_is(run, known, tmp_path):
    x, logits = known
    (done,) = export_run(run, ["safetensors"], tmp_path)
    state = torch.random.get_rng_state()
    student, classes = load_student(done.path)
    assert torch.equal(torch.random.get_rng_state(), state)  # loading draws nothing from the caller
    assert classes == [str(k) for k in range(10)] and not student.training
    with torch.no_grad():
        assert torch.equal(student(x), logits)
    about = json.loads((tmp_path / "student.json").read_text())
    assert about["input"]["shape"] == list(x.shape[1:]) and about["model"]["name"] == "speech-cnn"
    with safe_open(done.path, "pt") as file:
        assert not any("teacher" in name for name in file.keys())  # noqa: SIM118  (not a mapping)


def test_torch_export_takes_any_batch(run, known, tmp_path):
    x, logits = known
    (done,) = export_run(run, ["pt2"], tmp_path)
    program = torch.export.load(io.BytesIO(done.path.read_bytes())).module()
    for n in (1, 3, 7):
        torch.testing.assert_close(program(x[:n]), logits[:n], rtol=1e-4, atol=1e-5)


def test_onnx_takes_any_batch(run, known, tmp_path):
    for name in formats.FORMATS["onnx"].requires:
        pytest.importorskip(name, reason=f"{name} is not installed (extra export)")
    import onnxruntime

    x, logits = known
    (done,) = export_run(run, ["onnx"], tmp_path)
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    for n in (1, 3, 7):
        found = torch.from_numpy(session.run(["logits"], {"x": x[:n].numpy()})[0])
        torch.testing.assert_close(found, logits[:n], rtol=1e-3, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["ucmkd-student.json"])["classes"][3] == "3"


def test_a_file_that_gives_other_outputs_is_not_kept(run, tmp_path, monkeypatch):
    """A writer that gets one weight wrong by a hair."""
    right = formats.FORMATS["safetensors"]

    def wrong(student, x, path, about):
        with torch.no_grad():
            student.head.bias += 1e-3
            right.write(student, x, path, about)
            student.head.bias -= 1e-3

    (tmp_path / "student.safetensors").write_text("an earlier export")
    monkeypatch.setitem(formats.FORMATS, "safetensors", formats.Format(right.suffix, 0.0, wrong, right.read))
    with pytest.raises(ValueError, match="read back they differ"):
        export_run(run, ["safetensors"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]
    assert (tmp_path / "student.safetensors").read_text() == "an earlier export"


def test_a_model_that_cannot_be_traced_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ucmkd_fast.models.Classifier.encode", lambda self, x: self.encoder(x) * float(x.sum() > 0)
    )
    with pytest.raises(ValueError, match="pt2 cannot hold this model"):
        export_run(run, ["pt2"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_command(run, capsys, tmp_path):
    status, out, _ = call(capsys, "export", run, "--output", tmp_path / "out")
    assert status == 0 and out.count("on load") == 2
    status, out, _ = call(capsys, "export", run, "--json", "--to", "pt2")
    assert status == 0 and json.loads(out)[0]["path"] == str(run / "export" / "student.pt2")
    for arguments, said in (
        ((run, "--to", "onyx"), "a format must be one of"),
        ((tmp_path / "nowhere",), "nowhere"),
        ((run, "student.data.root=/nowhere"), "/nowhere"),
        ((run, "student.model.width=9"), "not weights of this model"),
    ):
        status, out, err = call(capsys, "export", *arguments)
        assert status == 2 and not out and err.count("\n") == 1 and said in err, err


def test_a_damaged_student_is_said(run, tmp_path):
    (done,) = export_run(run, ["safetensors"], tmp_path)
    whole = done.path.read_bytes()
    done.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole exported student"):
        load_student(done.path)
    with pytest.raises(ValueError, match="its description is not there"):
        load_student(run / "last.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_student(tmp_path / "other")
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "last.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not weights of this model"):
        export_run(copied)
