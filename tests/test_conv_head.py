"""A head over neighbouring frames gives an utterance in any batch what it gives it alone."""

import pytest
import torch

from speechbrain_ser.nnet.convolution import ConvHead


def test_padding_changes_nothing():
    torch.manual_seed(0)
    head = ConvHead(6, 4, hidden=8, kernel=5).eval()
    short, long = torch.randn(1, 3, 6), torch.randn(1, 9, 6)
    batch = torch.cat([torch.cat([short, torch.zeros(1, 6, 6)], 1), long])
    found = head(batch)
    torch.testing.assert_close(found[:1, :3], head(short))
    torch.testing.assert_close(found[1:], head(long))


def test_it_looks_at_so_many_frames():
    head = ConvHead(3, 2, hidden=4, kernel=5).eval()
    x = torch.randn(1, 20, 3, requires_grad=True)
    head(x)[0, 10].sum().backward()
    assert x.grad[0].abs().sum(1).nonzero().flatten().tolist() == list(range(6, 15))
    with pytest.raises(ValueError, match="odd number of frames, found 4"):
        ConvHead(3, 2, kernel=4)
