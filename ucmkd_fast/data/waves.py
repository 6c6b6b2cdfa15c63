"""Recordings as waves: wav by SciPy, other formats by libsndfile, and arrays, all as float32 in [-1, 1].

Integers say their scale by their type. Floats are in [-1, 1]; up to `_OVERSHOOT` beyond it (what lossy codecs and gains
do) a wave is divided by its largest magnitude, and from `_INT16_SCALE` to 32768 it is at the scale of int16 and divided
by 32768. Anything else does not say its scale and is refused. Channels are averaged.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor

from ..extras import need
from ..ops.refusals import first_not_finite

#: Endings that are read, the second kind by libsndfile (the package soundfile).
_OF_LIBSNDFILE = frozenset(
    ".flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .voc .sph .nist".split()
)
WAVE_SUFFIXES = _OF_LIBSNDFILE | {".wav"}

_WAV = (b"RIFF", b"RIFX", b"RF64")
_OTHERS = (b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff", b"riff", b"NIST", b"Creative")  # first bytes
_SIZES = re.compile(r": (\d+) \(should be (\d+)\)")  # in libsndfile's log
_MP3_HEADER = 2**16  # bytes; in front of the first frame there may be a title
_LONGEST_FILE = 16 * 2**20  # bytes; ten seconds of stereo at 192 kHz in 32 bits
_MOST_SAMPLES = 16 * 2**20  # of all channels, once unpacked
_MOST_CHANNELS = 32
_RATES = (8000, 192000)  # Hz
_FULL_SCALE = {"uint8": 2.0**7, "int8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}
_OVERSHOOT = 8.0
_INT16_SCALE = 256.0  # at int16 scale a recording is louder than -42 dB of full scale


def check_can_read(files: Sequence[Path]) -> None:
    """Raise ImportError where a file needs libsndfile and the package soundfile is not installed."""
    if any(path.suffix.lower() in _OF_LIBSNDFILE for path in files):
        need("soundfile")


def read_wave(path: Path) -> tuple[Tensor, int]:
    """A recording as float32 samples (n,) in [-1, 1], channels averaged, and its rate in Hz.

    Raises:
        ImportError: not a plain wav file, and soundfile is not installed.
        ValueError: not a whole recording, empty, silent, NaN, over 16 MiB, or a rate outside 8-192 kHz;
            the message starts with the file's name.
    """
    try:
        _check_length(path.stat().st_size)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable recording: {error}") from error
    return decode_wave(content, str(path))


def decode_wave(content: bytes, name: str) -> tuple[Tensor, int]:
    """A recording from a file's content, as `read_wave`; error messages start with the name."""
    try:
        if not content:
            raise ValueError("it is empty")
        _check_length(len(content))
        rate, samples = _decoded(content, Path(name).suffix.lower())
        return _mono(_in_range(samples)), _checked_rate(rate)
    except ImportError:
        raise
    # A malformed header makes SciPy and libsndfile fail in many ways, up to a division by zero.
    except Exception as error:
        raise ValueError(f"{name}: not a readable recording: {error}") from error


def checked_wave(samples: np.ndarray, rate: int | None, name: str) -> tuple[Tensor, int]:
    """An array (n,), (n, channels) or (channels, n) and its rate as `read_wave` gives a recording.

    The shorter axis is that of the channels.
    """
    try:
        return _mono(_in_range(_channels_last(samples))), _checked_rate(rate)
    except ValueError as error:
        raise ValueError(f"{name}: not a readable recording: {error}") from error


def _check_length(size: int) -> None:
    if size > _LONGEST_FILE:
        raise ValueError(f"{size} bytes, expected a recording of at most {_LONGEST_FILE}")


def _decoded(content: bytes, suffix: str) -> tuple[int, np.ndarray]:
    """The rate, and samples (n,) or (n, channels) as they are stored."""
    if content[:4] in _WAV:
        _check_sizes(content)
        try:
            return _by_scipy(content)
        except ValueError as error:  # of SciPy's errors this one alone is no fault of the file's
            if not str(error).startswith("Unknown wave file format"):
                raise
        return _by_libsndfile(content)
    is_mp3 = content[:1] == b"\xff" and content[1:2] >= b"\xe0"  # eleven bits of synchronisation
    if not (content.startswith(_OTHERS) or is_mp3 or suffix in _OF_LIBSNDFILE):
        raise ValueError(f"it begins with {content[:4]!r}, which is no format of recordings that is read")
    return _by_libsndfile(content)


