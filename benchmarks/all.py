"""The benchmarks of training, inference, features and preparation, one after the other, in one file.

    python benchmarks/all.py --data_folder=/corpora/EMO-DB/wav                # on 2 cores 20 minutes
    python benchmarks/all.py --device=cuda --out=gpu.md
    python benchmarks/all.py --quick --out=quick.md                           # small: whether all of them run

Writes results.md beside this file: a section each, with its command, the machine, the date, and its table. Whatever
else the machine does at the same time makes the figures worse: the load before each benchmark stands beside it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this very copy

from speechbrain_ser.files import write_text  # noqa: E402

HEADER = "# Results\n\nWritten by `{command}`; what each benchmark measures, its first lines say.\n"


@dataclass
class Section:
    """A benchmark: its heading, its script and arguments."""

    heading: str
    script: str
    arguments: list[str] = field(default_factory=list)

    def run(self) -> tuple[str, int]:
        """What it prints, which is shown as it comes, and its exit status."""
        command = [sys.executable, f"benchmarks/{self.script}", *self.arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            lines = []
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        return "".join(lines), process.returncode

    def command(self) -> str:
        """As a user types it."""
        words = [f'"{word}"' if " " in word else word for word in self.arguments]
        return " ".join(["python", f"benchmarks/{self.script}", *words])


def sections(args, measured: str) -> list[Section]:
    """All benchmarks, for a machine."""
    speech = [] if args.data_folder is None else [args.data_folder]
    gpu = args.device.startswith("cuda")
    training = [f"--device={args.device}", f"--json={measured}"]
    if gpu:
        training += ["--utterances=512", "--published=2", "--side_by_side=4"]
    if args.quick:
        training += ["--backbone=tiny", "--utterances=16"]
    epoch = ["hparams/fu_cross_lingual.yaml", f"--device={args.device}"]
    inference = [f"--data_folder={folder}" for folder in speech]
    inference += ["--files=6", "--rounds=1", "--only", "ours fp32, batches"] if args.quick else ["--files=200"]
    return [
        Section("Training: Cai's system", "training.py", training),
        Section("A whole table, computed from that", "scale.py", [measured]),
        Section("An epoch of Fu's system", "epoch.py", epoch),
        Section("… bf16", "epoch.py", [*epoch, "--precision=bf16"]),
        Section("Inference", "inference.py", inference),
        Section("The convolutional front end", "conv_front_end.py", ["--repeats=1"] if args.quick else []),
        Section("Features", "features.py", speech),
        Section("Frozen Whisper", "whisper.py", [*speech, *(["--files=4"] if args.quick else [])]),
        Section("Preparation", "prepare.py"),
    ]


def in_words(section: Section, printed: str, status: int, load: float) -> str:
    """A section of the file."""
    failed = f"\nFAILED with exit status {status}\n" if status else ""
    return f"\n## {section.heading}\n\n`{section.command()}` (load before: {load:.1f})\n\n{printed.strip()}\n{failed}"


def main() -> int:
    """Run all; the file is there from the first one on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_folder", help="WAV files of speech, at any depth; none: noise")
    parser.add_argument("--device", default="cpu", help="of training; cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="few and small")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.md"))
    args = parser.parse_args()
    text, failed = HEADER.format(command=" ".join(["python benchmarks/all.py", *sys.argv[1:]])), 0
    with tempfile.TemporaryDirectory() as folder:
        todo = sections(args, f"{folder}/training.json")
        for k, section in enumerate(todo, 1):
            print(f"\n[{k}/{len(todo)}] {section.heading}: {section.command()}", flush=True)
            load = os.getloadavg()[0]
            printed, status = section.run()
            text += in_words(section, printed, status, load).replace(f"{folder}/", "")
            failed += status != 0
            write_text(text, args.out)
    print(f"\nresults: {args.out}" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
