"""Packages: what the run said, wherever they are; what a stranger's package may try, and that none of it is run."""

# ruff: noqa: F811 (fixtures of other files)
import hashlib
import json
import os
import re
import shutil
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_ser.cli import main as cli
from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.data.text import build_tokens
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference import export
from speechbrain_ser.inference.export import export_run, model_card, run_card
from speechbrain_ser.inference.package import sha256
from speechbrain_ser.inference.recognizer import EmotionRecognizer, open_recognizer

from .conftest import ROOT
from .test_inference import CPU, assert_equal, predictions_of, run_of, wavs  # noqa: F401 (fixtures)

PLAIN = {"config.json", "labels.json", "model.safetensors", "recordings.txt", "README.md"}


_packages: dict[str, Path] = {}


@pytest.fixture
def package_of(run_of, tmp_path_factory):
    """A run's package with SpeechBrain's layout; made once, not to be written into."""

    def folder(name: str) -> Path:
        if name not in _packages:
            out = tmp_path_factory.mktemp("packages") / "package"
            _packages[name] = export_run(run_of(name), out, with_speechbrain=True)
        return _packages[name]

    return folder


@pytest.fixture
def package(package_of, tmp_path) -> Path:
    """A package of Cai's system, to be tampered with."""
    return Path(shutil.copytree(package_of("cai"), tmp_path / "package"))


def change(folder: Path, how) -> None:
    """Change a package's config.json."""
    config = json.loads((folder / "config.json").read_text())
    how(config)
    (folder / "config.json").write_text(json.dumps(config))


def write(folder: Path, name: str, content: bytes | str) -> None:
    """Write a file into a package, with its right hash."""
    content = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(content)
    change(folder, lambda config: config["files"].update({name: hashlib.sha256(content).hexdigest()}))


@pytest.mark.parametrize("name", ["cai", "ha", "fu", "fu, waveforms", "hsu", "probe"])
def test_equals_the_runs_predictions_without_run_and_backbone(
    run_of, package_of, small, wavs, name, tmp_path, monkeypatch
):
    run, folder, backbone = run_of(name), package_of(name), small.backbone()
    rows = predictions_of(run, wavs).head(8).to_dict("records")
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    away = [(path, path.with_name(f"{path.name}-away")) for path in (run, backbone)]
    for place, other in away:
        place.rename(other)
    try:
        recognizer = EmotionRecognizer.from_package("copy", CPU, calibrated=False)
        for result, row in zip(recognizer.classify_files([row["path"] for row in rows], 3), rows, strict=True):
            assert_equal(result, row)
        calibrated = EmotionRecognizer.from_package("copy", CPU).classify_file(rows[0]["path"])
    finally:
        for place, other in away:
            other.rename(place)
    assert recognizer.model_id == sha256(folder / "model.safetensors")[:16]
    expected = EmotionRecognizer.from_run(run, CPU).classify_file(rows[0]["path"])
    assert calibrated.posteriors == pytest.approx(expected.posteriors, abs=1e-5)


def test_only_what_emotion_and_transcript_need_is_in_it(package_of):
    """No speaker head, no decoder, none of the encoders that only it reads, no path of this machine."""
    hsu, ha = (load_file(package_of(name) / "model.safetensors") for name in ("hsu", "ha"))
    parts = {name.split(".")[2] for name in hsu if name.startswith("decomposition.encoders.")}
    assert parts == {"pitch", "timbre"} and not any("decoder" in name or "speaker" in name for name in hsu)
    assert {name for name in ha if name.startswith("heads")} == {
        f"heads.{task}.{part}" for task in ("emotion", "asr") for part in ("weight", "bias")
    }
    assert set(os.listdir(package_of("fu"))) == PLAIN | {"hyperparams.yaml", "label_encoder.txt"}
    for path in package_of("ha").rglob("*.*"):
        assert not re.search(rb"/(tmp|home|root|work|private|var)/", path.read_bytes()), path


def test_sentencepiece_tokens(package):
    """Read, although this model's head has another number of tokens."""
    pieces = build_tokens("sentencepiece", ["der lappen liegt auf dem eisschrank", "das will sie am mittwoch"], 60)
    write(package, "tokens.json", json.dumps(pieces.state()))
    refused(package, rf"tokens.json: expected \d+ tokens, as the model has, found {len(pieces)}")


