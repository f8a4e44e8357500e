"""ONNX: the graph that is kept says what PyTorch says, for any length and any batch; a wrong one is not kept."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
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
from speechbrain_ser.inference import adapters, export
from speechbrain_ser.inference.adapters import Graph, check_onnx, write_onnx
from speechbrain_ser.inference.evaluate import open_model
from speechbrain_ser.inference.export import export_run
from speechbrain_ser.inference.package import load_package, sha256
from speechbrain_ser.inference.recognizer import EmotionRecognizer
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing import speech_split

from .conftest import ROOT
from .test_inference import CPU, RUNS

DOCS = (ROOT / "docs" / "packages.md").read_text(encoding="utf-8")


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
    with pytest.raises(UserError, match=r"--onnx: this model cannot be exported, leave --onnx out: [^\x1b]*$"):
        write_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_lacking_packages_are_told_before_any_work(tmp_path, trained, monkeypatch):
    run = trained(*RUNS["ha"][1], yaml=RUNS["ha"][0])
    monkeypatch.setattr(export, "load_model", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'onnx, onnxscript, onnxruntime: pip install "speechbrain-ser\[onnx\]"'):
        export_run(run, tmp_path / "out", with_onnx=True)
    with pytest.raises(UserError, match="--int8: expected --onnx beside it"):
        export_run(run, tmp_path / "out", with_int8=True)
    assert not list(tmp_path.iterdir())


_packages: dict[str, Path] = {}


@pytest.fixture
def package_of(trained, small, tmp_path_factory, monkeypatch):
    """A system's package with both graphs; made once, not to be written into."""
    whisper = small.backbone(model_type="whisper")
    runs = {"whisper": ("cai_mtl", [f"--encoder={whisper}", "--pooling=sum"]), **RUNS}
    runs["probe"] = ("probe", [f"--encoder={whisper}", "--pooling=percentiles"])

    def folder(name: str) -> Path:
        if name not in _packages:
            monkeypatch.setattr(adapters, "EQUAL", 0)  # narrow models are all margins
            out = tmp_path_factory.mktemp("packages") / "package"
            run = trained(*runs[name][1], yaml=runs[name][0])
            _packages[name] = export_run(run, out, with_onnx=True, with_int8=True)
            monkeypatch.undo()
        return _packages[name]

    return folder


NO_TORCH = """import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "speechbrain", "transformers", "pandas"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
"""


