"""Pooling sees an utterance's own frames only."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from speechbrain.lobes.models.ECAPA_TDNN import AttentiveStatisticsPooling

from speechbrain_ser.inference.export import export_run
from speechbrain_ser.inference.recognizer import EmotionRecognizer, load_model
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.nnet.pooling import MODES, WIDTHS, MaskedPooling
from speechbrain_ser.processing.lengths import frame_mask

from .test_inference import CPU

COUNTS = torch.tensor([7, 3, 1])


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))  # [batch, frames, channels]


def pooling_of(mode: str, channels: int = 5) -> MaskedPooling:
    """Ready for these frames, whose own the attention tells apart."""
    pooling = MaskedPooling(mode)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert pooling.set_up(channels) == channels * WIDTHS[mode]
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.mul_(3)
    return pooling.train()


@pytest.mark.parametrize(
    ("mode", "definition"),
    [
        ("mean", lambda own: own.mean(dim=0)),
        ("sum", lambda own: own.sum(dim=0)),
        ("mean_std", lambda own: torch.cat([own.mean(dim=0), own.std(dim=0, correction=0)])),
        (
            "percentiles",
            lambda own: torch.cat(
                [own.mean(dim=0), own.std(dim=0, correction=0), *own.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0)]
            ),
        ),
    ],
)
def test_definitions(frames, mode, definition):
    singles = torch.stack([definition(frames[i, :count]) for i, count in enumerate(COUNTS)])
    torch.testing.assert_close(pooling_of(mode)(frames, COUNTS), singles, rtol=1e-5, atol=2e-6)  # sqrt(1e-12)


def test_attentive_is_speechbrains_without_its_batch_norm(frames):
    pooling, theirs = pooling_of("attentive"), AttentiveStatisticsPooling(5).eval()
    theirs.load_state_dict(pooling.attention.state_dict(), strict=False)
    theirs.tdnn.norm = torch.nn.Identity()
    for row, own in zip(pooling(frames, COUNTS), (frames[i, :count] for i, count in enumerate(COUNTS)), strict=True):
        torch.testing.assert_close(row, theirs(own.T[None])[0, :, 0])
    mean_std = pooling_of("mean_std")(frames, COUNTS)
    assert (pooling(frames, COUNTS) - mean_std)[:2].abs().max() > 0.1  # it does weigh the frames


@pytest.mark.parametrize("mode", MODES)
def test_a_padded_batch_gives_the_singles_and_their_gradients(mode):
    """In training, for lengths up to 20 s; NaN on padding, one frame, and frames all the same give no NaN."""
    counts = torch.tensor([999, 1, 998, 149, 2, 37])
    x = torch.randn(len(counts), 999, 16, generator=torch.Generator().manual_seed(0))
    x[4] = x[4, :1]
    x = x.masked_fill(~frame_mask(counts, 999)[:, :, None], float("nan"))
    pooling = pooling_of(mode, 16)

    def run(x, counts):
        x = x.clone().requires_grad_()
        pooling.zero_grad()
        pooled = pooling(x, counts)
        pooled.square().sum().backward()
        return pooled.detach(), x.grad, [p.grad.clone() for p in pooling.parameters()]

    pooled, gradient, learned = run(x, counts)
    singles = [run(x[i : i + 1, :count], counts[i : i + 1]) for i, count in enumerate(counts.tolist())]
    scale = pooled.abs().max()
    for i, (alone, own, _) in enumerate(singles):
        torch.testing.assert_close(pooled[i] / scale, alone[0] / scale, rtol=0, atol=1e-4)
        torch.testing.assert_close(gradient[i, : own.shape[1]], own[0], rtol=1e-4, atol=1e-4)
        assert not gradient[i, own.shape[1] :].any() and own.isfinite().all()
    for k, parameter in enumerate(learned):
        torch.testing.assert_close(parameter, sum(each[2][k] for each in singles), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_summed_in_float32(frames, mode):
    ones = torch.ones(1, 3000, 2, dtype=torch.bfloat16)  # bfloat16 stops counting at 256
    assert MaskedPooling("sum")(ones, torch.tensor([2999])).tolist() == [[2999.0, 2999.0]]
    pooling = pooling_of(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pooling(frames, COUNTS)
    assert pooled.dtype == torch.float32
    rough = 0.05 if mode == "attentive" else 1e-6  # its layers alone compute in half precision
    torch.testing.assert_close(pooled, pooling(frames, COUNTS), rtol=0, atol=rough)


@pytest.mark.parametrize(
    ("mode", "counts", "message"),
    [
        ("max", [7, 3, 1], "'max', expected one of mean, sum, mean_std, percentiles, attentive"),
        ("attentive", [7, 3, 1], "call set_up"),
        ("mean", [7, 3], r"found \[3, 7, 5\] and \[2\]"),
        ("mean", [7, 0, 1], "1 to 7, found 0 to 7"),
        ("mean", [8, 3, 1], "1 to 7, found 1 to 8"),
    ],
)
def test_what_cannot_be_pooled(frames, mode, counts, message):
    with pytest.raises(ValueError, match=message):
        MaskedPooling(mode)(frames, torch.tensor(counts))


HSU = pytest.param("hsu_mtl", "mean_std", marks=pytest.mark.slow)


@pytest.mark.parametrize(("system", "mode"), [("ha_speaker_norm", "attentive"), HSU])
def test_heads_and_packages_follow(trained, small, tmp_path, system, mode):
    flags = ["--pretrain=False", "--fold=03"] if system == "hsu_mtl" else []
    run = trained(*flags, f"--pooling={mode}", yaml=system)
    model = load_model(run).model
    sizes = {task: head.in_features for task, head in model.heads.items()}
    assert sizes["asr"] == 16
    assert sizes["emotion"] == (32 if system != "hsu_mtl" else 32 + sum(model.decomposition.output_sizes.values()))
    assert sizes["speaker"] == (32 if system != "hsu_mtl" else model.decomposition.output_sizes["timbre"])
    package = export_run(run, tmp_path / "package")
    names = load_file(package / "model.safetensors").keys()
    assert any(name.startswith("pooling.attention.") for name in names) is (mode == "attentive")
    paths = sorted((small.corpus("emodb") / "wav").iterdir())[:4]
    ours, theirs = (
        torch.stack([r.embedding for r in recognizer.classify_files(paths, batch_size, embedding=True)])
        for recognizer, batch_size in (
            (EmotionRecognizer.from_run(run, CPU), 1),
            (EmotionRecognizer.from_package(package, CPU), 3),
        )
    )
    assert ours.shape == (4, sizes["emotion"])
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_attention_changes_no_other_draw(small):
    """A head that reads frames is drawn as beside the mean."""
    drawn = []
    for mode in ("mean", "attentive"):
        heads = {task: partial(torch.nn.Linear, out_features=3) for task in ("emotion", "asr")}
        model = CaiModel(Wav2Vec2(str(small.backbone())), MaskedPooling(mode), heads, {"emotion": 1, "asr": 1}, seed=2)
        drawn.append(model.heads["asr"].weight)
    assert torch.equal(*drawn)
