"""`ucmkd prepare`: what it converts, what it finds, and how it ends."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed")

from clip_folders import write_ave, write_crema_d, write_ravdess  # noqa: E402

from ucmkd_fast.cli import main  # noqa: E402
from ucmkd_fast.data import open_data  # noqa: E402


def run(capsys, *arguments):
    """The exit status, and what was said on stdout."""
    with pytest.raises(SystemExit) as end:
        main(["prepare", *map(str, arguments)])
    return end.value.code, capsys.readouterr().out


def test_pickles_become_arrays_and_samples_stay_the_same(tmp_path, capsys):
    root = write_crema_d(tmp_path)
    spec = {"name": "crema-d", "root": root, "modality": "audio", "splits": "published"}
    before = open_data(spec).batch(torch.arange(18))[0]
    everything = sorted(tmp_path.rglob("*"))

    code, out = run(capsys, "crema-d", "--root", root, "--dry-run", "--json")
    report = json.loads(out)
    assert code == 0 and report["converted"] == 30 and report["dry_run"] and report["problems"] == 0
    assert sorted(tmp_path.rglob("*")) == everything

    code, out = run(capsys, "crema-d", "--root", root)
    assert code == 0 and "30 converted" in out and "all files are good" in out
    new = set(tmp_path.rglob("*")) - set(everything)
    assert len(new) == 30 and {path.suffix for path in new} == {".npy"}
    for path in (root / "Audio-1004").glob("*.pkl"):
        path.unlink()
    assert torch.equal(open_data(spec).batch(torch.arange(18))[0], before)
    code, out = run(capsys, "crema-d", "--root", root, "--json")
    assert (json.loads(out)["converted"], json.loads(out)["ready"]) == (0, 30)


def test_counts_classes_and_shared_actors_are_told(tmp_path, capsys):
    code, out = run(capsys, "crema-d", "--root", write_crema_d(tmp_path), "--json")
    report = json.loads(out)
    assert code == 0 and report["clips"] == {"train": 18, "test": 12} and report["pictures"] == 120
    assert report["per_class"]["train"] == {"ANG": 6, "HAP": 6, "SAD": 6}
    assert report["notes"] == [
        "3 classes, published 6",
        "train: 18 clips, published 6698",
        "test: 12 clips, published 744",
        "train and test share 2 actors (splits: actors splits anew without that)",
    ]


def test_ave_and_ravdess(tmp_path, capsys):
    code, out = run(capsys, "ave", "--root", write_ave(tmp_path / "ave"), "--json")
    assert code == 0 and json.loads(out)["clips"] == {"train": 12, "val": 6, "test": 6}
    code, out = run(capsys, "ravdess", "--root", write_ravdess(tmp_path / "ravdess"), "--json")
    report = json.loads(out)
    assert code == 0 and report["ready"] == 48 and report["converted"] == 0 and report["notes"] == []


def test_what_is_bad_is_named_and_the_rest_is_done(tmp_path, capsys):
    root, mark = write_crema_d(tmp_path), tmp_path / "mark"

    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    sounds = root / "Audio-1004"
    (sounds / "1001_DFA_ANG_HI.pkl").write_bytes(pickle.dumps(Runs()))
    (sounds / "1001_DFA_HAP_XX.pkl").unlink()
    (sounds / "1002_DFA_SAD_XX.pkl").write_bytes(pickle.dumps(np.full((2, 2), np.nan)))
    frame = root / "Image-01-FPS" / "1003_DFA_SAD_HI" / "frame_2.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    lines = (root / "test.csv").read_text().splitlines()
    (root / "test.csv").write_text("\n".join([*lines, "1005_DFA_HPY_XX,HPY", "alone"]) + "\n")

    code, out = run(capsys, "crema-d", "--root", root, "--json")
    report = json.loads(out)
    assert code == 1 and report["problems"] == 6 and report["converted"] == 27
    assert not mark.exists()
    assert [s.split(":")[0].split("/")[-1] for s in report["missing"]] == ["1001_DFA_HAP_XX.npy"]
    assert "line 3" in report["missing"][0]
    for name in ("1001_DFA_ANG_HI.pkl", "1002_DFA_SAD_XX.pkl", "frame_2.jpg"):
        assert any(name in sentence for sentence in report["broken"])
    short, wrong = sorted(report["bad_lines"], key=lambda sentence: "HPY" in sentence)
    assert "line 14: expected id,class" in short and "line 13: class 'HPY' is none of" in wrong

    code, out = run(capsys, "crema-d", "--root", root, "--skip-bad")
    assert code == 0 and "6 bad files and lines" in out and "missing: " in out
    with pytest.warns(UserWarning, match="is missing|are missing|left out"):
        data = open_data({"name": "crema-d", "root": root, "modality": "audio", "skip_bad": True})
        data.batch(torch.arange(len(data)))
    assert not mark.exists()


def test_wrong_calls_are_told_in_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["prepare", "creme-d", "--root", str(tmp_path)])
    assert end.value.code == 2 and "did you mean 'crema-d'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["prepare", "ave", "--root", str(tmp_path)])
    assert end.value.code == 2 and "trainSet.txt: expected a list of clips" in capsys.readouterr().err
