"""Reading waves and making spectrograms of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from speech_folders import tone

from ucmkd_fast.data import LogMel
from ucmkd_fast.data.frontend import resample
from ucmkd_fast.data.waves import read_wave


@pytest.mark.parametrize(
    ("kind", "scale"), [("int16", 2**15), ("int32", 2**31), ("uint8", 2**7), ("float32", 1), ("float64", 1)]
)
def test_every_format_of_samples_gives_the_same_wave(tmp_path, kind, scale):
    truth = tone(3, 0).astype(np.float64) / 2**15
    samples = truth * scale + (128 if kind == "uint8" else 0)
    wavfile.write(tmp_path / "a.wav", 8000, samples.astype(kind))
    wave, rate = read_wave(tmp_path / "a.wav")
    assert rate == 8000 and wave.dtype == torch.float32 and wave.shape == (3200,)
    assert np.abs(wave.numpy() - truth).max() <= (1 / 128 if kind == "uint8" else 1 / 2**15)


def test_24_bits_are_read(tmp_path):
    samples = tone(3, 0)
    wavfile.write(tmp_path / "a.wav", 8000, samples)
    raw = (tmp_path / "a.wav").read_bytes()
    data = b"".join(b"\0" + int(s).to_bytes(2, "little", signed=True) for s in samples)
    header = raw[:28] + (24000).to_bytes(4, "little") + (3).to_bytes(2, "little") + (24).to_bytes(2, "little")
    (tmp_path / "a.wav").write_bytes(header + b"data" + len(data).to_bytes(4, "little") + data)
    wave, _ = read_wave(tmp_path / "a.wav")
    assert torch.equal(wave, torch.from_numpy(samples.astype(np.float32) / 2**15))


def test_channels_are_averaged(tmp_path):
    left, right = tone(1, 0), tone(2, 0)
    wavfile.write(tmp_path / "a.wav", 8000, np.stack([left, right], 1))
    wave, _ = read_wave(tmp_path / "a.wav")
    assert torch.allclose(wave, torch.from_numpy((left / 2.0 + right / 2.0) / 2**15).float(), atol=1e-6)


def test_chunks_of_other_programs_are_no_fault(tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, 8000, tone(0, 0))
    raw = path.read_bytes()
    path.write_bytes(raw[:36] + b"note\x04\x00\x00\x00abcd" + raw[36:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_wave(path)[0]) == 3200


def broken_waves():
    """Name, content, and what the message must say."""
    buffers = {}
    import io

    def wav(samples, rate=8000):
        buffer = io.BytesIO()
        wavfile.write(buffer, rate, samples)
        return buffer.getvalue()

    good = wav(tone(0, 0))
    buffers["empty file"] = (b"", "not a readable recording")
    buffers["text"] = (b"this is no sound at all, only text", "not a readable recording")
    buffers["header cut"] = (good[:30], "not a readable recording")
    buffers["samples cut"] = (good[: len(good) // 2], "not a readable recording")
    buffers["rate 0"] = (good[:24] + b"\0\0\0\0" + good[28:], "nSamplesPerSec = 0")
    buffers["rate 4000"] = (wav(tone(0, 0), 4000), "sample rate 4000 Hz, expected 8000 to 192000")
    buffers["rate 400000"] = (wav(tone(0, 0), 400000), "sample rate 400000 Hz")
    buffers["no samples"] = (wav(np.zeros(0, np.int16)), "no samples")
    buffers["silent"] = (wav(np.zeros(800, np.int16)), "silent")
    buffers["NaN"] = (wav(np.array([0.1, np.nan, 0.2], np.float32)), "NaN")
    buffers["64-bit integers"] = (wav(np.arange(50)), "int64")
    buffers["no channels"] = (good[:22] + b"\0\0" + good[24:], "not a readable recording")
    buffers["too large"] = (good + bytes(17 * 2**20), "at most 16777216")
    return buffers


@pytest.mark.parametrize("name", broken_waves())
def test_a_broken_recording_is_refused_by_its_files_name(tmp_path, name):
    content, says = broken_waves()[name]
    path = tmp_path / "7_ann_0.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"7_ann_0\.wav: .*{says}"):
        read_wave(path)


def slow_log_mel(wave: np.ndarray, m: LogMel) -> np.ndarray:
    """The spectrogram by plain loops, in float64, of a wave without silence at 8 kHz."""
    padded = np.concatenate([np.zeros(m.window // 2), wave, np.zeros(m.window // 2)])
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(m.window) / m.window)
    columns = []
    for start in range(0, len(wave) + 1, m.hop):
        power = np.abs(np.fft.rfft(padded[start : start + m.window] * taper)) ** 2
        edges = np.linspace(2595 * np.log10(1 + m.lowest / 700), 2595 * np.log10(1 + 4000 / 700), m.mels + 2)
        edges = 700 * (10 ** (edges / 2595) - 1)
        frequency = np.arange(m.window // 2 + 1) * m.rate / m.window
        columns.append([np.interp(frequency, edges[k : k + 3], [0, 1, 0]) @ power for k in range(m.mels)])
    energy = np.array(columns).T
    log = np.log(energy + m.floor * energy.max())
    place = (np.arange(m.frames) + 0.5) * log.shape[1] / m.frames - 0.5
    out = np.array([np.interp(place, np.arange(log.shape[1]), row) for row in log])
    return (out - out.mean()) / out.std(ddof=1)


@pytest.mark.parametrize("front_end", [LogMel(), LogMel(mels=24, frames=31, floor=1e-3)])
def test_spectrograms_equal_a_slow_direct_computation(front_end):
    for seconds in (0.16, 0.4, 1.0):  # whole numbers of 20 ms: nothing is cut off
        wave = tone(4, 1, seconds).astype(np.float64) / 2**15
        ours = front_end(torch.from_numpy(wave).float(), 8000)
        assert ours.shape == (1, front_end.mels, front_end.frames)
        assert np.abs(ours[0].numpy() - slow_log_mel(wave, front_end)).max() < 2e-3


def test_gain_silence_around_and_rate_do_not_matter():
    front_end = LogMel()

    def chirp(rate):
        t = np.arange(int(0.4 * rate)) / rate
        wave = sum(np.sin(2 * np.pi * f * t * (1 + t)) for f in (300, 700, 1500)) * np.hanning(len(t)) / 4
        return torch.from_numpy(wave).float()

    wave = chirp(8000)
    plain = front_end(wave, 8000)
    assert torch.allclose(front_end(wave * 0.01, 8000), plain, atol=1e-3)
    trimmed = front_end(wave[160:-160], 8000)  # both ends are fainter than -35 dB
    silence = torch.zeros(800)
    assert torch.allclose(front_end(torch.cat([silence, wave, silence, silence]), 8000), trimmed, atol=1e-3)
    for rate in (16000, 22050, 44100):
        assert (front_end(chirp(rate), rate) - plain).abs().mean() < 0.03
    assert (front_end(wave.flip(0), 8000) - plain).abs().mean() > 0.3  # it does tell sounds apart


def test_resampling_keeps_a_tone():
    t = np.arange(22050) / 22050
    out = resample(torch.from_numpy(np.sin(2 * np.pi * 440 * t)).float(), 22050, 8000)
    wanted = torch.from_numpy(np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)).float()
    assert out.shape == (8000,) and (out - wanted)[100:-100].abs().max() < 0.01


@pytest.mark.parametrize("samples", [1, 5, 100, 479, 20000])
def test_any_length_gives_the_same_shape(samples):
    wave = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    out = LogMel()(wave, 8000)
    assert out.shape == (1, 40, 48) and torch.isfinite(out).all()
    assert abs(float(out.mean())) < 1e-5 and abs(float(out.std()) - 1) < 1e-3
