"""What a convolutional front end costs: transformers' layers, and ours.

    python benchmarks/conv_front_end.py

Prints the seconds of a forward and backward pass through all seven layers, the least of several repeats.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from machine import machine
from torch import nn
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder

sys.path.insert(0, str(Path(__file__).parents[1]))  # this very copy

from speechbrain_ser.nnet.convolution import front_end_layer


def seconds(layers: nn.Sequential, wavs: torch.Tensor, precision: str, repeats: int) -> float:
    """The least time of a pass."""
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden = layers(wavs)
        hidden.float().square().sum().backward()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def line(norm: str, channels: int, precision: str, wavs: torch.Tensor, repeats: int) -> str:
    """A row of the table."""
    config = Wav2Vec2Config(conv_dim=(channels,) * 7, conv_bias=norm == "layer", feat_extract_norm=norm)
    published = Wav2Vec2FeatureEncoder(config).conv_layers
    ours = nn.Sequential(*map(front_end_layer, published))
    theirs = seconds(nn.Sequential(*published), wavs[:, None], precision, repeats)
    mine = seconds(ours, wavs[:, :, None], precision, repeats)
    return f"| {norm} norm, {channels} channels, {precision} | {theirs:.3f} | {mine:.3f} | {mine / theirs:.2f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.4, help="of an utterance")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    wavs = torch.randn(args.batch, int(16_000 * args.seconds))
    print(machine(threads=args.threads))
    print(f"{args.batch} utterance(s) of {args.seconds} s, forward and backward, seconds\n")
    print("| | transformers | ours | ratio |\n| --- | ---: | ---: | ---: |")
    for norm in ("group", "layer"):
        for channels in args.channels:
            for precision in ("fp32", "bf16"):
                print(line(norm, channels, precision, wavs, args.repeats), flush=True)


if __name__ == "__main__":
    main()
