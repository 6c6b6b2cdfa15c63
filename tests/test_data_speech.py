"""Spoken digits: folders, synthetic speech, and which of the sources it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.io import wavfile
from speech_folders import tone, write_folder

from ucmkd_fast.data import LogMel, few_labels, speech, split_by_group, spoken_digits, synthetic_speech
from ucmkd_fast.data.fsdd import content_digest, recording_files
from ucmkd_fast.data.fsdd_download import COUNT, DIGEST
from ucmkd_fast.data.synthetic_speech import VOICES, espeak_available, speak_digits
from ucmkd_fast.data.waves import read_wave

needs_espeak = pytest.mark.skipif(not espeak_available(), reason="espeakng-loader is not installed")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """One take of every digit by every voice."""
    if not espeak_available():
        pytest.skip("espeakng-loader is not installed")
    return speak_digits(tmp_path_factory.mktemp("cache"), takes=1)


# Folders


@pytest.mark.parametrize("inside", ["", "recordings"])
def test_a_folder_equals_reading_its_files_one_by_one(tmp_path, inside):
    folder = write_folder(tmp_path / "own" / inside, takes=2)
    (folder / "README.txt").write_text("not a recording")
    data = spoken_digits(tmp_path / "own", cache=tmp_path / "cache")
    assert data.source == "folder" and "40 spoken digits by 2 voices" in data.description
    assert str(tmp_path / "own") in data.description
    files = sorted(folder.glob("*.wav"))
    assert data.classes == list("0123456789") and data.x.shape == (40, 1, 40, 48)
    for row, path in enumerate(files):
        digit, speaker, _ = path.stem.split("_")
        assert int(data.labels[row]) == int(digit) and data.groups[row] == speaker
        assert torch.equal(data.x[row], LogMel()(*read_wave(path)))


def test_spectrograms_are_kept_and_made_anew_when_something_changes(tmp_path, monkeypatch):
    folder, cache = write_folder(tmp_path / "own"), tmp_path / "cache"
    first = spoken_digits(folder, cache=cache)
    kept = list(cache.iterdir())
    assert len(kept) == 1

    with monkeypatch.context() as patch:
        patch.setattr(speech, "read_recordings", lambda files: pytest.fail("read again"))
        assert torch.equal(spoken_digits(folder, cache=cache).x, first.x)

    other = spoken_digits(folder, cache=cache, front_end=LogMel(frames=20))
    assert other.x.shape == (20, 1, 40, 20)

    wavfile.write(folder / "3_ann_0.wav", 8000, tone(9, 9, 0.7))
    changed = spoken_digits(folder, cache=cache)
    differ = (changed.x != first.x).flatten(1).any(1).nonzero().flatten().tolist()
    assert differ == [data_row(folder, "3_ann_0.wav")]

    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:100])  # damaged: made anew, not believed
    assert torch.equal(spoken_digits(folder, cache=cache).x, changed.x)


def data_row(folder: Path, name: str) -> int:
    return [path.name for path in recording_files(folder)].index(name)


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path):
    folder, blocked = write_folder(tmp_path / "own"), tmp_path / "file"
    blocked.write_text("a file where the cache should be")
    with pytest.warns(UserWarning, match="not kept"):
        assert len(spoken_digits(folder, cache=blocked)) == 20


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder"):
        spoken_digits(tmp_path / "nowhere", cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="that is a file"):
        spoken_digits(tmp_path / "file", cache=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: .*found none"):
        spoken_digits(tmp_path / "empty", cache=tmp_path)


@pytest.mark.parametrize(
    "name", ["hello.wav", "x_ann_0.wav", "12_ann_0.wav", "7_ann.wav", "7_ann_x.wav", "7__0.wav"]
)
def test_a_wrong_name_is_refused_by_it(tmp_path, name):
    folder = write_folder(tmp_path / "own")
    (folder / name).write_bytes((folder / "7_ann_0.wav").read_bytes())
    with pytest.raises(ValueError, match=rf"{name}: expected a name {{digit}}_{{speaker}}_{{index}}\.wav"):
        spoken_digits(folder, cache=tmp_path / "cache")


def test_a_broken_recording_is_named_and_nothing_is_kept(tmp_path):
    folder = write_folder(tmp_path / "own")
    (folder / "4_bob_0.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"4_bob_0\.wav: not a readable recording"):
        spoken_digits(folder, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("audio", "source", "says"),
    [
        (None, "radio", "source must be one of"),
        (None, "folder", "needs audio"),
        ("x", "download", "does not go with source 'download'"),
        ("x", "synthetic", "does not go with source 'synthetic'"),
    ],
)
def test_sources_that_cannot_be_are_refused(tmp_path, audio, source, says):
    with pytest.raises(ValueError, match=says):
        spoken_digits(audio, source, cache=tmp_path)


def test_free_spoken_digit_dataset(shared, tmp_path):
    folder = shared / "data" / "fsdd"
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}")
    files = recording_files(folder)
    assert (len(files), content_digest(files)) == (COUNT, DIGEST)
    data = spoken_digits(folder, "folder", cache=tmp_path)
    assert Counter(data.labels.tolist()) == {k: 300 for k in range(10)}
    assert set(Counter(data.groups).values()) == {500} and len(set(data.groups)) == 6
    train, val, test = split_by_group(data, 3, 1, seed=0)
    assert not set(train.groups) & {*val.groups, *test.groups} and not set(val.groups) & set(test.groups)
    labelled, rest = few_labels(train, 5, seed=0)
    assert len(labelled) == 50 and len(rest) == 1450 and len(set(labelled.groups)) == 3


# Synthetic speech


def test_every_voice_says_every_digit(spoken):
    files = recording_files(spoken)
    assert len(files) == 10 * len(VOICES) == len({path.read_bytes() for path in files})
    for path in files:
        wave, rate = read_wave(path)
        assert rate == 8000 and 0.15 < len(wave) / rate < 2 and 0.05 < wave.abs().max() < 0.99, path.name


@needs_espeak
def test_synthetic_speech_is_the_same_bytes_each_time(spoken, tmp_path):
    time.sleep(1.1)  # eSpeak NG seeds its noise with the time in seconds
    again = speak_digits(tmp_path, takes=1)
    assert again.name == spoken.name
    assert content_digest(recording_files(again)) == content_digest(recording_files(spoken))
    other = speak_digits(tmp_path, takes=1, seed=1)
    assert content_digest(recording_files(other)) != content_digest(recording_files(spoken))


@needs_espeak
def test_synthetic_speech_is_kept(spoken, monkeypatch):
    monkeypatch.setattr(synthetic_speech, "_speak", lambda *a: pytest.fail("spoken again"))
    assert speak_digits(spoken.parent, takes=1) == spoken


@needs_espeak
def test_several_at_once_make_one_whole_folder(tmp_path):
    voices = VOICES[:2]
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: speak_digits(tmp_path, voices=voices, takes=1), range(3)))
    assert len(folders) == 1 and len(recording_files(folders.pop())) == 20
    assert len(list(tmp_path.iterdir())) == 1  # no leftovers


@needs_espeak
def test_a_voice_that_does_not_exist_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="no voice 'martian'"):
        speak_digits(tmp_path, voices=(replace(VOICES[0], espeak="martian"),), takes=1)
    with pytest.raises(ValueError, match="at least one voice"):
        speak_digits(tmp_path, voices=())
    assert not list(tmp_path.iterdir())


@needs_espeak
def test_the_worker_says_where_its_voices_are_missing(tmp_path):
    import espeakng_loader

    request = {"library": espeakng_loader.get_library_path(), "data": str(tmp_path), "utterances": []}
    worker = Path(synthetic_speech.__file__).with_name("espeak_worker.py")
    done = subprocess.run([sys.executable, worker], input=json.dumps(request).encode(), capture_output=True)
    assert done.returncode != 0 and done.stderr


@needs_espeak
def test_without_a_network_the_digits_are_spoken_here_and_it_says_so(tmp_path, monkeypatch):
    def offline(cache):
        raise ConnectionError("there is no network")

    monkeypatch.setattr(speech, "download_fsdd", offline)
    monkeypatch.setattr(speech, "speak_digits", lambda cache: speak_digits(cache, takes=1))
    data = spoken_digits(cache=tmp_path)
    assert data.source == "synthetic" and len(set(data.groups)) == len(VOICES)
    assert "synthetic speech by eSpeak NG" in data.description and "there is no network" in data.description
    assert spoken_digits(source="synthetic", cache=tmp_path).source == "synthetic"
    with pytest.raises(ConnectionError):
        spoken_digits(source="download", cache=tmp_path)


def test_with_neither_network_nor_espeak_all_three_ways_are_named(tmp_path, monkeypatch):
    def offline(cache):
        raise ConnectionError("there is no network")

    monkeypatch.setattr(speech, "download_fsdd", offline)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"ucmkd-fast\[speech\].*folder of recordings.*no network"):
        spoken_digits(cache=tmp_path)


def test_a_download_is_taken_before_synthetic_speech(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "own")
    monkeypatch.setattr(speech, "download_fsdd", lambda cache: folder)
    data = spoken_digits(cache=tmp_path / "cache")
    assert data.source == "download" and "Free Spoken Digit Dataset (CC BY-SA 4.0)" in data.description


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    from ucmkd_fast.data.cache import cache_dir

    monkeypatch.setenv("UCMKD_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("UCMKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "ucmkd-fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "ucmkd-fast"
