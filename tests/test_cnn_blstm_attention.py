"""The lobe of Fu et al. is table 1, computes what its equations say, and no utterance sees another or its padding."""

import pytest
import torch
from torch import nn

from speechbrain_ser.errors import UserError
from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.nnet.masked import BLSTM
from speechbrain_ser.processing.lengths import frame_mask

SMALL = {"input_size": 6, "channels": (5, 7, 9), "bottleneck": 8, "lstm_size": 4, "heads": 2}
LENGTHS = torch.tensor([23, 5, 12, 40, 6])
FRAMES = 43  # three more than the longest


@torch.no_grad()
def sharpened(lobe: CNNBLSTMAttention) -> CNNBLSTMAttention:
    """With attention far from uniform, which a fresh one is not: a wrong weight would hardly show."""
    for layer in (lobe.bottleneck, lobe.self_attention.query, lobe.local_attention.score):
        layer.weight.mul_(20.0)
    return lobe


@pytest.fixture
def lobe() -> CNNBLSTMAttention:
    torch.manual_seed(0)
    return sharpened(CNNBLSTMAttention(**SMALL, dropout=0.0))


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(len(LENGTHS), FRAMES, 6, generator=torch.Generator().manual_seed(1))


def padded_with(features: torch.Tensor, value: float) -> torch.Tensor:
    return features.masked_fill(~frame_mask(LENGTHS, FRAMES)[:, :, None], value)


def assert_close(found: torch.Tensor, expected: torch.Tensor, share: float = 1e-4) -> None:
    """To a share of the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=share * expected.abs().max().item())


def gradients(lobe: nn.Module, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss in which all channels of all utterances count, and differently."""
    lobe.zero_grad()
    (vectors.sin() * torch.arange(1, vectors.shape[1] + 1)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in lobe.named_parameters()}


@pytest.fixture(scope="module")
def published() -> CNNBLSTMAttention:
    torch.manual_seed(0)
    return CNNBLSTMAttention().eval()


@torch.no_grad()
def test_shapes_are_those_of_table_1(published):
    shapes = []
    layers = [*published.convolutions, published.bottleneck, published.blstm, published.self_attention.output]
    hooks = [layer.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape))) for layer in layers]
    vector = published(torch.randn(1, 256, 128))
    for hook in hooks:
        hook.remove()
    assert shapes[:3] == [(1, 512, 254), (1, 1024, 254), (1, 2048, 252)]
    assert shapes[3:] == [(1, 252, 512), (1, 252, 2 * 128), (1, 252, 2 * 128)]
    assert vector.shape == (1, 256) == (1, published.output_size)
    assert published.min_frames == 5 and published.frame_counts(torch.tensor([256, 5, 4])).tolist() == [252, 1, 0]
    assert published.local_attention.score.weight.numel() == 256  # U
    assert sum(p.numel() for p in published.parameters()) == 9_381_120  # Keras' LSTMs have a bias fewer: 4 x 512


