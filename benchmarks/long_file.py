"""What a timeline of a long recording takes: seconds, and memory above the model.

    python benchmarks/long_file.py RUN /corpora/EMO-DB/wav                # a minute, 1 hour and 3 hours
    python benchmarks/long_file.py base /corpora/EMO-DB/wav --minutes 1 10

RUN is the folder of a trained run, or `base`: Cai's system around a wav2vec2 of base size with random weights (what is
measured does not depend on them). The recordings of a folder, one after the other with 0.4 s of silence between them,
make a file of each length. Every line of the table is a process of its own: it loads the model, recognises one of the
recordings (`classify_file`), then the long file (`timeline`). Peaks are the system's own (VmHWM).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from machine import BASE, machine
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the recipes

from speechbrain_ser.data.batches import SAMPLE_RATE, load_audio  # noqa: E402
from speechbrain_ser.data.text import LETTERS, CharacterTokens  # noqa: E402
from speechbrain_ser.inference.predict import find_recordings  # noqa: E402
from speechbrain_ser.inference.recognizer import EmotionRecognizer  # noqa: E402
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2  # noqa: E402
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2  # noqa: E402
from speechbrain_ser.models.cai import CaiModel  # noqa: E402
from speechbrain_ser.models.heads import Decoder  # noqa: E402
from speechbrain_ser.nnet.pooling import MaskedPooling  # noqa: E402

PAUSE = 0.4  # seconds


def write_long(recordings: list[str], seconds: float, path: Path) -> None:
    """All recordings, as often as it takes, in one 16 kHz file."""
    left = round(seconds * SAMPLE_RATE)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, format="WAV") as file:
        for wav in _for_ever(recordings):
            file.write(wav[:left])
            left -= min(left, len(wav))
            if not left:
                return


def _for_ever(recordings: list[str]) -> Iterator[np.ndarray]:
    while True:
        for recording in recordings:
            yield np.append(load_audio(recording).numpy(), np.zeros(round(PAUSE * SAMPLE_RATE), np.float32))


def load(run: str, backbone: str, args) -> EmotionRecognizer:
    """The recogniser of a run, or one of base size."""
    run_opts = {"device": args.device, "precision": "bf16" if args.bf16 else "fp32"}
    if run != "base":
        return EmotionRecognizer.from_run(run, run_opts, args.transcribe)
    heads = {"emotion": partial(nn.Linear, out_features=4), "asr": partial(nn.Linear, out_features=len(LETTERS))}
    model = CaiModel(Wav2Vec2(backbone), MaskedPooling("mean"), heads, {"emotion": 1.0, "asr": 0.1})
    decode = Decoder(CharacterTokens(LETTERS)) if args.transcribe else None
    return EmotionRecognizer(model, ["angry", "happy", "neutral", "sad"], decode, run_opts)


def memory(name: str) -> float:
    """Megabytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[name].split()[0]) * 1024 / 1e6
    except OSError:  # not Linux: only the peak is known
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(run: str, short: str, long: str, backbone: str, args) -> dict:
    """Seconds and megabytes, in this process."""
    torch.set_num_threads(args.threads)
    recognizer = load(run, backbone, args)
    found = {"model": memory("VmRSS")}
    recognizer.classify_file(short)
    found["short"] = memory("VmHWM")
    start = time.perf_counter()
    timeline = recognizer.timeline(long, args.window, args.step, args.batch)
    found["s"] = time.perf_counter() - start
    found["long"] = memory("VmHWM")
    return found | {"audio": timeline.duration, "segments": len(timeline.segments)}


def main() -> None:
    """Measure each length in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the folder of a trained run, or base")
    parser.add_argument("recordings", metavar="FOLDER", help="of recordings, to be put end to end")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 60, 180], help="lengths (default: 1 60 180)")
    parser.add_argument("--window", type=float, default=4.0, help="seconds (default: %(default)s)")
    parser.add_argument("--step", type=float, help="seconds (default: half a window)")
    parser.add_argument("--batch", type=int, default=8, help="windows at a time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--no-transcript", dest="transcribe", action="store_false", help="emotions alone")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # one line, in a process of its own
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.run, *args.measure, args)))
        return
    print(machine(threads=args.threads))
    step = args.step or args.window / 2
    precision = "bf16" if args.bf16 else "fp32"
    print(f"{args.run}: {precision}, windows of {args.window:g} s every {step:g} s, batches of {args.batch}; MB")
    names = f"{'recording':>10}{'s':>9}{'x real time':>13}{'model':>8}{'+ a short one':>15}{'+ this one':>12}"
    print(f"{names}{'segments':>10}")
    recordings = sorted(find_recordings([args.recordings], recursive=True))
    with tempfile.TemporaryDirectory() as folder:
        backbone, long = Path(folder) / "base", Path(folder) / "long.wav"
        if args.run == "base":
            build_tiny_wav2vec2(backbone, **BASE)
        for minutes in args.minutes:
            write_long(recordings, 60 * minutes, long)
            command = [sys.executable, *sys.argv, "--measure", recordings[0], str(long), str(backbone)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{minutes:g} minutes:\n{done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{minutes:6g} min{found['s']:9.1f}{found['audio'] / found['s']:13.1f}{found['model']:8.0f}"
                f"{found['short'] - found['model']:15.0f}{found['long'] - found['model']:12.0f}{found['segments']:10}",
                flush=True,
            )


if __name__ == "__main__":
    main()
