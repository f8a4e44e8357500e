"""What a training step of Fu et al.'s lobe costs, and what its parts cost in other ways.

    python benchmarks/cnn_blstm_attention.py --threads=1

Prints the processor's seconds of a forward and backward pass at the paper's sizes, the least of several repeats:
spectrograms that fill their frames, spectrograms padded with -1 from a typical length (the paper's mode), the same with
their lengths given; then the BLSTM alone, fused (one length), packed and turned (two ways for several lengths).
"""

import argparse
import time
from collections.abc import Callable

import torch
from machine import machine

from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.nnet.masked import BLSTM
from speechbrain_ser.processing.lengths import frame_mask


def seconds(forward: Callable[[], torch.Tensor], repeats: int) -> float:
    """The least time of a pass."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        forward().square().sum().backward()
        times.append(time.process_time() - start)
    return min(times)


def measure_lobe(batch: int, frames: int, share: float, repeats: int) -> None:
    """Print the lobe's times."""
    lobe = CNNBLSTMAttention()
    full = torch.randn(batch, frames, 128)
    lengths = torch.linspace(max(5, (2 * share - 1) * frames), frames, batch).long()  # `share` of the frames on average
    padded = full.masked_fill(~frame_mask(lengths, frames)[:, :, None], -1.0)
    print(f"lobe, {batch} x {frames} frames")
    print(f"  full                {seconds(lambda: lobe(full), repeats):6.2f}")
    print(f"  padded with -1      {seconds(lambda: lobe(padded), repeats):6.2f}")
    print(f"  with their lengths  {seconds(lambda: lobe(full, lengths), repeats):6.2f}")


def measure_blstm(batch: int, frames: int, share: float, repeats: int) -> None:
    """Print the BLSTM's times."""
    blstm = BLSTM(512, 128, 2)
    x = torch.randn(batch, frames, 512)
    lengths = torch.linspace(max(5, (2 * share - 1) * frames), frames, batch).long()
    print(f"BLSTM, {batch} x {frames} frames")
    print(f"  fused   {seconds(lambda: blstm(x), repeats):6.2f}")
    print(f"  packed  {seconds(lambda: blstm._packed(x, lengths), repeats):6.2f}")
    print(f"  turned  {seconds(lambda: blstm._turned(x, lengths), repeats):6.2f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--frames", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--share", type=float, default=0.55, help="of the frames, an utterance's own on average")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{machine(threads=args.threads)}: seconds")
    for frames in args.frames:
        measure_lobe(args.batch, frames, args.share, args.repeats)
        measure_blstm(args.batch, frames, args.share, args.repeats)


if __name__ == "__main__":
    main()