def stages_of(lobe: CNNBLSTMAttention, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every stage for one utterance [frames, bands]."""
    x = x.T[None]
    for layer in lobe.convolutions:
        x = layer(x).relu()
    stages = {"bottleneck": lobe.bottleneck(x[0].T)}
    stages["blstm"] = x = lobe.blstm.lstm(stages["bottleneck"])[0]
    attention = lobe.self_attention
    query, key, value = (
        layer(x).unflatten(1, (attention.heads, -1)).transpose(0, 1)  # [heads, frames, size]
        for layer in (attention.query, attention.key, attention.value)
    )
    weights = (query @ key.mT / query.shape[2] ** 0.5).softmax(-1)
    stages["attended"] = attention.output((weights @ value).transpose(0, 1).flatten(1))
    stages["local_attention"] = (stages["attended"] @ lobe.local_attention.score.weight[0]).softmax(0)
    stages["vector"] = stages["local_attention"] @ stages["attended"]
    return stages


@pytest.mark.parametrize("initialization", ["keras", "pytorch"])
@torch.no_grad()
def test_every_stage_agrees_with_the_equations(features, initialization):
    lobe = sharpened(CNNBLSTMAttention(**SMALL, initialization=initialization)).eval()
    for name, parameter in lobe.named_parameters():
        if "bias" in name:
            parameter.add_(0.3 * torch.randn(parameter.shape))  # zeros would hide a bias in the wrong place
    seen = {}
    lobe.bottleneck.register_forward_hook(lambda *args: seen.update(bottleneck=args[2][0]))
    lobe.blstm.register_forward_hook(lambda *args: seen.update(blstm=args[2][0]))
    lobe.local_attention.register_forward_hook(
        lambda *args: seen.update(attended=args[1][0][0], local_attention=args[2][1][0])
    )
    vector = lobe(features[:1])[0]
    found = {**seen, "vector": vector}
    for name, expected in stages_of(lobe, features[0]).items():
        assert_close(found[name], expected)


@pytest.mark.parametrize("padding", [None, 0.0, -1.0, 1e30, float("nan")])
@pytest.mark.parametrize("training", [False, True])
def test_batch_gives_the_singles(lobe, features, padding, training):
    lobe.train(training)
    batch = features if padding is None else padded_with(features, padding)
    vectors = lobe(batch, LENGTHS)
    singles = torch.cat([lobe(x[None, :n]) for x, n in zip(features, LENGTHS, strict=True)])
    assert_close(vectors, singles)
    found, expected = gradients(lobe, vectors), gradients(lobe, singles)
    for name, gradient in expected.items():
        if not name.startswith("self_attention.key.bias"):  # a constant in the softmax: its gradient is rounding
            assert_close(found[name], gradient)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_ways_to_run_the_blstm_agree(layers):
    torch.manual_seed(0)
    layer = BLSTM(3, 4, layers)
    x, counts = torch.randn(4, 9, 3), torch.tensor([9, 1, 5, 8])
    turned, packed = layer._turned(x, counts), layer._packed(x, counts)
    torch.testing.assert_close(turned, packed, atol=1e-6, rtol=0)
    assert (turned[~frame_mask(counts, 9)] == 0).all()
    for name, gradient in gradients(layer, packed.flatten(1)).items():
        assert_close(gradients(layer, layer._turned(x, counts).flatten(1))[name], gradient)


def computed_frames(lobe: CNNBLSTMAttention, *args) -> tuple[torch.Tensor, int]:
    """The vectors, and how many frames the bottleneck has seen."""
    seen = []
    hook = lobe.bottleneck.register_forward_hook(lambda *args: seen.append(args[2].shape[:-1].numel()))
    vectors = lobe(*args)
    hook.remove()
    return vectors, sum(seen)


def test_equal_frames_are_computed_once(lobe, features):
    padded = padded_with(features, -1.0)
    vectors, computed = computed_frames(lobe, padded)
    # with a gradient of the input, every frame is computed
    with_input = padded.clone().requires_grad_()
    expected, whole = computed_frames(lobe, with_input)
    assert whole == len(LENGTHS) * (FRAMES - 4)
    assert computed == (torch.minimum(LENGTHS + 5, torch.tensor(FRAMES)) - 4).sum() + 4 * (len(LENGTHS) - 1) < whole
    assert_close(vectors, expected)
    found, expected_gradients = gradients(lobe, vectors), gradients(lobe, expected)
    for name, gradient in expected_gradients.items():
        if not name.startswith("self_attention.key.bias"):
            assert_close(found[name], gradient)
    assert (with_input.grad[1, 20:] != 0).any()


def test_padding_counts_without_lengths(lobe, features):
    padded = padded_with(features, -1.0)
    assert not torch.allclose(lobe(padded), lobe(padded, LENGTHS), atol=1e-3)
    torch.testing.assert_close(lobe(padded), lobe(padded, torch.full_like(LENGTHS, FRAMES)), rtol=0, atol=0)


@torch.no_grad()
def test_mixed_precision(lobe, features):
    expected, weights = lobe(features, LENGTHS), []
    lobe.local_attention.register_forward_hook(lambda *args: weights.append(args[2][1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors, fixed = lobe(features, LENGTHS), lobe(features)
    assert vectors.dtype == fixed.dtype == torch.float32
    assert_close(vectors, expected, share=0.05)
    sums = weights[0].sum(1)
    torch.testing.assert_close(sums, torch.ones(5), rtol=0, atol=1e-6)  # not bfloat16's 4e-3
    assert_close(fixed, lobe(features), share=0.05)


def assert_uniform(weight: torch.Tensor, bound: float) -> None:
    assert 0.97 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert abs(weight.mean().item()) < 0.1 * bound


def glorot(fan_in: int, fan_out: int) -> float:
    return (6 / (fan_in + fan_out)) ** 0.5


def test_keras_convolutions_and_dense_layers(published):
    first, middle, last = published.convolutions
    assert_uniform(first.weight, glorot(3 * 128, 3 * 512))  # Keras: kernel x channels
    assert_uniform(middle.weight, glorot(512, 1024))
    assert_uniform(last.weight, glorot(3 * 1024, 3 * 2048))
    assert_uniform(published.bottleneck.weight, glorot(2048, 512))
    for layer in (published.self_attention.query, published.self_attention.output):
        assert_uniform(layer.weight, glorot(256, 256))
    assert_uniform(published.local_attention.score.weight, glorot(256, 1))
    for layer in (*published.convolutions, published.bottleneck, published.self_attention.key):
        assert (layer.bias == 0).all()


def test_keras_lstms(published):
    weights = published.blstm.lstm.all_weights
    assert len(weights) == 4
    for (weight_ih, weight_hh, bias_ih, bias_hh), inputs in zip(weights, (512, 512, 256, 256), strict=True):
        assert_uniform(weight_ih, glorot(inputs, 4 * 128))  # the four gates are one kernel
        torch.testing.assert_close(weight_hh.T @ weight_hh, torch.eye(128), atol=1e-5, rtol=0)
        assert not torch.allclose(weight_hh[:128] @ weight_hh[:128].T, torch.eye(128), atol=0.1)  # nor gate by gate
        into, forget, new, out = (bias_ih + bias_hh).split(128)
        assert (forget == 1).all()
        assert (torch.cat([into, new, out]) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "heads: expected a divisor of the 8 channels, found 3"),
        ({"kernels": (3, 1)}, r"channels and kernels: .* found \[5, 7, 9\] and \[3, 1\]"),
        ({"dropout": 1.0}, "dropout: .* found 1.0"),
        ({"initialization": "kears"}, "expected one of keras, pytorch, found 'kears' .did you mean 'keras'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        CNNBLSTMAttention(**SMALL | arguments)


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((2, 4, 6), None, r"of 5 \(the convolutions' reach\) to 4 frames, found 4 to 4"),
        ((2, 9, 6), [9, 4], "to 9 frames, found 4 to 9"),
        ((2, 9, 6), [9, 10], "to 9 frames, found 9 to 10"),
        ((2, 9, 6), [9], r"integers \[2\], found int64 \[1\]"),
        ((2, 9, 6), [1.0, 0.5], r"integers \[2\], found float32 \[2\]"),
        ((2, 6, 9), None, r"\[batch, frames, 6\], found \[2, 6, 9\]"),
        ((9, 6), None, r"found \[9, 6\]"),
    ],
)
def test_bad_input(lobe, shape, lengths, message):
    with pytest.raises(ValueError, match=message):
        lobe(torch.randn(shape), None if lengths is None else torch.tensor(lengths))
