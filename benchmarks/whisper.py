"""What a frozen Whisper costs: at each utterance's own length into our cache, and padded to 30 s as others do it.

    python benchmarks/whisper.py /corpora/EMO-DB/wav
    python benchmarks/whisper.py --files=8                  # recordings of noise

- ours: statistics of every layer (what the probe reads), or all frames of the layers that are frozen (what a fine-tuned
  system reads), float16, computed by a cache that is made anew;
- transformers: WhisperFeatureExtractor and WhisperModel's encoder as they are, 30 s whatever is said;
- EmoBox's and s3prl's way: the same, one recording after the other, own frames of the last layer saved as float32 .npy.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine, peak_gb
from transformers import WhisperFeatureExtractor, WhisperModel
from utterances import lengths_like_iemocap, make_corpus

from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.lobes.backbone import resolve_backbone
from speechbrain_ser.lobes.pretrained import LayerStatistics
from speechbrain_ser.lobes.whisper import Whisper
from speechbrain_ser.processing.cache import FeatureCache


def fill(features, paths: list[str], folder: Path, workers: int) -> tuple[float, float]:
    """Seconds to compute a corpus in an empty cache, and MB of it."""
    cache = FeatureCache(folder, features.settings, features.extract, load_audio, workers=workers)
    start = time.perf_counter()
    cache.fill(paths, progress=False)
    seconds = time.perf_counter() - start
    return seconds, sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6


@torch.inference_mode()
def padded(source: Path, paths: list[str], folder: Path | None, batch: int) -> tuple[float, float]:
    """Seconds of transformers' own encoder, and MB of the own frames that are saved where there is a folder."""
    extractor = WhisperFeatureExtractor.from_pretrained(source)
    encoder = WhisperModel.from_pretrained(source, dtype=torch.float32).encoder.eval()
    start, size = time.perf_counter(), 0
    for k in range(0, len(paths), batch):
        wavs = [load_audio(path).numpy() for path in paths[k : k + batch]]
        bands = extractor(wavs, sampling_rate=16_000, return_tensors="pt").input_features
        states = encoder(bands).last_hidden_state
        for j, wav in enumerate(wavs if folder else ()):
            np.save(folder / f"{k + j}.npy", states[j, : -(-len(wav) // 320)].numpy())
            size += (folder / f"{k + j}.npy").stat().st_size
    return time.perf_counter() - start, size / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recordings", type=Path, nargs="?", help="folder of .wav files; none: noise")
    parser.add_argument("--files", type=int, help="of these so many; default: all (noise: 100)")
    parser.add_argument("--padded_files", type=int, default=60, help="that are padded; the rest is computed from them")
    parser.add_argument("--encoder", default="openai/whisper-base")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(threads=args.threads))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.recordings is None:
            n = args.files or 100
            paths = sorted(
                map(str, make_corpus(folder / "noise", lengths_like_iemocap(n), ["train"] * n).glob("*.wav"))
            )
        else:
            paths = sorted(map(str, args.recordings.rglob("*.wav")))[: args.files]
        minutes = sum(len(load_audio(path)) for path in paths) / 16_000 / 60
        source = resolve_backbone(args.encoder, folder / "hub").folder
        part = paths[:: max(1, len(paths) // args.padded_files)][: args.padded_files]
        print(f"{len(paths)} recordings, {minutes:.1f} min; the padded ones measured on {len(part)} of them\n")
        print("| | seconds for all | MB on disk |\n| --- | ---: | ---: |", flush=True)
        statistics = LayerStatistics(Whisper(str(source), freeze=True).eval())
        upper = Whisper(str(source), n_layers=4, freeze_layers=3, cache_embeddings=True).eval().features
        for name, features in (("statistics of all layers (the probe)", statistics), ("input of layer 4", upper)):
            seconds, size = fill(features, paths, folder / name.split()[0], args.threads)
            print(f"| here, own length: {name} | {seconds:.1f} | {size:.0f} |", flush=True)
        (folder / "npy").mkdir()
        for name, place, batch in (("transformers, 30 s, batches of 8", None, 8),
                                   ("EmoBox's and s3prl's way, one by one", folder / "npy", 1)):  # fmt: skip
            seconds, size = padded(source, part, place, batch)
            scale = len(paths) / len(part)
            print(f"| {name} | {seconds * scale:.1f} | {f'{size * scale:.0f}' if place else ''} |", flush=True)
    print(f"\npeak memory {peak_gb():.2f} GB")


if __name__ == "__main__":
    main()
