"""Training as published, and ours: utterances a second, padding, peak memory, and the share of the machine's own rate.

    python benchmarks/training.py                               # 24 utterances, wav2vec2-base (random weights)
    python benchmarks/training.py --device=cuda --utterances=512 --published=2
    python benchmarks/training.py --backbone=tiny --utterances=96

Utterances of noise have IEMOCAP's lengths (mean 4.4 s, 0.9 to 12 s). Every row is `train.py hparams/cai_mtl.yaml` with
other lines, built and stepped as train.py does, in a process of its own; a first step of the optimiser warms it up, and
all utterances are timed. The share of the machine's rate: the floating-point operations of the utterances alone (no
padding, nothing computed twice), over the seconds, over what a large matrix product reaches in the row's precision.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from machine import BASE, machine, peak_gb
from speechbrain import Stage
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the recipes

from speechbrain_ser.building import build  # noqa: E402
from speechbrain_ser.config import read_config  # noqa: E402
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2  # noqa: E402
from speechbrain_ser.preparation import prepare  # noqa: E402

BACKBONES = {"base": BASE, "tiny": {}}
STEP = 8  # utterances an optimiser step, in every row
TEXT = "NOBODY KNOWS WHAT HAPPENED HERE BEFORE THE WINTER"  # 11 characters a second


def lengths_like_iemocap(n: int, seed: int = 0) -> np.ndarray:
    """Seconds [n]: log-normal, cut to 0.9 to 12, brought to a mean of 4.4."""
    seconds = np.exp(np.random.default_rng(seed).normal(1.3, 0.62, n)).clip(0.9, 12)
    for _ in range(20):
        seconds = (seconds * 4.4 / seconds.mean()).clip(0.9, 12)
    return seconds


def make_corpus(folder: Path, n: int) -> None:
    """A table of utterances of noise that talk, four emotions and two speakers."""
    folder.mkdir()
    rng, rows = np.random.default_rng(1), []
    for k, seconds in enumerate([*lengths_like_iemocap(n), 2.0, 2.0]):
        soundfile.write(folder / f"{k}.wav", 0.1 * rng.standard_normal(int(16_000 * seconds)), 16_000)
        row = {"wav": f"{k}.wav", "emotion": "angry happy neutral sad".split()[k % 4], "speaker": f"s{k % 2}"}
        text = TEXT[: max(3, int(11 * seconds))]
        rows.append({**row, "transcript": text, "split": "train" if k < n else ("valid", "test")[k - n]})
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def configurations(device: str, published: int) -> dict[str, list[str]]:
    """The rows: their names and train.py's lines."""
    as_published = [f"--micro_batch_size={published}"]
    if device == "cpu":
        return {
            f"published style: fp32, {published} x {STEP // published}": as_published,
            "ours, fp32": [],
            "ours, bf16": ["--precision=bf16"],
            "… frozen front end, cached": [
                "--precision=bf16",
                "--freeze_feature_extractor=True",
                "--cache_front_end=True",
            ],
            f"a batch of {STEP} drawn at random, fp32": [f"--micro_batch_size={STEP}"],
        }
    fast = ["--precision=bf16", "--bucket_steps=64"]
    return {
        f"published style: fp32, {published} x {STEP // published}, checkpointing": [
            *as_published,
            "--gradient_checkpointing=True",
        ],
        "ours, fp32": ["--bucket_steps=64"],
        "ours, bf16": fast,
        "… compiled": [*fast, "--compile"],
        "… frozen front end, cached": [*fast, "--freeze_feature_extractor=True", "--cache_front_end=True"],
        "240 s a step, bf16": ["--precision=bf16", "--bucket_steps=16", "--batch_size=56"],
    }


# ------------------------------------------------------------------ one row


def timed(brain, loader, epoch: int, at_most: int | None = None) -> tuple[float, int]:
    """Seconds and utterances of an epoch, or of its first optimiser steps."""
    brain.train_sampler.set_epoch(epoch)
    brain.step, utterances, steps = 0, 0, 0
    brain.on_stage_start(Stage.TRAIN, epoch)
    brain.modules.train()
    start = time.perf_counter()
    for batch in loader:
        brain.step += 1
        brain.fit_batch(batch)
        utterances, steps = utterances + len(batch.id), steps + brain.micro.ends_step
        if steps == at_most:
            break
    if brain.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, utterances


def evaluated(brain, loader) -> float:
    """Utterances a second of a forward pass alone."""
    brain.modules.eval()
    start, utterances = time.perf_counter(), 0
    with torch.no_grad(), brain.evaluation_ctx:
        for batch in loader:
            brain.compute_forward(batch, Stage.VALID)["emotion"].cpu()
            utterances += len(batch.id)
    return utterances / (time.perf_counter() - start)


