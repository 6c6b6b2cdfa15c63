"""The command line: what it answers, and how it fails."""

import json
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from speech_folders import write_folder

from ucmkd_fast import __version__, cli, doctor
from ucmkd_fast.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UCMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UCMKD_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)


def status(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def failed(capsys, *arguments):
    """The one line that a wrong call ends in."""
    assert status(*arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("ucmkd: ") and err.count("\n") == 1
    return err


def test_version(capsys):
    assert status("--version") == 0
    assert capsys.readouterr().out == f"ucmkd-fast {__version__}\n"


def test_the_entry_point_is_main():
    found = [entry for entry in entry_points(group="console_scripts") if entry.name == "ucmkd"]
    if not found:
        pytest.skip("the package runs from its source folder: it is not installed, so it has no entry points")
    assert found[0].load() is main


def test_help_names_every_command(capsys):
    assert status("--help") == 0
    text = capsys.readouterr().out
    assert "demo" in text and "doctor" in text


def test_doctor_passes_and_says_what_was_built(capsys):
    assert status("doctor") == 0
    text = capsys.readouterr().out
    assert text.count("passed") == 2 and "FAILED" not in text
    for words in ("CPU kernels built", "CUDA kernels built", "Threads", "scikit-learn", "matplotlib"):
        assert words in text


def test_doctor_in_json(capsys):
    assert status("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] and report["cpu_level_used"] in report["cpu_levels_usable"]
    assert set(report["cpu_levels_usable"]) <= set(report["cpu_levels_built"])
    assert all(test["cases"] >= 8 and test["worst_error"] < 1 for test in report["tests"].values())


def test_doctor_notices_a_wrong_value_a_wrong_gradient_and_an_op_that_raises(capsys, monkeypatch):
    right = doctor.sinkhorn_loss

    def wrong_value(x, y, **options):
        return right(x, y, **options) * 1.01

    def wrong_gradient(x, y, **options):
        return right(x.detach(), y, **options) + 0 * x.sum()

    def broken(x, y, **options):
        raise RuntimeError("illegal instruction, or so")

    for op in (wrong_value, wrong_gradient, broken):
        monkeypatch.setattr(doctor, "sinkhorn_loss", op)
        assert status("doctor", "--json") == 1
        report = json.loads(capsys.readouterr().out)
        assert not report["healthy"] and report["tests"]["label_transport_loss"]["passed"]
    assert status("doctor") == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_missing_folder_a_file_and_an_empty_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert "nowhere" in failed(capsys, "demo", "--audio", "nowhere")
    assert "that is a file" in failed(capsys, "demo", "--audio", "file")
    assert "found none" in failed(capsys, "demo", "--audio", "empty")
    assert not list((tmp_path / "runs" / "demo").iterdir())  # nothing half-written


def test_recordings_that_cannot_serve(capsys, tmp_path):
    write_folder(tmp_path / "two", speakers=("ann", "bob"))
    assert "at least three voices" in failed(capsys, "demo", "--audio", "two")
    write_folder(tmp_path / "three", speakers=("ann", "bob", "cat"))
    assert "per_class=9" in failed(capsys, "demo", "--audio", "three", "--labels-per-class", "9")
    (tmp_path / "three" / "7_ann_0.wav").write_bytes(b"not a recording")
    assert "7_ann_0.wav" in failed(capsys, "demo", "--audio", "three")


def test_an_output_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert "that is a file" in failed(capsys, "demo", "--output", "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_wrong_usage(capsys):
    for arguments in (
        ("demo", "--seeds", "0"),
        ("demo", "--epochs", "many"),
        ("demo", "--bogus"),
        ("nonsense",),
    ):
        assert status(*arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_missing_package_is_a_sentence(capsys, monkeypatch):
    for module, distribution in (("matplotlib.figure", "matplotlib"), ("sklearn.manifold", "scikit-learn")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            message = failed(capsys, "demo")
        assert distribution in message and "pip install 'ucmkd-fast[demo]'" in message


def test_ctrl_c_and_our_own_mistakes(capsys, monkeypatch):
    def raising(error):
        def stand_in(**_):
            raise error

        monkeypatch.setattr("ucmkd_fast.demo.DemoSettings", stand_in)

    raising(KeyboardInterrupt())
    assert status("demo") == 130
    assert capsys.readouterr().err.endswith("ucmkd: stopped; demo starts anew when it is called again\n")
    raising(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["demo"])
    raising(ValueError("two\nlines"))
    assert failed(capsys, "demo") == "ucmkd: two lines\n"
    monkeypatch.setenv("UCMKD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="two"):
        main(["demo"])


def test_commands_import_what_they_need_when_they_need_it():
    code = "import sys, ucmkd_fast.cli; print([m for m in ('accelerate', 'sklearn', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert cli.app.info.name == "ucmkd"


def test_the_shell_can_complete(monkeypatch, capsys):
    for shell in ("bash", "zsh", "fish"):
        monkeypatch.setenv("_UCMKD_COMPLETE", f"source_{shell}")
        assert status() == 0 and "_UCMKD_COMPLETE" in capsys.readouterr().out
    monkeypatch.setenv("_UCMKD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "ucmkd d")
    monkeypatch.setenv("COMP_CWORD", "1")
    status()
    assert set(capsys.readouterr().out.split()) == {"demo", "distill", "doctor"}


def test_the_version_is_the_installed_one(tmp_path):
    """And the module is the same command."""
    assert __version__ == version("ucmkd-fast")
    done = subprocess.run(
        [sys.executable, "-m", "ucmkd_fast", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == f"ucmkd-fast {version('ucmkd-fast')}\n"
