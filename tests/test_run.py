"""One run from one YAML file: what it refuses, what it keeps, and that it goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from digit_runs import run_settings
from safetensors.torch import load_file
from speech_folders import write_folder

from ucmkd_fast.cli import main
from ucmkd_fast.models import digit_cnn
from ucmkd_fast.run import RunConfig
from ucmkd_fast.run.controls import derangement, permuted_head, permuted_model
from ucmkd_fast.run.settings import load_settings, merge, read_changes, with_changes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("sklearn", reason="scikit-learn, which has the handwritten digits, is not installed")
    root = tmp_path_factory.mktemp("runs")
    write_folder(root / "audio", speakers=("ann", "bob", "cat"), takes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCMKD_CACHE", str(root / "cache"))
        yield root


@pytest.fixture
def settings(place):
    return run_settings(place / "audio")


@pytest.fixture
def ucmkd(capsys, tmp_path, monkeypatch):
    """Calls the command line in an empty folder: status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(one) for one in arguments])
        return end.value.code, *capsys.readouterr()

    return call


def test_settings_read_back_to_an_equal_run(settings):
    config = RunConfig.read(settings)
    assert RunConfig.read(yaml.safe_load(yaml.safe_dump(config.plain()))) == config
    assert config.train.seed == config.seed == 0 and config.train.draw == "independent"
    assert "head" not in config.identity()["student"]  # runs of before there was a choice are the same


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("studnet", {}, "unknown setting 'studnet'; did you mean 'student'?"),
        ("train.leraning_rate", 1, "train: train: unknown training setting 'leraning_rate'"),
        ("train.lr", "fast", "lr must be a finite number > 0, got 'fast' (str)"),
        ("train.seed", 1, "seed is not said here"),
        ("method.lamda1", 1, "did you mean 'lambda1'?"),
        ("method.name", "ucmdk", "ucmdk"),
        ("method.n1", -1, "n1"),
        ("method.unbalanced", 0, "unbalanced must be a number above 0"),
        ("method.unbalanced", [0.5], "unbalanced must be rho or a pair (rho_a, rho_b), got 1 values"),
        ("student.data.label_per_class", 3, "did you mean 'labels_per_class'?"),
        ("student.data.name", "spoken-digit", "did you mean 'spoken-digits'?"),
        ("student.model.widht", 3, "did you mean 'width'?"),
        ("student.model.name", "speech-cn", "did you mean 'speech-cnn'?"),
        ("teacher.checkpoint", "x", "either train"),
        ("teacher.train", None, "either train"),
        ("teacher.control", "permutated", "did you mean 'permuted'?"),
        ("teacher.cache_features", "yes please", "must be true or false"),
        ("teacher", None, "method 'ucmkd' needs one"),
        ("student.head", "techer", "did you mean 'teacher'?"),
        ("seed", "one", "seed must be an integer"),
        ("student", None, "expected student"),
        ("output", 3, "output must be a path"),
    ],
)
def test_wrong_settings_are_refused_with_the_place_and_the_nearest_name(settings, path, value, said):
    with pytest.raises(ValueError) as error:
        RunConfig.read(with_changes(settings, {path: value}))
    assert said in str(error.value)


def test_changes_have_yaml_values_and_dotted_paths(settings):
    changes = read_changes(
        ["train.lr=1e-3", "student.model=mlp", "method.metric=cosine", "train.clip_norm=null"]
    )
    changed = with_changes(settings, changes)
    assert changed["train"]["lr"] == 1e-3 and changed["train"]["clip_norm"] is None
    assert changed["student"]["model"] == "mlp" and changed["method"]["metric"] == "cosine"
    assert with_changes({"model": "mlp"}, {"model.width": 3}) == {"model": {"name": "mlp", "width": 3}}
    assert settings["train"]["lr"] == 0.05  # a copy
    for wrong in ("train.lr", "=3", "a..b=3"):
        with pytest.raises(ValueError, match="key.path=value"):
            read_changes([wrong])
    with pytest.raises(ValueError, match="lr is no mapping"):
        with_changes(settings, {"train.lr.high": 1})


def test_files_build_on_files_and_not_in_circles(tmp_path):
    (tmp_path / "a.yaml").write_text("x: {name: mlp, width: 3}\ny: 1\n")
    (tmp_path / "b.yaml").write_text("from: a.yaml\nx: {width: 4}\nz: {from: a.yaml, y: 2}\n")
    found = load_settings(tmp_path / "b.yaml")
    assert found == {
        "x": {"name": "mlp", "width": 4},
        "y": 1,
        "z": {"x": {"name": "mlp", "width": 3}, "y": 2},
    }
    assert merge(found["z"], {"x": {"name": "cnn"}})["x"] == {"name": "cnn"}  # options belong to a name
    (tmp_path / "a.yaml").write_text("from: b.yaml\n")
    with pytest.raises(ValueError, match="builds on itself"):
        load_settings(tmp_path / "b.yaml")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_settings(tmp_path / "nowhere.yaml")