def test_a_runs_calibration_goes_with_it(run_of, tmp_path):
    run = shutil.copytree(run_of("fu"), tmp_path / "run")
    content = {"temperature": 2.5, "epoch": 2, "part": "valid", "n": 12}
    (run / "calibration.json").write_text(json.dumps(content))
    out = export_run(run, tmp_path / "out", with_speechbrain=True)
    assert json.loads((out / "config.json").read_text())["calibration"] == content
    assert "softmax(logits / 2.5)" in (out / "README.md").read_text()
    assert "temperature: 2.5" in (out / "hyperparams.yaml").read_text()


@pytest.mark.parametrize("name", ["cai", "fu", "hsu"])
def test_speechbrains_classifier_says_the_same(package_of, wavs, name, tmp_path, caplog):
    recognizer = EmotionRecognizer.from_package(package_of(name), CPU)
    classifier = EncoderClassifier.from_hparams(
        source=str(package_of(name)), savedir=str(tmp_path / "saved"), run_opts={"device": "cpu"}
    )
    paths = sorted(wavs.iterdir())[:3]
    signals = [load_audio(path) for path in paths]
    lengths = torch.tensor([len(signal) for signal in signals])
    padded = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True, padding_value=9.0)
    found = classifier.classify_batch(padded, lengths / lengths.max())
    alone = [classifier.classify_file(str(path)) for path in paths]
    for k, expected in enumerate(recognizer.classify_files(paths)):
        log_posteriors = torch.tensor(list(expected.posteriors.values())).log()
        known = log_posteriors.isfinite()  # others are too small for a float32 that is no logarithm
        for out_prob, score, index, labels in (tuple(each[k : k + 1] for each in found), alone[k]):
            assert labels == [expected.emotion] and recognizer.classes[int(index)] == expected.emotion
            assert torch.allclose(out_prob[0][known], log_posteriors[known], atol=1e-3) and known.any()
            assert torch.allclose(out_prob[0].exp(), log_posteriors.exp(), atol=1e-4)
            assert float(score) == float(out_prob.max())
    assert "expect_len" not in caplog.text


def card_of(run: Path, package: Path, speakers: int = 1, **changed) -> str:
    metrics = json.loads((run / "metrics.json").read_text()) | changed
    frame = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)
    frame["speaker"] = [str(k % speakers) for k in range(len(frame))]
    return str(model_card(metrics, frame, json.loads((package / "config.json").read_text())))


def test_the_card_says_what_the_run_says(run_of, package_of):
    text = (package_of("cai") / "README.md").read_text()
    metrics = json.loads((run_of("cai") / "metrics.json").read_text())
    figures = metrics["selections"]["last"]["all"]
    assert f"| all | {figures['n']} | {100 * figures['WA']:.1f} |" in text and f"{100 * figures['WER']:.1f}" in text
    assert f"- Utterances: {metrics['utterances']['train']} in training" in text and "\n\n\n" not in text
    assert "speaker-disjoint" in text and "no interval" in text  # one test speaker in a fold of this protocol
    assert "**executes\n`hyperparams.yaml`**" in text
    assert not [word for word in ("LEAKY", "oracle", "model.onnx", "{{", "None.") if word in text]
    data = ModelCard(text).data
    assert (data.library_name, data.language) == ("speechbrain-ser", ["de"])
    assert {result.metric_name for result in data.eval_results} == {"WA", "UA", "WER"}
    text = card_of(run_of("cai"), package_of("cai"), speakers=3)
    assert "over the 3 speakers" in text and re.search(r"\| all \| \d+ \| [\d.]+ \[[\d.]+, [\d.]+\]", text)
    body = run_card(run_of("cai"))
    assert "| all |" in body and "## Limits" in body and "How to load" not in body and "---\n" not in body


