"""The real-time factor and memory of inference: ours, transformers' pipeline, SpeechBrain's EncoderClassifier.

    python benchmarks/inference.py --data_folder=/corpora/EMO-DB         # 500 files of real speech, cut and joined
    python benchmarks/inference.py --files=40 --rounds=2                 # noise
    python benchmarks/inference.py --only "ours" "pipeline fp32, batch 1"  # rows whose name holds one of these

All do the same work from the files on: decoding, wav2vec2-base, the mean over frames, a linear layer, softmax. They
share one set of random weights, and the linear layer is scaled so that its logits tell the files apart, as those of
a trained one do. Every row is a process of its own, with its own peak memory; in each round all rows take the same
next part of the files, one row after the other, so that whatever else the machine does falls on all of them. The share
of the matrix rate: the encoder's floating-point operations without padding, over the seconds, over what a large matrix
product reaches in the row's precision.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from ideal import matrix_rates, operations, rates_in_words
from machine import BASE, machine
from tqdm import tqdm
from utterances import lengths_like_iemocap

sys.path.insert(0, str(Path(__file__).parents[1]))  # what is measured is the code beside this file

from speechbrain_ser.data.batches import SAMPLE_RATE, load_audio
from speechbrain_ser.inference.recognizer import EmotionRecognizer
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.nnet.pooling import MaskedPooling

CLASSES = ["angry", "happy", "neutral", "sad"]
MEAN = 4.4  # seconds, of IEMOCAP's utterances
OTHERS_BATCH = 8
LONG_SECONDS = 100

Classify = Callable[[list[str]], Iterable[list[float]]]  # paths to posteriors, in the paths' order


# ------------------------------------------------------------------ files


def write_files(folder: Path, seconds: Iterable[float], data_folder: str | None, seed: int) -> list[str]:
    """16 kHz WAV of speech, cut and joined without regard to utterances, or of noise."""
    samples = _speech(data_folder, seed) if data_folder else _noise(seed)
    next(samples)
    paths = []
    for k, duration in enumerate(seconds):
        paths.append(str(folder / f"{k:05}.wav"))
        soundfile.write(paths[-1], samples.send(round(duration * SAMPLE_RATE)), SAMPLE_RATE)
    return paths


def _noise(seed: int) -> Iterator[np.ndarray]:
    rng, n = np.random.default_rng(seed), 0
    while True:
        n = yield 0.1 * rng.standard_normal(n, dtype=np.float32)


def _speech(data_folder: str, seed: int) -> Iterator[np.ndarray]:
    recordings = sorted(Path(data_folder).expanduser().rglob("*.wav"))
    if not recordings:
        sys.exit(f"{data_folder}: expected WAV files, found none")
    rng, stock, n = np.random.default_rng(seed), np.zeros(0, np.float32), 0
    while True:
        while len(stock) < n:
            stock = np.append(stock, load_audio(recordings[rng.integers(len(recordings))]).numpy())
        piece, stock = stock[:n], stock[n:]
        n = yield piece


# ------------------------------------------------------------------ contenders


def head_of(folder: Path) -> torch.nn.Linear:
    """The linear layer that all share."""
    head = torch.nn.Linear(BASE["hidden_size"], len(CLASSES))
    head.load_state_dict(torch.load(folder / "head.pt", weights_only=True))
    return head


def our_model(folder: Path, ctc: bool = False) -> CaiModel:
    """Cai's model without its CTC head, or with it."""
    heads = {
        "emotion": partial(torch.nn.Linear, out_features=len(CLASSES)),
        "asr": partial(torch.nn.Linear, out_features=32),
    }
    weights = {"emotion": 1.0, "asr": 0.1 if ctc else 0}
    model = CaiModel(Wav2Vec2(str(folder / "backbone")), MaskedPooling("mean"), heads, weights)
    if (folder / "head.pt").exists():
        model.heads["emotion"].load_state_dict(head_of(folder).state_dict())
    return model


