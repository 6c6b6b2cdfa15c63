"""From a wave to a log-mel spectrogram of fixed size."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import wavfile
from torch import Tensor

from ..ops.refusals import first_not_finite

_LONGEST_FILE = 16 * 2**20  # bytes; ten seconds of stereo at 192 kHz in 32 bits
_RATES = (8000, 192000)  # Hz


def read_wave(path: Path) -> tuple[Tensor, int]:
    """A wav file as float32 samples (n,) in [-1, 1], channels averaged, and its rate in Hz.

    Raises:
        ValueError: not a whole wav file, empty, silent, NaN, over 16 MiB, or a rate outside 8-192 kHz;
            the message starts with the file's name.
    """
    try:
        _check_length(path.stat().st_size)
        return _decoded(path.read_bytes())
    # A malformed header makes scipy fail in many ways, up to a division by zero.
    except Exception as error:
        raise ValueError(f"{path}: not a readable recording: {error}") from error


def decode_wave(content: bytes, name: str) -> tuple[Tensor, int]:
    """The same of a wav file's content; the message starts with the name."""
    try:
        _check_length(len(content))
        return _decoded(content)
    except Exception as error:
        raise ValueError(f"{name}: not a readable recording: {error}") from error


def checked_wave(samples: np.ndarray, rate: int, name: str) -> tuple[Tensor, int]:
    """The same of samples (n,) or (n, channels) and their rate; floats are in [-1, 1], integers scaled to it."""
    try:
        return _as_float(samples), _checked_rate(rate)
    except ValueError as error:
        raise ValueError(f"{name}: not a readable recording: {error}") from error


def _check_length(size: int) -> None:
    if size > _LONGEST_FILE:
        raise ValueError(f"{size} bytes, expected a recording of at most {_LONGEST_FILE}")


def _decoded(content: bytes) -> tuple[Tensor, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of other programs
        warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
        # From memory: from a file, scipy asks for as much as the header claims.
        rate, samples = wavfile.read(io.BytesIO(content))
    return _as_float(samples), _checked_rate(rate)


def _checked_rate(rate: int) -> int:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(f"sample rate {rate} Hz, expected {_RATES[0]} to {_RATES[1]} Hz")
    return rate


def _as_float(samples: np.ndarray) -> Tensor:
    """Float32 in [-1, 1], one channel; raises ValueError where there is nothing to hear."""
    scale = {"uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31, "float32": 1.0, "float64": 1.0}
    kind = samples.dtype.name
    if kind not in scale:
        raise ValueError(f"samples are {kind}, expected one of {', '.join(scale)}")
    if not samples.size:
        raise ValueError("no samples")
    wave = samples.astype(np.float32) / scale[kind]
    if kind == "uint8":
        wave -= 1.0
    if not np.isfinite(wave).all():
        raise ValueError(f"samples must be finite, got {first_not_finite(torch.from_numpy(wave))}")
    if wave.ndim == 2:
        wave = wave.mean(1)
    if wave.min() == wave.max():
        raise ValueError("silent: all samples are equal")
    return torch.from_numpy(wave)


@dataclass(frozen=True)
class LogMel:
    """Log-mel spectrograms (1, mels, frames) of fixed size, of mean 0 and deviation 1 each.

    The wave is brought to ``rate``, silence at its ends is cut, and its spectrogram is
    interpolated along time to ``frames`` columns: so fast and slow speech look
    alike, and no recording is cropped. Energies below ``floor`` times the loudest
    cell's do not count, so neither the gain nor faint noise matters.
    """

    rate: int = 8000  # Hz
    mels: int = 40
    frames: int = 48
    window: int = 256  # samples: 32 ms
    hop: int = 80  # samples: 10 ms
    lowest: float = 60.0  # Hz
    floor: float = 1e-4  # -40 dB
    silence: float = 35.0  # dB below the loudest 20 ms

    def __call__(self, wave: Tensor, rate: int) -> Tensor:
        """Spectrogram (1, mels, frames) of a wave (n,) recorded at ``rate`` Hz."""
        wave = self._trimmed(resample(wave, rate, self.rate))
        spectrum = torch.stft(
            wave,
            self.window,
            self.hop,
            window=self._taper,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        energy = self._filters @ (spectrum.real.square() + spectrum.imag.square())  # (mels, time)
        log = torch.log(energy + self.floor * energy.max().clamp_min(1e-20))
        log = F.interpolate(log[None], size=self.frames, mode="linear", align_corners=False)
        return (log - log.mean()) / log.std().clamp_min(1e-5)

    def _trimmed(self, wave: Tensor) -> Tensor:
        """The wave from its first to its last 20 ms that are not silent."""
        step = self.rate // 50
        if len(wave) < 3 * step:
            return wave
        power = wave[: len(wave) // step * step].view(-1, step).square().mean(1)
        loud = torch.nonzero(power > power.max() * 10 ** (-self.silence / 10)).flatten()
        return wave[int(loud[0]) * step : (int(loud[-1]) + 1) * step] if len(loud) else wave

    @cached_property
    def _taper(self) -> Tensor:
        return torch.hann_window(self.window)

    @cached_property
    def _filters(self) -> Tensor:
        """Triangles (mels, window // 2 + 1), equally wide on the mel scale 2595 log10(1 + f / 700)."""
        low, high = (2595 * math.log10(1 + f / 700) for f in (self.lowest, self.rate / 2))
        edges = 700 * (10 ** (torch.linspace(low, high, self.mels + 2, dtype=torch.float64) / 2595) - 1)
        left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
        f = torch.arange(self.window // 2 + 1, dtype=torch.float64) * self.rate / self.window
        rising, falling = (f - left) / (centre - left), (right - f) / (right - centre)
        return torch.minimum(rising, falling).clamp_min(0).float()


def resample(wave: Tensor, rate: int, to: int) -> Tensor:
    """A wave (n,) at ``rate`` Hz brought to ``to`` Hz by a polyphase filter."""
    if rate == to:
        return wave
    from scipy.signal import resample_poly  # slow to import, and seldom needed

    common = math.gcd(rate, to)
    return torch.from_numpy(resample_poly(wave.numpy(), to // common, rate // common)).float()
