"""What a layer-norm front end costs: transformers' layers, and ours in both memory orders.

    python benchmarks/conv_front_end.py --threads=1

Prints the seconds of a forward and backward pass through all seven layers, the least of several repeats.
"""

import argparse
import time

import pandas as pd
import torch
from machine import machine
from torch import nn
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2LayerNormConvLayer

from speechbrain_ser.nnet import layer_norm_conv
from speechbrain_ser.nnet.layer_norm_conv import LayerNormConvLayer


def seconds(layers: nn.Sequential, wavs: torch.Tensor, repeats: int) -> float:
    """The least time of a pass."""
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        layers(wavs).square().sum().backward()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(channels: int, wavs: torch.Tensor, repeats: int) -> dict:
    """A row of the table."""
    config = Wav2Vec2Config(conv_dim=(channels,) * 7, conv_bias=True)
    published = [Wav2Vec2LayerNormConvLayer(config, layer) for layer in range(7)]
    ours = nn.Sequential(*map(LayerNormConvLayer, published))
    row = {"channels": channels, "published": seconds(nn.Sequential(*published), wavs, repeats)}
    for name, widest in (("transposed", 0), ("channels last", 10_000)):
        layer_norm_conv.WIDEST_CHANNELS_LAST = widest
        row[name] = seconds(ours, wavs, repeats)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.8, help="of an utterance")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    wavs = torch.randn(args.batch, 1, int(16_000 * args.seconds))
    table = pd.DataFrame([measure(channels, wavs, args.repeats) for channels in args.channels])
    print(machine(threads=args.threads))
    print(f"{args.batch} utterances of {args.seconds} s, forward and backward, seconds")
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