def ours(folder: Path, precision: str, batch_size: int | None, ctc: bool = False) -> tuple[Classify, torch.nn.Module]:
    """classify_files; a batch size of None is its default."""
    from speechbrain_ser.data.text import build_tokens
    from speechbrain_ser.models.heads import Decoder

    decode = Decoder(build_tokens("letters", [])) if ctc else None
    options = {"device": "cpu", "precision": precision}
    recognizer = EmotionRecognizer(our_model(folder, ctc), CLASSES, decode, options)
    size = {} if batch_size is None else {"batch_size": batch_size}

    def classify(paths):
        for found in recognizer.classify_files(paths, **size):
            yield list(found.posteriors.values())

    return classify, recognizer.model.encoder


def pipeline(folder: Path, precision: str, batch_size: int) -> tuple[Classify, torch.nn.Module]:
    """transformers' pipeline with the preprocessing that wav2vec2-base was published with (no attention mask)."""
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification
    from transformers import pipeline as build

    model = Wav2Vec2ForSequenceClassification.from_pretrained(folder / "backbone", num_labels=len(CLASSES))
    model.projector, model.classifier = torch.nn.Identity(), head_of(folder)  # no layer that the others do not have
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    run = build("audio-classification", model=model.to(dtype), feature_extractor=extractor, device="cpu", dtype=dtype)
    labels = list(model.config.id2label.values())

    def classify(paths):
        # its own reading of paths starts a program, ffmpeg, for each
        arrays = ({"raw": soundfile.read(path, dtype="float32")[0], "sampling_rate": SAMPLE_RATE} for path in paths)
        for found in run(arrays, batch_size=batch_size, top_k=None):
            score = {each["label"]: each["score"] for each in found}
            yield [score[label] for label in labels]

    return classify, run.model


def encoder_classifier(folder: Path, precision: str, batch_size: int) -> tuple[Classify, torch.nn.Module]:
    """SpeechBrain's EncoderClassifier: a loop of load_audio and classify_batch."""
    from speechbrain.dataio.encoder import CategoricalEncoder
    from speechbrain.inference.classifiers import EncoderClassifier
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2 as SpeechBrainWav2Vec2
    from speechbrain.nnet.containers import LengthsCapableSequential
    from speechbrain.nnet.pooling import StatisticsPooling
    from speechbrain.utils.data_utils import batch_pad_right

    labels = CategoricalEncoder()
    labels.update_from_iterable(CLASSES)
    modules = {
        "compute_features": SpeechBrainWav2Vec2(str(folder / "backbone"), str(folder / "hub"), freeze=True),
        "mean_var_norm": LengthsCapableSequential(torch.nn.Identity()),
        "embedding_model": StatisticsPooling(return_std=False),
        "classifier": head_of(folder),
    }
    classifier = EncoderClassifier(modules, {"label_encoder": labels}, {"device": "cpu", "precision": precision})

    def classify(paths):
        for start in range(0, len(paths), batch_size):
            signals = [classifier.load_audio(path) for path in paths[start : start + batch_size]]
            wavs, lengths = batch_pad_right(signals)
            with torch.no_grad():
                logits = classifier.classify_batch(wavs, lengths)[0]
            yield from logits.softmax(-1).tolist()

    return classify, classifier.mods["compute_features"]


#: name -> builder, precision, batch size, more
ROWS = {
    "ours fp32, batch 1": (ours, "fp32", 1),
    "ours fp32, batches": (ours, "fp32", None),
    "pipeline fp32, batch 1": (pipeline, "fp32", 1),
    f"pipeline fp32, batches of {OTHERS_BATCH}": (pipeline, "fp32", OTHERS_BATCH),
    "EncoderClassifier fp32, batch 1": (encoder_classifier, "fp32", 1),
    f"EncoderClassifier fp32, batches of {OTHERS_BATCH}": (encoder_classifier, "fp32", OTHERS_BATCH),
    "ours bf16, batch 1": (ours, "bf16", 1),
    "ours bf16, batches": (ours, "bf16", None),
    "pipeline bf16, batch 1": (pipeline, "bf16", 1),
    "ours fp32, batches, with CTC": (ours, "fp32", None, True),
    "ours bf16, batches, with CTC": (ours, "bf16", None, True),
}
REFERENCE = "ours fp32, batch 1"
#: batched row -> the same at batch 1
ALONE = {name: re.sub("batches.*", "batch 1", name) for name in ROWS if "batches" in name and "CTC" not in name}


