"""Speech from eSpeak NG, with voice, rate, pitch, pitch range and volume at will."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from speechbrain_ser.errors import CorpusError

WORKER = Path(__file__).with_name("espeak_worker.py")


@dataclass(frozen=True)
class Speech:
    """What is said, and how."""

    text: str
    voice: str = "en-us"  # a language, and optionally a variant: `en-us+f2`, `de+m3`
    rate: int = 175  # words a minute, 80 to 450
    pitch: int = 50  # 0 to 99; 50 is the voice's own
    range: int = 50  # how far the pitch moves, 0 (monotonous) to 99
    volume: int = 80  # 0 to 200; above 100 samples may clip


def speak(requests: Iterable[Speech]) -> list[tuple[np.ndarray, int]]:
    """Say everything in one fresh process: the same requests give the same samples ([time] int16) and rates in Hz."""
    try:
        import espeakng_loader
    except ImportError as error:
        message = 'the demo corpus is spoken by eSpeak NG: pip install "speechbrain-ser[demo]"'
        raise CorpusError(message) from error
    lines = "".join(json.dumps(asdict(request)) + "\n" for request in requests)
    places = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    command = [sys.executable, str(WORKER), *map(str, places)]
    done = subprocess.run(command, input=lines.encode(), capture_output=True, check=False)
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise CorpusError(f"speech synthesis failed: {why[0]}")
    return list(_sounds(done.stdout))


def _sounds(data: bytes) -> Iterator[tuple[np.ndarray, int]]:
    position = 0
    while position < len(data):
        rate, count = struct.unpack_from("=II", data, position)
        yield np.frombuffer(data, np.int16, count, position + 8), rate
        position += 8 + 2 * count