def measure(args, flags: list[str]) -> dict:
    """One row, in this process."""
    torch.set_num_threads(args.threads)
    fixed = [f"--data_folder={args.folder}/corpus", f"--wav2vec2_hub={args.folder}/backbone", f"--device={args.device}"]
    fixed += ["--corpus=table", "--protocol=given", "--noprogressbar", f"--results_folder={args.folder}/results"]
    fixed += [f"--output_folder={args.folder}/run{os.getpid()}", f"--batch_size={STEP}"]
    given = {flag.split("=")[0] for flag in flags}
    argv = [*(f for f in fixed if f.split("=")[0] not in given), *flags]
    setup = prepare(read_config([str(ROOT / "hparams" / "cai_mtl.yaml"), *argv], ROOT / "hparams"))
    _, brain, loaders = build(setup)
    brain.on_fit_start()
    timed(brain, loaders["train"], 1, at_most=args.warmup)
    seconds, utterances = timed(brain, loaders["train"], 2)
    found = {"utterances/s": utterances / seconds, "s": seconds, "padding": brain.train_sampler.padding_share()}
    found |= {"peak GB": peak_gb(args.device), "loss": brain.tally.means()["loss"]}
    return {**found, "evaluated/s": evaluated(brain, loaders["train"])}


def operations(args) -> float:
    """Floating-point operations of a training epoch without padding: counted at three lengths, quadratic between."""
    from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2

    lobe = Wav2Vec2(f"{args.folder}/backbone", apply_spec_augment=False)
    counted = []
    for seconds in (1, 4, 12):
        with FlopCounterMode(display=False) as counter:
            lobe(torch.randn(1, 16_000 * seconds)).sum().backward()
        counted.append(counter.get_total_flops())
    return float(np.polyval(np.polyfit((1, 4, 12), counted, 2), lengths_like_iemocap(args.utterances)).sum())


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of a large matrix product: the best of five."""
    a, best = torch.randn(size, size, device=device, dtype=dtype), float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# ------------------------------------------------------------------ all rows


def main() -> None:
    """Measure each row in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--backbone", choices=BACKBONES, default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--published", type=int, default=1, help="utterances a forward pass in the published style")
    parser.add_argument("--warmup", type=int, default=1, help="optimiser steps before the clock starts")
    parser.add_argument("--only", help="rows whose names hold this")
    parser.add_argument("--json", help="also write the figures there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one row, in a process of its own
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args, json.loads(args.measure))))
        return
    torch.set_num_threads(args.threads)
    print(machine(args.device, args.threads))
    with tempfile.TemporaryDirectory() as args.folder:
        make_corpus(Path(args.folder) / "corpus", args.utterances)
        build_tiny_wav2vec2(Path(args.folder) / "backbone", **BACKBONES[args.backbone])
        work = operations(args)
        size = 2048 if args.device == "cpu" else 8192
        rates = {p: matrix_rate(args.device, t, size) for p, t in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
        print(f"matrix product: {', '.join(f'{p} {r / 1e12:.2f} TFLOP/s' for p, r in rates.items())}")
        print(f"{args.utterances} utterances of {lengths_like_iemocap(args.utterances).mean():.1f} s: ", end="")
        print(f"{work / 1e12:.1f} TFLOP forward and backward; {STEP} utterances an optimiser step")
        columns = ["utterances/s", "padding", "peak GB", "of the matrix rate", "mean loss", "evaluated/s"]
        print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
        rows = {}
        for name, flags in configurations(args.device, args.published).items():
            if args.only and args.only not in name:
                continue
            row = rows[name] = in_own_process(args, name, flags)
            rate = rates["bf16" if "--precision=bf16" in flags else "fp32"]
            row["of the matrix rate"] = work / row["s"] / rate
            cells = f"{row['utterances/s']:.2f} | {row['padding']:.1%} | {row['peak GB']:.2f}"
            cells += f" | {row['of the matrix rate']:.1%} | {row['loss']:.4f} | {row['evaluated/s']:.2f}"
            print(f"| {name} | {cells} |", flush=True)
    if args.json:
        content = {"machine": machine(args.device, args.threads), "utterances": args.utterances, "rows": rows}
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def in_own_process(args, name: str, flags: list[str]) -> dict:
    """One row, so that its peak memory is its own."""
    options = [f"--{k}={getattr(args, k)}" for k in ("utterances", "device", "threads", "warmup", "folder")]
    command = [sys.executable, __file__, *options, f"--measure={json.dumps(flags)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