# ------------------------------------------------------------------ a row's process


def work(name: str, folder: Path, threads: int) -> None:
    """Build, then answer each line of paths (JSON) on standard input by a line of figures."""
    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(1), "w")  # nothing that is printed along the way comes between
    os.dup2(2, 1)
    build, *arguments = ROWS[name]
    classify, encoder = build(folder, *arguments)
    padded = []
    encoder.register_forward_pre_hook(lambda _, args, named: padded.append(_size(args, named)), with_kwargs=True)
    list(classify([str(folder / "warm-up.wav")] * 2))
    for line in sys.stdin:
        paths = json.loads(line)
        padded.clear()
        print(json.dumps(measure(classify, paths) | {"padded": sum(padded) / SAMPLE_RATE}), file=answers, flush=True)


def _size(args: tuple, named: dict) -> int:
    """Samples that the encoder is given, padding included."""
    return (args[0] if args else named["input_values"]).numel()


def measure(classify: Classify, paths: list[str]) -> dict:
    """Seconds by the clock and of the processor, and the most memory above what was there before."""
    before = _reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    posteriors = list(classify(paths))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"s": seconds, "cpu_s": cpu, "peak_gb": _status("VmHWM") - before, "posteriors": posteriors}


def _reset_peak() -> float:
    """GB that are resident; the peak starts anew from there."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1e6


# ------------------------------------------------------------------ all rows


def prepare(folder: Path, paths: list[str], threads: int) -> None:
    """Backbone, warm-up file, and a head whose logits have a standard deviation of 1 over files."""
    torch.set_num_threads(threads)
    build_tiny_wav2vec2(folder / "backbone", **BASE)
    soundfile.write(folder / "warm-up.wav", two_seconds(), SAMPLE_RATE)
    recognizer = EmotionRecognizer(our_model(folder), CLASSES, run_opts={"device": "cpu"})
    embeddings = torch.stack([f.embedding for f in recognizer.classify_files(paths[:32], embedding=True)])
    head = torch.nn.Linear(BASE["hidden_size"], len(CLASSES))
    with torch.no_grad():
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
        head.weight /= (embeddings @ head.weight.T).std(0, keepdim=True).T
        head.bias.copy_(-(embeddings @ head.weight.T).mean(0))
    torch.save(head.state_dict(), folder / "head.pt")


def needed(folder: Path, seconds: np.ndarray) -> float:
    """Floating-point operations of the encoder; the count does not know every fused attention."""
    encoder = Wav2Vec2(str(folder / "backbone"), attn_implementation="eager").eval()
    return operations(torch.no_grad()(encoder), seconds)


def two_seconds() -> np.ndarray:
    """Noise."""
    return 0.1 * np.random.default_rng(1).standard_normal(2 * SAMPLE_RATE).astype(np.float32)


class Row:
    """A row's process and its figures so far."""

    def __init__(self, name: str, folder: Path, threads: int):
        self.name, self.figures, self.posteriors = name, {"s": 0.0, "cpu_s": 0.0, "padded": 0.0, "peak_gb": 0.0}, []
        command = [sys.executable, __file__, f"--measure={name}", f"--folder={folder}", f"--threads={threads}"]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def take(self, paths: list[str]) -> None:
        """Classify these as well."""
        try:
            print(json.dumps(paths), file=self.process.stdin, flush=True)
            found = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            self.log.seek(0)
            sys.exit(f"{self.name}: ended with status {self.process.wait()}\n{self.log.read()}")
        self.posteriors += found.pop("posteriors")
        self.figures["peak_gb"] = max(self.figures["peak_gb"], found.pop("peak_gb"))
        for key, value in found.items():
            self.figures[key] += value

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def run(rows: list[str], folder: Path, paths: list[str], rounds: int, threads: int) -> dict[str, Row]:
    """All rows over all files."""
    started: dict[str, Row] = {}
    with tqdm(total=rounds * len(rows), desc="rows and rounds", disable=None) as bar:
        for part in np.array_split(np.array(paths), rounds):
            for name in rows:
                row = started.get(name) or started.setdefault(name, Row(name, folder, threads))
                row.take(part.tolist())
                if rounds == 1:
                    row.close()  # and free its memory
                bar.set_postfix_str(name)
                bar.update()
    if rounds > 1:
        for row in started.values():
            row.close()
    return started


