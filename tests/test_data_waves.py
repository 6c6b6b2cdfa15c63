"""Recordings in other formats than wav, and waves in arrays: channels first or last, and their scale."""

from __future__ import annotations

import io
import struct
import sys

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from speech_folders import tone

from ucmkd_fast.data import open_data, spoken_digits
from ucmkd_fast.data.clips import read_sound
from ucmkd_fast.data.waves import checked_wave, decode_wave, read_wave

TONE = tone(3, 0)  # int16, loudest 12000
FLOATS = (TONE / 2**15).astype(np.float32)
FORMATS = ["FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64"]


@pytest.fixture
def soundfile():
    return pytest.importorskip("soundfile", reason="soundfile is not installed")


def wav(samples, rate=8000):
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_libsndfile_reads_is_read(tmp_path, soundfile, kind, channels):
    if kind not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {kind}")
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.stack([FLOATS] * channels, 1), 8000, format=kind)
    wave, rate = read_wave(path)
    lossy = kind in ("OGG", "MP3")
    assert rate == 8000 and wave.dtype == torch.float32 and len(wave) == len(TONE)
    assert np.abs(wave.numpy() - FLOATS).max() < (0.05 if lossy else 2**-15)
    again, _ = decode_wave(path.read_bytes(), "a row")  # known by its first bytes
    assert torch.equal(again, wave)


@pytest.mark.parametrize("kind", ["ULAW", "ALAW", "IMA_ADPCM"])
def test_wav_files_that_scipy_does_not_know(tmp_path, soundfile, kind):
    soundfile.write(tmp_path / "a.wav", FLOATS, 8000, subtype=kind)
    wave, _ = read_wave(tmp_path / "a.wav")
    assert np.abs(wave[: len(FLOATS)].numpy() - FLOATS).mean() < 0.02


def test_a_folder_of_several_formats(tmp_path, soundfile):
    for name in ("cat/1.flac", "cat/2.WAV", "dog/1.aiff", "dog/2.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("npy"):
            np.save(tmp_path / name, FLOATS)
        else:
            soundfile.write(tmp_path / name, FLOATS, 16000)
    data = open_data({"name": "audio-folder", "root": tmp_path, "size": [32, 48]})
    assert data.classes == ["cat", "dog"] and data.ids == ["cat/1", "cat/2", "dog/1", "dog/2"]
    x, _ = data.batch(torch.arange(4))
    assert (x - x[:1]).abs().max() < 1e-3


def test_a_folder_of_spoken_digits_in_flac(tmp_path, soundfile):
    for digit in range(10):
        soundfile.write(tmp_path / f"{digit}_ann_0.flac", tone(digit, 0) / 2**15, 8000)
    data = spoken_digits(tmp_path, cache=tmp_path / "cache")
    assert len(data) == 10 and data.labels.tolist() == list(range(10)) and set(data.groups) == {"ann"}


def test_without_soundfile_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.flac").write_bytes(b"fLaC")
    says = r"soundfile .* is not installed: pip install 'ucmkd-fast\[audio\]'"
    with pytest.raises(ImportError, match=says):
        open_data({"name": "audio-folder", "root": tmp_path})
    with pytest.raises(ImportError, match=says):
        read_sound(tmp_path / "cat" / "1.flac")
    (tmp_path / "cat" / "1.flac").unlink()
    wavfile.write(tmp_path / "cat" / "1.wav", 8000, TONE)  # which needs nothing
    assert len(open_data({"name": "audio-folder", "root": tmp_path})) == 1


@pytest.mark.parametrize(
    "content", [b"fLaC" + bytes(40), b"OggS" + bytes(40), b"ID3" + bytes(60), b"\xff\xfb\x90"]
)
def test_a_broken_recording_of_another_format_is_refused_by_its_name(tmp_path, soundfile, content):
    (tmp_path / "a.mp3").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp3: not a readable recording"):
        read_wave(tmp_path / "a.mp3")


def test_a_small_file_that_unpacks_to_hours_is_refused(tmp_path, soundfile):
    soundfile.write(tmp_path / "a.flac", np.zeros(17 * 2**20, np.int16), 8000)
    assert (tmp_path / "a.flac").stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"a\.flac: .*more than 16777216 samples"):
        read_wave(tmp_path / "a.flac")


def header_says(riff=None, data=None):
    content = wav(TONE)
    if riff is not None:
        content = content[:4] + struct.pack("<I", riff) + content[8:]
    return content if data is None else content[:40] + struct.pack("<I", data) + content[44:]


