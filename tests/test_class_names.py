"""Class names of two sides, compared as sets before anything is trained."""

from __future__ import annotations

import json
import unicodedata

import pytest
import torch
import yaml

from ucmkd_fast.cli import main
from ucmkd_fast.data import LabelledData, TensorData, UnpairedLoader
from ucmkd_fast.data.class_names import check_distinct, check_same_names
from ucmkd_fast.data.relabel import in_classes
from ucmkd_fast.run.sources import DataSpec, open_parts

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        (
            ["b", "a"],
            ["a", "b"],
            "same classes in the same order: label 0 is 'b' to the student, 'a' to the teacher",
        ),
        (["a", "c"], ["a", "b", "c"], "same classes: only the teacher has 'b'$"),
        (["a", "b", "c"], ["a", "b"], "same classes: only the student has 'c'$"),
        (
            ["Number One", "two"],
            ["number one", "two"],
            r"only the student has 'Number One'; only the teacher has 'number one' \('Number One' and 'number one' "
            r"differ in upper and lower case\)",
        ),
        (
            [NFC],
            [NFD],
            r"only the student has 'café'; .*\('café' is spelt U\+00E9, '.*' is spelt U\+0065 U\+0301\)",
        ),
        (["caf" + NFC[-1] + "s"], ["cafe\u0301s"], r"is spelt U\+00E9, .* is spelt U\+0065 U\+0301\)"),
        (["new york"], ["new  york"], r"'new york' and 'new  york' differ in blanks"),
        (["a\u200bb"], ["ab"], r"'a\\u200bb' is spelt U\+200B, 'ab' is spelt without that"),
        (["a\u00a0b"], ["a b"], r"spelt U\+00A0, .* spelt U\+0020"),
        (list("abcdefghijkl"), ["z"], "only the student has 'a', .*'h' and 4 more; only the teacher has 'z'"),
        (
            ["a", "a"],
            ["a"],
            "the student lists 2 classes and the teacher 1: a name is in one of the lists twice",
        ),
    ],
)
def test_the_message_says_what_each_side_alone_has(student, teacher, said):
    with pytest.raises(ValueError, match=said):
        check_same_names(student, teacher)


def test_equal_names_are_fine_and_look_alikes_of_one_side_are_not():
    check_same_names(["a", NFC], ["a", NFC])
    check_distinct(["a", "A", "b"], "here")
    for names, said in (([NFC, NFD], "look alike"), (["a b", "a  b"], "blanks"), (["a", "b", "a"], "twice")):
        with pytest.raises(ValueError, match=f"here: .*{said}"):
            check_distinct(names, "here")


def data(classes, labels=(0, 1)):
    return TensorData(torch.randn(len(labels), 2), torch.tensor(labels), classes)


def test_a_loader_compares_names_but_lets_one_side_know_more():
    UnpairedLoader(data(["0", "1"]), data(["0", "1", "2"]), batch_size=2)
    with pytest.raises(ValueError, match="only the student has 'cat'; only the teacher has 'Cat'"):
        UnpairedLoader(data(["cat", "dog"]), data(["Cat", "dog"]), batch_size=2)


class Lazy(LabelledData):
    """Reads its samples when asked."""

    def __init__(self, classes, labels):
        self.classes, self.labels = classes, torch.tensor(labels)

    def __getitem__(self, index):
        return torch.full((2,), float(index)), self.labels[index]


@pytest.mark.parametrize("make", [data, Lazy])
def test_another_list_of_classes_gives_the_labels(make):
    own = make(["b", "c"], [0, 1, -100])
    other = in_classes(own, ["a", "b", "c"], ("train", "val"))
    assert other.classes == ["a", "b", "c"] and other.labels.tolist() == [1, 2, -100]
    x, y = other.batch(torch.tensor([1]))
    assert torch.equal(x, own.batch(torch.tensor([1]))[0]) and y.tolist() == [2] and other[0][1] == 1
    assert other.drawn_batch(torch.tensor([0]), (1,))[1].tolist() == [1]
    assert own.classes == ["b", "c"] and own.labels.tolist() == [0, 1, -100]
    numbered = make(["0", "1"], [0, 1])
    assert in_classes(numbered, ["a", "b", "c"], ("train", "val")) is numbered
    with pytest.raises(ValueError, match="only train has 'a'; only val has 'c'"):
        in_classes(own, ["a", "b"], ("train", "val"))


def write(path, classes, width=3, each=12):
    """A table of numbers, ``each`` rows of every class."""
    random = torch.Generator().manual_seed(len(classes))
    rows = [[*torch.randn(width, generator=random).tolist(), name] for _ in range(each) for name in classes]
    head = ",".join([*(f"f{k}" for k in range(width)), "kind"])
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return {"name": "table", "root": str(path), "label": "kind"}


