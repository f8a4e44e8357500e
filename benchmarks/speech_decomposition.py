"""Time of a training step of the decomposition model, full size, as pre-training has it.

python benchmarks/speech_decomposition.py --threads 1
python benchmarks/speech_decomposition.py --device cuda --batch 16 --frames 128
"""

import argparse
import statistics
import time

import torch

from speechbrain_ser.lobes.speech_decomposition import (
    ContentEncoder,
    PitchEncoder,
    RhythmEncoder,
    SpeechDecomposition,
    TimbreEncoder,
)
from speechbrain_ser.nnet.losses import masked_mse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--frames", type=int, default=128, help="of the longest utterance; the others have half or more"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    encoders = {
        "content": ContentEncoder(),
        "rhythm": RhythmEncoder(),
        "pitch": PitchEncoder(),
        "timbre": TimbreEncoder(),
    }
    model = SpeechDecomposition(encoders).to(args.device)
    mel = torch.rand(args.batch, args.frames, 80, device=args.device)
    f0 = torch.rand(args.batch, args.frames, device=args.device)
    full = torch.full((args.batch,), args.frames, device=args.device)
    padded = torch.linspace(args.frames // 2, args.frames, args.batch, device=args.device).long()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {args.batch} x {args.frames} frames")
    for name, counts in (("equal lengths", full), ("half to full length", padded)):
        forward, both = zip(*(step(model, mel, f0, counts) for _ in range(args.steps + 1)), strict=True)
        print(
            f"{name}: forward {statistics.median(forward[1:]):.3f} s, with backward {statistics.median(both[1:]):.3f} s"
        )


def step(model: SpeechDecomposition, mel: torch.Tensor, f0: torch.Tensor, counts: torch.Tensor) -> tuple[float, float]:
    """Seconds of processor (CPU) or of the clock (GPU): of the forward pass, and of it with the backward pass."""
    clock = time.perf_counter if mel.is_cuda else time.process_time
    model.zero_grad()
    start = clock()
    loss = masked_mse(model(mel, f0, counts)[1], mel, counts).mean()
    loss.item()  # waits for the device
    forward = clock() - start
    loss.backward()
    if mel.is_cuda:
        torch.cuda.synchronize()
    return forward, clock() - start


if __name__ == "__main__":
    main()
