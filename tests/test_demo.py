"""The demo on tones instead of words: small, but all of it."""

import json
import math
import multiprocessing
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from speech_folders import write_folder

from ucmkd_fast.cli import main
from ucmkd_fast.compare.pool import one_thread
from ucmkd_fast.config import TrainConfig
from ucmkd_fast.data import FeatureBank
from ucmkd_fast.demo import DemoSettings, files, screen, verdict
from ucmkd_fast.demo import task as demo_task
from ucmkd_fast.demo.pool import run_all
from ucmkd_fast.demo.settings import BASELINE, CONTENDERS
from ucmkd_fast.demo.student import Portrait, new_student, train_student
from ucmkd_fast.models import speech_cnn
from ucmkd_fast.report import Compared, compare, theory
from ucmkd_fast.terminal import Terminal

KEYS = [contender.key for contender in CONTENDERS]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with recordings by three voices; caches and a short teacher's training are set up."""
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the picture, is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn, which has the handwritten digits, is not installed")
    root = tmp_path_factory.mktemp("demo")
    write_folder(root / "audio", speakers=("ann", "bob", "cat"), takes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCMKD_CACHE", str(root / "cache"))
        patch.setattr(demo_task, "teacher_config", lambda: TrainConfig(lr=0.05, epochs=2, progress=False))
        yield root


SETTINGS = DemoSettings(labels_per_class=2, seeds=2, epochs=2, jobs=2)


@pytest.fixture(scope="module")
def ran(place):
    """The numbers of one run of the command in two processes, and what it said at 80 columns."""
    arguments = ["demo", "--audio", str(place / "audio"), "--labels-per-class", "2", "--seeds", "2"]
    arguments += ["--epochs", "2", "--jobs", "2", "--json", "--output", str(place / "out")]
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as end:
            main(arguments)
    assert end.value.code == 0, err.getvalue()
    return json.loads(out.getvalue()), err.getvalue()


@pytest.fixture(scope="module")
def task(place):
    with one_thread():
        speech = demo_task.load_speech(place / "audio")
        return demo_task.Task(speech, demo_task.train_teacher(), speech.source, speech.description)


def test_every_file_is_there_and_nothing_else(ran, place):
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        "picture.png",
        "results.json",
        "student.safetensors",
    ]
    text = (place / "out" / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == ran[0]


def test_differences_are_those_of_the_runs(ran):
    numbers = ran[0]
    accuracy = {key: [r["accuracy"] for r in numbers["runs"] if r["key"] == key] for key in KEYS}
    assert all(len(values) == 2 for values in accuracy.values())
    assert [method["key"] for method in numbers["methods"]] == KEYS
    for method in numbers["methods"]:
        own = np.array(accuracy[method["key"]])
        assert method["accuracy"]["mean"] == pytest.approx(own.mean())
        assert method["accuracy"]["deviation"] == pytest.approx(own.std(ddof=1))
        if method["key"] == BASELINE:
            assert method["difference_to_ce"] is None
            continue
        difference = own - np.array(accuracy[BASELINE])
        assert method["difference_to_ce"]["mean"] == pytest.approx(difference.mean())
        expected = difference.std(ddof=1) / math.sqrt(2)
        assert method["difference_to_ce"]["standard_error"] == pytest.approx(expected)


def test_the_bound_holds_and_is_the_sum_of_its_parts(ran):
    for run in ran[0]["runs"]:
        bound = run["bound"]
        assert bound["bound"] == pytest.approx(
            bound["teacher_error"] + bound["tau"] * bound["wasserstein"] + bound["label_alignment"]
        )
        assert bound["bound"] >= bound["student_error"] > 0


def test_the_saved_student_is_the_one_that_was_measured(ran, task, place):
    student = speech_cnn()
    student.load_state_dict(load_file(place / "out" / files.STUDENT))
    test = task.voices(2, 0).test
    features = FeatureBank.from_model(student, test)
    correct = (student.head(features.x).argmax(1) == test.labels).float().mean().item()
    run = next(r for r in ran[0]["runs"] if r["key"] == files.SAVED_STUDENT and r["seed"] == 0)
    assert correct == pytest.approx(run["accuracy"])
    parts = theory.bound_parts(
        student.head, task.teacher.model.head, features.x, test.labels,
        task.teacher.held_out.x, task.teacher.held_out.labels,
    )  # fmt: skip
    assert parts.tau == pytest.approx(run["bound"]["tau"], rel=1e-4)


def test_the_picture_shows_something(ran, place):
    from matplotlib.image import imread

    pixels = imread(place / "out" / files.PICTURE)
    assert pixels.shape[0] > 800 and pixels.shape[1] > 1000
    third = pixels.shape[1] // 3
    for column in range(3):  # no panel is empty
        assert pixels[: pixels.shape[0] // 2, column * third : (column + 1) * third, :3].std() > 0.02


def test_what_is_said_fits_80_columns_and_says_where(ran):
    said = ran[1]
    lines = [line for line in said.splitlines() if "load_file(" not in line]  # to be copied, so not broken
    assert max(map(len, lines)) <= 80 and "…" not in said
    for contender in CONTENDERS:
        assert said.count(f"\n{contender.label} ") >= 2  # in both tables
    for words in (
        "90 spoken digits by 3 voices",
        "results.json",
        "load_file",
        "2 seeds are too few",
        "points each",
        "s/epoch",
    ):
        assert words in said


@pytest.mark.parametrize(("key", "seed"), [("ce", 1), ("ucmkd_published", 1), ("kd_permuted", 0)])
def test_numbers_do_not_depend_on_the_process(ran, task, key, seed):
    contender = next(c for c in CONTENDERS if c.key == key)
    with one_thread():
        outcome, _ = train_student(task, contender, SETTINGS, seed)
    run = next(r for r in ran[0]["runs"] if r["key"] == key and r["seed"] == seed)
    for name in (
        "accuracy",
        "val_accuracy",
        "fa",
        "la",
        "teacher_reads",
        "class_agreement",
        "class_agreement_p",
    ):
        assert getattr(outcome, name) == run[name]


def test_a_process_that_dies_is_an_error_and_not_a_wait(task):
    def kill_all(*_):
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(ChildProcessError, match="jobs=1"):
        run_all(task, SETTINGS, kill_all)
    assert not multiprocessing.active_children()


def test_the_control_is_as_accurate_and_every_class_is_renamed(task):
    teacher, control = task.teacher, task.teacher.with_permuted_classes(3)
    assert control.accuracy() == teacher.accuracy() > 0.5
    for old, new in ((teacher.train, control.train), (teacher.held_out, control.held_out)):
        assert torch.equal(old.x, new.x) and not (old.labels == new.labels).any()
        pairs = set(zip(old.labels.tolist(), new.labels.tolist(), strict=True))
        assert len(pairs) == 10 and len({new for _, new in pairs}) == 10
    again = task.teacher.with_permuted_classes(3)
    assert torch.equal(again.train.labels, control.train.labels)


def test_methods_of_a_seed_share_split_and_weights_and_no_voice_is_in_two_parts(task):
    for seed in range(4):
        voices, again = task.voices(2, seed), task.voices(2, seed)
        assert torch.equal(voices.labelled.x, again.labelled.x)
        parts = [set(part.groups) for part in (voices.labelled, voices.val, voices.test)]
        assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        assert torch.bincount(voices.labelled.labels).tolist() == [2] * 10
        first, second = new_student(task, seed).state_dict(), new_student(task, seed).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert len({frozenset(task.voices(2, seed).test.groups) for seed in range(8)}) > 1


def test_a_packed_task_is_the_same_task(task):
    other = demo_task.Task.unpack(task.pack())
    assert torch.equal(other.speech.x, task.speech.x) and other.speech.groups == task.speech.groups
    assert other.teacher.accuracy() == task.teacher.accuracy()


def test_a_failed_write_leaves_what_was_there(ran, place, monkeypatch, tmp_path):
    numbers, _ = ran
    (tmp_path / files.RESULTS).write_text("earlier")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    student = place / "out" / files.STUDENT
    portraits = {files.SAVED_STUDENT: Portrait(student.read_bytes(), np.zeros((1, 2)), np.zeros(1))}
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path, numbers, b"png", portraits)
    assert [path.name for path in tmp_path.iterdir()] == [files.RESULTS]
    assert (tmp_path / files.RESULTS).read_text() == "earlier"


def made_up(gains, fa=0.9, reads=0.1, base=0.5):
    """A comparison in which each method's accuracy is ce's plus its gains."""
    base = [base + step for step in (-0.01, 0.1, -0.1, 0.01)]
    bound = theory.BoundParts(0.1, 0.5, 8.0, 1.0, 1.2, 0.1, 0.0)
    methods = []
    for contender in CONTENDERS:
        gain = gains.get(contender.key, [0.0, 0.01, -0.01, 0.0])
        figures = {"fa": [fa if contender.key == "feature" else 0.9] * 4, "teacher_reads": [reads] * 4}
        figures |= {"class_agreement": [0.2] * 4, "class_agreement_p": [0.2, 0.01, 0.3, 0.4]}
        figures["fa"] = [value + 0.001 * i * i for i, value in enumerate(figures["fa"])]
        accuracy = [a + g for a, g in zip(base, gain, strict=True)] if contender.key != "ce" else base
        methods.append(
            Compared(contender.key, contender.label, accuracy, figures, [bound] * 4, contender.permuted)
        )
    return compare(methods, BASELINE)


def test_sentences_follow_the_numbers():
    def said(gains, **figures):
        return "\n".join(verdict.sentences(made_up(gains, **figures), 10))

    text = said({})
    assert text.count("no difference to ce seen") == 5
    assert "ucmkd (paper), real against permuted teacher (+0.0 ± 0.0 points): no difference seen" in text
    assert "in ce's features as in the teacher's with a rank correlation of 0.20" in text
    assert "at 1 of 4 seeds: little structure" in text
    assert "held in 32 of 32 runs" in text and "promises nothing" in text

    text = said({"kd": [0.05, 0.06, 0.055, 0.05], "ucmkd": [-0.2, -0.21, -0.2, -0.22]})
    assert "kd (class-matched): better than ce (+5.4 ± 0.2 points)" in text
    assert "ucmkd (paper): worse than ce" in text
    assert "real teacher is better" in text and "permuted teacher is even better" in text

    assert "little left" not in text
    assert "ce alone reaches 91 %: there is little left" in said({}, base=0.91)
    assert "the classes do not" in said({}, fa=0.3, reads=0.08)
    assert "clouds and classes meet" in said({}, fa=0.3, reads=0.6)
    assert "which chance could do as well" in said({}, fa=0.9, reads=0.08)


def test_one_seed_claims_nothing():
    methods = [
        Compared(
            m.key, m.label, m.accuracy[:1], {k: v[:1] for k, v in m.figures.items()}, m.bounds[:1], m.control
        )
        for m in made_up({"kd": [0.3] * 4})
    ]
    text = "\n".join(verdict.sentences(compare(methods, BASELINE), 10))
    assert text.count("one seed cannot tell") == 7 and "better" not in text and "nan" not in text


def test_the_expectation_is_not_of_this_run():
    said = StringIO()
    terminal = Terminal(file=said, width=80)
    methods = made_up({})
    for method in methods:
        method.figures.update({"la": [0.0] * 4, "seconds_per_epoch": [0.1] * 4})

    class Task:
        class speech:
            classes = list("0123456789")

    screen.show(terminal, Task, DemoSettings(seeds=4), methods, ["a sentence"])
    assert "For comparison, on recordings of" in said.getvalue()
