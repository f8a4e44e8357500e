"""LoRA: it starts as the encoder is, trains nothing else, costs nothing once merged, and goes wherever a model goes."""

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.inference.export import export_run
from speechbrain_ser.inference.recognizer import EmotionRecognizer, load_model
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.nnet.lora import LoRALinear, add_lora, merge_lora, merged_state

from .test_inference import CPU, assert_equal, predictions_of
from .test_train import wrong

LORA = {"rank": 2, "alpha": 4, "layers": ["*_proj", "*_dense"]}
RUN = ["--lora={rank: 2, alpha: 40, layers: ['*']}", "--pooling=sum", "--n_epochs=2"]
every_type = pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm", "data2vec-audio"])


@pytest.fixture
def lobe_of(small):
    """A tiny encoder of two layers, with LoRA unless it is told otherwise."""
    return lambda model_type="wav2vec2", lora=LORA, **settings: Wav2Vec2(
        str(small.backbone(model_type=model_type, num_layers=2)), lora=lora, **settings
    )


@pytest.fixture(scope="module")
def batch():
    wavs = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    return wavs, torch.tensor([1.0, 0.6])


def trainable(module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def output(lobe, batch) -> torch.Tensor:
    with torch.no_grad():
        return lobe.eval()(*batch)


@every_type
def test_it_starts_as_the_encoder_is_trains_nothing_else_and_merges(lobe_of, batch, model_type):
    plain, lobe = lobe_of(model_type, lora=None), lobe_of(model_type)
    start = output(plain, batch)
    torch.testing.assert_close(output(lobe, batch), start, rtol=0, atol=1e-6)
    before = {name: value.clone() for name, value in lobe.state_dict().items()}
    optimizer = torch.optim.Adam(trainable(lobe.train()).values(), lr=0.05)
    for _ in range(5):  # towards anything else than what the encoder gives
        optimizer.zero_grad()
        (lobe(*batch) - 1).square().sum().backward()
        optimizer.step()
    moved = {name for name, value in lobe.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(trainable(lobe)) and len(moved) == 2 * 2 * 6  # matrices, layers, linear layers of each
    assert all("adapter_" in name for name in moved)

    learned = output(lobe, batch)
    assert (learned - start).abs().max() > 0.1
    assert merged_state(lobe).keys() == plain.state_dict().keys()
    plain.load_state_dict(merged_state(lobe))
    torch.testing.assert_close(output(plain, batch), learned, rtol=0, atol=1e-5)
    lobe.fix_weights()
    assert not any(isinstance(module, LoRALinear) for module in lobe.modules())
    torch.testing.assert_close(output(lobe, batch), learned, rtol=0, atol=1e-5)


def test_the_product_is_that_of_the_paper():
    """W + alpha / r * B A, whether the layer is called or its weight is read."""
    layers = torch.nn.ModuleList([torch.nn.ModuleDict({"fc1": torch.nn.Linear(5, 3)})])
    weight, bias = (p.detach().clone() for p in layers[0]["fc1"].parameters())
    add_lora(layers, layers, {"rank": 2, "alpha": 6, "layers": ["fc1"]}, seed=1)
    found, x = layers[0]["fc1"], torch.randn(4, 5)
    a, b = found.adapter_down_proj.weight, found.adapter_up_proj.weight
    assert a.shape == (2, 5) and b.shape == (3, 2) and not b.any() and a.any()
    torch.nn.init.normal_(b)
    expected = weight + 3 * b @ a
    torch.testing.assert_close(found.weight, expected)
    torch.testing.assert_close(found(x), x @ expected.T + bias)
    merge_lora(layers)
    assert type(layers[0]["fc1"]) is torch.nn.Linear
    torch.testing.assert_close(layers[0]["fc1"](x), x @ expected.T + bias)


def test_weights_are_drawn_by_the_seed_and_no_other_draw_changes(lobe_of):
    torch.manual_seed(5)
    lobe_of(lora=None)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    one, same, other = lobe_of(seed=1), lobe_of(seed=1), lobe_of(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    (name, *_) = trainable(one)
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


@every_type
def test_gradient_checkpointing_gives_the_same_gradients(lobe_of, batch, model_type):
    gradients = []
    for on in (False, True):
        lobe = lobe_of(model_type, gradient_checkpointing=on, apply_spec_augment=False, dropout=0.0).train()
        lobe(*batch).square().sum().backward()
        gradients.append({name: p.grad for name, p in trainable(lobe).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda t, n=name: f"{n}: {t}")


def test_the_front_end_is_fixed_and_may_be_cached(lobe_of, batch):
    lobe = lobe_of(cache_front_end=True)
    features, _ = lobe.convolve(batch[0][:1])
    assert not features.requires_grad
    torch.testing.assert_close(output(lobe, (features, None)), output(lobe, (batch[0][:1], None)))
    assert "layer_weights" in trainable(lobe_of(weighted_sum=True))  # learned beside a frozen encoder too


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{rank: 0}", "lora: rank: expected a whole number above 0, found 0"),
        ("{alpha: -1}", "lora: alpha: expected a number above 0, found -1"),
        ("{layers: q_proj}", "lora: layers: expected a list of names, found 'q_proj'"),
        ("{layers: [fc1]}", "lora: layers: expected names or patterns of intermediate_dense, k_proj, out_proj,"),
        ("{rnak: 4}", "lora: expected rank, alpha, layers, found rnak (did you mean 'rank'?)"),
        ("True", "lora: expected null or {'rank': 8"),
        ("{rank: 2}", "expected freeze: False or lora: null"),
    ],
)
def test_wrong_lines(train, line, said):
    wrong(train, f"--lora={line}", f"--freeze={'freeze' in said}", expect=said)


def test_a_run_and_its_package_say_the_same(trained, small, tmp_path):
    """By the command line."""
    run, wavs = trained(*RUN, yaml="ha_speaker_norm"), small.corpus("emodb") / "wav"
    learned = load_model(run).model
    assert any(p.any() for name, p in learned.named_parameters() if "adapter_up_proj" in name)
    backbone = load_file(small.backbone() / "model.safetensors")
    kept = learned.encoder.model.encoder.layers[0].attention.q_proj.pretrained_module.weight
    assert torch.equal(kept, backbone["encoder.layers.0.attention.q_proj.weight"])

    rows = predictions_of(run, wavs).head(6).to_dict("records")
    package = export_run(run, tmp_path / "package", with_onnx=True, with_speechbrain=True)
    names = load_file(package / "model.safetensors").keys()
    assert not any("adapter_" in name for name in names)
    for recognizer in (
        EmotionRecognizer.from_run(run, CPU, calibrated=False),
        EmotionRecognizer.from_package(package, CPU, calibrated=False),
    ):
        for found, row in zip(recognizer.classify_files([r["path"] for r in rows], 3), rows, strict=True):
            assert_equal(found, row)

    session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    for row in rows:
        wav = load_audio(row["path"])[None]
        logits = session.run(["emotion"], {"wavs": wav.numpy(), "lengths": np.array([wav.shape[1]])})[0]
        expected = [p for name, p in row.items() if name.startswith("posterior_")]
        assert torch.tensor(logits[0]).softmax(-1).tolist() == pytest.approx(expected, abs=1e-4)
