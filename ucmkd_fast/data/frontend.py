"""From a wave to a log-mel spectrogram of fixed size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .waves import checked_wave as checked_wave  # their place in earlier versions
from .waves import decode_wave as decode_wave
from .waves import read_wave as read_wave


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
