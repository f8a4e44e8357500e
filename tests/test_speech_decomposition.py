"""Decomposed speech: the published program's numbers, and each utterance by itself."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from speechbrain_ser.lobes.speech_decomposition import (
    ContentEncoder,
    ConvBlock,
    Decoder,
    PitchEncoder,
    RhythmEncoder,
    SpeechDecomposition,
    TimbreEncoder,
    downsample,
)
from speechbrain_ser.nnet.augment import resample
from speechbrain_ser.nnet.losses import masked_mse
from speechbrain_ser.processing.pitch import quantize

REFERENCE = Path(__file__).parent / "data" / "speechsplit"
CODES = {"content": "Z_C", "rhythm": "Z_R", "pitch": "Z_F"}  # in the order of SpeechSplit's decoder
SPEAKERS = 82

# SpeechSplit's names for the parts of a SpeechDecomposition
PUBLISHED = {
    "encoder_1.convolutions_1": "encoders.content.blocks",
    "encoder_1.lstm_1": "encoders.content.blstm.lstm",
    "encoder_1.convolutions_2": "encoders.pitch.blocks",
    "encoder_1.lstm_2": "encoders.pitch.blstm.lstm",
    "encoder_2.convolutions": "encoders.rhythm.blocks",
    "encoder_2.lstm": "encoders.rhythm.blstm.lstm",
    "decoder.lstm": "decoder.blstm.lstm",
    "decoder.linear_projection.linear_layer": "decoder.projection",
}


def tensors(name: str) -> dict[str, torch.Tensor]:
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return {key: torch.as_tensor(arrays[key]) for key in arrays if arrays[key].dtype.kind != "U"}


@pytest.fixture(scope="module")
def published() -> tuple[SpeechDecomposition, Decoder]:
    """The program's model with its weights; its speaker label takes the place of timbre."""
    torch.manual_seed(20260601)
    encoders = {"content": ContentEncoder(), "pitch": PitchEncoder(), "rhythm": RhythmEncoder()}
    decoder = Decoder(sum(encoder.output_size for encoder in encoders.values()) + SPEAKERS)
    return SpeechDecomposition(encoders, decoder=None).eval(), decoder.eval()


@pytest.fixture(scope="module")
def case() -> dict[str, torch.Tensor]:
    return tensors("encoder_case")


def decode(model: SpeechDecomposition, decoder: Decoder, codes: dict, speaker: torch.Tensor, frames: int):
    expanded = [model.encoders[name].expand(codes[name], frames) for name in CODES]
    label = nn.functional.one_hot(speaker, SPEAKERS)[:, None, :].expand(-1, frames, -1)
    return decoder(torch.cat([*expanded, label], dim=-1))


def test_weights_are_the_published_ones(published, case):
    with np.load(REFERENCE / "encoder_case.npz") as arrays:
        names = [name for name in arrays["weight_names"].tolist() if "len_org" not in name]
    parts = [next(part for part in PUBLISHED if name.startswith(f"{part}.")) for name in names]
    own = [PUBLISHED[p] + n.removeprefix(p).replace(".conv.", ".") for p, n in zip(parts, names, strict=True)]
    renamed = dict(zip(own, case["weight_norms"], strict=True))
    state = published[0].state_dict()
    assert set(renamed) == set(state)
    for name, norm in renamed.items():
        torch.testing.assert_close(state[name].double().norm(), norm)