def test_the_card_says_what_is_wrong(run_of, package_of):
    run, package = run_of("cai"), package_of("cai")
    text = card_of(run, package, speaker_disjoint=False, leak="speakers 03, 08 are in train and test")
    assert "LEAKY: speakers 03, 08 are in train and test" in text and "speaker-disjoint" not in text
    metrics = json.loads((run / "metrics.json").read_text())
    oracle = {**metrics["selections"]["last"], "selected_by": "best on TEST (oracle)"}
    text = card_of(run, package, selection="test", selections={"test": oracle})
    assert text.count("est-selected (oracle)") >= 2 and "WA, best on TEST (oracle)" in text
    changed = {"encoder": "/home/me/backbone", "augment": {"noise": "/corpora/noise.csv"}, "lr": 0.01}
    text = card_of(run, package, changed=changed)
    assert "`augment: {'noise': '…'}`, `lr: 0.01`" in text and "/home" not in text and "/corpora" not in text


def test_a_folder_that_is_taken_is_left_alone_and_an_empty_one_is_used(run_of, tmp_path, capfd):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert cli(["export", str(run_of("fu")), str(out), "--trust-run"]) == 2
    assert "expected a new or an empty folder, found a folder with files in it" in capfd.readouterr().err
    with pytest.raises(UserError, match="found something else"):
        export_run(run_of("fu"), out / "mine.txt")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(out) == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert cli(["export", str(run_of("fu")), str(out), "--trust-run"]) == 0
    assert "written, and compared with the run" in capfd.readouterr().out
    assert set(os.listdir(out)) == PLAIN and out.stat().st_mode & 0o777 == 0o755


