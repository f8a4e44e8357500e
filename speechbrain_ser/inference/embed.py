"""`speechbrain-ser embed`: a vector a recording, of a trained model or of a pretrained encoder, into one file."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from speechbrain_ser.data.batches import checked_device, load_audio
from speechbrain_ser.errors import UserError, printable
from speechbrain_ser.files import write_csv, written_whole
from speechbrain_ser.inference.predict import find_recordings
from speechbrain_ser.inference.recognizer import EmotionRecognizer, open_recognizer
from speechbrain_ser.lobes.encoder import Encoder
from speechbrain_ser.lobes.pretrained import LayerStatistics, PretrainedEncoder

SUFFIXES = (".npz", ".csv")


def embed(
    paths: Sequence[str],
    out: str,
    model: str | None = None,
    encoder: str | None = None,
    layer: int | None = None,
    recursive: bool = False,
    device: str | None = None,
    trust_run: bool = False,
    cache_folder: str = "results/cache",
) -> int:
    """Write a vector of each recording, as ``speechbrain-ser embed --help`` says it, and return 1 where some have none.

    `out` is an .npz of ``path`` [recordings] and ``embedding`` [recordings, values] (float32), or a .csv with a column
    for each value. Of a `model` it is the vector that the emotion head reads; with a `layer`, or of an `encoder`, mean
    and deviation over the recording's own frames of that state: 0 is the transformer's input, k the output of layer k.
    """
    if Path(out).suffix.lower() not in SUFFIXES:
        raise UserError(f"--out: expected a name that ends in {' or '.join(SUFFIXES)}, found {out}")
    if (model is None) == (encoder is None):
        raise UserError("expected one of --model=… (a run or a package) and --encoder=… (a hub name or a folder)")
    recordings = find_recordings(paths, recursive)
    if model is not None:
        recognizer = open_recognizer(model, trust_run, run_opts={"device": device} if device else {}, transcribe=False)
        vector = _of_model(recognizer, layer)
    else:
        lobe = Encoder(encoder, str(Path(cache_folder) / "hub"), freeze=True).eval().to(checked_device(device))
        vector = _of_layer(lobe, -1 if layer is None else layer)
    failures, found = {}, {}
    for path in tqdm(recordings, "recordings", file=sys.stderr, disable=None):
        try:
            found[path] = vector(path)
        except (UserError, RuntimeError) as error:
            failures[path] = error
    if found:
        _write(found, Path(out))
    for path, error in failures.items():
        print(printable(f"{path} has no vector: {error}"), file=sys.stderr)
    return int(bool(failures))


def _of_model(recognizer: EmotionRecognizer, layer: int | None) -> Callable[[str], np.ndarray]:
    if layer is None:
        return lambda path: recognizer.classify_file(path, embedding=True).embedding.numpy()
    lobe = getattr(recognizer.model, "encoder", None)
    if not isinstance(lobe, PretrainedEncoder):
        raise UserError("--layer: this model has no pretrained encoder; without --layer its own vector is given")
    return _of_layer(lobe, layer)


def _of_layer(lobe: PretrainedEncoder, layer: int) -> Callable[[str], np.ndarray]:
    statistics = LayerStatistics(lobe)
    n_states = len(statistics.extract(torch.zeros(lobe.min_samples)))
    if not -1 <= layer < n_states:
        raise UserError(f"--layer: expected a whole number from 0 to {n_states - 1}, found {layer}")

    def vector(path: str) -> np.ndarray:
        wav = load_audio(path)
        if len(wav) < lobe.min_samples:
            expected = f"expected {lobe.min_samples}, which make a frame"
            raise UserError(f"too short: {len(wav)} samples at 16 kHz ({expected})")
        return statistics.extract(wav)[layer].numpy()

    return vector


def _write(found: dict[str, np.ndarray], out: Path) -> None:
    values = np.stack(list(found.values())).astype(np.float32)
    if out.suffix.lower() == ".csv":
        columns = {f"v{k}": values[:, k] for k in range(values.shape[1])}
        write_csv(pd.DataFrame({"path": list(found), **columns}), out)
        return
    with written_whole(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, path=np.array(list(found)), embedding=values)
