"""Training as published, and ours: utterances a second, padding, peak memory, and the share of the machine's own rate.

    python benchmarks/training.py                               # 24 utterances, wav2vec2-base (random weights)
    python benchmarks/training.py --device=cuda --utterances=512 --published=2 --side_by_side=4
    python benchmarks/training.py --backbone=tiny --utterances=96

Utterances of noise have IEMOCAP's lengths (mean 4.4 s, 0.9 to 12 s). Every row is `train.py hparams/cai_mtl.yaml` with
other lines, built and stepped as train.py does, in a process of its own; a first step of the optimiser warms it up, and
all utterances are timed. In the published style the encoder is transformers' own, called as the authors' recipes do; in
the other rows it is our lobe. The share of the machine's rate: the floating-point operations of the utterances alone
(no padding, nothing computed twice), over the seconds, over what a large matrix product reaches in the row's precision.
`--side_by_side=N` adds a row of N folds that train at the same time on one device; with `--still` nothing is drawn at
random, so that the losses of the rows can be compared.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from epoch import train_epoch
from ideal import matrix_rates, operations, rates_in_words
from machine import BASE, machine, peak_gb
from torch import nn
from transformers import AutoModel
from utterances import lengths_like_iemocap, make_corpus

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the recipes

from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2  # noqa: E402
from speechbrain_ser.lobes.wav2vec2 import DROPOUTS, Wav2Vec2  # noqa: E402
from speechbrain_ser.training.config import read_config  # noqa: E402
from speechbrain_ser.training.run import (  # noqa: E402
    build,
    prepare,
)

BACKBONES = {"base": BASE, "tiny": {}}
#: no dropout, layer drop or SpecAugment: as lines of ours, and as settings of transformers
STILL = ("--dropout=0", "--layerdrop=0", "--spec_augment=False")
STILL_SETTINGS = dict.fromkeys(("layerdrop", *DROPOUTS), 0.0) | {"apply_spec_augment": False}
STEP = 8  # utterances an optimiser step, in every row but the one that says so


@dataclass(frozen=True)
class Row:
    """A line of the table: train.py's lines, how many such trainings run at the same time, and whose encoder."""

    name: str
    flags: tuple[str, ...] = ()
    processes: int = 1
    published: bool = False

    @property
    def precision(self) -> str:
        """Whose matrix rate it is compared with."""
        return "bf16" if "--precision=bf16" in self.flags else "fp32"


def rows_of(device: str, published: int, side_by_side: int) -> list[Row]:
    """The table's lines."""
    style = f"published style: fp32, {published} x {STEP // published}"
    as_published = (f"--micro_batch_size={published}",)
    cached = ("--freeze_feature_extractor=True", "--cache_front_end=True")
    if device == "cpu":
        fast = ("--precision=bf16",)
        rows = [
            Row(style, as_published, published=True),
            Row("ours, fp32"),
            Row("ours, bf16", fast),
            Row("… frozen front end, cached", (*fast, *cached)),
            Row(f"a batch of {STEP} drawn at random, fp32", (f"--micro_batch_size={STEP}",)),
        ]
    else:
        fast = ("--precision=bf16", "--bucket_steps=64")
        rows = [
            Row(f"{style}, checkpointing", (*as_published, "--gradient_checkpointing=True"), published=True),
            Row("ours, fp32", ("--bucket_steps=64",)),
            Row("ours, bf16", fast),
            Row("… compiled", (*fast, "--compile")),
            Row("… frozen front end, cached", (*fast, *cached)),
            Row("240 s a step, bf16", ("--precision=bf16", "--bucket_steps=16", "--batch_size=56")),
        ]
    return rows + [Row(f"ours, bf16, {side_by_side} folds side by side", fast, side_by_side)] * (side_by_side > 1)


# ------------------------------------------------------------------ one row


class PublishedEncoder(nn.Module):
    """transformers' model on normalised waveforms: no masks, none of our layers."""

    def __init__(self, folder: str, checkpointing: bool, settings: dict):
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, **settings)
        if checkpointing:
            self.model.gradient_checkpointing_enable()

    def frame_counts(self, n_samples: torch.Tensor) -> torch.Tensor:
        """Frames of so many samples."""
        return self.model._get_feat_extract_output_lengths(n_samples)

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """[batch, time] -> [batch, frames, channels]; lengths are not looked at."""
        wavs = (wavs - wavs.mean(1, keepdim=True)) / (wavs.var(1, correction=0, keepdim=True) + 1e-7).sqrt()
        return self.model(wavs).last_hidden_state


def evaluated(brain, loader) -> float:
    """Utterances a second of a forward pass alone."""
    brain.modules.eval()
    start, utterances = time.perf_counter(), 0
    with torch.no_grad(), brain.evaluation_ctx:
        for batch in (micro for step in loader for micro in step):
            utterances += len(brain.compute_forward(batch, None)["emotion"].cpu())
    return utterances / (time.perf_counter() - start)