def test_a_run_that_recognises_no_emotion(tmp_path):
    shutil.copy(ROOT / "hparams" / "hsu_pretrain.yaml", tmp_path / "hyperparams.yaml")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="hsu_pretrain recognises no emotion"):
        export_run(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("torch.nn.Linear", "my_heads.Deep", "heads: emotion: .*table in speechbrain_ser/.*package.py.*my_heads.Deep"),
        ("models.cai.CaiModel", "models.cai.CalModel", "found speechbrain_ser.models.cai.CalModel.*did you mean"),
        ("mode: sum", "mode: !apply:os.getcwd []", "pooling: mode: .*found !apply:os.getcwd"),
        ("mode: sum", "mode: sum\n    power: 2", "MaskedPooling: expected arguments mode, found power"),
    ],
)
def test_parts_that_no_package_can_hold(run_of, tmp_path, monkeypatch, old, new, said):
    """Said from the YAML alone: nothing is loaded, and nothing is there afterwards."""
    run = Path(shutil.copytree(run_of("cai"), tmp_path / "run"))
    path = run / "hyperparams.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    monkeypatch.setattr(export, "load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=said):
        export_run(run, tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


def test_a_package_that_says_something_else_is_not_kept(run_of, tmp_path, monkeypatch):
    fill = export._write_parameters

    def then_change(path, model, trained):
        fill(path, model, trained)
        trained.heads["emotion"].bias.data[0] += 0.1

    monkeypatch.setattr(export, "_write_parameters", then_change)
    with pytest.raises(UserError, match=r"emotion logits differ from the run's by \d.\de-0\d"):
        export_run(run_of("fu"), tmp_path / "out")
    assert not os.listdir(tmp_path)


@pytest.fixture
def canary(tmp_path):
    """A file that any of the payloads would make; after the test there must be none."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists(), "a package was executed"


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def refused(folder: Path, said: str) -> None:
    """By everything that loads packages."""
    for load in (EmotionRecognizer.from_package, open_recognizer):
        with pytest.raises(UserError, match=said):
            load(folder, run_opts=CPU)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokens.json"])
def test_pickles(package, canary, name):
    payload = canary.with_name("payload.pt")
    torch.save({"weight": Payload(canary)}, payload)
    torch.load(payload, weights_only=False)
    canary.unlink()  # a loader that trusts would execute it
    (package / name).write_bytes(payload.read_bytes())
    refused(package, "expected the SHA-256|expected only files that config.json lists|expected a file of safetensors")
    write(package, name, payload.read_bytes())
    refused(package, "safetensors|expected some of|tokens.json: expected")


def test_yaml(package, canary):
    """Changed, it is refused; with its hash, as SpeechBrain's layout has it, nobody reads it; no run's folder is it."""
    text = f"model: !apply:os.system ['touch {canary}']\nmodules: {{model: !ref <model>}}\npretrainer: null\n"
    (package / "hyperparams.yaml").write_text(text)
    refused(package, "hyperparams.yaml: expected the SHA-256")
    (package / "metrics.json").write_text("{}")
    refused(package, "expected only files that config.json lists")
    (package / "metrics.json").unlink()
    write(package, "hyperparams.yaml", text)
    assert open_recognizer(package, run_opts=CPU).classify_batch(torch.randn(1, 16000))[0].emotion


@pytest.mark.parametrize("name", ["model.safetensors", "backbone", "config.json"])
def test_links_that_lead_outside(package, tmp_path, name):
    """Even to a file with the right hash."""
    shutil.move(package / name, tmp_path / "elsewhere")
    (package / name).symlink_to(tmp_path / "elsewhere")
    refused(package, "found a link to|expected only files that config.json lists")


@pytest.mark.parametrize("name", ["model.safetensors", "backbone/config.json"])
def test_wrong_hashes(package, name, monkeypatch):
    """Checked before anything is used; what the parameters' sizes are compared with has no memory."""
    for used in ["load_file"] if name == "model.safetensors" else ["load_file", "build_model", "load_tokens"]:
        monkeypatch.setattr(f"speechbrain_ser.inference.package.{used}", lambda *args: pytest.fail("used"))
    data = bytearray((package / name).read_bytes())
    data[-2] ^= 1
    (package / name).write_bytes(data)
    refused(package, f"{name}: expected the SHA-256 \\w+ of config.json, found")
    (package / name).unlink()
    refused(package, f"{name}: expected a file of the package, found none")
    os.mkfifo(package / name)
    refused(package, f"{name}: expected a file of the package, found something else")


def test_an_edited_card_and_hidden_files_are_nobodys_business(package):
    (package / "README.md").write_text("edited on a page")
    (package / ".cache").mkdir()
    (package / ".cache" / "x.lock").touch()
    assert EmotionRecognizer.from_package(package, CPU).classes


CLASS = {"class": "os.system", "arguments": {"command": "touch {canary}"}}
EVAL = {"class": "builtins.eval", "arguments": {"source": "__import__('os').system('touch {canary}')"}}
LOAD = {"class": "speechbrain_ser.inference.recognizer.load_model", "arguments": {"run_folder": "."}}
TABLE = "model.*expected a (model|class) of the table in speechbrain_ser/inference/package.py"


@pytest.mark.parametrize(
    ("place", "value", "said"),  # keys one within another
    [
        ("format", "zip", "format: expected 'speechbrain-ser package', found 'zip'"),
        ("format_version", 2, "format_version: this program reads 1, found 2"),
        ("extra", 1, "missing or unknown: extra"),
        ("files", [], "files: expected an object"),
        ("files", {}, "expected only files that config.json lists"),
        ("files labels.json", "0", "expected a SHA-256 of 64 hexadecimal digits"),
        ("files ../canary.json", "0" * 64, "files: expected some of model.safetensors"),
        ("files /etc/passwd", "0" * 64, "files: expected some of model.safetensors"),
        ("sample_rate", 8000, "sample_rate: expected 16000, found 8000"),
        ("calibration", 1.5, "calibration: expected a mapping with a temperature, found 1.5"),
        ("decoding", None, "decoding: expected it where the model has an ASR head"),
        ("decoding", {"kind": "greedy", "beam_size": 10**9}, "decoding: expected kind"),
        ("classes", ["one"], "labels.json: expected the classes of config.json"),
        ("model", "model", "model: expected an object, found 'model'"),
        ("model", CLASS, TABLE),
        ("model arguments encoder", EVAL, TABLE),
        ("model arguments heads emotion", {"partial": "os.system", "arguments": {"command": "touch {canary}"}}, TABLE),
        ("model arguments pooling arguments mode", CLASS, TABLE),
        ("model arguments pooling", LOAD, TABLE),
        ("model arguments pooling class", ["torch.nn.Linear"], TABLE),
        ("model arguments pooling more", 1, "expected class .or partial. and arguments"),
        ("model arguments pooling arguments", [], "arguments: expected an object, found list"),
        ("model arguments pooling arguments power", 2, "expected arguments mode, found power"),
        ("model arguments pooling arguments mode", "x" * 101, "at most 100 characters"),
        ("model arguments pooling arguments mode", 7, "no model can be built from it"),
        ("model arguments encoder arguments source", "/", "found source"),
        ("model arguments heads emotion arguments out_features", 10**7, "expected at most"),
        ("model arguments heads emotion arguments out_features", 10**6, "F32 .*1000000"),
        ("model arguments loss_weights asr", 0, "heads.asr.bias none, found F32"),
    ],
)
def test_another_config(package, canary, place, value, said):
    value = json.loads(json.dumps(value).replace("{canary}", str(canary)))
    *outer, last = place.split()
    change(package, lambda config: reduce(dict.get, outer, config).update({last: value}))
    refused(package, said)


CODE = ("auto_map", "_attn_implementation", "quantization_config", "_name_or_path", "add_adapter")
CHARACTERS = {"kind": "characters"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels", '{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ("labels", "[NaN]", "found nan"),
        ("labels", "[" * 5000 + "]" * 5000, "expected at most 24 levels"),
        ("labels", "[" * 30 + "]" * 30, "expected at most 24 levels"),
        ("labels", f'["{"x" * (1 << 20)}"]', "expected at most 1048576 bytes"),
        ("labels", b"\x80\x81", "expected JSON"),
        ("labels", "[" + "9" * 5000 + "]", "expected JSON"),
        ("labels", {}, "expected a JSON list, found object"),
        ("labels", ["a", "a"], "expected 1 to 1000 different names"),
        ("labels", [1], "expected 1 to 1000 different names"),
        ("labels", ["\x1b[2J"], r"expected text that can be printed, found '\\x1b\[2J"),
        ("tokens", CHARACTERS | {"labels": ["\x07"]}, "expected text that can be printed"),
        ("tokens", CHARACTERS | {"labels": ["a", 1]}, "expected kind characters and labels"),
        ("tokens", CHARACTERS | {"labels": ["a"]}, r"expected \d+ tokens, as the model has"),
        ("tokens", {"kind": "sentencepiece", "model": "00ff"}, "expected what a run writes"),
        *(("backbone/config", {key: "x"}, f"expected settings of a backbone's sizes, found {key}") for key in CODE),
        ("backbone/config", {"model_type": "bert"}, "is of model type 'bert'"),
        ("backbone/config", {"hidden_size": 10**9}, "hidden_size: expected a number from 0 to 1000000"),
        ("backbone/config", {"num_hidden_layers": 10**5}, "num_hidden_layers: expected a number from 0 to 200"),
        ("backbone/config", {"hidden_act": "os.system"}, "hidden_act: expected a number .* or a name"),
        ("backbone/config", {"hidden_size": 32}, "expected the tensors of the model"),
        ("backbone/preprocessor_config", {"auto_map": {"AutoFeatureExtractor": "x.X"}}, "_config.json: expected"),
        ("backbone/preprocessor_config", {"sampling_rate": 8000}, "_config.json: expected"),
    ],
)
def test_other_json_files(package, name, content, said):
    if name.startswith("backbone/"):
        content = json.loads((package / f"{name}.json").read_text()) | content
    write(package, f"{name}.json", content if isinstance(content, (str, bytes)) else json.dumps(content))
    refused(package, said)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"heads.asr.bias": None}, r"heads.asr.bias F32 .*, found none"),
        ({"more": torch.zeros(1)}, r"more none, found F32 \[1\]"),
        ({"heads.emotion.bias": torch.zeros(3)}, r"F32 \[7\], found F32 \[3\]"),
        ({"heads.emotion.bias": torch.zeros(7).half()}, r"F32 \[7\], found F16 \[7\]"),
    ],
)
def test_other_tensors(package, changed, said):
    state = load_file(package / "model.safetensors") | changed
    data = save({name: value for name, value in state.items() if value is not None})
    write(package, "model.safetensors", data)
    refused(package, said)
    write(package, "model.safetensors", data[:-10])
    refused(package, "model.safetensors: expected a file of safetensors")


