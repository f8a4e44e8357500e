"""Relative lengths; utterances cut or padded to one length."""

import pytest
import torch

from speechbrain_ser.processing.lengths import absolute_lengths, fix_length

COUNTS = torch.tensor([9, 4, 5, 1])


@pytest.fixture
def feats() -> torch.Tensor:
    feats = torch.full((4, 9, 2), float("nan"))
    for row, count in zip(feats, COUNTS, strict=True):
        row[:count] = torch.arange(count.item())[:, None] + torch.tensor([0.0, 100.0])
    return feats  # band 0 is the frame's number


def test_relative_lengths_in_float32_give_back_every_sample():
    lengths = torch.arange(1, 10_001)
    wavs = torch.zeros(1, 1).expand(len(lengths), 960_003)  # a minute
    lengths = lengths * 96
    assert torch.equal(absolute_lengths(wavs, lengths / 960_003), lengths)


def test_cut_at_the_start_and_around_the_centre(feats):
    fixed = fix_length(feats, COUNTS, 4)
    assert fixed[:, :, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, -1, -1, -1]]
    assert fixed[3, :, 1].tolist() == [100, -1, -1, -1]
    fixed = fix_length(feats, COUNTS, 4, where="centre", padding_value=-7.0)[:, :, 0]
    assert fixed.tolist() == [[2, 3, 4, 5], [0, 1, 2, 3], [0, 1, 2, 3], [0, -7, -7, -7]]


@pytest.mark.parametrize("where", ["start", "centre", "random"])
def test_longer_than_the_batch(feats, where):
    for row, own, count in zip(fix_length(feats, COUNTS, 12, where), feats, COUNTS, strict=True):
        assert torch.equal(row[:count], own[:count]) and (row[count:] == -1).all()


def test_random_cuts_are_even_and_repeat(feats):
    many, counts = feats[[0, 1]].repeat(3000, 1, 1), COUNTS[[0, 1]].repeat(3000)
    torch.manual_seed(1)
    fixed = fix_length(many, counts, 4, where="random")[:, :, 0]
    first = fixed[0::2, 0]
    assert torch.equal(fixed[0::2], first[:, None] + torch.arange(4))  # whole, in order
    hits = torch.bincount(first.long(), minlength=6)
    assert len(hits) == 6 and ((hits - 500).abs() < 100).all()  # sd 20
    assert (fixed[1::2] == torch.arange(4)).all()
    torch.manual_seed(1)
    assert torch.equal(fix_length(many, counts, 4, where="random")[:, :, 0], fixed)


def test_random_draws_the_same_whatever_the_lengths(feats):
    states = []
    for counts in (COUNTS, torch.ones_like(COUNTS)):
        torch.manual_seed(1)
        fix_length(feats, counts, 4, where="random")
        states.append(torch.get_rng_state())
    for where in ("start", "centre"):
        fix_length(feats, COUNTS, 4, where)
    assert torch.equal(states[0], states[1]) and torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where": "center"}, "where is 'center', expected one of start, centre, random"),
        ({"counts": torch.tensor([1, 2, 3, 10])}, "counts must lie in 1 to 9, found 1 to 10"),
        ({"counts": torch.tensor([1, 2, 0, 9])}, "found 0 to 9"),
    ],
)
def test_bad_lengths(feats, arguments, message):
    with pytest.raises(ValueError, match=message):
        fix_length(**({"feats": feats, "counts": COUNTS, "length": 4} | arguments))


@pytest.mark.parametrize("lengths", [[16000, 8000], [1.0, 1.001], [-0.5, 1.0], [float("nan"), 1.0]])
def test_lengths_that_are_not_relative_are_refused(lengths):
    with pytest.raises(ValueError, match="expected lengths relative to the longest, above 0 to 1, found"):
        absolute_lengths(torch.zeros(2, 16000), torch.tensor(lengths))
    rounded = torch.tensor([1 + 1e-6, 0.5])
    assert absolute_lengths(torch.zeros(2, 16000), rounded).tolist() == [16000, 8000]
