"""Each example runs, on tones instead of words, and says how the student does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.io import wavfile
from speech_folders import tone

EXAMPLES = Path(__file__).parents[1] / "examples"
LAUNCH = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    pytest.importorskip("sklearn", reason="scikit-learn, which has the handwritten digits, is not installed")
    folder = tmp_path_factory.mktemp("examples") / "audio"
    folder.mkdir()
    for s, speaker in enumerate(("ann", "bob", "cat", "dan", "eve", "fay")):
        for digit in range(10):  # voices as like as the takes of one, so that a new one can be read
            for take in range(2):
                wave = tone(digit, 0.2 * s, 0.4 + 0.02 * take)
                wavfile.write(folder / f"{digit}_{speaker}_{take}.wav", 8000, wave)
    return folder


def accuracies(folder, audio, name, *arguments, launch=()):
    """What a run of an example prints, in per cent."""
    command = [sys.executable, *launch, str(EXAMPLES / name), "--audio", str(audio), *arguments]
    environment = {**os.environ, "UCMKD_CACHE": str(audio.parent / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(one) for one in re.findall(r"([\d.]+) %", done.stdout)]


def test_own_loop(tmp_path, audio):
    (accuracy,) = accuracies(tmp_path, audio, "own_loop.py", "--epochs", "10")
    assert accuracy > 20  # chance is 10; tones are easy


def test_cached_features(tmp_path, audio):
    found = accuracies(tmp_path, audio, "cached_features.py", "--epochs", "10")
    assert len(found) == 3 and min(found) > 20
    assert (tmp_path / "teacher-features.safetensors").is_file()


def test_hugging_face(tmp_path, audio):
    pytest.importorskip(
        "transformers", reason="transformers, whose models the example distils, is not installed"
    )
    teacher, student = accuracies(tmp_path, audio, "hugging_face.py", "--epochs", "4")
    assert teacher > 30 and student >= 0


def test_two_processes(tmp_path, audio):
    (accuracy,) = accuracies(tmp_path, audio, "two_processes.py", "--epochs", "10", launch=LAUNCH)
    assert accuracy > 20 and (tmp_path / "runs" / "two-processes" / "last.safetensors").is_file()


def test_swav():
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "swav.py")], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (pure,) = re.findall(r"([\d.]+) %", done.stdout)
    assert float(pure) > 90  # of one prototype for all it would be 10


def test_ot_flow_matching():
    command = [sys.executable, str(EXAMPLES / "ot_flow_matching.py"), "--steps", "200", "--batch", "64"]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"loss ([\d.]+), bend of the paths ([\d.]+) %, .* after 3 steps ([\d.]+)", done.stdout)
    at_random, by_transport = ([float(one) for one in line] for line in found)
    assert by_transport[0] < at_random[0] / 3  # less noise in what is learnt
    assert by_transport[1] < 10 < at_random[1]  # straight paths
    assert by_transport[2] < at_random[2]  # few steps lead as far


def test_every_example_is_listed_and_tested():
    page, tests = (EXAMPLES / "README.md").read_text(), Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"]({path.name})" in page and f'"{path.name}"' in tests
