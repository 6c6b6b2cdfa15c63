"""Two processes do not write to one run, and a lock does not outlive its process."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from distiller_problem import STUDENT_TRAIN, student

from ucmkd_fast.distiller import Distiller
from ucmkd_fast.training import lock
from ucmkd_fast.training.lock import LOCK, STAND_IN, FolderInUse, only_writer

# The module by its file: it needs nothing of the package, whose import takes seconds.
HOLDER = f"""
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("lock", {lock.__file__!r})
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
if sys.argv[2] == "stand-in":
    lock.fcntl = None
with lock.only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
settings = {"method": "ce", "epochs": 1, "batch_size": 32, "progress": False}


@pytest.fixture(params=["kernel", "stand-in"])
def kind(request, monkeypatch):
    if request.param == "stand-in":
        monkeypatch.setattr(lock, "fcntl", None)
    elif lock.fcntl is None:
        pytest.skip("this system has no flock")
    return request.param


@pytest.fixture
def holder(tmp_path, kind):
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_told_who_the_first_is(tmp_path, holder):
    said = rf"run is being written to by process {holder.pid} on .*, since .*: wait until that has ended"
    with pytest.raises(FolderInUse, match=said), only_writer(tmp_path / "run"):
        raise AssertionError
    with pytest.raises(FolderInUse, match=said):
        Distiller(student(), output_dir=tmp_path / "run", **settings).fit(STUDENT_TRAIN, resume=True)


def test_a_lock_is_gone_with_a_process_that_was_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with only_writer(tmp_path / "run"):
        pass
    result = Distiller(student(), output_dir=tmp_path / "run", **settings).fit(STUDENT_TRAIN, resume=True)
    assert result.history and not list((tmp_path / "run").glob(".*"))


def test_one_may_enter_again_but_another_thread_may_not(tmp_path, kind):
    caught: list[OSError] = []

    def other() -> None:
        try:
            with only_writer(tmp_path / "a" / "b"):
                raise AssertionError
        except OSError as error:
            caught.append(error)

    with only_writer(tmp_path / "a" / "b"), only_writer(tmp_path / "a" / ".." / "a" / "b"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert isinstance(caught[0], FolderInUse) and "another thread of this process" in str(caught[0])
    assert not (tmp_path / "a").exists()  # made for the lock alone
    with only_writer(tmp_path / "a" / "b"):  # free again
        pass


def test_a_folder_with_something_in_it_stays(tmp_path, kind):
    with only_writer(tmp_path / "run"):
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


def test_a_file_system_without_locks_has_a_file_instead(tmp_path, monkeypatch):
    def refused(descriptor, how):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refused)
    with only_writer(tmp_path):
        assert json.loads((tmp_path / STAND_IN).read_text())["process"] == os.getpid()
        assert not (tmp_path / LOCK).exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("owner", "age", "free"),
    [
        ({"host": "elsewhere", "process": 1, "began": "1"}, 0, False),
        ({"host": "elsewhere", "process": 1, "began": "1"}, 300, True),
        ({}, 0, False),  # it has not said yet who it is
        ({}, 300, True),
        ({"host": None, "process": None, "began": "of an earlier process of this number"}, 0, True),
        (
            {"host": None, "process": None, "began": None},
            0,
            False,
        ),  # where that cannot be known, as on Windows
        ({"host": None, "process": None, "began": None}, 300, True),
    ],
)
def test_when_a_lock_file_is_taken_over(tmp_path, monkeypatch, owner, age, free):
    monkeypatch.setattr(lock, "fcntl", None)
    if owner and owner["host"] is None:
        owner = {**owner, "host": lock.socket.gethostname(), "process": os.getpid()}
    path = tmp_path / STAND_IN
    path.write_text(json.dumps(owner) if owner else "")
    os.utime(path, (time.time() - age,) * 2)
    if free:
        with only_writer(tmp_path):
            pass
        assert not list(tmp_path.iterdir())
    else:
        with pytest.raises(FolderInUse, match="is being written to by"), only_writer(tmp_path):
            raise AssertionError


def test_a_folder_that_cannot_be_written_to_is_an_error_with_its_name(tmp_path, kind):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="expected a readable folder at .*file: that is a file"):
        with only_writer(tmp_path / "file"):
            raise AssertionError


def test_the_lock_is_free_after_an_error(tmp_path, kind):
    with pytest.raises(KeyError), only_writer(Path(tmp_path)):
        raise KeyError
    with only_writer(tmp_path):
        pass
