"""Speaks a list of utterances with eSpeak NG, in a process of its own.

eSpeak NG keeps state from one utterance to the next (the phase of its flutter, for
one), also across its own restart. A fresh process that always speaks the same list is
what makes the samples the same, bit for bit; it also keeps other users of the library
in the parent process, and a crash of it, apart. Standard library only: run as a script.

stdin: one JSON object, ``{"library": path, "data": path, "utterances": [{"text", "voice",
"speed", "pitch", "pitch_range"}, ...]}``. stdout: the sample rate, then for each utterance the
number of samples and the samples; little-endian uint32, uint32 and int16.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys

# From eSpeak NG's public header speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARS_UTF8 = 1
_OK = 0

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def main() -> int:
    """Speak what stdin asks for; 0, or 1 with a sentence on stderr."""
    request = json.load(sys.stdin)
    espeak = ctypes.CDLL(request["library"])
    rate = espeak.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, request["data"].encode(), 0)
    if rate <= 0:
        return _fail(f"eSpeak NG does not start with the voices in {request['data']}")

    pieces: list[bytes] = []

    @_Callback
    def collect(samples, count, events):  # noqa: ANN001, ANN202  (called from C)
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    espeak.espeak_SetSynthCallback(collect)
    out = sys.stdout.buffer
    out.write(struct.pack("<I", rate))
    for utterance in request["utterances"]:
        if espeak.espeak_SetVoiceByName(utterance["voice"].encode()) != _OK:
            return _fail(f"eSpeak NG has no voice {utterance['voice']!r}")
        for parameter, value in ((_RATE, "speed"), (_PITCH, "pitch"), (_RANGE, "pitch_range")):
            espeak.espeak_SetParameter(parameter, utterance[value], 0)
        text = utterance["text"].encode() + b"\0"
        pieces.clear()
        if espeak.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 0, 0, _CHARS_UTF8, None, None) != _OK:
            return _fail(f"eSpeak NG could not speak {utterance}")
        samples = b"".join(pieces)
        out.write(struct.pack("<I", len(samples) // 2) + samples)
    return 0


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
