"""Cai's model and losses against the published program, each utterance of a padded batch as if it were alone."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speechbrain_ser.errors import UserError
from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.models.fu import FuModel
from speechbrain_ser.models.ha import HaModel
from speechbrain_ser.models.heads import active_tasks
from speechbrain_ser.nnet.losses import ctc_loss, frames_needed
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.log_mel import LogMel

DATA = Path(__file__).parent / "data" / "cai_tiny"
HEADS = {"emotion": functools.partial(torch.nn.Linear, out_features=4)}
HEADS["asr"] = functools.partial(torch.nn.Linear, out_features=32)
PUBLISHED = {"emotion": "cls_head", "asr": "lm_head"}


def model(folder=DATA / "w2v", weights=None, **kwargs):
    weights = weights or {"emotion": 1, "asr": 0.1}
    return CaiModel(Wav2Vec2(str(folder)), MaskedPooling("mean"), HEADS, weights, **kwargs)


@pytest.fixture(scope="module")
def published():
    net = model().eval()
    tensors = load_file(DATA / "heads.safetensors")
    for task, name in PUBLISHED.items():
        net.heads[task].load_state_dict({k: tensors[f"{name}.{k}"] for k in ("weight", "bias")})
    return net


def test_a_padded_batch_gives_the_published_program_s_single_results(published):
    batch, expected = np.load(DATA / "batch.npz"), np.load(DATA / "expected.npz")
    wavs, lengths = torch.tensor(batch["wavs"]), torch.tensor(batch["lengths"])
    targets = [torch.tensor(t[t >= 0]) for t in batch["ctc_targets"]]
    with torch.no_grad():
        out = published((wavs, lengths / wavs.shape[1]))
        hidden = published.encoder(wavs, lengths / wavs.shape[1])
    ce = torch.nn.functional.cross_entropy(out["emotion"], torch.tensor(batch["emo"]), reduction="none")
    ctc = ctc_loss(out["asr"], out["frames"], targets)
    for i, frames in enumerate(out["frames"].tolist()):
        found = {
            "last_hidden_state": hidden[i, None, :frames],
            "emotion_logits": out["emotion"][i, None],
            "ctc_logits": out["asr"][i, None, :frames],
            "pooled": out["embedding"][i, None],
            "ce": ce[i],
            "ctc": ctc[i],
            "total": ce[i] + 0.1 * ctc[i],
        }
        for name, value in found.items():
            single = torch.from_numpy(expected[f"single{i}_{name}"])
            torch.testing.assert_close(value, single.reshape(value.shape), rtol=0, atol=1e-4)
    # the published program's own batch, without a mask, is something else
    assert np.abs(expected["batch_emotion_logits"] - out["emotion"].numpy()).max() > 0.1


def test_a_task_of_weight_0_is_not_built_and_changes_no_draw(small):
    torch.manual_seed(5)
    both = model(small.backbone(), seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    one = model(small.backbone(), {"emotion": 1, "asr": 0}, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert list(one.heads) == ["emotion"] and list(both.heads) == ["emotion", "asr"]
    assert torch.equal(one.heads["emotion"].weight, both.heads["emotion"].weight)
    other = model(small.backbone(), seed=4)
    assert not torch.equal(other.heads["emotion"].weight, both.heads["emotion"].weight)
    assert "asr" not in one((torch.randn(1, 800), torch.ones(1)))


@pytest.mark.parametrize("kind", [CaiModel, HaModel, FuModel])
def test_a_further_head_reads_the_utterances_vector(small, kind):
    """A line of `heads` and one of `loss_weights`, and no model knows of it."""
    heads = {**HEADS, "gender": functools.partial(torch.nn.Linear, out_features=2)}
    encoder, pooling = Wav2Vec2(str(small.backbone())), MaskedPooling("mean")
    weights = {"emotion": 1, "asr": 0, "gender": 0.5}
    if kind is FuModel:
        lobe = CNNBLSTMAttention(channels=(8, 8, 8), bottleneck=8, lstm_size=4, heads=2)
        net = FuModel(LogMel(), lobe, heads, weights, cached=False).eval()
    else:
        net = kind(encoder, pooling, heads, weights).eval()
    out = net(sig=(torch.randn(2, 8000), None))
    assert list(net.heads) == ["emotion", "gender"] and out["gender"].shape == (2, 2)
    assert torch.equal(out["gender"], net.heads["gender"](out["embedding"]))
    net.keep_tasks({"asr"})
    assert list(net.heads) == ["emotion"]
    wrongs = (({"emotion": 1, "age": 1}, "unknown task 'age'"), ({"gender": 1}, "without the emotion task"))
    for wrong, said in (*wrongs, ({"emotion": 1}, "no line for the head 'gender' .0 leaves it out")):
        with pytest.raises(UserError, match=said):
            CaiModel(encoder, pooling, heads, wrong)
    with pytest.raises(UserError, match="heads: no model can be built without one for task 'asr', found emotion"):
        CaiModel(encoder, pooling, {"emotion": HEADS["emotion"]}, {"emotion": 1, "asr": 1})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"emotoin": 1}, "did you mean 'emotion'"),
        ({"emotion": -1}, "must be a number >= 0"),
        ({"emotion": float("nan")}, "must be a number >= 0"),
        ({"emotion": "much"}, "must be a number >= 0"),
        ({"emotion": 0, "asr": 0}, "nothing would be trained"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(UserError, match=message):
        active_tasks(weights, ("emotion", "asr"))


def test_ctc_of_an_utterance_without_words_and_of_one_too_short():
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    found = ctc_loss(logits, torch.tensor([2, 2]), [torch.tensor([], dtype=torch.long), torch.tensor([1, 1])])
    torch.testing.assert_close(found[0], -logits[0].log_softmax(-1)[:, 0].sum())  # blanks only
    assert found[1] == 0 and frames_needed([1, 1]) == 3