def test_published_codes(published, case):
    with torch.no_grad():
        codes, _ = published[0](case["mel"], case["f0"], torch.tensor([192, 192, 192]))
    for name, key in CODES.items():
        torch.testing.assert_close(codes[name], case[key], atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # 20 million parameters, backwards
def test_published_loss_and_gradients(published, case):
    model, decoder = published
    codes, _ = model(case["mel"], case["f0"])
    mel = decode(model, decoder, codes, case["speaker"], 192)
    torch.testing.assert_close(mel, case["mel_out"], atol=1e-5, rtol=1e-5)
    loss = masked_mse(mel, case["mel"], torch.tensor([192, 192, 192])).mean()
    torch.testing.assert_close(loss, case["loss"], atol=1e-6, rtol=1e-5)
    loss.backward()
    norms = torch.stack([parameter.grad.norm() for parameter in (*model.parameters(), *decoder.parameters())])
    torch.testing.assert_close(norms, case["gradnorm"], atol=1e-6, rtol=1e-3)


def test_published_whole_utterance(published):
    model, decoder = published
    case = tensors("generator_case")
    with torch.no_grad():
        codes, _ = model(case["mel"], (case["f0_bins"].float() - 1) / 255)
        mel = decode(model, decoder, codes, case["speaker"], 256)
    for name, key in CODES.items():
        torch.testing.assert_close(codes[name], case[key], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mel, case["mel_out"], atol=1e-5, rtol=1e-5)


SMALL = {"channels": 16, "groups": 4}


@pytest.fixture
def small() -> SpeechDecomposition:
    torch.manual_seed(0)
    kinds = {"content": ContentEncoder, "rhythm": RhythmEncoder, "pitch": PitchEncoder, "timbre": TimbreEncoder}
    encoders = {name: kind(**SMALL) for name, kind in kinds.items()}
    return SpeechDecomposition(encoders, partial(Decoder, units=16, layers=2))


@pytest.fixture
def speech() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mel, f0 = torch.rand(4, 77, 80), torch.rand(4, 77)
    return mel, f0.masked_fill(f0 < 0.3, -1e10)


COUNTS = torch.tensor([77, 33, 8, 1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("garbage", [float("nan"), 1e6])
def test_any_batch_gives_the_singles(small, speech, training, garbage):
    mel, f0 = (x.clone() for x in speech)
    for i, own in enumerate(COUNTS):
        mel[i, own:], f0[i, own:] = garbage, garbage
    small.train(training)
    draws = small.draw(4, 77)
    codes, reconstruction = small(mel, f0, COUNTS, draws)
    pooled = small.pool(codes, COUNTS)
    for i, own in enumerate(COUNTS.tolist()):
        own_draws = draws and [type(draw)(*(part[i : i + 1] for part in draw)) for draw in draws]
        single, spectrogram = small(mel[i : i + 1, :own], f0[i : i + 1, :own], draws=own_draws)
        torch.testing.assert_close(reconstruction[i, :own], spectrogram[0], atol=1e-5, rtol=1e-4)
        assert (reconstruction[i, own:] == 0).all()
        torch.testing.assert_close(codes["timbre"][i], single["timbre"][0], atol=1e-5, rtol=1e-4)
        for name in CODES:
            used = -(-own // 8)
            assert single[name].shape[1] == used
            torch.testing.assert_close(codes[name][i, :used], single[name][0], atol=1e-5, rtol=1e-4)
            assert (codes[name][i, used:] == 0).all()
            torch.testing.assert_close(pooled[name][i], single[name][0].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_gradients_do_not_see_the_padding(small, speech):
    mel, f0 = speech
    torch.manual_seed(2)
    draws = small.draw(4, 77)
    gradients, padding = [], torch.arange(77) >= COUNTS[:, None]
    for garbage in (0.0, float("nan")):
        small.zero_grad()
        signals = mel.masked_fill(padding[:, :, None], garbage), f0.masked_fill(padding, garbage)
        _, reconstruction = small(*signals, COUNTS, draws)
        masked_mse(reconstruction, mel, COUNTS).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in small.parameters()])
    assert all(g.isfinite().all() for g in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_codes_are_the_last_forward_and_the_first_backward_state():
    forward, backward = torch.arange(20.0), torch.arange(100.0, 120.0)
    states = torch.stack([forward, backward], dim=1)[None].repeat(3, 1, 1)  # [3, 20, 2]
    codes = downsample(states, torch.tensor([20, 16, 9]))
    assert codes.tolist() == [
        [[7, 100], [15, 108], [19, 116]],
        [[7, 100], [15, 108], [0, 0]],
        [[7, 100], [8, 108], [0, 0]],
    ]
    assert torch.equal(downsample(states), codes[:1].expand(3, -1, -1))
    assert downsample(states, hop=5)[0].tolist() == [[4, 100], [9, 105], [14, 110], [19, 115]]


def test_content_and_pitch_share_the_draws(small, speech):
    seen = {"content": [], "pitch": []}
    for name, calls in seen.items():
        resampling = small.encoders[name].resampling
        resampling.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[2]))
    small.train()(*speech, COUNTS)
    assert len(seen["content"]) == 4  # the input and three blocks
    assert [id(draw) for draw in seen["content"]] == [id(draw) for draw in seen["pitch"]]
    assert not torch.equal(seen["content"][0].stretches, seen["content"][1].stretches)


def test_training_resamples_content_and_pitch_only(small, speech):
    small.train()
    first, second = (small.encode(*speech, COUNTS) for _ in range(2))
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert same == {"rhythm", "timbre"}
    small.eval()
    assert torch.equal(small(*speech, COUNTS)[1], small(*speech, COUNTS)[1])


def test_pitch_is_quantised_after_resampling():
    encoder = PitchEncoder(**SMALL)
    seen = []
    encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    f0 = torch.cat([torch.linspace(0.2, 0.4, 30), torch.zeros(20), torch.linspace(0.9, 0.7, 30)])[None]
    draws = encoder.draw(1, 80)
    encoder(f0, draws=draws)
    marked = f0.masked_fill(f0 == 0, -1e10)[:, :, None]
    assert torch.equal(seen[0].sum(dim=1), torch.ones(1, 80))
    assert torch.equal(seen[0].argmax(dim=1), quantize(resample(marked, draws[0])[:, :, 0]))
    # nothing between voiced and unvoiced, which a plain interpolation towards 0 would give
    assert quantize(torch.tensor(0.19)) > 40 and not ((seen[0].argmax(dim=1) > 0) & (seen[0].argmax(dim=1) < 40)).any()


def test_leaving_an_encoder_out_leaves_its_parameters_and_input_out(speech):
    encoders = {"content": None, "pitch": None, "rhythm": RhythmEncoder(**SMALL), "timbre": TimbreEncoder(**SMALL)}
    model = SpeechDecomposition(encoders, partial(Decoder, units=8, layers=1))
    assert list(model.encoders) == ["rhythm", "timbre"]
    assert model.decoder.blstm.lstm.input_size == 66
    state = torch.get_rng_state()
    codes, reconstruction = model.train()(speech[0], frame_counts=COUNTS)
    assert list(codes) == ["rhythm", "timbre"] and reconstruction.shape == (4, 77, 80)
    assert torch.equal(state, torch.get_rng_state())  # nothing resamples, nothing is drawn


def test_every_part_has_a_gradient(small, speech):
    masked_mse(small.eval()(*speech, COUNTS)[1], speech[0], COUNTS).mean().backward()
    assert [name for name, parameter in small.named_parameters() if not parameter.grad.any()] == []


def test_masked_mse():
    prediction, target = torch.randn(3, 20, 5), torch.randn(3, 20, 5)
    counts = torch.tensor([20, 7, 1])
    prediction[1, 7:] = float("nan")
    prediction.requires_grad_()
    loss = masked_mse(prediction, target, counts)
    for i, own in enumerate(counts):
        torch.testing.assert_close(loss[i], nn.functional.mse_loss(prediction[i, :own], target[i, :own]))
    loss.sum().backward()
    assert prediction.grad.isfinite().all() and (prediction.grad[2, 1:] == 0).all()
    half = masked_mse(prediction.bfloat16(), target.bfloat16(), counts)
    assert half.dtype == torch.float32


LENGTH_4 = torch.zeros(4, 77, 80)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masked_mse(LENGTH_4, torch.zeros(4, 77, 3), COUNTS), r"\[4, 77, 3\], found \[4, 77"),
        (lambda: RhythmEncoder(**SMALL)(LENGTH_4, torch.tensor([77, 0, 3, 4])), "1 to 77, found 0 to 77"),
        (lambda: RhythmEncoder(**SMALL)(LENGTH_4, torch.tensor([77, 5])), r"\[4\], one an utterance, found \[2\]"),
        (lambda: RhythmEncoder(**SMALL)(LENGTH_4[0]), r"\[batch, frames, channels\], found \[77, 80\]"),
        (lambda: PitchEncoder(**SMALL)(torch.full((1, 30), 220.0)), r"normalised to 0 to 1 .*found 220"),
        (lambda: SpeechDecomposition({"pitch": PitchEncoder(**SMALL)})(LENGTH_4), "'pitch' reads F0"),
        (lambda: SpeechDecomposition({"content": None}), "at least one encoder"),
        (lambda: ConvBlock(80, 16, 4, kernel_size=4), "kernel_size is 4, expected an odd number"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
