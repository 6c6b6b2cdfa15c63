"""A disk that is full, or cannot be written to: one clear line, and nothing that was there is lost."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch
import yaml
from digit_runs import run_settings
from finished_runs import finished_run
from safetensors.torch import load_file
from speech_folders import write_folder

from ucmkd_fast.cli import main
from ucmkd_fast.run.files import read_result


def mount(*arguments):
    try:
        subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk takes the right to mount one: {getattr(error, 'stderr', error)}".strip())


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of 450 kB; a checkpoint of these runs takes about 270."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=450k", "tmpfs", place)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # weights that were read may still be mapped


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCMKD_CACHE", str(root / "cache"))
        yield root


@pytest.fixture
def ucmkd(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(one) for one in arguments])
        return end.value.code, *capsys.readouterr()

    return call


def fails(found, *said):
    status, out, err = found
    assert status == 2 and not out and err.count("\n") == 1, err
    for words in said:
        assert words in err, err


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_fills_the_disk_goes_on_when_there_is_room(root, disk, ucmkd, tmp_path):
    if not (root / "audio").exists():
        write_folder(root / "audio", speakers=("ann", "bob", "cat"), takes=3)
    settings = run_settings(root / "audio") | {"method": "ce", "output": str(disk / "run")}
    settings["train"] |= {"trackers": [], "epochs": 3}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    fails(ucmkd("distill", tmp_path / "run.yaml"), "could not write", "the earlier checkpoints are intact")
    assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert read_result(disk / "run") is None

    mount("-o", "remount,size=20m", disk)
    assert ucmkd("distill", tmp_path / "run.yaml", "--resume", "--json")[0] == 0
    resumed = read_result(disk / "run")
    whole = ucmkd("distill", tmp_path / "run.yaml", f"output={tmp_path / 'whole'}", "--json")
    assert whole[0] == 0
    mine, wanted = (load_file(place / "last.safetensors") for place in (disk / "run", tmp_path / "whole"))
    assert mine.keys() == wanted.keys() and all(torch.equal(mine[name], wanted[name]) for name in wanted)
    assert resumed["accuracy"] == read_result(tmp_path / "whole")["accuracy"]


def test_an_export_or_a_report_that_does_not_fit_leaves_the_earlier_one(root, disk, ucmkd):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra report)")
    run = finished_run(root)
    assert ucmkd("export", run, "--to", "safetensors", "--output", disk / "out")[0] == 0
    (disk / "page").mkdir()
    (disk / "page" / "index.html").write_text("an earlier page")
    (disk / "rest").write_bytes(b"0" * 4096 * ((os.statvfs(disk).f_bavail) - 8))
    before = contents(disk)
    for form in ("safetensors", "pt2"):
        fails(ucmkd("export", run, "--to", form, "--output", disk / "out"), "could not write", "student")
    assert contents(disk) == before
    fails(ucmkd("report", run, "--output", disk / "page"), "could not write the report")
    assert (disk / "page" / "index.html").read_text() == "an earlier page"
    assert not list(disk.rglob(".*"))


def test_a_disk_that_cannot_be_written_to(root, disk, ucmkd, tmp_path):
    run = finished_run(root)
    mount("-o", "remount,ro", disk)
    fails(ucmkd("export", run, "--output", disk / "out"), "Read-only file system", str(disk))
    fails(ucmkd("report", run, "--output", disk / "out"), "Read-only file system", str(disk))
    settings = run_settings(root / "audio") | {"method": "ce", "output": str(disk / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    fails(ucmkd("distill", tmp_path / "run.yaml"), "Read-only file system", str(disk))