def slow(name: str):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["whisper", slow("hsu"), slow("fu"), slow("fu, waveforms"), slow("probe")])
def test_every_system(package_of, small, name, tmp_path):
    """By onnxruntime, in a batch, and by the script of docs/packages.md, which finds no torch: what PyTorch says."""
    folder = package_of(name)
    described = json.loads((folder / "config.json").read_text()).get("onnx")
    if name == "hsu":
        assert described["inputs"] == ["wavs", "lengths", "mel", "f0"]
        assert import_module(described["module"]) is speech_split
    wavs = sorted(map(str, (small.corpus("emodb") / "wav").iterdir()))[:4]
    rows = pd.DataFrame({"ID": wavs, "wav": wavs, "speaker": "", "emotion": "", "transcript": "A"})
    judges = [open_model(str(folder / file), **CPU) for file in ("", "model.onnx", "model.int8.onnx")]
    expected, found, near = (each.predictions(rows)[1] for each in judges)
    assert found == pytest.approx(expected, abs=1e-4)
    assert near == pytest.approx(expected, abs=0.2) and not np.array_equal(near, found)
    alone = judges[2].predictions(rows[:1])[1]
    assert alone == pytest.approx(near[:1], abs=1e-6)
    (script,) = re.findall(r"^```python\n(.*?^import onnxruntime.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    (tmp_path / "answer.py").write_text(NO_TORCH + script)
    for path, posteriors in zip(wavs[:2], expected, strict=False):
        command = [sys.executable, tmp_path / "answer.py", folder, path]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, done.stderr
        said = dict(line.split() for line in done.stdout.splitlines())
        assert list(said) == judges[0].classes and list(map(float, said.values())) == pytest.approx(
            posteriors, abs=6e-4
        )


def test_eight_bits_that_decide_otherwise_are_refused(package_of, small, tmp_path, monkeypatch):
    folder = package_of("whisper")
    model = load_package(folder).model
    adapters.take_waveforms(model)
    wavs = sorted(map(str, (small.corpus("emodb") / "wav").iterdir()))[:8]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    decided = [session.run(["emotion"], adapters.feeds([{"sig": load_audio(wav)}]))[0].argmax() for wav in wavs]
    rarest = min(range(model.heads["emotion"].out_features), key=decided.count)

    def wrong(path, out, **_):
        graph = onnx.load(path)
        (bias,) = (each for each in graph.graph.initializer if each.name == "model.heads.emotion.bias")
        values = onnx.numpy_helper.to_array(bias).copy()
        values[rarest] = 1e6
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(graph, out)

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", wrong)
    said = f"--int8: {decided.count(rarest)} of 8 decisions .* expected at least 99%: nothing is written"
    with pytest.raises(UserError, match=said):
        adapters.write_int8(model, folder / "model.onnx", tmp_path / "model.int8.onnx", wavs)


@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_parameters_in_other_files_are_refused(tmp_path, place):
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="model.safetensors")
    make, value = onnx.helper, partial(onnx.helper.make_tensor_value_info, elem_type=1, shape=[4])
    nodes = [make.make_node("Add", ["x", "w"], ["y"])]
    if place == "attribute":
        nodes.insert(0, make.make_node("Constant", [], ["w"], value=tensor))
    graph = make.make_graph(nodes, "g", [value("x")], [value("y")], [tensor] if place == "initializer" else [])
    (tmp_path / "model.onnx").write_bytes(make.make_model(graph).SerializeToString())
    with pytest.raises(UserError, match=r"model.onnx: expected all parameters within"):
        adapters.open_graph(tmp_path / "model.onnx")


def test_a_graph_that_could_go_on_for_ever_is_refused(tmp_path):
    make, value = onnx.helper, partial(onnx.helper.make_tensor_value_info, elem_type=1, shape=[4])
    branch = make.make_graph([make.make_node("Identity", ["x"], ["z"])], "b", [], [value("z")])
    node = make.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [value("x"), make.make_tensor_value_info("c", onnx.TensorProto.BOOL, [1])]
    (tmp_path / "g.onnx").write_bytes(
        make.make_model(make.make_graph([node], "g", inputs, [value("y")])).SerializeToString()
    )
    with pytest.raises(UserError, match=r"g.onnx: expected one graph, without loops"):
        adapters.open_graph(tmp_path / "g.onnx")


def test_what_a_graph_says_must_be_logits(package_of, small, tmp_path):
    folder = shutil.copytree(package_of("whisper"), tmp_path / "package")
    graph = onnx.load(folder / "model.onnx")
    (last,) = (node for node in graph.graph.node if "emotion" in node.output)
    last.output[0] = "logits"
    graph.graph.node.append(onnx.helper.make_node("Transpose", ["logits"], ["emotion"]))
    onnx.save(graph, folder / "model.onnx")
    config = json.loads((folder / "config.json").read_text())
    config["files"]["model.onnx"] = sha256(folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps(config))
    wavs = sorted(map(str, (small.corpus("emodb") / "wav").iterdir()))[:2]
    rows = pd.DataFrame({"ID": wavs, "wav": wavs, "speaker": "", "emotion": "", "transcript": ""})
    with pytest.raises(UserError, match=r"model.onnx: expected logits \[\d, 7\].*found \[\d+, 1\]"):
        open_model(str(folder / "model.onnx"), **CPU).predictions(rows)


def test_a_package_names_our_module_alone(package_of, tmp_path):
    folder = shutil.copytree(package_of("whisper"), tmp_path / "package")
    config = json.loads((folder / "config.json").read_text())
    config["onnx"] = {"inputs": ["wavs", "lengths", "mel", "f0"], "module": "antigravity"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: onnx: expected .*, found .*antigravity"):
        load_package(folder)