def difference(rows: dict[str, Row], one: str, other: str | None) -> str:
    """The largest difference between two rows' posteriors."""
    if one not in rows or other not in rows:
        return "-"
    return f"{np.abs(np.array(rows[one].posteriors) - np.array(rows[other].posteriors)).max():.1e}"


def line(rows: dict[str, Row], name: str, seconds: float, ideal: dict[str, float]) -> str:
    """A line of the table."""
    f, n = rows[name].figures, len(rows[name].posteriors)
    share, padding = ideal[ROWS[name][1]] / f["s"], max(0.0, 1 - seconds / f["padded"])
    return (
        f"| {name} | {f['s']:.1f} | {f['s'] / seconds:.4f} | {f['cpu_s'] / seconds:.4f} | {n / f['s']:.2f} | "
        f"{share:.1%} | {f['peak_gb']:.2f} | {padding:.1%} | {difference(rows, name, REFERENCE)} | "
        f"{difference(rows, name, ALONE.get(name))} |"
    )


def memory(folder: Path, seconds: Iterable[float], args) -> list[str]:
    """Peak memory of ours when the longest file grows, the others being as before."""
    lines = []
    short = write_files(_made(folder / "few"), [MEAN] * 16, args.data_folder, args.seed)
    for duration in seconds:
        (long,) = write_files(_made(folder / f"long{duration:g}"), [duration], args.data_folder, args.seed)
        for name in ("ours fp32, batches", "ours bf16, batches"):
            row = Row(name, folder, args.threads)
            row.take([*short, long])
            row.close()
            lines.append(f"| {name} | {duration:g} | {row.figures['peak_gb']:.2f} |")
    return lines


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """Write the files, run every row, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--data_folder", help="WAV files of speech, at any depth; none: noise")
    parser.add_argument("--seed", type=int, default=0, help="of lengths and contents")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="1: a row's process ends before the next one starts")
    parser.add_argument("--only", nargs="+", help="rows whose name holds one of these, and `memory`")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one row, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        work(args.measure, args.folder, args.threads)
        return
    names = [name for name in ROWS if not args.only or any(part in name for part in args.only)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lengths = lengths_like_iemocap(args.files, args.seed)
        paths = write_files(_made(folder / "files"), lengths, args.data_folder, args.seed)
        prepare(folder, paths, args.threads)
        print(machine(threads=args.threads))
        work_needed, rates = needed(folder, lengths), matrix_rates()
        print(rates_in_words(rates))
        ideal = {precision: work_needed / rate for precision, rate in rates.items()}
        found = "speech" if args.data_folder else "noise"
        print(
            f"{len(paths)} files of {found}, {lengths.sum():.0f} s, {lengths.min():.1f} to {lengths.max():.1f}, mean "
            f"{lengths.mean():.1f}; s and cpu s a second of audio; GB above the loaded model\n",
            flush=True,
        )
        rows = run(names, folder, paths, min(args.rounds, len(paths)), args.threads)
        columns = "s | real-time factor | cpu | utterances/s | of the matrix rate | peak GB | padding".split(" | ")
        columns += ["from reference", "from batch 1"]
        print(f"| | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
        for name in rows:
            print(line(rows, name, lengths.sum(), ideal))
        if not args.only or "memory" in args.only:
            print("\n| 16 files of 4.4 s and one longer | its s | peak GB |\n| --- | ---: | ---: |")
            print("\n".join(memory(folder, (12, 30, LONG_SECONDS), args)))


if __name__ == "__main__":
    main()
