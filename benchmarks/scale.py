"""How long a paper's whole table takes on 1, 8 and 64 devices: computed from what benchmarks/training.py measured.

    python benchmarks/training.py --json=training.json
    python benchmarks/scale.py training.json

Measured: utterances a second in training and in evaluation, of utterances with IEMOCAP's lengths. Computed: everything
else. A fold runs on one device (crossval.py, a job a run); where there are more devices than runs, a run is shared by
several (torchrun), counted as if they did not wait for each other: a bound, not a promise. Start, checkpoints and
pictures are not counted.
"""

import argparse
import json
import math
from pathlib import Path

UTTERANCES = 5531  # IEMOCAP's four classes
FOLDS = 10
SHARES = {
    "train": 0.8 * 0.9,
    "valid": 0.1,
    "test": 0.1,
    "seen": 0.8 * 0.1,
}  # leave one speaker out, 10 % of training seen
DEVICES = (1, 8, 64)
STEP = 8  # utterances an optimiser step: no more processes than that can share a run


def hours_of_a_run(row: dict, epochs: int) -> float:
    """One fold: every epoch trains and validates, the last one is tested."""
    part = {name: share * UTTERANCES for name, share in SHARES.items()}
    epoch = part["train"] / row["utterances/s"] + part["valid"] / row["evaluated/s"]
    return (epochs * epoch + (part["test"] + part["seen"]) / row["evaluated/s"]) / 3600


def hours_of_a_table(run: float, runs: int, devices: int) -> float:
    """Runs side by side, in rounds; with devices to spare, several share a run.

    Example
    -------
    >>> hours_of_a_table(1.0, runs=10, devices=1), hours_of_a_table(1.0, 10, 8), hours_of_a_table(1.0, 10, 64)
    (10.0, 2.0, 0.16666666666666666)
    """
    shared = min(max(1, devices // runs), STEP)
    return math.ceil(runs / devices) * run / shared


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="what training.py --json wrote")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1, help="of the table: alphas, heads, …")
    args = parser.parse_args()
    found = json.loads(args.measured.read_text(encoding="utf-8"))
    runs = FOLDS * args.rows
    print(f"measured: {found['machine']}, {found['utterances']} utterances")
    print(
        f"computed: IEMOCAP ({UTTERANCES} utterances), {FOLDS} folds x {args.rows} rows, {args.epochs} epochs, hours\n"
    )
    print(f"| | utterances/s (measured) | a run | {' | '.join(f'devices: {n}' for n in DEVICES)} |")
    print(f"| --- |{' ---: |' * (2 + len(DEVICES))}")
    for name, row in found["rows"].items():
        run = hours_of_a_run(row, args.epochs)
        hours = " | ".join(f"{hours_of_a_table(run, runs, n):.1f}" for n in DEVICES)
        print(f"| {name} | {row['utterances/s']:.2f} | {run:.1f} | {hours} |")


if __name__ == "__main__":
    main()
