"""Fu's system through train.py's main: one task or two, one corpus or two, features cached or not."""

import re
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.report import build_report
from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.models.fu import FuModel
from speechbrain_ser.processing.log_mel import LogMel

from .test_train import metrics_of

#: the lines of tables/fu_table2.yaml
TWO = ["--second_corpus=emodb", "--second_labels={angry: angry, boredom: null, disgust: disgust, fear: fear, "]
TWO[1] += "happy: happy, neutral: neutral, sad: sad}"


@pytest.fixture
def fu(train, small):
    """Train Fu's narrow model on the demo corpus in SAVEE's layout."""

    def run(*flags: str, code: int = 0) -> str:
        corpora = ["--corpus=savee", f"--data_folder={small.corpus('savee')}"]
        if not any(flag.startswith("--second_data_folder") for flag in flags):
            corpora.append(f"--second_data_folder={small.corpus('emodb')}")
        return train(*corpora, *flags, yaml="fu_cross_lingual", code=code)

    return run


def model(fixed_length=40, theta=1.0, **changes) -> FuModel:
    torch.manual_seed(0)
    lobe = CNNBLSTMAttention(128, (8, 8, 8), bottleneck=8, lstm_size=8, heads=2, dropout=0.0)
    heads = {task: partial(nn.Linear, out_features=size) for task, size in (("emotion", 7), ("speaker", 4))}
    return FuModel(LogMel(), lobe, heads, {"emotion": 1.0, "speaker": theta}, fixed_length, **changes)


@pytest.mark.parametrize("fixed_length", [0, 40])
def test_a_batch_gives_what_its_utterances_give_alone(fixed_length):
    torch.manual_seed(1)
    found = model(fixed_length).eval()
    samples = [9_000, 24_000, 15_500]
    wavs = nn.utils.rnn.pad_sequence([torch.randn(n) for n in samples], batch_first=True)
    together = found(sig=(wavs, torch.tensor(samples) / max(samples)))
    for k, n in enumerate(samples):
        alone = found(sig=(wavs[k : k + 1, :n], torch.ones(1)))
        for task in ("emotion", "speaker", "embedding"):
            torch.testing.assert_close(together[task][k], alone[task][0], atol=1e-4, rtol=0)


def test_spectrograms_are_taken_as_well_as_waveforms():
    found, wavs, lens = model().eval(), torch.randn(2, 16_000), torch.tensor([1.0, 0.6])
    feats = found.features(wavs, lens)
    counts = found.features.frame_counts((lens * 16_000).round().long())
    given = found(feats=(feats, counts / feats.shape[1]))
    torch.testing.assert_close(given["emotion"], found(sig=(wavs, lens))["emotion"])


def test_theta_0_has_no_speaker_head_and_the_same_emotion_head():
    one, other = model(), model(theta=0)
    assert set(other.heads) == {"emotion"}
    assert torch.equal(one.heads["emotion"].weight, other.heads["emotion"].weight)


def test_a_random_cut_is_the_centre_when_testing():
    found, wavs, lens = model(fixed_length=10, cut="random"), torch.randn(1, 16_000), torch.ones(1)
    centre = model(fixed_length=10, cut="centre").eval()
    assert torch.equal(found.eval().spectrogram(wavs, lens)[0], centre.spectrogram(wavs, lens)[0])
    found.train()
    drawn = {found.spectrogram(wavs, lens)[0].sum().item() for _ in range(8)}
    assert len(drawn) > 1


@pytest.mark.parametrize("wrong", [{"cut": "middle"}, {"fixed_length": 3}])
def test_wrong_arguments(wrong):
    with pytest.raises(UserError, match=r"cut is|fixed_length is"):
        model(**wrong)


def test_two_tasks_on_one_corpus(fu):
    out = fu("--test_every_epoch=True", "--fixed_length=30")
    assert re.search(r"\d+ of \d+ utterances are longer than 30 frames \(0.8 s\) and cut", out)
    found = metrics_of(out)
    last = found["selections"]["last"]
    assert found["speaker_disjoint"] and "second" not in last and 0 <= last["seen_speaker_accuracy"] <= 1
    assert "speaker (seen)" in out and {"last", "valid", "test"} == set(found["selections"])
    assert found["classes"] == ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]


def test_two_corpora(fu, tmp_path):
    """The first corpus's figures stay its own; the second's held-out utterances are reported apart."""
    found = metrics_of(fu(*TWO, "--theta=0", "--fold=JE"))
    alone = metrics_of(fu("--theta=0", "--fold=JE"))
    assert found["utterances"]["test"] == alone["utterances"]["test"] and alone["utterances"]["second"] == 0
    assert found["utterances"]["train"] > alone["utterances"]["train"] and found["speaker_disjoint"]
    folder = tmp_path / "results"
    (path,) = folder.glob("**/predictions_second.csv")
    frame = pd.read_csv(path, dtype=str)
    assert len(frame) == found["utterances"]["second"] == found["selections"]["last"]["second"]["n"]
    assert set(frame["speaker"]) == {"emodb-08", "emodb-12", "emodb-16"} and "boredom" not in set(frame["emotion"])
    report = build_report(folder, allow_incomplete=True)
    table = report.tables["second"].values
    (name,) = (n for n in report.tables["figures"].values["variant"] if "second_corpus=emodb" in n)
    assert table["variant"].tolist() == [name] and table["second corpus"].tolist() == ["emodb"]
    assert table["WA"][0] == found["selections"]["last"]["second"]["WA"] and "On the second corpus" in report.console


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--second_corpus=emodb"], r"(?s)second_labels: \{angry: angry, boredom: null, .*boredom': 14"),
        (["--second_corpus=emodb", "--second_data_folder=null"], "--second_data_folder"),
        (["--second_corpus=savee", "--second_data_folder=SAVEE"], "savee twice"),
        (["--second_share=0.5"], "second_share"),
        (["--balance=[emotoin]"], "emotoin.*emotion"),
        (["--scale=decibel"], "scale"),
        (["--augment=!new:speechbrain.augment.time_domain.DropChunk"], "cache_features=False"),
        (["--augment=!new:speechbrain_ser.nnet.augment.WaveformAugmentation {room: 0}"], "cache_features=False"),
    ],
)
def test_said_before_training(fu, small, flags, said):
    flags = [flag.replace("=SAVEE", f"={small.corpus('savee')}") for flag in flags]
    assert re.search(said, fu(*flags, code=2))