def text_of(n: int, item: str, ends: str) -> str:
    return f"{ends[0]}{','.join([item] * n)}{ends[1]}"


def into_backbone(folder: Path, **changed) -> None:
    path = folder / "backbone" / "config.json"
    write(folder, "backbone/config.json", json.dumps(json.loads(path.read_text()) | changed))


def as_parameters(folder: Path, header: bytes, size: int = 0) -> None:
    """Parameters of so many bytes, most of them in no block of the disk."""
    write(folder, "model.safetensors", len(header).to_bytes(8, "little") + header)
    os.truncate(folder / "model.safetensors", size or (folder / "model.safetensors").stat().st_size)


def larger(folder: Path, name: str, size: int = 100 << 30) -> None:
    if name == "model.onnx":
        write(folder, name, b"")
    (folder / name).touch()
    os.truncate(folder / name, size)


def other(folder: Path, name: str, make) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)


def argument(folder: Path, place: str, value) -> None:
    *outer, last = place.split()
    change(folder, lambda config: reduce(dict.get, ["model", "arguments", *outer], config).update({last: value}))


HEADER = ",".join(f'"{k}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for k in range(10**6))
ENORMOUS = '{"x":{"dtype":"F32","shape":[26843545600],"data_offsets":[0,107374182400]}}'
POWER = "1" + "0" * 400
MEMBERS = ("README.md", "LICENSE", "labels.json", "config.json", "model.safetensors")
# of Cai's system, or of Fu's, what is done to it, and what is said
HOSTILE = {
    "doubled keys": ("cai", lambda f: write(f, "labels.json", text_of(80_000, '"a": 1', "{}")), "is there twice"),
    "doubled last key": (
        "cai",
        lambda f: write(f, "tokens.json", text_of(1, ",".join(f'"{k % 79999}":1' for k in range(80_000)), "{}")),
        "the key '0' is there twice",
    ),
    "deep": ("cai", lambda f: write(f, "backbone/preprocessor_config.json", '{"a":' * 900 + "1" + "}" * 900), "levels"),
    "10^400": (
        "cai",
        lambda f: change(f, lambda c: c.update(calibration={"temperature": int(POWER)})),
        "numbers up to",
    ),
    "1e400": ("cai", lambda f: write(f, "labels.json", "[1e400]"), "numbers up to"),
    "10^400 frames": ("cai", lambda f: into_backbone(f, conv_stride=[int(POWER)]), "numbers up to"),
    "long list": ("cai", lambda f: write(f, "tokens.json", text_of(10**6, "1", "[]")), "JSON dict|entries|object"),
    "many labels": (
        "cai",
        lambda f: write(f, "tokens.json", json.dumps({"kind": "characters", "labels": ["a"] * 10**6})),
        "at most 10000 entries",
    ),
    "many tasks": (
        "cai",
        lambda f: argument(f, "loss_weights", {f"t{k}": 1 for k in range(5000)}),
        "at most 100 entries",
    ),
    "many convolutions": ("cai", lambda f: into_backbone(f, conv_dim=[8] * 5000), "conv_dim: expected"),
    "beam": (
        "cai",
        lambda f: change(f, lambda c: c.update(decoding={"kind": "beam", "beam_size": 10**4})),
        "beam_size",
    ),
    "strides of 1": ("cai", lambda f: into_backbone(f, conv_stride=[1] * 7), "multiplications|numbers at a time"),
    "strides of 0": ("cai", lambda f: into_backbone(f, conv_stride=[0] * 7), "no model can be built"),
    "wide convolution": ("cai", lambda f: into_backbone(f, conv_dim=[10**6] * 7), "multiplications"),
    "wide layer": ("cai", lambda f: into_backbone(f, intermediate_size=10**6), "tensors of the model"),
    "a frame a minute": ("cai", lambda f: into_backbone(f, conv_stride=[100] * 7), "frames of at most a second"),
    "layers": ("cai", lambda f: into_backbone(f, num_hidden_layers=200), "tensors of the model"),
    "hop of 1": ("fu", lambda f: argument(f, "features arguments hop_length", 1), "at a time|multiplications"),
    "fixed length": ("fu", lambda f: argument(f, "fixed_length", 10**6), "at a time|multiplications"),
    "transform": ("fu", lambda f: argument(f, "features arguments n_fft", 10**6), "expected at most 8192"),
    "kernels": ("fu", lambda f: argument(f, "encoder arguments kernels", [10**6] * 3), "expected at most 1000"),
    "million tensors": ("cai", lambda f: as_parameters(f, b"{%s}" % HEADER.encode()), "header has at most"),
    "header of 2^63": ("cai", lambda f: write(f, "model.safetensors", b"\xff" * 7 + b"\x7f{}"), "header has at most"),
    "enormous tensor": (
        "cai",
        lambda f: as_parameters(f, ENORMOUS.encode(), 107374182408 + 75),
        "expected at most",
    ),
    **{
        f"100 GB of {name}": ("cai", lambda f, name=name: larger(f, name), f"{name}: expected (a file|at most)")
        for name in (*MEMBERS, "tokens.json", "backbone/config.json", "hyperparams.yaml", "model.onnx")
    },
    **{
        f"{name} is {what}": ("cai", lambda f, name=name, make=make: other(f, name, make), f"{name}: expected a file")
        for name in MEMBERS
        for what, make in {
            "a pipe": os.mkfifo,
            "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
            "a link out": lambda path: path.symlink_to("/etc/hostname"),
        }.items()
    },
    "a loop": (
        "cai",
        lambda f: other(f, "README.md", lambda path: path.symlink_to(path)),
        "README.md: expected a file",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_costs_more_than_it_may(package_of, tmp_path, case):
    """Refused with the file's name; seconds and memory are measured by hand, from outside."""
    system, make, said = HOSTILE[case]
    package = Path(shutil.copytree(package_of(system), tmp_path / "package"))
    make(package)
    refused(package, said)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub's cache of our own, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def as_snapshot(package: Path, hub: Path) -> Path:
    """As the hub's cache has it: each file a link to a blob of the name of its content."""
    home, commit = hub / "models--somebody--emotions", "0123456789abcdef0123456789abcdef01234567"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for path in filter(Path.is_file, package.rglob("*")):
        blob, link = home / "blobs" / sha256(path), home / "snapshots" / commit / path.relative_to(package)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return home / "snapshots" / commit


def test_a_hub_name_in_the_cache_needs_no_network(package, hub, tmp_path, monkeypatch):
    snapshot = as_snapshot(package, hub)
    monkeypatch.chdir(tmp_path)
    signal_ = torch.randn(1, 16000)
    (expected,) = EmotionRecognizer.from_package(package, CPU).classify_batch(signal_)
    for source in ("somebody/emotions", snapshot):
        assert open_recognizer(source, run_opts=CPU).classify_batch(signal_) == [expected]
    (snapshot / "labels.json").unlink()
    (snapshot / "labels.json").symlink_to(package / "labels.json")
    refused("somebody/emotions", "labels.json: expected a file within .* found a link to")
    shutil.move(hub / "models--somebody--emotions" / "blobs", tmp_path / "others")
    (hub / "models--somebody--emotions" / "blobs").symlink_to(tmp_path / "others")
    refused(snapshot, "config.json: expected a file within .* found a link to")


def test_a_hub_name_without_network(hub, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    refused("nobody/nothing", "nobody/nothing: expected the folder of a package, or a model on the Hugging Face hub")
    refused("./nowhere/at/all", "expected the folder of a package, or user/model on the hub|found no hyperparams.yaml")
    assert cli(["predict", "a.wav", "--model=nobody/nothing"]) == 2
    assert "could not be fetched" in capfd.readouterr().err


def test_only_a_packages_own_files_are_fetched(package, hub, tmp_path, monkeypatch):
    """What the hub is asked for; a repository without a config.json is refused before."""
    file, asked = SimpleNamespace(rfilename="pytorch_model.bin", size=1 << 40), []

    def download(name, allow_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError(name)
        asked.append(allow_patterns)
        return str(package)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=[file]))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    refused("somebody/else", "expected a package's config.json, found pytorch_model.bin")
    file.rfilename = "config.json"
    refused("somebody/else", "config.json: expected at most 1048576 bytes, found 1099511627776")
    assert not asked
    file.size = 1000
    assert open_recognizer("somebody/else", run_opts=CPU).classes
    assert set(asked[0]) == {
        *(
            "config.json",
            "model.safetensors",
            "labels.json",
            "recordings.txt",
            "tokens.json",
            "model.onnx",
            "model.int8.onnx",
        ),
        *("backbone/config.json", "backbone/preprocessor_config.json", "hyperparams.yaml", "label_encoder.txt"),
    }
