"""Ha's speaker head: exact reversal, Cai bit for bit at beta 0, and accuracy on known speakers only."""

import json
from functools import partial

import pandas as pd
import pytest
import torch

from speechbrain_ser.errors import UserError
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.ha import HaModel
from speechbrain_ser.nnet.gradient_reversal import GradientReversal, dann_schedule
from speechbrain_ser.nnet.pooling import MaskedPooling

from .test_train import folder_of, metrics_of


def test_schedule():
    layer = GradientReversal(strength=2.0, schedule="dann")
    for progress in (0.0, 0.3, 1.0):
        layer.progress = progress
        x = torch.ones(1, requires_grad=True)
        layer(x).backward()
        assert x.grad.item() == pytest.approx(-2.0 * dann_schedule(progress))
    with pytest.raises(UserError, match="did you mean 'dann'"):
        GradientReversal(schedule="dan")


def test_reversed_head_sends_the_encoder_the_exact_negative(small):
    """Through the whole model: only the speaker's loss, reversed or not."""
    wavs, lens = torch.randn(2, 4000, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 0.6])
    gradients = []
    for reversal in (True, False):
        heads = {task: partial(torch.nn.Linear, out_features=3) for task in ("emotion", "speaker")}
        weights = {"emotion": 1, "speaker": 1}
        encoder = Wav2Vec2(str(small.backbone()), apply_spec_augment=False)
        model = HaModel(encoder, MaskedPooling("mean"), heads, weights, seed=1, reversal=reversal).eval()
        loss = torch.nn.functional.cross_entropy(model((wavs, lens))["speaker"], torch.tensor([0, 2]))
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert {name.split(".")[0] for name in gradients[0]} == {"encoder", "heads"}
    for name, gradient in gradients[0].items():  # the head learns as without it
        assert torch.equal(gradient, gradients[1][name] * (-1 if name.startswith("encoder.") else 1)), name


def test_beta_0_is_cai_bit_for_bit(train):
    flags = ("--n_epochs=2", "--spec_augment=True", "--layerdrop=0.2")
    cai = folder_of(train(*flags))
    ha = folder_of(train(*flags, "--beta=0", yaml="ha_speaker_norm"))
    for name in ("epochs.csv", "predictions.csv"):
        assert (cai / name).read_bytes() == (ha / name).read_bytes()


@pytest.mark.parametrize("line", ["reversal=False", "reversal_schedule=dann"])
def test_speaker_accuracy_is_measured_on_held_out_utterances_of_known_speakers(train, line):
    out = train(f"--{line}", "--n_epochs=2", yaml="ha_speaker_norm")
    folder, found = folder_of(out), metrics_of(out)
    seen = pd.read_csv(folder / "predictions_seen.csv", dtype=str)
    speakers = json.loads((folder / "save" / "speakers.json").read_text())
    assert len(seen) == found["utterances"]["seen"] and set(seen["speaker"]) <= set(speakers)
    accuracy = (seen["speaker"] == seen["speaker_predicted"]).mean()
    assert found["selections"]["last"]["seen_speaker_accuracy"] == accuracy
    epochs = pd.read_csv(folder / "epochs.csv")
    assert epochs["seen_speaker_accuracy"].iloc[-1] == accuracy and "train_speaker_accuracy" in epochs
    assert "valid_loss_speaker" not in epochs  # nobody of the validation part is known
    assert "speaker_predicted" not in pd.read_csv(folder / "predictions.csv")


def test_no_seen_part_says_none(train):
    found = metrics_of(train("--seen_fraction=0", yaml="ha_speaker_norm"))
    assert found["selections"]["last"]["seen_speaker_accuracy"] == "none"