@pytest.mark.parametrize("sizes", [(0, 0), (0, None), (None, 0), (2**32 - 1, 2**32 - 1)])
def test_a_header_that_was_never_completed_is_told_as_such(tmp_path, sizes):
    (tmp_path / "a.wav").write_bytes(header_says(*sizes))
    said = r"a\.wav: .*header says (0 bytes|no length), 6400 bytes follow: .*streamed, or not closed.*ffmpeg"
    with pytest.raises(ValueError, match=said):
        read_wave(tmp_path / "a.wav")


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64, ">i2", np.float16])
def test_the_shorter_axis_is_that_of_the_channels(channels, kind):
    samples = (TONE if np.dtype(kind).kind == "i" else FLOATS).astype(kind)
    last = np.stack([samples] * channels, 1)
    for array in (samples, last, last.T, np.asfortranarray(last)):
        wave, rate = checked_wave(array, 8000, "a row")
        assert rate == 8000 and wave.shape == TONE.shape
        assert np.abs(wave.numpy() - FLOATS).max() < (1e-3 if kind == np.float16 else 1e-6)


def test_different_channels_are_averaged_in_either_order():
    both = np.stack([FLOATS, FLOATS[::-1]])
    for array in (both, both.T):
        assert np.allclose(checked_wave(array, 8000, "a")[0], both.mean(0), atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 2), (3, 4, 500), (100, 200), (0, 5), (5, 0), ()])
def test_shapes_that_are_no_wave_are_refused(shape):
    with pytest.raises(ValueError, match="a row: not a readable recording: (shape|no samples)"):
        checked_wave(np.ones(shape, np.float32), 8000, "a row")


def test_floats_beyond_one_are_scaled_by_the_rule():
    def read(factor):
        return checked_wave(FLOATS * np.float32(factor), 8000, "a")[0].numpy()

    peak = np.abs(FLOATS).max()
    assert np.array_equal(read(1), FLOATS) and np.allclose(read(1 / peak), FLOATS / peak, atol=1e-6)
    assert np.array_equal(read(2**15), FLOATS)  # at the scale of int16, loud or faint
    assert np.array_equal(read(2**10), FLOATS / 32)
    for beyond in (1.2, 7.9):  # a lossy codec, or a gain: nothing is cut off
        assert np.allclose(read(beyond / peak), FLOATS / peak, atol=1e-6)


@pytest.mark.parametrize("loudest", [9.0, 200.0, 40000.0, 1e30])
def test_floats_of_no_known_scale_are_refused(loudest):
    with pytest.raises(
        ValueError, match=r"a: .*floats up to .* expected them in \[-1, 1\], or at the scale of int16"
    ):
        checked_wave(FLOATS / np.abs(FLOATS).max() * loudest, 8000, "a")


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.uint32, bool, "U3"])
def test_numbers_that_do_not_say_their_scale_are_refused(kind):
    with pytest.raises(ValueError, match="a: .* does not say their scale"):
        checked_wave(TONE.astype(kind), 8000, "a")


def test_float_wav_files_follow_the_rule_too(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, TONE.astype(np.float32))
    assert np.array_equal(read_wave(tmp_path / "a.wav")[0], FLOATS)


@pytest.mark.parametrize("order", ["(n,)", "(1, n)", "(n, 1)", "(2, n)", "(n, 2)"])
@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npy", ".pkl"])
def test_waves_in_array_files(tmp_path, order, kind, suffix):
    samples = TONE if kind is np.int16 else FLOATS.astype(kind)
    twice = np.stack([samples] * (2 if "2" in order else 1))
    array = samples if order == "(n,)" else twice if order.endswith("n)") else twice.T
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        path.write_bytes(array.dumps())
    wavfile.write(tmp_path / "a.wav", 16000, TONE)
    expected = read_sound(tmp_path / "a.wav")
    assert (read_sound(path) - expected).abs().max() < 1e-4


def test_a_spectrogram_stays_one(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    assert torch.equal(read_sound(tmp_path / "a.npy"), torch.from_numpy(values))


@pytest.mark.parametrize("kind", ["AIFF", "AU", "W64", "MP3", "FLAC", "CAF"])
def test_a_recording_that_is_cut_off_is_refused_and_not_shortened(tmp_path, soundfile, kind):
    if kind not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {kind}")
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.tile(FLOATS, 4), 8000, format=kind)
    assert len(read_wave(path)[0]) == 4 * len(TONE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=r"a\.\w+: not a readable recording: (?!.*object at)"):
        read_wave(path)


@pytest.mark.parametrize("rate", [None, 0, float("nan"), 7999, 10**6])
def test_a_rate_that_is_none_is_refused_by_name(rate):
    with pytest.raises(ValueError, match=f"a: not a readable recording: sample rate {rate} Hz"):
        checked_wave(FLOATS, rate, "a")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_an_empty_file_is_told_as_such(name):
    with pytest.raises(ValueError, match=f"{name}: not a readable recording: it is empty"):
        decode_wave(b"", name)


def test_channels_that_cancel_each_other_are_not_called_silent(tmp_path):
    with pytest.raises(ValueError, match="a: .*channels cancel each other"):
        checked_wave(np.stack([FLOATS, -FLOATS]), 8000, "a")
    with pytest.raises(ValueError, match="a: .*silent: all samples are equal"):
        checked_wave(np.zeros((2, 100), np.float32), 8000, "a")