def test_parts_that_lack_a_class_keep_the_labels_of_the_others(tmp_path):
    train = write(tmp_path / "train.csv", ["a", "b", "c"])
    parts = {"train": train, "val": write(tmp_path / "val.csv", ["c", "a"]), "test": train}
    opened = open_parts(DataSpec.read(parts), 0)
    assert opened.val.classes == ["a", "b", "c"] and opened.val.labels.unique().tolist() == [0, 2]
    parts["val"] = write(tmp_path / "val.csv", ["a", "B", "c"])
    with pytest.raises(ValueError, match="only the part 'train' has 'b'; only the part 'val' has 'B'"):
        open_parts(DataSpec.read(parts), 0)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Settings of a run whose sides differ, and a function that calls the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    train = {"epochs": 1, "batch_size": 8, "progress": False}
    settings = {
        "output": "out",
        "teacher": {"data": write(tmp_path / "t.csv", ["number one", "two"]), "model": "mlp", "train": train},
        "student": {"data": write(tmp_path / "s.csv", ["Number One", "two"]), "model": "mlp"},
        "method": "kd",
        "train": train,
    }

    def call(*arguments):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        comparison = {key: settings[key] for key in ("teacher", "student", "train")}
        comparison = {"base": comparison, "methods": {"ce": "ce", "kd": "kd"}, "seeds": 1}
        (tmp_path / "compare.yaml").write_text(yaml.safe_dump(comparison))
        with pytest.raises(SystemExit) as end:
            main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return end.value.code, " ".join(out.split()), " ".join(err.split())

    return settings, call


SAID = "only the student has 'Number One'; only the teacher has 'number one'"


def test_the_dry_run_says_it(run, tmp_path):
    settings, call = run
    status, out, _ = call("distill", "run.yaml", "--dry-run")
    assert status == 1 and SAID in out
    status, out, _ = call("distill", "run.yaml", "--dry-run", "--json")
    assert status == 1 and SAID in json.loads(out)["missing"][0]
    status, out, _ = call("compare", "compare.yaml", "--dry-run")
    assert status == 1 and SAID in out
    settings["student"]["data"] = settings["teacher"]["data"]
    assert (
        call("distill", "run.yaml", "--dry-run")[0] == 0
        and call("compare", "compare.yaml", "--dry-run")[0] == 0
    )


def test_nothing_is_trained_before_it_is_said(run, tmp_path):
    settings, call = run
    status, _, err = call("distill", "run.yaml")
    assert status == 2 and SAID in err and not (tmp_path / "out" / "teacher").exists()
    status, _, err = call("distill", "run.yaml", "--overwrite")
    assert status == 2 and SAID in err and not (tmp_path / "out" / "teacher").exists()
    status, _, err = call("compare", "compare.yaml", "--output", "all", "--jobs", "1")
    assert status == 2 and SAID in err and not (tmp_path / "all" / "teachers").exists()


@pytest.mark.parametrize("method", ["ce", "kd"])
def test_a_teacher_that_is_there_is_compared_too(run, tmp_path, method):
    """Also one that does not teach but gives its head."""
    settings, call = run
    settings["student"]["head"] = "teacher"
    settings["method"] = method
    assert call("pretrain", "run.yaml")[0] == 0
    status, _, err = call("distill", "run.yaml")
    assert status == 2 and SAID in err and not (tmp_path / "out" / "result.json").exists()
    settings["teacher"] = {**settings["teacher"], "train": None, "checkpoint": "out/teacher"}
    settings["output"] = "other"
    status, _, err = call("distill", "run.yaml")
    assert status == 2 and SAID in err


def test_other_data_of_a_finished_run_are_matched_by_name(run, tmp_path):
    settings, call = run
    same = write(tmp_path / "same.csv", ["b", "a", "c"], each=20)
    settings |= {"student": {"data": same, "model": "mlp"}, "method": "ce", "teacher": None}
    assert call("distill", "run.yaml")[0] == 0
    whole = json.loads(call("eval", "out", "--part", "test", "--json")[1])
    assert whole["classes"] == ["a", "b", "c"]
    some = write(tmp_path / "some.csv", ["c", "a"], each=20)
    found = json.loads(call("eval", "out", f"student.data.root={some['root']}", "--json")[1])
    assert found["classes"] == ["a", "b", "c"]
    assert [sum(row) > 0 for row in found["confusion"]] == [True, False, True]
    other = write(tmp_path / "other.csv", ["a", "B", "c"], each=20)
    status, _, err = call("eval", "out", f"student.data.root={other['root']}")
    assert status == 2 and "only the run has 'b'; only the data set has 'B'" in err


def test_the_dry_run_compares_widths_and_refuses_one_class(run, tmp_path):
    settings, call = run
    settings["student"]["data"] = settings["teacher"]["data"]
    settings |= {"method": "ucmkd", "teacher": {**settings["teacher"], "model": {"name": "mlp", "width": 5}}}
    status, out, _ = call("distill", "run.yaml", "--dry-run")
    assert (
        status == 1
        and "must give one width: the student's is" in out
        and "the teacher's 5 (student.model.width=5 adds" in out
    )
    settings["student"]["model"] = settings["teacher"]["model"]
    assert call("distill", "run.yaml", "--dry-run")[0] == 0
    for part in ("student", "teacher"):
        settings[part]["data"] = write(tmp_path / "one.csv", ["one"])
        for more in (["--dry-run"], []):
            status, _, err = call("distill", "run.yaml", *more)
            assert status == 2 and "expected two classes or more, the training data have 'one' alone" in err
    assert not (tmp_path / "out" / "teacher").exists()
