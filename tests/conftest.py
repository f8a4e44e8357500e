"""What the tests share: small corpora, tiny backbones, one trained demo, and train.py's own main."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import settings

# the same examples in every run, however slow the machine is
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("suite")

# models of a few channels: two threads wait for each other ten times longer than they compute
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the programs that tests start

ROOT = Path(__file__).parents[1]
EMODB = Path(os.environ.get("EMODB_FOLDER", "no/EMO-DB"))  # the real corpus is never part of the project

# what makes a system's own layers narrow, and its epochs short
NARROW = {
    "fu_": {"--lobe": "{channels: [8, 8, 8], bottleneck: 8, lstm_size: 4, heads: 2}"},
    "hsu_": {
        "--sizes": "{content: {channels: 8, groups: 2, units: 2}, rhythm: {channels: 8, groups: 2}, "
        "pitch: {channels: 8, groups: 2, units: 2}, timbre: {channels: 8, groups: 2, units: 2}, "
        "single: {channels: 8, groups: 2, units: 2}, decoder: {units: 4, layers: 1}}",
        "--epoch_steps": "0",
        "--pretrain_epoch_steps": "0",
        "--pretrain_lr": "0.001",  # the lr of a run of stage 1 here
        "--crop_padding": "0",
    },
}


@dataclass
class Small:
    """Things to train on in a second."""

    folder: Path

    def corpus(self, layout: str) -> Path:
        """A demo corpus of one common sentence (and two held-out ones) in a layout."""
        from speechbrain_ser.data.corpora.demo import make_demo_corpus

        return make_demo_corpus(self.folder / layout, layout, sentences=1)

    def backbone(self, **settings) -> Path:
        """A random backbone of one narrow layer."""
        from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2

        sizes = {"hidden_size": 16, "num_layers": 1, "conv_dim": 8, "num_heads": 2, "intermediate_size": 16}
        sizes |= {"num_conv_pos_embeddings": 3, **settings}
        name = "-".join(["backbone", *(f"{k}_{v}" for k, v in settings.items())])
        return build_tiny_wav2vec2(self.folder / name, **sizes)


def pytest_collection_modifyitems(items):
    """The longest test first: one process trains the demo while the other one runs the rest."""
    items.sort(key=lambda item: item.name != "test_row[demo]")


@pytest.fixture(scope="session", autouse=True)
def _no_pip_freeze_and_few_utterances_do():
    """SpeechBrain lists every installed package for each run's env.log: seconds that tests in this process save."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speechbrain.utils.logger.get_environment_description", lambda: "not listed in tests\n")
        # the small runs' temperatures are used, though they come from seven utterances
        patch.setattr("speechbrain_ser.evaluation.calibration.FEWEST", 1)
        yield


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def table(small):
    """A user's own table over 24 kHz stereo FLAC recordings, with own column names and a split."""
    from speechbrain_ser.data import manifest

    frame = manifest.read_manifest(
        manifest.prepare("emodb", small.corpus("emodb"), small.folder / "manifests"), small.corpus("emodb")
    )
    frame = frame[frame["emotion"].isin(["angry", "sad"])].groupby("emotion").head(9).reset_index(drop=True)
    folder = small.folder / "table"
    folder.mkdir()
    for k, path in enumerate(frame["wav"]):
        wav, rate = soundfile.read(path)
        longer = np.interp(np.arange(int(len(wav) * 24000 / rate)) * rate / 24000, np.arange(len(wav)), wav)
        soundfile.write(folder / f"{k}.flac", np.stack([longer, longer], 1), 24000)
    split = ["train", "train", "train", "train", "train", "dev", "test", "test", "test"] * 2
    rows = {"path": [f"{k}.flac" for k in frame.index], "label": frame["emotion"], "who": frame["speaker"]}
    pd.DataFrame({**rows, "said": frame["transcript"], "part": split}).to_csv(
        folder / "mine.tsv", sep="\t", index=False
    )
    return folder


@pytest.fixture
def train(small, tmp_path, capfd):
    """Run train.py's main on the smallest of everything; flags come last and win."""
    import train as program
    from speechbrain_ser.training.config import _load
    from speechbrain_ser.training.run import main

    assert program.main is main  # what `python train.py` calls

    def run(*flags: str, yaml: str = "cai_mtl", code: int = 0) -> str:
        given = {flag.split("=")[0] for flag in flags}
        defaults = {
            "--corpus": "emodb",
            "--data_folder": None,
            "--encoder": None,
            "--results_folder": tmp_path / "results",
            "--manifest_folder": small.folder / "manifests",
            "--n_epochs": 1,
            "--lr": 0.001,
            "--spec_augment": False,
            "--batch_size": 8,
            "--micro_batch_size": 4,
            "--tokens": "characters",
        }
        if "--data_folder" not in given:
            defaults["--data_folder"] = small.corpus("emodb")
        if "--encoder" not in given:
            defaults["--encoder"] = small.backbone()
        path = yaml if yaml.endswith(".yaml") else str(ROOT / "hparams" / f"{yaml}.yaml")
        defaults |= next((lines for system, lines in NARROW.items() if yaml.startswith(system)), {})
        lines = _load(Path(path), ROOT / "hparams")
        argv = [f"{k}={v}" for k, v in defaults.items() if k not in given and k[2:] in lines and v is not None]
        capfd.readouterr()
        found = main([path, "--device=cpu", "--noprogressbar", *argv, *flags], ROOT / "hparams")
        out, err = capfd.readouterr()
        assert found == code, f"exit {found}, expected {code}:\n{out}\n{err}"
        return err if code else out

    return run


_runs: dict[tuple[str, ...], Path] = {}


@pytest.fixture
def trained(train, tmp_path_factory):
    """The folder of a run, trained when a test first asks for it and kept for all others: not to be written into."""

    def folder(*flags: str, yaml: str) -> Path:
        key = (yaml, *flags)
        if key not in _runs:
            out = train(f"--results_folder={tmp_path_factory.mktemp('runs')}", *flags, yaml=yaml)
            _runs[key] = Path(re.search(r"^results: (.*)$", out, re.MULTILINE).group(1))
        return _runs[key]

    return folder


@pytest.fixture(scope="session")
def emodb_folder() -> Path:
    """The real EMO-DB, where there is one."""
    if not (EMODB / "wav").is_dir():
        pytest.skip("real speech: set EMODB_FOLDER to EMO-DB's folder")
    return EMODB
