"""Random resampling: the published program's numbers, and each utterance by itself."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_ser.nnet.augment import Draws, RandomResampling, resample

PUBLISHED = load_file(Path(__file__).parent / "data" / "speechsplit" / "interplnr.safetensors")


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_published_program(case):
    x, lengths = PUBLISHED[f"{case}.x"], PUBLISHED[f"{case}.len"]
    draws = Draws(PUBLISHED[f"{case}.scales"].view(2, 7), PUBLISHED[f"{case}.len_seg"].view(2, 7))
    y = resample(x, draws, lengths)
    for i, own in enumerate(lengths):
        torch.testing.assert_close(y[i, :own], PUBLISHED[f"{case}.y"][i, :own], atol=1e-5, rtol=1e-5)
        assert (y[i, own:] == 0).all()  # the program goes on, up to the batch's padding


def test_draws_in_the_programs_order():
    torch.manual_seed(int(PUBLISHED["a.seed"]))
    stretches, segment_frames = RandomResampling().draw(batch=2, frames=114)  # 7 segments
    assert torch.equal(stretches.flatten(), PUBLISHED["a.scales"])
    assert torch.equal(segment_frames.view(-1, 1), PUBLISHED["a.len_seg"])


@pytest.mark.parametrize("frames", [1, 18, 19, 64, 192, 700])
def test_segments_cover_every_utterance(frames):
    resampling = RandomResampling()
    stretches, segment_frames = resampling.draw(50, frames)
    assert stretches.shape == segment_frames.shape == (50, math.ceil(frames / 19) + 1)
    assert segment_frames.sum(dim=1).min() >= frames
    assert set(segment_frames.unique().tolist()) <= set(range(19, 32))
    assert stretches.min() >= 0.5 and stretches.max() < 1.5


def test_depends_on_own_frames_and_draws_only():
    torch.manual_seed(1)
    counts = torch.tensor([150, 64, 33])
    x = torch.randn(3, 150, 4)
    draws = RandomResampling().draw(3, 150)
    garbage = x.clone()
    for i, own in enumerate(counts):
        garbage[i, own:] = float("nan")
    batch = resample(garbage, draws, counts)
    for i, own in enumerate(counts):
        alone = resample(x[i : i + 1, :own], Draws(draws.stretches[i : i + 1], draws.segment_frames[i : i + 1]))
        assert torch.equal(batch[i, :own], alone[0])
        assert (batch[i, own:] == 0).all()


def test_gradient_stays_clear_of_garbage():
    x = torch.full((2, 40, 1), float("nan"))
    x[0], x[1, :1] = 1.0, 1.0
    x.requires_grad_()
    torch.manual_seed(0)
    RandomResampling()(x, torch.tensor([40, 1])).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[1] == 0).all()  # one frame is no segment to interpolate in


def test_evaluation_changes_nothing():
    x = torch.randn(2, 90, 3)
    assert RandomResampling().eval()(x) is x


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_segment": 32}, "found 32 and 31"),
        ({"min_segment": 1}, "found 1 and 31"),
        ({"min_stretch": 0}, "found 0 and 1.5"),
        ({"max_stretch": 0.4}, "found 0.5 and 0.4"),
    ],
)
def test_what_cannot_be_resampled(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomResampling(**settings)