def measure(args, flags: list[str]) -> dict:
    """A training's figures, in this process; the clock starts when standard input says so."""
    torch.set_num_threads(args.threads)
    hub, checkpointing = f"{args.folder}/backbone", "--gradient_checkpointing=True" in flags
    lines = {"--data_folder": f"{args.folder}/corpus", "--encoder": hub, "--seen_fraction": 0}
    lines |= {"--corpus": "table", "--protocol": "given", "--device": args.device, "--batch_size": STEP}
    lines |= {"--results_folder": f"{args.folder}/results", "--output_folder": f"{args.folder}/run{os.getpid()}"}
    argv = ["--noprogressbar", *(f"{name}={value}" for name, value in lines.items()), *flags]  # the last one counts
    argv += STILL if args.still else ()
    setup = prepare(read_config([str(ROOT / "hparams" / "cai_mtl.yaml"), *argv], ROOT / "hparams"))
    brain = build(setup)[1]
    if args.published_encoder:
        settings = STILL_SETTINGS if args.still else {}
        # in both places, or ours would still be in memory
        brain.hparams.encoder = brain.model.encoder = PublishedEncoder(hub, checkpointing, settings).to(brain.device)
    brain.on_fit_start()
    train_epoch(brain, brain.loaders["train"], 1, at_most=args.warmup)
    print("ready", flush=True)
    sys.stdin.readline()
    took = train_epoch(brain, brain.loaders["train"], 2)
    found = {"utterances": took.utterances, "s": took.seconds, "padding": brain.train_sampler.padding_share()}
    found |= {"peak GB": peak_gb(args.device), "loss": brain.tally.means()["loss"]}
    return {**found, "evaluated/s": evaluated(brain, brain.loaders["train"])}


class Process:
    """A training of a row, so that its peak memory is its own."""

    def __init__(self, args, row: Row):
        options = [f"--{k}={getattr(args, k)}" for k in ("device", "threads", "warmup", "folder")]
        command = [sys.executable, __file__, *options, f"--measure={json.dumps(row.flags)}"]
        command += ["--published_encoder"] * row.published + ["--still"] * args.still
        self.name, self.log = row.name, tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(command, text=True, **pipes)

    def wait_until_ready(self) -> None:
        """Built and warmed up."""
        if all(line.strip() != "ready" for line in self.process.stdout):
            self._fail()

    def start(self) -> None:
        """Start its clock."""
        print("go", file=self.process.stdin, flush=True)

    def figures(self) -> dict:
        """What it has measured."""
        said = self.process.stdout.read().splitlines()
        if self.process.wait():
            self._fail()
        return json.loads(said[-1])

    def _fail(self) -> None:
        status = self.process.wait()
        self.log.seek(0)
        sys.exit(f"{self.name}: ended with status {status}\n{self.log.read()}")


def measured(args, row: Row) -> dict:
    """A row's figures: those of all its trainings together."""
    processes = [Process(args, row) for _ in range(row.processes)]
    for process in processes:
        process.wait_until_ready()
    for process in processes:
        process.start()
    found = [process.figures() for process in processes]
    total = {"s": max(f["s"] for f in found), "utterances": sum(f["utterances"] for f in found)}
    total |= {name: sum(f[name] for f in found) for name in ("peak GB", "evaluated/s")}
    return {**found[0], **total, "utterances/s": total["utterances"] / total["s"]}


# ------------------------------------------------------------------ all rows


def main() -> None:
    """Measure each row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--backbone", choices=BACKBONES, default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--published", type=int, default=1, help="utterances a forward pass in the published style")
    parser.add_argument("--side_by_side", type=int, default=1, help="folds that train at the same time, in a last row")
    parser.add_argument("--still", action="store_true", help="no dropout, layer drop or SpecAugment")
    parser.add_argument("--warmup", type=int, default=1, help="optimiser steps before the clock starts")
    parser.add_argument("--only", nargs="+", help="rows whose names hold one of these")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one training, in a process of its own
    parser.add_argument("--published_encoder", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args, json.loads(args.measure))))
        return
    torch.set_num_threads(args.threads)
    seconds = lengths_like_iemocap(args.utterances)
    print(machine(args.device, args.threads))
    with tempfile.TemporaryDirectory() as args.folder:
        parts = ["train"] * args.utterances + ["valid", "test"]
        make_corpus(Path(args.folder) / "corpus", [*seconds, 2.0, 2.0], parts)
        build_tiny_wav2vec2(Path(args.folder) / "backbone", **BACKBONES[args.backbone])
        # the count does not know every fused attention
        lobe = Wav2Vec2(f"{args.folder}/backbone", apply_spec_augment=False, attn_implementation="eager")
        work = operations(lambda wav: lobe(wav).sum().backward(), seconds)
        rates = matrix_rates(args.device)
        print(rates_in_words(rates))
        print(f"{args.utterances} utterances of noise, mean {seconds.mean():.1f} s, {seconds.min():.1f} to ", end="")
        print(f"{seconds.max():.1f} s; {work / 1e12:.1f} TFLOP forward and backward; {STEP} an optimiser step\n")
        columns = ["utterances/s", "padding", "peak GB", "of the matrix rate", "mean loss", "evaluated/s"]
        print(f"| | {' | '.join(columns)} |\n| --- | {' | '.join(['---:'] * len(columns))} |", flush=True)
        found = {}
        for row in rows_of(args.device, args.published, args.side_by_side):
            if args.only and not any(words in row.name for words in args.only):
                continue
            f = found[row.name] = measured(args, row)
            f["of the matrix rate"] = row.processes * work / f["s"] / rates[row.precision]
            cells = f"{f['utterances/s']:.2f} | {f['padding']:.1%} | {f['peak GB']:.2f}"
            cells += f" | {f['of the matrix rate']:.1%} | {f['loss']:.5f} | {f['evaluated/s']:.2f}"
            print(f"| {row.name} | {cells} |", flush=True)
    if args.json:
        content = {"machine": machine(args.device, args.threads), "utterances": args.utterances, "rows": found}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
