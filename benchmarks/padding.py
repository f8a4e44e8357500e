"""What a step's padding is, by how many steps are drawn together and dealt by length (`bucket_steps`).

    python benchmarks/padding.py

Utterances have IEMOCAP's lengths, as many as a fold trains on; a step goes through the model at once, as on a GPU.
"""

import sys
from pathlib import Path

import numpy as np
from utterances import lengths_like_iemocap

sys.path.insert(0, str(Path(__file__).parents[1]))  # this very copy

from speechbrain_ser.data.batches import StepSampler

UTTERANCES = 3982  # of IEMOCAP's 5531: eight of ten speakers, a tenth of them held out
STEPS = (8, 16, 56)  # utterances; 56 are 240 s
BUCKETS = (1, 16, 64, 128)
EPOCHS = 5


def padding(seconds: np.ndarray, step: int, bucket: int) -> float:
    """Share of what the model is given that is padding, the mean of some epochs."""
    sampler = StepSampler(seconds, step, step, seed=1, bucket_steps=bucket)
    shares = []
    for epoch in range(1, EPOCHS + 1):
        sampler.set_epoch(epoch)
        shares.append(sampler.padding_share())
    return float(np.mean(shares))


def main() -> None:
    """Print the table."""
    seconds = lengths_like_iemocap(UTTERANCES)
    print(f"{UTTERANCES} utterances, {seconds.min():.1f} to {seconds.max():.1f} s, mean {seconds.mean():.1f}\n")
    print(
        f"| utterances a step | {' | '.join(f'bucket_steps {b}' for b in BUCKETS)} |\n| --- |{' ---: |' * len(BUCKETS)}"
    )
    for step in STEPS:
        print(f"| {step} | {' | '.join(f'{padding(seconds, step, bucket):.1%}' for bucket in BUCKETS)} |")


if __name__ == "__main__":
    main()
