"""Log spectrograms as the published data sets keep them, their resizing and masking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .frontend import resample

RATE, SECONDS = 16000, 10  # Hz, s
WINDOW, OVERLAP = 512, 353  # samples
SHAPE = (257, 1004)  # frequencies x frames of ten seconds


def log_spectrogram(wave: Tensor, rate: int) -> Tensor:
    """Log spectrogram (257, 1004) of a wave (n,) recorded at ``rate`` Hz, as the published code makes it.

    16 kHz, repeated or cut to ten seconds, clipped to [-1, 1], SciPy's power spectrogram (a Tukey window of
    512 samples, 353 in common), log(. + 1e-7), then of mean 0 and deviation 1.
    """
    from scipy.signal import spectrogram  # slow to import

    samples = resample(wave, rate, RATE).numpy()
    samples = np.clip(np.resize(samples, RATE * SECONDS), -1, 1)  # np.resize repeats a 1-D array
    power = spectrogram(samples, RATE, nperseg=WINDOW, noverlap=OVERLAP)[2]
    log = np.log(np.abs(power) + 1e-7)
    return torch.from_numpy((log - log.mean()) / (log.std() + 1e-9)).float()


def resized(spectrogram: Tensor, size: Sequence[int], *, sheared: bool = False) -> Tensor:
    """A spectrogram (h, w) brought to the given size, bilinear with antialiasing.

    Args:
        spectrogram: (h, w).
        size: the wanted height and width.
        sheared: as the published code does it: the numbers in a row, cut or repeated, broken into
            lines of the new width. Neighbours in frequency are then no neighbours any more.
    """
    height, width = size
    if sheared:
        return torch.from_numpy(np.resize(spectrogram.numpy(), (height, width)))
    return F.interpolate(
        spectrogram[None, None], size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )[0, 0]


def masked(spectrogram: Tensor, random: np.random.Generator) -> Tensor:
    """SpecAugment (Park et al. 2019): two masks over up to 15 % of the rows, two over up to 20 % of the columns.

    Rows (h) are frequencies, columns (w) times. Masked cells become 0, the mean.
    """
    out = spectrogram.clone()
    for axis, share in ((0, 0.15), (0, 0.15), (1, 0.20), (1, 0.20)):
        length = out.shape[axis]
        width = int(random.integers(int(share * length) + 1))
        start = int(random.integers(length - width + 1))
        out.narrow(axis, start, width).zero_()
    return out
