"""Spoken digits made on the spot by eSpeak NG, as a folder of the FSDD layout.

For machines without recordings and without a network. The voices differ in accent,
vocal tract, pitch, pace and recording noise, and each take of a voice in pitch, pace and
intonation, so that a model trained on some voices has something to learn before it
understands the others. eSpeak NG (GPL-3.0) comes with the package ``espeakng-loader``, an
extra: this library runs it as a separate program and includes nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile

from .cache import cache_dir, folder_made_beside
from .frontend import resample

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_RATE = 8000  # Hz, as FSDD
_WORKER = Path(__file__).with_name("espeak_worker.py")


@dataclass(frozen=True)
class Voice:
    """A speaker: eSpeak NG's name of accent and variant, usual pitch and pace, noise of the recording."""

    name: str
    espeak: str
    pitch: int  # 0 to 99
    speed: int  # words a minute
    snr: float  # dB


# Variants with breath are left out: their noise comes from a generator seeded with the time.
VOICES = (
    Voice("ann", "en-us+steph", 50, 160, 18.0),
    Voice("bob", "en-us+m3", 40, 170, 12.0),
    Voice("cat", "en-gb-scotland+f4", 60, 150, 15.0),
    Voice("dan", "en+boris", 30, 180, 12.0),
    Voice("eve", "en-029+aunty", 50, 160, 15.0),
    Voice("fay", "en-gb-x-rp+anika", 55, 150, 18.0),
    Voice("gus", "en-gb-x-gbclan+grandpa", 35, 165, 15.0),
    Voice("hal", "en-us-nyc+klatt4", 45, 175, 18.0),
)


def espeak_available() -> bool:
    """Whether the package that carries eSpeak NG is installed."""
    try:
        import espeakng_loader  # noqa: F401
    except ImportError:
        return False
    return True


def speak_digits(
    cache: Path | None = None, *, voices: tuple[Voice, ...] = VOICES, takes: int = 20, seed: int = 0
) -> Path:
    """A folder of ``takes`` recordings of every digit by every voice, made where it is not there yet.

    The same arguments and the same eSpeak NG give the same files, byte for byte.

    Args:
        cache: where to keep it; None: `cache_dir`.
        voices: the speakers.
        takes: recordings per digit and voice.
        seed: chooses pitch, pace, intonation and noise of each take.

    Raises:
        ImportError: the package ``espeakng-loader`` is not installed.
        RuntimeError: eSpeak NG failed; the message is its own.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "speech is synthesised by eSpeak NG, which is not installed: pip install 'ucmkd-fast[speech]'"
        ) from error
    if not voices or takes < 1:
        raise ValueError(f"expected at least one voice and one take, got {len(voices)} and {takes}")
    library = Path(espeakng_loader.get_library_path())
    recipe = json.dumps([[astuple(voice) for voice in voices], takes, seed])
    made_of = recipe.encode() + _WORKER.read_bytes() + Path(__file__).read_bytes() + library.read_bytes()
    folder = (cache or cache_dir()) / f"espeak-{hashlib.sha256(made_of).hexdigest()[:12]}"
    if folder.is_dir():
        return folder

    random = np.random.default_rng(seed)
    plan = [(voice, digit, take) for voice in voices for digit in range(10) for take in range(takes)]
    utterances = [_utterance(voice, digit, random) for voice, digit, _ in plan]
    spoken = _speak([asdict(u) for u in utterances], library, Path(espeakng_loader.get_data_path()))
    with folder_made_beside(folder) as temporary:
        for (voice, digit, take), (samples, rate) in zip(plan, spoken, strict=True):
            wave = resample(torch.from_numpy(samples / 2.0**15), rate, _RATE).numpy()
            noise = random.standard_normal(len(wave)) * np.sqrt(np.mean(wave**2)) * 10 ** (-voice.snr / 20)
            recording = np.clip(np.round((wave + noise) * 2.0**14), -(2**15), 2**15 - 1).astype(np.int16)
            wavfile.write(temporary / f"{digit}_{voice.name}_{take}.wav", _RATE, recording)
    return folder


@dataclass(frozen=True)
class _Utterance:
    text: str
    voice: str
    speed: int
    pitch: int
    pitch_range: int


def _utterance(voice: Voice, digit: int, random: np.random.Generator) -> _Utterance:
    """One take: the voice's own pitch and pace, each a little off, and one of three intonations."""
    return _Utterance(
        text=_WORDS[digit] + ".?!"[random.integers(3)],
        voice=voice.espeak,
        speed=int(voice.speed * random.uniform(0.8, 1.25)),
        pitch=int(np.clip(voice.pitch + random.integers(-12, 13), 0, 99)),
        pitch_range=int(random.integers(20, 80)),
    )


def _speak(utterances: list[dict], library: Path, data: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Samples (n,) int16 and rate of each utterance, from a fresh process."""
    request = {"library": str(library), "data": str(data), "utterances": utterances}
    done = subprocess.run(
        [sys.executable, str(_WORKER)], input=json.dumps(request).encode(), capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"eSpeak NG failed (exit status {done.returncode}): {said}")
    (rate,), position = struct.unpack_from("<I", done.stdout), 4
    for _ in utterances:
        (count,) = struct.unpack_from("<I", done.stdout, position)
        yield np.frombuffer(done.stdout, "<i2", count, position + 4), rate
        position += 4 + 2 * count
