"""Packages: what the run said, wherever they are; what a stranger's package may try, and that none of it is run."""

import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
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
from .test_inference import CPU, RUNS, assert_equal, predictions_of

PLAIN = {"config.json", "labels.json", "model.safetensors", "README.md"}


@pytest.fixture
def run_of(trained):
    """The folder of one of the runs of test_inference.py."""
    return lambda name: trained(*RUNS[name][1], yaml=RUNS[name][0])


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
    """A package of Cai's system without SpeechBrain's layout, to be tampered with."""
    folder = Path(shutil.copytree(package_of("cai"), tmp_path / "package"))
    for name in ("hyperparams.yaml", "label_encoder.txt"):
        (folder / name).unlink()
        change(folder, lambda config, name=name: config["files"].pop(name))
    return folder


@pytest.fixture(scope="module")
def wavs(small):
    return small.corpus("emodb") / "wav"


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


# ------------------------------------------------------------------ what the run said


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
    """No speaker head, no decoder, none of the encoders that only it reads; and a name for nothing on this machine."""
    hsu, ha = (load_file(package_of(name) / "model.safetensors") for name in ("hsu", "ha"))
    parts = {name.split(".")[2] for name in hsu if name.startswith("decomposition.encoders.")}
    assert parts == {"pitch", "timbre"} and not any("decoder" in name or "speaker" in name for name in hsu)
    assert {name for name in ha if name.startswith("heads")} == {
        f"heads.{task}.{part}" for task in ("emotion", "asr") for part in ("weight", "bias")
    }
    files = {path.relative_to(package_of("fu")).as_posix() for path in package_of("fu").rglob("*") if path.is_file()}
    assert files == PLAIN | {"hyperparams.yaml", "label_encoder.txt"}
    for path in package_of("ha").rglob("*.*"):
        assert not re.search(rb"/(tmp|home|root|work|private|var)/", path.read_bytes()), path


def test_sentencepiece_tokens(package):
    """A vocabulary as large as the model's head, here with another kind of tokens."""
    n = len(json.loads((package / "tokens.json").read_text())["labels"])
    pieces = build_tokens("sentencepiece", ["der lappen liegt auf dem eisschrank", "das will sie am mittwoch"], n)
    if len(pieces) != n:
        pytest.skip(f"{len(pieces)} pieces for {n}")
    write(package, "tokens.json", json.dumps(pieces.state()))
    (found,) = EmotionRecognizer.from_package(package, CPU).classify_batch(torch.randn(1, 16000))
    assert isinstance(found.transcript, str)


def test_a_runs_calibration_goes_with_it(run_of, tmp_path):
    run = shutil.copytree(run_of("fu"), tmp_path / "run")
    content = {"temperature": 2.5, "epoch": 2, "part": "valid", "n": 12}
    (run / "calibration.json").write_text(json.dumps(content))
    out = export_run(run, tmp_path / "out", with_speechbrain=True)
    assert json.loads((out / "config.json").read_text())["calibration"] == content
    assert "softmax(logits / 2.5)" in (out / "README.md").read_text()
    assert "temperature: 2.5" in (out / "hyperparams.yaml").read_text()


# ------------------------------------------------------------------ SpeechBrain's layout


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


# ------------------------------------------------------------------ the card


def card_of(run: Path, package: Path, **changed) -> str:
    metrics = json.loads((run / "metrics.json").read_text()) | changed
    frame = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)
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


def test_the_card_has_intervals_over_speakers(run_of, package_of, tmp_path):
    run = Path(shutil.copytree(run_of("cai"), tmp_path / "run"))
    frame = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)
    frame["speaker"] = [str(k % 3) for k in range(len(frame))]
    frame.to_csv(run / "predictions.csv", index=False)
    text = card_of(run, package_of("cai"))
    assert "over the 3 speakers" in text and re.search(r"\| all \| \d+ \| [\d.]+ \[[\d.]+, [\d.]+\]", text)


# ------------------------------------------------------------------ what is not exported