def _by_scipy(content: bytes) -> tuple[int, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of other programs
        warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
        # From memory: from a file, scipy asks for as much as the header claims.
        return wavfile.read(io.BytesIO(content))


def _by_libsndfile(content: bytes) -> tuple[int, np.ndarray]:
    soundfile = need("soundfile")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            most = _MOST_SAMPLES // file.channels
            samples = file.read(most + 1, dtype="float32", always_2d=True)
            if len(samples) > most:
                raise ValueError(f"more than {_MOST_SAMPLES} samples, expected a shorter recording")
            _check_whole(content, file, len(samples))
            return file.samplerate, samples
    except soundfile.LibsndfileError as error:  # its text names the object in memory
        raise ValueError(error.error_string) from error


def _check_whole(content: bytes, file: Any, read: int) -> None:
    """Raise ValueError for a file that is cut off, which libsndfile reads as far as it goes.

    Its log compares the sizes that headers say with the file's; mp3 files may say how many frames there are.
    """
    for said, there in _SIZES.findall(file.extra_info):
        if int(there) + 1 < int(said) < 2**31:  # an odd size may lack the byte that makes it even
            raise ValueError(f"it is cut off: its header says {said} bytes, there are {there}")
    counted = file.format == "MP3" and any(mark in content[:_MP3_HEADER] for mark in (b"Xing", b"Info"))
    if counted and read < 0.9 * file.frames:  # of the last frames encoders count some that are not heard
        raise ValueError(f"it is cut off: its header says {file.frames} samples, there are {read}")


def _check_sizes(content: bytes) -> None:
    """Raise ValueError for a header that was never completed: it says 0 bytes, or the largest number there is."""
    if content[:4] != b"RIFF" or len(content) < 12:
        return
    sizes = [struct.unpack_from("<I", content, 4)[0]]
    place = 12
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        if name == b"data":
            sizes.append(size)
            break
        place += 8 + size + size % 2
    held = len(content) - place - 8
    if 0 in sizes and held > 0 or sizes[0] == 2**32 - 1:
        said = "0 bytes" if 0 in sizes else "no length"
        raise ValueError(
            f"its header says {said}, {max(0, held)} bytes follow: the file was streamed, or not closed when it was "
            "recorded; write it anew, such as with ffmpeg -i old.wav new.wav"
        )


def _checked_rate(rate: int | None) -> int:
    if rate is None or not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(f"sample rate {rate} Hz, expected {_RATES[0]} to {_RATES[1]} Hz")
    return rate


def _channels_last(samples: np.ndarray) -> np.ndarray:
    """An array (n,) or (n, channels) of one whose channels may come first."""
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2 or not 0 < min(samples.shape) <= _MOST_CHANNELS or len(set(samples.shape)) == 1:
        raise ValueError(
            f"shape {samples.shape}, expected samples (n,), or (n, channels) or (channels, n) with at most "
            f"{_MOST_CHANNELS} channels and more samples than channels"
        )
    return samples if samples.shape[1] < samples.shape[0] else samples.T


def _in_range(samples: np.ndarray) -> np.ndarray:
    """Float32 in [-1, 1], by the rules of the module."""
    kind = samples.dtype.name
    if not samples.size:
        raise ValueError("no samples")
    if kind in _FULL_SCALE:
        wave = samples.astype(np.float32) / _FULL_SCALE[kind]
        return wave - 1.0 if kind == "uint8" else wave
    if samples.dtype.kind != "f":
        raise ValueError(
            f"samples are {kind}, which does not say their scale; expected {', '.join(_FULL_SCALE)}, or floats in "
            "[-1, 1]"
        )
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        raise ValueError(f"samples must be finite, got {first_not_finite(torch.from_numpy(samples))}")
    if 1 < peak <= _OVERSHOOT:
        return samples.astype(np.float32) / np.float32(peak)
    if _INT16_SCALE <= peak <= 2**15:
        return samples.astype(np.float32) / np.float32(2**15)
    if peak > 1:
        raise ValueError(
            f"floats up to {peak:g}, expected them in [-1, 1], or at the scale of int16 ({_INT16_SCALE:g} to 32768)"
        )
    return samples.astype(np.float32)


def _mono(wave: np.ndarray) -> Tensor:
    """One channel; raises ValueError where there is nothing to hear."""
    if wave.ndim == 2:
        heard = wave.min() != wave.max()
        wave = wave.mean(1)
        if heard and wave.min() == wave.max():
            raise ValueError("its channels cancel each other: their mean is silent")
    if wave.min() == wave.max():
        raise ValueError("silent: all samples are equal")
    return torch.from_numpy(np.ascontiguousarray(wave))
