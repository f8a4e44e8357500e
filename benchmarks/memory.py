"""Whether the memory of a training process grows: its resident size after each of 200 epochs, as a picture.

    python benchmarks/memory.py --picture=benchmarks/memory.png
    python benchmarks/memory.py --forget                        # without the table of epochs, which every epoch adds to

The demo's system on a demo corpus of few utterances, with a backbone so small that an epoch takes a second: validation,
test of every epoch, logs and checkpoints are there as in any training. What the allocator keeps for later (up to 20 MB,
by chance) is given back before each look. Takes train.py's own options, too.
"""

import ctypes
import gc
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import machine
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this very copy, and the recipes

from speechbrain_ser.data.corpora.demo import make_demo_corpus  # noqa: E402
from speechbrain_ser.evaluation.figures import save_figure  # noqa: E402
from speechbrain_ser.training.config import read_config  # noqa: E402
from speechbrain_ser.training.run import (  # noqa: E402
    build,
    prepare,
)

WARM_UP = 50  # epochs until caches, pools and the allocator have what they need
SIZES = "{hidden_size: 16, num_layers: 1, conv_dim: 8, num_heads: 2, intermediate_size: 16, num_conv_pos_embeddings: 3}"


def resident() -> float:
    """Megabytes of this process that are in memory, without what the allocator keeps for later."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(argv: list[str], forget: bool = False) -> list[float]:
    """Resident megabytes after each epoch of a run, which may forget its earlier epochs' figures."""
    setup = prepare(read_config(argv, ROOT / "hparams"))
    hparams, brain = build(setup)
    sizes: list[float] = []

    def look(meta, parts) -> None:
        if forget:
            del brain.history.rows[:-1]
        sizes.append(resident())

    brain.log_to.append(look)
    brain.fit(hparams["epoch_counter"], brain.loaders["train"], brain.loaders["valid"])
    return sizes


def slope(sizes: list[float]) -> float:
    """Megabytes that 100 epochs add, after the warm-up (least squares)."""
    later = sizes[WARM_UP:]
    return 100 * float(np.polyfit(np.arange(len(later)), later, 1)[0])


def draw(sizes: list[float], title: str) -> Figure:
    """Size against epoch, from 0, that a growth looks as large as it is."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    axes.plot(range(1, len(sizes) + 1), sizes)
    axes.axvline(WARM_UP, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="epoch", ylabel="resident memory (MB)", title=title, ylim=(0, 1.15 * max(sizes)))
    return figure


def main() -> None:
    """Train in a temporary folder; print the figures, write the picture."""
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    picture, forget = Path(given.pop("--picture", "memory.png")), given.pop("--forget", None) is not None
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_demo_corpus(Path(folder) / "corpus", sentences=1)
        lines = {"--data_folder": corpus, "--encoder": f"{folder}/backbone", "--build_backbone": SIZES}
        lines |= {"--output_folder": f"{folder}/run", "--manifest_folder": f"{folder}/manifests"}
        lines |= {"--cache_folder": f"{folder}/cache", "--n_epochs": 200, "--device": "cpu", **given}
        argv = [str(ROOT / "hparams" / "demo.yaml"), "--noprogressbar", *(f"{k}={v}" for k, v in lines.items())]
        sizes = measure(argv, forget)
    growth = f"{slope(sizes):+.2f} MB in 100 epochs"
    save_figure(draw(sizes, f"{len(sizes)} epochs; after the first {WARM_UP}: {growth}"), picture)
    print(machine())
    marks = [1, 10, WARM_UP, 100, 150, len(sizes)]
    print("resident MB after epoch " + ", ".join(f"{k}: {sizes[k - 1]:.1f}" for k in marks if k <= len(sizes)))
    print(f"after epoch {WARM_UP}: {growth}, the largest {max(sizes[WARM_UP:]):.1f} MB; picture: {picture}")


if __name__ == "__main__":
    main()
