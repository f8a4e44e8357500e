"""Speaks in a process of its own: requests come in on stdin, samples go out on stdout.

eSpeak NG keeps state from utterance to utterance (the phase of its flutter, its noise), so only a fresh
process makes the same sequence of requests sound the same, sample for sample. Standard library only; started
by `espeak.py` as ``python espeak_worker.py LIBRARY DATA``, with one JSON object a line.
"""

import ctypes
import json
import os
import struct
import sys

SYNCHRONOUS, PHONEME_EVENTS_OFF, DONT_EXIT = 2, 0, 0x8000
UTF8, CHARACTERS = 1, 1
PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "range": 4}
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def main(library: str, data: str) -> None:
    """Answer every request with the sample rate, the number of samples and the samples (16 bit, native)."""
    espeak = ctypes.CDLL(library)
    rate = espeak.espeak_Initialize(SYNCHRONOUS, PHONEME_EVENTS_OFF, os.fsencode(data), DONT_EXIT)
    if rate <= 0:
        sys.exit(f"eSpeak NG does not start with the voices in {data}")
    pieces = []

    @Callback
    def collect(samples, count, events):
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    espeak.espeak_SetSynthCallback(collect)
    for request in map(json.loads, sys.stdin.buffer.readlines()):
        pieces.clear()
        _seed(espeak)
        _speak(espeak, request)
        sound = b"".join(pieces)
        sys.stdout.buffer.write(struct.pack("=II", rate, len(sound) // 2) + sound)


def _seed(espeak):
    """Breath noise is drawn from eSpeak's own generator or from the C library's, depending on its version."""
    if hasattr(espeak, "espeak_ng_SetRandSeed"):
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
    c_library = ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)
    c_library.srand(1)


def _speak(espeak, request):
    if espeak.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        sys.exit(f"eSpeak NG has no voice {request['voice']!r}")
    for name, number in PARAMETERS.items():
        espeak.espeak_SetParameter(number, int(request[name]), 0)
    text = request["text"].encode()
    arguments = (text, ctypes.c_size_t(len(text) + 1), 0, CHARACTERS, 0, UTF8, None, None)
    if espeak.espeak_Synth(*arguments) != 0:
        sys.exit(f"eSpeak NG cannot say {request['text']!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
