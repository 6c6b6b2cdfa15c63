"""What commands say beside their output: in the words of the command line, as sentences, and how to go on."""

import json
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import yaml
from digit_runs import run_settings
from speech_folders import write_folder
from test_compare import experiment_settings
from test_lock import HOLDER

from ucmkd_fast.cli import _commands, app, main
from ucmkd_fast.cli.messages import after_ctrl_c, say
from ucmkd_fast.compare import Experiment, run_experiment
from ucmkd_fast.compare.pool import run_all
from ucmkd_fast.run import RunConfig
from ucmkd_fast.run.job import distill
from ucmkd_fast.run.settings import with_changes
from ucmkd_fast.training.lock import FolderInUse, only_writer

pytest.importorskip("sklearn", reason="scikit-learn, which has the handwritten digits, is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("messages")
    write_folder(root / "audio", speakers=("ann", "bob", "cat"), takes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCMKD_CACHE", str(root / "cache"))
        yield root


@pytest.fixture
def settings(place):
    return run_settings(place / "audio")


@pytest.fixture
def ucmkd(capsys, tmp_path, monkeypatch, settings):
    """Calls the command line beside run.yaml: status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UCMKD_TRACEBACK", raising=False)
    Path("run.yaml").write_text(yaml.safe_dump({**settings, "output": "run"}))

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(one) for one in arguments])
        return end.value.code, *capsys.readouterr()

    return call


def test_a_run_that_is_there_is_gone_on_with_by_the_options_of_the_command_line(ucmkd):
    status, out, err = ucmkd("distill", "run.yaml")
    assert status == 0
    [line] = [line for line in " ".join(out.split()).split("Accuracy") if "of training" in line]
    result = json.loads(Path("run/result.json").read_text())
    taught = json.loads(Path("run/teacher/result.json").read_text())["seconds"]
    assert result["teacher_seconds"] == taught
    assert f"after {result['seconds']:.0f} s of training, its teacher after {taught:.0f} s" in line
    status, out, err = ucmkd("distill", "run.yaml")
    assert status == 2 and "pass --resume to go on with it, --overwrite to replace it" in err
    assert "=True" not in err
    assert ucmkd("pretrain", "run.yaml")[2].count("--resume") == 1
    assert ucmkd("distill", "run.yaml", "--resume")[0] == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("resume=True to go on, overwrite=True to replace it", "--resume to go on, --overwrite to replace it"),
        ("fewer than per_class=9", "fewer than labels_per_class=9"),
        ("with labels_per_class=9", "with labels_per_class=9"),
        ("(ucmkd_fast.models.with_width(student, 7) adds a projection)", "(student.model.width=7 adds a projection)"),
        ("needs student_unlabelled, got None", "without labels (student.data.labels_per_class leaves some), got None"),
        ("try jobs=1", "try --jobs 1"),
    ],
)  # fmt: skip
def test_words_of_the_library_that_the_command_line_has_others_for(capsys, error, said):
    say(error)
    assert said in capsys.readouterr().err


def test_the_words_are_those_of_the_errors(ucmkd, settings):
    """So that a changed error is noticed here."""
    status, _, err = ucmkd("distill", "run.yaml", "student.model.width=6")
    assert status == 2 and "(student.model.width=8 adds a projection)" in err
    status, _, err = ucmkd("distill", "run.yaml", "method.name=self-training", "method.max_iter=3",
                           "student.data.labels_per_class=null")  # fmt: skip
    assert status == 2 and "labels_per_class leaves some" in err
    status, _, err = ucmkd(
        "distill", "run.yaml", "student.head=teacher", "student.model.width=6", "output=other"
    )
    assert status == 2 and "(student.model.width gives a student features of the teacher's width)" in err
    status, _, err = ucmkd("demo", "--audio", settings["student"]["data"]["root"], "--labels-per-class", "99")
    assert status == 2 and " labels_per_class=99" in err


@pytest.mark.parametrize(("change", "where"), [("train", "train"), ("teacher.train", "teacher: train")])
def test_a_mistyped_tracker_is_said_before_anything_is_trained(ucmkd, change, where):
    change = f"{change}.trackers=[tensorbord]"
    status, out, err = ucmkd("distill", "run.yaml", change, "--dry-run")
    assert status == 1 and f"{where}: trackers" in out and "did you mean 'tensorboard'?" in out
    status, _, err = ucmkd("distill", "run.yaml", change)
    assert status == 2 and "train: trackers" in err and "did you mean 'tensorboard'?" in err
    assert not list(Path("run").rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_settings_that_cannot_be_read_are_named_once(ucmkd, name):
    status, _, err = ucmkd("distill", name)
    assert status == 2 and "Errno" not in err and err.count(str(Path(name).resolve())) == 1


def test_warnings_are_sentences(ucmkd, monkeypatch):
    def warn(path):
        warnings.warn("the teacher\nis old", stacklevel=1)
        raise ValueError("and wrong")

    monkeypatch.setattr("ucmkd_fast.run.settings.load_settings", warn)
    before = warnings.showwarning
    assert ucmkd("distill", "run.yaml")[2] == "ucmkd: warning: the teacher is old\nucmkd: and wrong\n"
    assert warnings.showwarning is before
    monkeypatch.setenv("UCMKD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="and wrong"), pytest.warns(UserWarning, match="is old"):
        main(["distill", "run.yaml"])


def _warner(shared):
    def run(number):
        warnings.warn(f"run {number} {shared}", RuntimeWarning, stacklevel=1)
        return number

    return run


@pytest.mark.parametrize("jobs", [1, 2])
def test_warnings_of_other_processes_are_the_parents_to_say(jobs, capfd):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert {result for _, result in run_all(_warner, "is odd", [1, 2, 3], jobs)} == {1, 2, 3}
    assert {str(one.message) for one in seen} == {f"run {k} is odd" for k in (1, 2, 3)}
    assert all(one.category is RuntimeWarning for one in seen)
    assert "is odd" not in capfd.readouterr().err


def test_after_ctrl_c_every_command_that_can_go_on_says_how():
    commands = dict(_commands())
    assert set(commands) == {command.name or command.callback.__name__ for command in app.registered_commands}
    for name in ("distill", "pretrain", "compare"):
        said = after_ctrl_c([name, "run.yaml"], commands.items())
        assert said == "stopped; to go on from there, call it again with --resume"
        assert after_ctrl_c([name, "run.yaml", "--dry-run"], commands.items()) == "stopped"
    assert after_ctrl_c(["distill", "x", "--overwrite"], commands.items()).endswith("in place of --overwrite")
    assert after_ctrl_c(["demo"], commands.items()) == "stopped; demo starts anew when it is called again"
    assert after_ctrl_c([], commands.items()) == "stopped"


def heed_sigint():
    """A suite that a shell runs in its background passes on that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_ctrl_c_ends_in_the_hint_and_the_hint_is_right(command, place, tmp_path, settings):
    if command == "distill":
        values = with_changes(settings, {"train.epochs": 2000, "output": str(tmp_path / "run")})
        options, begun = [], "run/checkpoints/step-*"  # any: earlier ones are deleted
    else:
        values = with_changes(experiment_settings(place / "audio"), {"base.train.epochs": 40})
        options, begun = ["--output", str(tmp_path / "out"), "--jobs", "1"], "out/runs/two"
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(values))
    call = [sys.executable, "-m", "ucmkd_fast", command, str(tmp_path / "file.yaml"), *options]
    process = subprocess.Popen(
        call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed_sigint
    )
    for _ in range(1200):
        if any(tmp_path.glob(begun)):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert err.splitlines()[-1] == "ucmkd: stopped; to go on from there, call it again with --resume"
    assert not list(tmp_path.rglob(".lock*"))


def test_a_checkpoint_beside_a_train_from_another_file_says_that_both_are_there(tmp_path, settings):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings))
    own = {"from": "base.yaml", "teacher": {"checkpoint": "runs/before"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(ValueError) as caught:
        RunConfig.load(tmp_path / "own.yaml")
    said = str(caught.value)
    assert "got both, checkpoint 'runs/before' and train with epochs, lr" in said and "train: null" in said
    own["teacher"]["train"] = None
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    assert RunConfig.load(tmp_path / "own.yaml").teacher.checkpoint == "runs/before"
    with pytest.raises(ValueError, match="got neither"):
        RunConfig.read(with_changes(settings, {"teacher.train": None}))
    with pytest.raises(ValueError, match=r"got both, .* train with 'fast' \(str\)"):
        RunConfig.read(with_changes(settings, {"teacher.train": "fast", "teacher.checkpoint": "x"}))


def test_an_experiment_whose_base_has_both(place):
    values = experiment_settings(place / "audio")
    with pytest.raises(ValueError, match="ce, two, seed 0: teacher: .*got both"):
        Experiment.read(with_changes(values, {"base.teacher.checkpoint": "runs/before"}))


def test_two_processes_do_not_train_into_one_folder(ucmkd, place, tmp_path, settings):
    config = RunConfig.read(settings)
    held = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, held, "kernel"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"run is being written to by process {process.pid}"):
            distill(config, held, resume=True)
        with pytest.raises(FolderInUse):
            run_experiment(Experiment.read(experiment_settings(place / "audio")), held, resume=True)
        status, _, err = ucmkd("distill", "run.yaml", f"output={held}", "--resume")
        assert status == 2 and "is being written to by process" in err and err.count("\n") == 1
    finally:
        process.kill()
        process.wait()
    assert distill(config, held, resume=True)["accuracy"] is not None
    assert not list(held.rglob(".lock*"))


def test_a_teacher_that_another_process_is_training_is_not_trained_twice(tmp_path, settings):
    folder = tmp_path / "run" / "teacher"
    found = []

    def other():
        try:
            distill(RunConfig.read(settings), tmp_path / "run")
        except FolderInUse as error:
            found.append(str(error))

    with only_writer(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "teacher is being written to by another thread" in found[0] and not (tmp_path / "run").exists()
