"""A convolution as a matrix product; a head over neighbouring frames."""

import pytest
import torch
from torch.nn import functional as F

from speechbrain_ser.nnet.convolution import ConvHead, frame_conv, innermost

SIZES = [  # channels in and out, kernel, stride, time
    (3, 5, 3, 2, 17),
    (3, 5, 2, 2, 17),  # windows side by side
    (1, 4, 10, 5, 103),
    (3, 2, 4, 1, 9),
    (2, 3, 2, 3, 13),  # samples that no frame sees
    (2, 3, 3, 2, 3),  # one frame
]


def drawn(channels_in: int, channels: int, kernel: int, time: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    sizes = (2, time, channels_in), (channels, channels_in, kernel), (channels,)
    return [torch.randn(size, generator=random, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize(("channels_in", "channels", "kernel", "stride", "time"), SIZES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_convolution_and_its_gradients(channels_in, channels, kernel, stride, time, with_bias):
    hidden, weight, bias = drawn(channels_in, channels, kernel, time)
    given = (hidden, weight, bias) if with_bias else (hidden, weight)
    torch.testing.assert_close(
        frame_conv(*given, stride=stride), F.conv1d(hidden.mT, *given[1:], stride=stride).mT, rtol=0, atol=1e-12
    )
    assert torch.autograd.gradcheck(lambda *tensors: frame_conv(*tensors, stride=stride), given)


def test_pieces_and_orders_of_memory():
    """What it is given may be a part of something, or transposed."""
    hidden, weight, bias = drawn(3, 5, 3, 20)
    expected = F.conv1d(hidden.mT, weight, bias, 2).mT
    part = torch.cat([hidden[:1] + 1, hidden])[1:]
    for same in (part, hidden.mT.contiguous().mT, torch.cat([hidden, hidden], dim=2)[:, :, :3]):
        torch.testing.assert_close(frame_conv(same, weight, bias, 2), expected)
    torch.testing.assert_close(frame_conv(hidden[:, 4:], weight, bias, 2), expected[:, 2:])
    torch.testing.assert_close(frame_conv(hidden, innermost(weight), bias, 2), expected)
    assert torch.equal(innermost(weight), weight) and innermost(weight).transpose(1, 2).is_contiguous()


def test_autocast():
    hidden, weight, bias = (x.detach().float().requires_grad_() for x in drawn(3, 5, 3, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = frame_conv(hidden, weight, bias, 2)
        expected = F.conv1d(hidden.mT, weight, bias, 2).mT
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-2, atol=2e-2)
    pairs = [torch.autograd.grad(out.float().square().sum(), (hidden, weight, bias)) for out in (found, expected)]
    for mine, theirs in zip(*pairs, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05 * theirs.abs().max().item())


def test_padding_changes_nothing_of_a_head():
    torch.manual_seed(0)
    head = ConvHead(6, 4, hidden=8, kernel=5).eval()
    short, long = torch.randn(1, 3, 6), torch.randn(1, 9, 6)
    batch = torch.cat([torch.cat([short, torch.zeros(1, 6, 6)], 1), long])
    found = head(batch)
    torch.testing.assert_close(found[:1, :3], head(short))
    torch.testing.assert_close(found[1:], head(long))


def test_a_head_looks_at_so_many_frames():
    head = ConvHead(3, 2, hidden=4, kernel=5).eval()
    x = torch.randn(1, 20, 3, requires_grad=True)
    head(x)[0, 10].sum().backward()
    assert x.grad[0].abs().sum(1).nonzero().flatten().tolist() == list(range(6, 15))
    with pytest.raises(ValueError, match="odd number of frames, found 4"):
        ConvHead(3, 2, kernel=4)