def test_a_dry_run_says_sizes_and_what_is_missing(ucmkd, settings, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    status, out, _ = ucmkd("distill", "run.yaml", "--dry-run", "--json")
    found = json.loads(out)
    assert status == 0 and not found["missing"] and found["steps"] == 4
    assert found["student"]["samples"]["train"] == 20 and found["teacher"]["parameters"] > 1000
    changes = ("student.data.root=nowhere", "teacher.train=null", "teacher.checkpoint=gone")
    status, out, _ = ucmkd("distill", "run.yaml", *changes, "--dry-run")
    assert status == 1 and "missing: student: nowhere" in out and "missing: teacher: gone" in out
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_pretrain_distill_eval_and_again(ucmkd, settings, tmp_path):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({**settings, "output": "out", "measure_alignment": True})
    )
    assert ucmkd("pretrain", "run.yaml")[0] == 0
    weights = (tmp_path / "out" / "teacher" / "best.safetensors").stat().st_mtime_ns
    status, out, err = ucmkd("distill", "run.yaml", "--json")
    assert status == 0, err
    result = json.loads(out)
    assert (
        tmp_path / "out" / "teacher" / "best.safetensors"
    ).stat().st_mtime_ns == weights  # found, not made again
    assert result["teacher_accuracy"] > 0.1 and result["samples"]["train"] == 20
    assert {"fa", "la", "teacher_reads", "bound"} <= set(result)

    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["versions"]["torch"] == torch.__version__ and "git" in record
    saved = RunConfig.load(tmp_path / "out" / "config.yaml")
    assert saved.identity() == result["config"] and saved.seed == 0

    status, out, _ = ucmkd("eval", "out", "--json")
    measured = json.loads(out)
    assert status == 0 and measured["accuracy"] == result["accuracy"] and len(measured["confusion"]) == 10
    status, out, _ = ucmkd("eval", "out/teacher", "--part", "val")
    assert status == 0 and "val samples right" in out and "By class" in out

    assert ucmkd("distill", "run.yaml", "--resume", "--json")[1] == json.dumps(result, indent=2) + "\n"
    status, _, err = ucmkd("distill", "run.yaml")
    assert status == 2 and "holds a run already" in err
    status, _, err = ucmkd("distill", "run.yaml", "method.lambda1=0.5", "--resume")
    assert status == 2 and "other settings (method differ)" in err
    status, out, _ = ucmkd("distill", "run.yaml", "method.lambda1=0.5", "--overwrite", "--json")
    assert status == 0 and json.loads(out)["config"]["method"]["lambda1"] == 0.5
    checkpoint = ("teacher.train=null", "teacher.checkpoint=out/teacher", "output=other")
    assert ucmkd("distill", "run.yaml", *checkpoint)[0] == 0


@pytest.mark.parametrize("head", ["teacher", "teacher-frozen"])
def test_a_student_that_starts_with_the_teachers_head(ucmkd, settings, tmp_path, head):
    """Also where the method has no teacher; the weights load into a student of the settings."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings | {"method": "ce", "output": str(tmp_path / "out")}))
    status, _, err = ucmkd("distill", file, f"student.head={head}", "train.lr=1e-30", "train.min_lr=0")
    assert status == 0, err
    found = [load_file(tmp_path / "out" / at / "last.safetensors")["head.weight"] for at in ("", "teacher")]
    assert torch.equal(*found)
    assert ucmkd("distill", file, f"student.head={head}", "output=more")[0] == 0
    trained = load_file(tmp_path / "more" / "last.safetensors")["head.weight"]
    assert torch.equal(trained, found[1]) is (head == "teacher-frozen")
    assert ucmkd("eval", "more")[0] == 0
    status, _, err = ucmkd("distill", file, f"student.head={head}", "teacher=null", "output=none")
    assert status == 2 and f"student: head '{head}' needs a teacher" in err
    status, _, err = ucmkd("distill", file, f"student.head={head}", "student.model.width=9", "output=wide")
    assert status == 2 and "parameters of the teacher's" in err


def test_errors_are_one_line(ucmkd, settings, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    for arguments, said in (
        (("distill", "run.yaml"), "expected a folder to keep the run in"),
        (("distill", "nowhere.yaml"), "nowhere.yaml"),
        (("distill", "run.yaml", "trian.lr=1"), "did you mean 'train'?"),
        (("eval", "nowhere"), "expected a file of weights"),
        (("pretrain", "run.yaml", "teacher=null", "method=ce"), "expected a teacher"),
    ):
        status, out, err = ucmkd(*arguments)
        assert status == 2 and not out and err.count("\n") == 1 and said in err


def test_a_permuted_teacher_says_another_class_with_the_same_certainty():
    torch.manual_seed(0)
    model, x = digit_cnn(width=8).eval(), torch.randn(5, 1, 8, 8)
    renamed = derangement(10, 3)
    assert not (renamed == torch.arange(10)).any() and sorted(renamed.tolist()) == list(range(10))
    real = model(x)
    for control in (permuted_model(model, renamed), permuted_head(torch.nn.Sequential(model.head), renamed)):
        logits = (
            control(x) if control is not None and hasattr(control, "encode") else control(model.encode(x))
        )
        assert torch.equal(logits[:, renamed], real)
    assert torch.equal(model(x), real)  # the real one is as it was


def test_weights_of_a_run_load_by_hand_and_curves_are_there_unasked(ucmkd, settings, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard, whose curves are the default, is not installed")
    del settings["train"]["trackers"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**settings, "output": "out", "method": "ce"}))
    assert ucmkd("distill", "run.yaml")[0] == 0
    assert not (tmp_path / "out" / "teacher").exists()  # ce has none
    assert "head.weight" in load_file(tmp_path / "out" / "last.safetensors")
    assert list((tmp_path / "out" / "logs").rglob("events.out.tfevents*"))


def test_distill_under_torchrun_shares_the_batch_over_two_processes(settings, place, tmp_path):
    """FA is one problem of all processes' rows, and one student comes out."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings | {"output": str(tmp_path / "run")}))
    worker = Path(__file__).with_name("distill_worker.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(worker), str(tmp_path), str(file)], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        said = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert said == {"status": 0, "seen": [[8, 8, 2]]}  # 16 and 16 in all
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy"] >= 0 and (tmp_path / "run" / "last.safetensors").is_file()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["processes"] == 2
