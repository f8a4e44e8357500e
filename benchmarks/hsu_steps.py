"""What a training step of Hsu et al.'s two stages costs, and what each task that is removed in the YAML saves.

    python benchmarks/hsu_steps.py                          # full size: SpeechSplit's encoders, wav2vec2-base (random)
    python benchmarks/hsu_steps.py --backbone=128 --only=stage2

Models are built from hparams/hsu_pretrain.yaml and hparams/hsu_mtl.yaml as train.py builds them. Every line of the
table is a process of its own, so that its peak memory is its own; a step is forward pass, losses, backward pass, Adam.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import BASE, machine, peak_gb
from speechbrain.dataio.batch import PaddedData

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the recipes

from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2  # noqa: E402
from speechbrain_ser.nnet.losses import (  # noqa: E402
    cross_entropy,
    ctc_loss,
    reconstruction_loss,
)
from speechbrain_ser.training.config import read_config  # noqa: E402

STAGE_1 = {
    "stage 1 (16 pieces of 64-128 in 192 frames)": [],
    "… without the silence": ["--crop_padding=0"],
    "… without the speaker (omega 0)": ["--omega=0"],
    "… one autoencoder (M4's)": ["--omega=0", "--parts=[single]"],
}
NO_DECODER = ["--a_MSE=0"]
STAGE_2 = {
    "stage 2, all four tasks": [],
    "… without ASR (M3)": ["--a_CTC=0"],
    "… without the speaker": ["--a_S=0"],
    "… without the reconstruction": NO_DECODER,
    "… only rhythm read, and no other task": [*NO_DECODER, "--a_CTC=0", "--a_S=0", "--emotion_reads=[rhythm]"],
    "… one autoencoder (M4)": ["--parts=[single]", "--a_S=0"],
    "… wav2vec2 and ASR (M2, Cai)": [*NO_DECODER, "--a_S=0", "--parts=[]"],
    "… wav2vec2 alone (M1)": [*NO_DECODER, "--a_S=0", "--a_CTC=0", "--parts=[]"],
}


def build(stage: int, lines: list[str], backbone: str, folder: str) -> dict:
    """What the YAML declares, for 4 emotions, 32 tokens and 8 speakers."""
    yaml = ROOT / "hparams" / ("hsu_pretrain.yaml" if stage == 1 else "hsu_mtl.yaml")
    more = [f"--encoder={backbone}", "--spec_augment=False"] if stage == 2 else []
    config = read_config([str(yaml), f"--data_folder={folder}", *more, *lines], ROOT / "hparams")
    sizes = {"n_emotions": 4, "n_tokens": 32, "n_speakers": 8}
    return config.build({k: v for k, v in sizes.items() if k in config.tree})


def batch(inputs, utterances: int, seconds: float) -> dict[str, PaddedData]:
    """Noise of the right shapes."""
    n, frames = int(16_000 * seconds), int(16_000 * seconds) // 256 + 1
    shapes = {"sig": (n,), "mel": (frames, 80), "f0": (frames,)}
    return {name: PaddedData(torch.rand(utterances, *shapes[name]), torch.ones(utterances)) for name in inputs}


def loss_of(outputs: dict, weights: dict) -> torch.Tensor:
    """The weighted losses of the tasks that there are."""
    total = 0.0
    if "emotion" in outputs:
        total = total + weights["emotion"] * cross_entropy(outputs["emotion"], torch.zeros(1, dtype=torch.long))
    if "asr" in outputs:
        said = [torch.arange(1, 31)]
        total = total + weights["asr"] * ctc_loss(outputs["asr"], outputs["frames"], said)
    if "reconstruction" in outputs:
        total = total + weights["reconstruction"] * reconstruction_loss(outputs)
    if "speaker" in outputs:
        speaker = torch.zeros(len(outputs["speaker"]), dtype=torch.long)
        total = total + weights["speaker"] * cross_entropy(outputs["speaker"], speaker)
    return total.mean()


def measure(stage: int, lines: list[str], args) -> dict:
    """Seconds of the fastest step, parameters and peak memory, in this process."""
    torch.set_num_threads(args.threads)
    hparams = build(stage, lines, args.backbone_folder, args.folder)
    model = hparams["model"].train()
    optimizer = hparams["opt_class"](model.parameters())
    inputs = batch(model.inputs, 16 if stage == 1 else 1, args.seconds)
    clock, processor = [], []
    for _ in range(args.steps + 1):
        start, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            loss = loss_of(model(**inputs), hparams["loss_weights"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
    return {
        "s": min(clock[1:]),
        "cpu_s": min(processor[1:]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_gb": peak_gb(),
    }


def main() -> None:
    """Measure each line in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.4, help="of an utterance (IEMOCAP's mean: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backbone", type=int, default=768, help="width of wav2vec2; 768: base, else a tiny one")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--only", choices=("stage1", "stage2"), help="one of the stages")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)  # one line, in a process of its own
    parser.add_argument("--backbone_folder", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        stage, *lines = json.loads(args.measure[0])
        print(json.dumps(measure(stage, lines, args)))
        return
    precision = "bf16" if args.bf16 else "fp32"
    print(machine(threads=args.threads))
    print(f"{precision}, utterances of {args.seconds} s; the fastest of {args.steps} steps")
    print(f"{'':46}{'s a step':>9}{'cpu s':>8}{'parameters':>13}{'peak GB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        sizes = BASE if args.backbone == 768 else {"hidden_size": args.backbone}
        backbone = build_tiny_wav2vec2(Path(folder) / "backbone", **sizes)
        jobs = [(1, n, v) for n, v in STAGE_1.items()] + [(2, n, v) for n, v in STAGE_2.items()]
        for stage, name, lines in jobs:
            if args.only and args.only != f"stage{stage}":
                continue
            command = [sys.executable, *sys.argv, f"--backbone_folder={backbone}", f"--folder={folder}"]
            command += ["--measure", json.dumps([stage, *lines])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name}:\n{done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:46}{found['s']:9.2f}{found['cpu_s']:8.2f}{found['parameters']:13,}{found['peak_gb']:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
