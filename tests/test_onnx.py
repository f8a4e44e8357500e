"""ONNX: the graph that is kept says what PyTorch says, for any length and any batch; a wrong one is not kept."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference import export
from speechbrain_ser.inference.adapters import Graph, check_onnx, write_onnx
from speechbrain_ser.inference.evaluate import open_model
from speechbrain_ser.inference.export import export_run
from speechbrain_ser.inference.package import sha256
from speechbrain_ser.inference.recognizer import EmotionRecognizer
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.nnet.pooling import MaskedPooling

from .test_inference import CPU, RUNS


def model_of(backbone: Path, pooling: str = "mean") -> CaiModel:
    heads = {"emotion": partial(nn.Linear, out_features=3)}
    return CaiModel(Wav2Vec2(str(backbone)), MaskedPooling(pooling), heads, {"emotion": 1.0}).eval()


def test_the_graph_says_what_the_package_says(trained, small, tmp_path):
    """On speech, alone and in a padded batch whose padding is anything."""
    name, flags = RUNS["ha"]
    exported = export_run(trained(*flags, yaml=name), tmp_path / "package", with_onnx=True)
    config = json.loads((exported / "config.json").read_text())
    assert config["files"]["model.onnx"] == sha256(exported / "model.onnx")
    assert "`model.onnx` takes `wavs`" in (exported / "README.md").read_text()
    paths = sorted(map(str, (small.corpus("emodb") / "wav").iterdir()))[:4]
    rows = pd.DataFrame({"ID": paths, "wav": paths, "speaker": "", "emotion": "", "transcript": "A"})
    first, second = (open_model(str(each), **CPU).predictions(rows) for each in (exported / "model.onnx", exported))
    assert first[1] == pytest.approx(second[1], abs=1e-4) and first[0]["hypothesis"].equals(second[0]["hypothesis"])
    # with eight bits sums of products overflow on CPUs without VNNI
    seven_bits = {"weight_type": QuantType.QInt8, "reduce_range": True}
    quantize_dynamic(exported / "model.onnx", tmp_path / "quantized.onnx", **seven_bits)
    recognizer = EmotionRecognizer.from_package(exported, CPU, calibrated=False)
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    assert {i.name: i.type for i in session.get_inputs()} == {"wavs": "tensor(float)", "lengths": "tensor(int64)"}
    signals = [load_audio(path) for path in sorted((small.corpus("emodb") / "wav").iterdir())[:4]]
    signals.append(signals[0][: recognizer.model.min_samples])
    lengths = torch.tensor([len(signal) for signal in signals])
    padded = nn.utils.rnn.pad_sequence(signals, batch_first=True, padding_value=7.0)
    emotion, frames, asr = session.run(None, {"wavs": padded.numpy(), "lengths": lengths.numpy()})
    assert [output.name for output in session.get_outputs()] == ["emotion", "frames", "asr"]
    quantized = onnxruntime.InferenceSession(tmp_path / "quantized.onnx", providers=["CPUExecutionProvider"])
    near = quantized.run(["emotion"], {"wavs": padded.numpy(), "lengths": lengths.numpy()})[0]
    assert np.abs(near - emotion).max() < 0.1 * np.abs(emotion).max()
    texts = recognizer.decode(torch.from_numpy(asr), torch.from_numpy(frames))
    for k, signal in enumerate(signals):
        (expected,) = recognizer.classify_batch(signal)
        posteriors = torch.from_numpy(emotion[k]).softmax(-1).tolist()
        assert posteriors == pytest.approx(list(expected.posteriors.values()), abs=1e-4)
        assert texts[k] == expected.transcript
        alone = session.run(None, {"wavs": signal[None].numpy(), "lengths": lengths[k : k + 1].numpy()})
        assert np.abs(alone[0][0] - emotion[k]).max() < 1e-4 * max(1, np.abs(emotion[k]).max())
        assert np.abs(alone[2][0] - asr[k, : frames[k]]).max() < 1e-4 * max(1, np.abs(asr[k]).max())


@pytest.mark.parametrize(
    ("pooling", "norm"), [pytest.param("mean_std", "group", marks=pytest.mark.slow), ("attentive", "layer")]
)
def test_a_wrong_graph_is_told(small, tmp_path, pooling, norm):
    """Of a model without an ASR head that has changed since it was exported and compared."""
    sizes = {"hidden_size": 64, "num_conv_pos_embeddings": 128}  # what is larger, no exporter computes beforehand
    model = model_of(small.backbone(feat_extract_norm=norm, **sizes), pooling)
    with torch.no_grad():
        model.heads["emotion"].weight.mul_(30)  # lest its bias hide what was pooled
        for parameter in model.pooling.parameters():
            parameter.mul_(3)
    write_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    weights = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    assert weights and weights <= {each.name for each in graph.initializer}  # what a quantizer takes
    with torch.no_grad():
        model.heads["emotion"].bias[0] += 0.1
    with pytest.raises(UserError, match=r"the graph's emotion logits are off by \d.\de-0\d"):
        check_onnx(Graph(model), tmp_path / "model.onnx")


def test_a_graph_that_torch_cannot_export(small, tmp_path, monkeypatch):
    model = model_of(small.backbone())

    def forward(self, wavs, wav_lens):  # a shape that depends on a value
        return wavs[:, : 16 * int(wav_lens.sum().item() % 3)].unflatten(1, (-1, 16))

    monkeypatch.setattr(Wav2Vec2, "forward", forward)
    with pytest.raises(UserError, match="--onnx: this model cannot be exported"):
        write_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fu", r"Fu's system reads spectrograms, .*: only Cai's and Ha's"),
        ("ha", r'onnx, onnxscript, onnxruntime: pip install "speechbrain-ser\[onnx\]"'),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work(tmp_path, trained, monkeypatch, name, said):
    run = trained(*RUNS[name][1], yaml=RUNS[name][0])
    monkeypatch.setattr(export, "load_model", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=said):
        export_run(run, tmp_path / "out", with_onnx=True)
    assert not list(tmp_path.iterdir())
