"""Pooling sees an utterance's own frames only."""

import pytest
import torch

from speechbrain_ser.nnet.pooling import MaskedPooling, frame_mask

COUNTS = torch.tensor([7, 3, 1])


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))  # [batch, frames, channels]


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_padded_batch_gives_the_singles(frames, mode):
    pooled = MaskedPooling(mode)(frames, COUNTS)
    singles = [getattr(frames[i, :count], mode)(dim=0) for i, count in enumerate(COUNTS)]
    torch.testing.assert_close(pooled, torch.stack(singles))


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_padding_is_ignored_whatever_it_holds(frames, mode):
    filled = frames.masked_fill(~frame_mask(COUNTS, 7)[:, :, None], float("nan")).requires_grad_()
    pooled = MaskedPooling(mode)(filled, COUNTS)
    assert torch.equal(pooled, MaskedPooling(mode)(frames, COUNTS))
    pooled.sum().backward()
    assert filled.grad.isfinite().all()
    assert (filled.grad[1, 3:] == 0).all()


def test_half_precision_is_summed_in_float32():
    ones = torch.ones(1, 3000, 2, dtype=torch.bfloat16)  # bfloat16 stops counting at 256
    pooled = MaskedPooling("sum")(ones, torch.tensor([2999]))
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[2999.0, 2999.0]]


def test_autocast_keeps_float32(frames):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = MaskedPooling()(frames, COUNTS)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, MaskedPooling()(frames, COUNTS))


def test_frame_mask():
    assert frame_mask(torch.tensor([2, 0]), 3).tolist() == [[True, True, False], [False, False, False]]


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"'max', expected one of mean, sum"):
        MaskedPooling("max")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([7, 3], r"found \[3, 7, 5\] and \[2\]"),
        ([7, 0, 1], "1 to 7, found 0 to 7"),
        ([8, 3, 1], "1 to 7, found 1 to 8"),
    ],
)
def test_bad_counts(frames, counts, message):
    with pytest.raises(ValueError, match=message):
        MaskedPooling()(frames, torch.tensor(counts))