def test_a_folder_that_is_taken_is_left_alone_and_an_empty_one_is_used(run_of, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert cli(["export", str(run_of("fu")), str(tmp_path / "out")]) == 2
    assert "expected a new or an empty folder, found a folder with files in it" in capfd.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="found something else"):
        export_run(run_of("fu"), tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "out"] and os.listdir(tmp_path / "out") == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    assert cli(["export", str(run_of("fu")), str(tmp_path / "out")]) == 0
    assert "written, and compared with the run" in capfd.readouterr().out
    assert set(os.listdir(tmp_path / "out")) == PLAIN and (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_a_run_that_recognises_no_emotion_and_no_run(tmp_path):
    shutil.copy(ROOT / "hparams" / "hsu_pretrain.yaml", tmp_path / "hyperparams.yaml")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="hsu_pretrain recognises no emotion"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"expected the folder of a finished run, found no hyperparams.yaml"):
        export_run(tmp_path / "nothing", tmp_path / "out")


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
    monkeypatch.setattr(export, "load_model", lambda run: pytest.fail("loaded"))
    with pytest.raises(UserError, match=said):
        export_run(run, tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


def test_a_package_that_says_something_else_is_not_kept(run_of, tmp_path, monkeypatch):
    fill = export._write_parameters

    def wrong(path, model, trained):
        with torch.no_grad():
            trained.heads["emotion"].bias[0] += 0.1
        fill(path, model, trained)
        with torch.no_grad():
            trained.heads["emotion"].bias[0] -= 0.1

    monkeypatch.setattr(export, "_write_parameters", wrong)
    with pytest.raises(UserError, match=r"emotion logits differ from the run's by \d.\de-0\d"):
        export_run(run_of("fu"), tmp_path / "out")
    assert not os.listdir(tmp_path)


def test_an_export_that_is_broken_off_leaves_no_package(run_of, tmp_path, monkeypatch):
    """Killed when all is written but nothing compared, it leaves a hidden folder; the same command then works."""
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(export, "_compare", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        export_run(run_of("fu"), tmp_path / "out")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert os.listdir(tmp_path) == [f".out.{child}.tmp"]
    assert export_run(run_of("fu"), tmp_path / "out").is_dir()


# ------------------------------------------------------------------ strangers' packages


@pytest.fixture
def canary(tmp_path):
    """A file that any of the payloads would make; after the test there must be none."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a package was executed"


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def pickled(canary: Path) -> bytes:
    torch.save({"weight": Payload(canary)}, canary.with_name("payload.pt"))
    return canary.with_name("payload.pt").read_bytes()


def refused(folder: Path, said: str) -> None:
    """By everything that loads packages."""
    for load in (EmotionRecognizer.from_package, open_recognizer):
        with pytest.raises(UserError, match=said):
            load(folder, run_opts=CPU)


def test_the_payload_works(tmp_path):
    """It would be executed by a loader that trusts."""
    pickled(tmp_path / "canary")
    torch.load(tmp_path / "payload.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("is_listed", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokens.json", "labels.json"])
def test_pickles(package, canary, is_listed, name):
    if is_listed:
        write(package, name, pickled(canary))
        refused(package, "safetensors|expected some of|labels.json: expected|tokens.json: expected")
    else:
        (package / name).write_bytes(pickled(canary))
        refused(package, "expected the SHA-256|expected only files that config.json lists")


YAML = "model: !apply:os.system ['touch {canary}']\nmodules: {{model: !ref <model>}}\npretrainer: null\n"


def test_yaml(package, canary):
    """Not listed, it is refused; listed, as SpeechBrain's layout has it, nobody reads it; no run's folder is it."""
    text = YAML.format(canary=canary)
    (package / "hyperparams.yaml").write_text(text)
    (package / "metrics.json").write_text("{}")
    refused(package, "expected only files that config.json lists")
    (package / "metrics.json").unlink()
    write(package, "hyperparams.yaml", text)
    for load in (EmotionRecognizer.from_package, open_recognizer):
        assert load(package, run_opts=CPU).classify_batch(torch.randn(1, 16000))[0].emotion


CLASS = {"class": "os.system", "arguments": {"command": "touch {canary}"}}
EVAL = {"class": "builtins.eval", "arguments": {"source": "__import__('os').system('touch {canary}')"}}


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ((), CLASS),
        ((), EVAL),
        (("encoder",), CLASS),
        (("pooling",), EVAL),
        (("heads", "emotion"), {"partial": "os.system", "arguments": {"command": "touch {canary}"}}),
        (("pooling", "arguments", "mode"), CLASS),
        (("pooling",), {"class": "torch.load", "arguments": {"f": "model.safetensors", "weights_only": False}}),
        (("pooling",), {"class": "speechbrain_ser.inference.trained.load_model", "arguments": {"run_folder": "."}}),
        (("pooling",), {"class": "speechbrain_ser.inference.package.os.system", "arguments": {"command": "x"}}),
        (("pooling",), {"class": ["torch.nn.Linear"], "arguments": {}}),
    ],
)
def test_classes_that_are_not_in_the_table(package, canary, place, content):
    content = json.loads(json.dumps(content).replace("{canary}", str(canary)))
    *outer, last = ("model", *(("arguments", *place) if place else ()))

    def put(config):
        for key in outer:
            config = config[key]
        config[last] = content

    change(package, put)
    refused(
        package, r"config.json: model.*expected a (model|class) of the table in speechbrain_ser/inference/package.py"
    )


CODE = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "configuration_files")
CODE += ("trust_remote_code", "_name_or_path", "add_adapter")


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        *(("config", {key: "code.py"}, f"expected settings of a backbone's sizes, found {key}") for key in CODE),
        ("config", {"model_type": "bert"}, "is of model type 'bert'"),
        ("config", {"model_type": ["wav2vec2"]}, "model type"),
        ("config", {"hidden_size": 10**9}, "hidden_size: expected a number from 0 to 1000000"),
        ("config", {"num_hidden_layers": 10**5}, "num_hidden_layers: expected a number from 0 to 200"),
        ("config", {"hidden_act": "os.system"}, "hidden_act: expected a number .* or a name"),
        ("config", {"hidden_act": "nothing"}, "backbone cannot be built: 'nothing'"),
        ("config", {"hidden_act": {"gelu": 1}}, "hidden_act: expected"),
        ("config", {"hidden_size": 32}, "expected the tensors of the model"),
        ("config", {"conv_dim": [8] * 6}, "no model can be built|cannot be built"),
        ("preprocessor_config", {"auto_map": {"AutoFeatureExtractor": "code.Extractor"}}, "_config.json: expected"),
        ("preprocessor_config", {"feature_extractor_type": "WhisperFeatureExtractor"}, "_config.json: expected"),
        ("preprocessor_config", {"sampling_rate": 8000}, "_config.json: expected"),
        ("preprocessor_config", {"do_normalize": "yes"}, "_config.json: expected"),
    ],
)
def test_other_settings_of_a_backbone(package, canary, name, changed, said):
    content = json.loads((package / "backbone" / f"{name}.json").read_text())
    write(package, f"backbone/{name}.json", json.dumps(content | changed))
    (package / "backbone" / ".code.py").write_text(f"import os; os.system('touch {canary}')")
    refused(package, said)


# ------------------------------------------------------------------ paths, hashes, files


@pytest.mark.parametrize("name", ["../canary.json", "/etc/passwd", "other.py", ""])
def test_paths_of_no_package(package, name):
    change(package, lambda config: config["files"].update({name: "0" * 64}))
    refused(package, "files: expected some of model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "backbone", "config.json"])
def test_links_that_lead_outside(package, tmp_path, name):
    """Even to a file with the right hash."""
    shutil.move(package / name, tmp_path / "elsewhere")
    (package / name).symlink_to(tmp_path / "elsewhere")
    refused(package, "found a link to|expected only files that config.json lists")


def test_a_pipe_is_no_file(package):
    (package / "labels.json").unlink()
    os.mkfifo(package / "labels.json")
    refused(package, "labels.json: expected a file of the package, found something else")


@pytest.mark.parametrize("name", ["model.safetensors", "labels.json", "tokens.json", "backbone/config.json"])
def test_wrong_hashes(package, name):
    data = bytearray((package / name).read_bytes())
    data[-2] ^= 1
    (package / name).write_bytes(data)
    refused(package, f"{name}: expected the SHA-256 \\w+ of config.json, found")
    (package / name).unlink()
    refused(package, f"{name}: expected a file of the package, found none")


def test_hashes_are_checked_before_anything_is_used(package, monkeypatch):
    monkeypatch.setattr("speechbrain_ser.inference.package.build_model", lambda *args: pytest.fail("built"))
    monkeypatch.setattr("speechbrain_ser.inference.package.load_tokens", lambda *args: pytest.fail("read"))
    (package / "backbone" / "preprocessor_config.json").write_text("{}")
    refused(package, "preprocessor_config.json: expected the SHA-256")


def test_an_edited_card_and_hidden_files_are_nobodys_business(package):
    (package / "README.md").write_text("edited on a page")
    (package / ".gitattributes").touch()
    (package / ".cache" / "huggingface").mkdir(parents=True)
    (package / ".cache" / "huggingface" / "x.lock").touch()
    assert EmotionRecognizer.from_package(package, CPU).classes


# ------------------------------------------------------------------ content


def of_config(key, value):
    return lambda config: config.update({key: value})


def of_model(place: str, **values):
    """Change a part of the description; place: names of arguments, separated by dots."""

    def how(config):
        inner = config["model"]["arguments"]
        for key in filter(None, place.split(".")):
            inner = inner[key]
        inner.update(values)

    return how


def of_arguments(place: str, **values):
    return of_model(f"{place}.arguments", **values)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (of_config("format", "zip"), "format: expected 'speechbrain-ser package', found 'zip'"),
        (of_config("format_version", 2), "format_version: this program reads 1, found 2"),
        (of_config("format_version", True), "format_version: this program reads 1, found True"),
        (of_config("extra", 1), "missing or unknown: extra"),
        (lambda config: config.pop("decoding"), "missing or unknown: decoding"),
        (of_config("files", []), "files: expected an object"),
        (of_config("files", {}), "expected only files that config.json lists"),
        (lambda config: config["files"].update({"labels.json": "0"}), "expected a SHA-256 of 64 hexadecimal digits"),
        (of_config("model", "model"), "model: expected an object, found 'model'"),
        (of_config("model", {}), "config.json: model: expected a model of the table"),
        (of_config("sample_rate", 8000), "sample_rate: expected 16000, found 8000"),
        (of_config("calibration", 1.5), "calibration: expected a mapping with a temperature, found 1.5"),
        (of_config("decoding", None), "decoding: expected it where the model has an ASR head"),
        (of_config("decoding", {"kind": "greedy", "beam_size": 10**9}), "decoding: expected kind"),
        (of_config("decoding", {"kind": ["greedy"], "beam_size": 1}), "decoding: expected kind"),
        (of_config("classes", ["one"]), "labels.json: expected the classes of config.json"),
        (of_arguments("pooling", power=2), "expected arguments mode, found power"),
        (of_arguments("encoder", source="/"), "found source"),
        (of_arguments("encoder", save_path="/"), "found save_path"),
        (of_model("pooling", more=1), "expected class .or partial. and arguments"),
        (of_model("pooling", arguments=[]), "arguments: expected an object, found list"),
        (of_arguments("pooling", mode="x" * 101), "at most 100 characters"),
        (of_arguments("pooling", mode=7), "no model can be built from it"),
        (lambda config: config["model"]["arguments"].pop("pooling"), "no model can be built from it"),
        (of_arguments("heads.emotion", out_features=10**7), "expected at most"),
        (of_arguments("heads.emotion", out_features=10**6), "F32 .*1000000"),
        (
            of_arguments("heads.emotion", out_features=6),
            "heads.emotion.weight: expected F32 .6, 16., found F32 .7, 16.",
        ),
        (lambda config: config["model"]["arguments"]["heads"].pop("asr"), "no model can be built"),
        (of_model("loss_weights", asr=0), "heads.asr.weight is not the model's"),
    ],
)
def test_wrong_content(package, how, said):
    change(package, how)
    refused(package, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "config.json: expected JSON"),
        ("[]", "config.json: expected a JSON object, found list"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "expected at most 24 levels"),
        ('{"a": ' + "[" * 30 + "]" * 30 + "}", "expected at most 24 levels"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "expected at most 1048576 bytes"),
        ("\x80\x81", "config.json: expected"),
        ('{"a": ' + "9" * 5000 + "}", "config.json: expected JSON"),
    ],
)
def test_a_config_that_is_no_config(package, text, said):
    (package / "config.json").write_bytes(text.encode("latin-1"))
    refused(package, said)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda state: state.pop("heads.asr.bias"), "heads.asr.bias is missing"),
        (lambda state: state.update(more=torch.zeros(1)), "more is not the model's"),
        (lambda state: state.update({"heads.emotion.bias": torch.zeros(3)}), r"expected F32 \[7\], found F32 \[3\]"),
        (lambda state: state.update({"heads.emotion.bias": torch.zeros(7).half()}), r"F32 \[7\], found F16 \[7\]"),
    ],
)
def test_other_tensors(package, how, said):
    state = load_file(package / "model.safetensors")
    how(state)
    save_file(state, package.parent / "changed")
    write(package, "model.safetensors", (package.parent / "changed").read_bytes())
    refused(package, said)
    write(package, "model.safetensors", (package / "model.safetensors").read_bytes()[:-10])
    refused(package, "model.safetensors: expected a file of safetensors")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.json", ["a", "a"], "expected 1 to 1000 different names"),
        ("labels.json", [1], "expected 1 to 1000 different names"),
        ("labels.json", {}, "expected a JSON list, found object"),
        ("labels.json", ["\x1b[2J"], r"labels.json: expected text that can be printed, found '\\x1b\[2J"),
        ("tokens.json", {"kind": "characters", "labels": ["\x07"]}, "tokens.json: expected text that can be printed"),
        ("tokens.json", {"kind": "characters", "labels": ["a", 1]}, "tokens.json: expected kind characters and labels"),
        ("tokens.json", {"kind": "characters", "labels": ["a"]}, r"tokens.json: expected \d+ tokens, as the model has"),
        ("tokens.json", {"kind": "sentencepiece", "model": "xy"}, "tokens.json: expected what a run writes"),
        ("tokens.json", {"kind": "sentencepiece", "model": "00ff"}, "tokens.json: expected what a run writes"),
        ("tokens.json", {"kind": "code"}, "tokens.json: expected kind characters"),
    ],
)
def test_other_words(package, name, content, said):
    write(package, name, json.dumps(content))
    refused(package, said)


# ------------------------------------------------------------------ the hub


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
    for load in (EmotionRecognizer.from_package, open_recognizer):
        for source in ("somebody/emotions", snapshot):
            assert load(source, run_opts=CPU).classify_batch(signal_) == [expected]
    # a link to anywhere but the blobs
    (snapshot / "labels.json").unlink()
    (snapshot / "labels.json").symlink_to(package / "labels.json")
    refused("somebody/emotions", "labels.json: expected a file within .* found a link to")


def test_blobs_that_are_somewhere_else(package, hub, tmp_path):
    snapshot = as_snapshot(package, hub)
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
    monkeypatch.chdir(tmp_path)
    asked = {}

    class Api:
        def model_info(self, name, timeout):
            file = type("File", (), {"rfilename": asked["has"]})
            return type("Info", (), {"siblings": [file]})

    def download(name, allow_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError(name)
        asked["patterns"] = allow_patterns
        return str(package)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    asked["has"] = "pytorch_model.bin"
    refused("somebody/else", "expected a package's config.json, found pytorch_model.bin")
    assert "patterns" not in asked
    asked["has"] = "config.json"
    assert open_recognizer("somebody/else", run_opts=CPU).classes
    assert set(asked["patterns"]) == {
        *("config.json", "model.safetensors", "labels.json", "tokens.json", "model.onnx"),
        *("backbone/config.json", "backbone/preprocessor_config.json", "hyperparams.yaml", "label_encoder.txt"),
    }
