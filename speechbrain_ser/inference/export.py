"""A run\'s folder made a package, its model card, and SpeechBrain\'s own layout beside it."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
import yaml
from safetensors.torch import save_file
from speechbrain.dataio.encoder import CategoricalEncoder
from torch import nn

from speechbrain_ser import __version__
from speechbrain_ser.data.batches import SAMPLE_RATE
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.calibration import read_calibration, temperature_of
from speechbrain_ser.evaluation.intervals import SCALES, speaker_interval, speaker_sums
from speechbrain_ser.evaluation.metrics import word_errors
from speechbrain_ser.evaluation.tables import heading, unit_of, with_interval
from speechbrain_ser.files import sha256, write_json, write_text
from speechbrain_ser.inference import onnx
from speechbrain_ser.inference.package import (
    BACKBONE,
    BACKBONE_FILES,
    CARD,
    CONFIG,
    FILES,
    FORMAT,
    LABELS,
    ONNX,
    PARAMETERS,
    SPEECHBRAIN_FILES,
    TASKS,
    TOKENS,
    VERSION,
    build_model,
    describe,
    has_backbone,
    is_hub_name,
    load_package,
    read_json,
)
from speechbrain_ser.inference.trained import (
    TrainedModel,
    finished,
    load_model,
    read_yaml,
)
from speechbrain_ser.lobes.backbone import backbone_settings, preprocessor_settings
from speechbrain_ser.models.heads import model_inputs
from speechbrain_ser.nnet.lora import merged_state

LANGUAGES = {"iemocap": "en", "savee": "en", "demo": "en", "emodb": "de"}


ACTED = {
    "iemocap": "actors in scripted and improvised scenes, English",
    "savee": "four male actors who read sentences, English",
    "emodb": "ten actors who speak ten sentences in seven emotions, German",
    "demo": "no human speech: sentences spoken by a synthesiser",
}


SELECTED = {
    "last": "the last epoch",
    "valid": "the best epoch on the validation part",
    "test": "test-selected (oracle): the best epoch on the test part itself, so the figures below are too high",
}


FIGURES = ("WA", "UA", "F1", "WER")


PATH = re.compile(r"""(?<![^\s'"\[{(=,:])(~?/|[A-Za-z]:\\)[^'",\]})]+""")  # of whoever trained it: nobody's business


PARTS = {"all": "all", "text_heard": "whose text was heard in training", "text_disjoint": "whose text never was"}


INTENDED = """\
## Intended use

Research on speech emotion recognition: to compare systems, to look at errors, to build demonstrations whose users know
that the result is a guess.

## Limits

- It recognises how acted or labelled emotions of its corpus sound, not what a person feels. People show emotions in
  other ways than actors, and differently by person, culture, language, age and health.
- Other languages, rooms, microphones, telephone lines, accents, children's and old people's voices were not tested.
  Expect lower figures than those above.
- A recording always gets one of the classes above, whatever is in it: silence, music, two speakers, another emotion.
- Posteriors are no probabilities of a feeling. Nothing was tested for equal errors over gender, age or origin.
- Do not use it to diagnose or to treat anybody, in hiring, at work, in schools, in policing or at borders, for
  insurance or credit, to watch people, or to decide anything about a person. In some places the law forbids it.
"""


def model_card(metrics: Mapping, predictions: pd.DataFrame, config: Mapping, backbone: str | None) -> str:
    """The text of a package's README.md.

    Arguments
    ---------
    metrics : mapping
        The run's ``metrics.json``, from which all figures are.
    predictions : pandas.DataFrame
        The run's ``predictions.csv``, everything as text, for the intervals.
    config : mapping
        The package's config.json.
    backbone : str, optional
        What the wav2vec2-like encoder started from; None where there is none.

    Returns
    -------
    str
        Markdown with the hub's front matter.
    """
    chosen = metrics["selections"][metrics["selection"]]
    title = f"{metrics['system']}, {_corpora(metrics)}, fold {metrics['fold']}"
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(metrics, chosen), sort_keys=False, allow_unicode=True)}---\n",
        f"# Speech emotion recognition: {title}\n",
        _summary(metrics, config, backbone),
        _trained_on(metrics),
        _results(metrics, chosen, predictions),
        _calibration(config["calibration"]),
        INTENDED,
        _loading(config),
        "## Licence\n\nWhoever publishes this model says under which licence. The terms of the corpus and of the "
        "backbone may restrict it.\n",
    ]
    return "\n".join(sections)


def _corpora(metrics: Mapping) -> str:
    return " and ".join(c for c in (metrics["corpus"], metrics["second_corpus"]) if c)


def _front_matter(metrics: Mapping, chosen: Mapping) -> dict:
    corpora = [c for c in (metrics["corpus"], metrics["second_corpus"]) if c]
    languages = sorted({LANGUAGES[c] for c in corpora if c in LANGUAGES})
    selected = "" if metrics["selection"] == "last" else f", {chosen['selected_by']}"
    values = [
        {"type": kind, "name": f"{name}{selected}", "value": round(chosen["all"][name], 4)}
        for name, kind in (("WA", "accuracy"), ("UA", "recall"), ("WER", "wer"))
        if chosen["all"].get(name) is not None
    ]
    dataset = f"{_corpora(metrics)}, protocol {metrics['protocol']}{_leaky(metrics)}, fold {metrics['fold']}"
    result = {"task": {"type": "audio-classification"}, "dataset": {"type": corpora[0], "name": dataset}}
    index = {"name": metrics["system"], "results": [{**result, "metrics": values}]}
    return {
        **({"language": languages} if languages else {}),
        "library_name": "speechbrain-ser",
        "pipeline_tag": "audio-classification",
        "tags": ["speech-emotion-recognition", "speechbrain", metrics["system"]],
        "model-index": [index],
    }


def _leaky(metrics: Mapping) -> str:
    return "" if metrics["speaker_disjoint"] else " (LEAKY)"


def _summary(metrics: Mapping, config: Mapping, backbone: str | None) -> str:
    transcribes = " and writes what was said" if config["decoding"] else ""
    start = f" Its speech encoder started from {backbone}." if backbone else ""
    return (
        f"It says which of {len(config['classes'])} emotions ({', '.join(config['classes'])}) a recording of speech "
        f"sounds like{transcribes}. One model of speechbrain-ser {config['speechbrain_ser']}, of the system "
        f"`{metrics['system']}`; 16 kHz, one channel.{start}\n"
    )


def _trained_on(metrics: Mapping) -> str:
    counts, fold = metrics["utterances"], metrics["fold"]
    corpora = [c for c in (metrics["corpus"], metrics["second_corpus"]) if c]
    lines = [f"- Corpus: {c}" + (f" ({ACTED[c]})" if c in ACTED else "") for c in corpora]
    if metrics["speaker_disjoint"]:
        speakers = "speaker-disjoint: no test speaker was trained on"
    else:
        speakers = f"LEAKY: {metrics['leak']}. The figures say little about new speakers"
    lines += [
        f"- Protocol: `{metrics['protocol']}`, fold `{fold}` of {len(metrics['folds'])}; {speakers}",
        f"- Utterances: {counts['train']} in training, {counts['valid']} in validation, {counts['test']} in the test",
        f"- Parameters: of {SELECTED[metrics['selection']]} (epoch "
        f"{metrics['selections'][metrics['selection']]['epoch']} of {metrics['n_epochs']}); seed {metrics['seed']}",
    ]
    if changed := {key: value for key, value in metrics["changed"].items() if key != "encoder"}:  # said above
        listed = ", ".join(f"`{key}: {PATH.sub('…', str(value))}`" for key, value in changed.items())
        lines.append(f"- Changed from the system's own settings: {listed}")
    return "## Training\n\n" + "\n".join(lines) + "\n"


def _results(metrics: Mapping, chosen: Mapping, predictions: pd.DataFrame) -> str:
    shown = [name for name in FIGURES if chosen["all"].get(name) is not None]
    rows = [["test utterances", "n", *map(heading, shown)], ["---"] * (2 + len(shown))]
    intervals = _intervals(predictions, metrics["classes"])
    for part, words in PARTS.items():
        figures = chosen.get(part, "none")
        if figures == "none":
            continue
        ends = intervals if part == "all" else {}
        values = [with_interval(unit_of(f).text(figures.get(f)), ends.get(f)) for f in shown]
        rows.append([words, str(figures["n"]), *values])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    n_speakers = predictions["speaker"].replace("", pd.NA).nunique()
    if intervals:
        said = f"In brackets: 95 % intervals over the {n_speakers} speakers of this fold's test part."
    else:
        said = "The test part has one speaker, or none is known: there is no interval, and other speakers may do worse."
    oracle = (
        "\n\n**Test-selected (oracle): the epoch was chosen on the test part.**"
        if metrics["selection"] == "test"
        else ""
    )
    recall = ", ".join(f"{c} {unit_of('recall').text(r)}" for c, r in chosen["all"]["recall"].items() if r is not None)
    share = chosen.get("share_text_heard")
    heard = "" if share is None else f" {share:.0%} of the test utterances say a text that was heard in training."
    second = ""
    if metrics["second_corpus"] and chosen.get("second"):
        values = ", ".join(f"{f} {unit_of(f).text(chosen['second'][f])} %" for f in ("WA", "UA"))
        second = f"\n\nOn {chosen['second']['n']} held-out utterances of {metrics['second_corpus']}: {values}."
    return (
        f"## Results{oracle}\n\n{table}\n\n{said}{heard} WA: share of right utterances; UA: mean recall of the classes "
        f"(%: {recall}). They are of one fold and one seed.{second}\n"
    )


def _intervals(predictions: pd.DataFrame, classes: list) -> dict:
    """95 % intervals over speakers, by figure, as text; empty for a single speaker, or where none is known."""
    if (predictions["speaker"] == "").any():
        return {}
    if "hypothesis" in predictions:
        predictions = predictions.join(word_errors(predictions["transcript"], predictions["hypothesis"]))
    found = {n: speaker_interval(s, SCALES[n]) for n, s in speaker_sums(predictions, classes).items() if n in FIGURES}
    return {name: [unit_of(name).text(end) for end in ends] for name, ends in found.items() if ends is not None}


def _calibration(calibration: Mapping | None) -> str:
    temperature = (calibration or {}).get("temperature")
    if temperature is None:
        reason = (calibration or {}).get("reason", "the run has none")
        said = f"None ({reason}): posteriors are those of the training's loss, and mostly too sure."
    else:
        part, n = calibration.get("part", "valid"), calibration.get("n")
        said = f"Posteriors are softmax(logits / {temperature:.3g}); fitted on {n} utterances of the part `{part}`."
    return f"## Calibration\n\n{said}\n"


def _loading(config: Mapping) -> str:
    parts = [
        "## How to load\n\nNothing of this folder is executed: plain JSON, safetensors, classes of a fixed table, and "
        "the SHA-256 of every file that is used.\n\n"
        "```python\nfrom speechbrain_ser.inference.recognizer import EmotionRecognizer\n\n"
        'recognizer = EmotionRecognizer.from_package("this folder, or user/model on the hub")\n'
        'print(recognizer.classify_file("a.wav"))\n```\n\nor `speechbrain-ser predict a.wav --model=…`.\n'
    ]
    if ONNX in config["files"]:
        parts.append(
            f"`{ONNX}` takes `wavs` (float32 [batch, time], 16 kHz, padded on the right by anything) and `lengths` "
            "(int64 [batch], samples, at least those of one frame); it gives `emotion` [batch, classes] logits, "
            "`frames` [batch]" + (" and `asr` [batch, frames, tokens] logits" if config["decoding"] else "") + ".\n"
        )
    if SPEECHBRAIN_FILES[0] in config["files"]:
        parts.append(
            "SpeechBrain reads it too: `speechbrain.inference.classifiers.EncoderClassifier.from_hparams(source=…)`. "
            f"That **executes `{SPEECHBRAIN_FILES[0]}`**, as for every SpeechBrain model: only from people you trust.\n"
        )
    return "\n".join(parts)


TEMPLATE = """\
# For speechbrain.inference.classifiers.EncoderClassifier.from_hparams; written by speechbrain-ser export.
# SpeechBrain EXECUTES such a file: load only one from people whom you trust. speechbrain-ser itself never reads it.
sample_rate: {sample_rate}

{description}
embedding: !new:speechbrain_ser.inference.adapter.Embedding
  description: !ref <description>
  backbone: !ref <backbone>
  preprocessor: !ref <preprocessor>
label_encoder: !apply:speechbrain_ser.inference.adapter.empty_encoder [{n_classes}]

modules:
  compute_features: !new:torch.nn.Identity
  mean_var_norm: !new:speechbrain_ser.inference.adapter.Unchanged
  embedding_model: !ref <embedding>
  classifier: !new:speechbrain_ser.inference.adapter.LogPosteriors
    embedding: !ref <embedding>
    temperature: {temperature!r}

pretrainer: !new:speechbrain_ser.inference.adapter.NamedPretrainer
  files:
    embedding: {parameters}
    label_encoder: {labels}
  loadables:
    embedding: !ref <embedding>
    label_encoder: !ref <label_encoder>
"""


def write_speechbrain_layout(
    folder: Path, description: dict, classes: Sequence[str], calibration: Mapping | None
) -> None:
    """Write hyperparams.yaml and label_encoder.txt into a package whose other files are there.

    Arguments
    ---------
    folder : pathlib.Path
        The package.
    description : dict
        Of its model.
    classes : sequence of str
        In the order of the logits.
    calibration : mapping, optional
        Its temperature divides the logits.
    """
    contents = [read_json(folder / f, dict) if has_backbone(description) else None for f in BACKBONE_FILES]
    plain = dict(zip(("description", "backbone", "preprocessor"), (description, *contents), strict=True))
    text = TEMPLATE.format(
        sample_rate=SAMPLE_RATE,
        description=yaml.safe_dump(plain, sort_keys=False),
        n_classes=len(classes),
        temperature=float((calibration or {}).get("temperature") or 1.0),
        parameters=PARAMETERS,
        labels=SPEECHBRAIN_FILES[1],
    )
    write_text(text, folder / SPEECHBRAIN_FILES[0])
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(classes, sequence_input=False)
    encoder.save(folder / SPEECHBRAIN_FILES[1])


SECONDS = (1.5, 0.9, 0.4)  # of the random utterances on which a package is compared with its run


TOLERANCE = 1e-4


def export_run(
    run_folder: str | os.PathLike, out: str | os.PathLike, with_onnx: bool = False, with_speechbrain: bool = False
) -> Path:
    """Write a package; it appears whole or not at all.

    The speaker head and what only training needs (Hsu's decoder and the encoders that it alone reads) stay behind.

    Arguments
    ---------
    run_folder : str or os.PathLike
        Of a finished run that you trust: its YAML is executed.
    out : str or os.PathLike
        The package's folder, which must not exist, or be empty.
    with_onnx : bool
        Also a ``model.onnx`` (Cai's and Ha's systems).
    with_speechbrain : bool
        Also what ``speechbrain.inference.classifiers.EncoderClassifier.from_hparams`` reads.

    Returns
    -------
    pathlib.Path
        The package's folder.

    Raises
    ------
    UserError
        When the folder is taken, the run recognises no emotion or has parts that no package can hold, or the package
        says something else than the run.
    """
    out, run = _free(out), Path(run_folder)
    description = _description(run)
    if with_onnx:
        onnx.check_possible(description)
    trained = load_model(run)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write(temporary, run, trained, description, with_onnx, with_speechbrain)
        _compare(temporary, trained)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _free(out: str | os.PathLike) -> Path:
    out = Path(os.path.abspath(Path(out).expanduser()))
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return out
    if out.exists() or out.is_symlink():
        found = "a folder with files in it" if out.is_dir() else "something else"
        raise UserError(f"{out}: expected a new or an empty folder, found {found}: give another one, or remove it")
    return out


def _description(run: Path) -> dict:
    """Of the run's model; read from the YAML, before anything of it is executed."""
    path = finished(run) / "hyperparams.yaml"
    tree = read_yaml(path)
    if tree.get("kind") == "pretraining":
        system = tree.get("system")
        raise UserError(
            f"{run}: {system} recognises no emotion: it is the pre-training of another system, to export instead"
        )
    return describe(tree, str(path))


def _write(folder: Path, run: Path, trained: TrainedModel, description: dict, with_onnx: bool, with_speechbrain: bool):
    """Everything but the hashes first, config.json with them last."""
    classes, calibration = trained.classes, _calibration_export(run, trained.epoch)
    write_json(classes, folder / LABELS)
    if has_asr := "asr" in description["arguments"]["heads"]:
        shutil.copyfile(run / "save" / "tokens.json", folder / TOKENS)
    if has_backbone(description):
        _write_backbone(folder, trained.model)
    model = build_model(description, str(run / "hyperparams.yaml"), str(folder / BACKBONE))
    _write_parameters(folder / PARAMETERS, model, trained.model)
    if with_onnx:
        onnx.write_onnx(model, folder / ONNX)
    if with_speechbrain:
        write_speechbrain_layout(folder, description, classes, calibration)
    lines = trained.lines
    config = {
        "format": FORMAT,
        "format_version": VERSION,
        "speechbrain_ser": __version__,
        "model": description,
        "classes": classes,
        "decoding": {"kind": lines["decoding"], "beam_size": lines["beam_size"]} if has_asr else None,
        "sample_rate": SAMPLE_RATE,
        "calibration": calibration,
        "files": {name: sha256(folder / name) for name in FILES if (folder / name).is_file()},
    }
    write_text(_card(run, trained, config), folder / CARD)
    write_json(config, folder / CONFIG)


def _calibration_export(run: Path, epoch: int) -> dict | None:
    """The run's, unless it is that of other parameters."""
    found = read_calibration(run)
    _, reason = temperature_of(found, epoch)
    return found if found is None or reason is None else {"temperature": None, "reason": reason}


def _write_backbone(folder: Path, model: nn.Module) -> None:
    (folder / BACKBONE).mkdir()
    config, preprocessor = (folder / name for name in BACKBONE_FILES)
    write_json(backbone_settings(model.encoder.model.config.to_dict()), config)
    write_json(preprocessor_settings(model.encoder), preprocessor)


def _write_parameters(path: Path, model: nn.Module, trained: nn.Module) -> None:
    """Of the run's parameters those that the package's model has; the model gets them as well."""
    state = merged_state(trained)  # a package's layers are plain ones
    if lacking := [name for name in model.state_dict() if name not in state]:
        raise UserError(f"the run's model lacks {', '.join(lacking[:5])}, which its description has")
    state = {name: state[name].detach().cpu().clone().contiguous() for name in model.state_dict()}
    model.load_state_dict(state)
    save_file(state, path, {"format": "pt"})
    path.chmod((path.parent / LABELS).stat().st_mode & 0o777)  # safetensors' files are the owner's alone


def _card(run: Path, trained: TrainedModel, config: dict) -> str:
    path = run / "predictions.csv"
    if not path.is_file():
        raise UserError(f"{path}: expected the predictions of a finished run, found none")
    predictions = pd.read_csv(path, dtype=str, keep_default_na=False)
    return model_card(trained.metrics, predictions, config, _start(trained.lines))


def _start(lines: dict) -> str | None:
    """What the backbone's parameters were before the training: a hub name, and never a path of this machine."""
    if not (name := lines.get("encoder") or lines.get("wav2vec2_hub")):  # of older runs
        return None
    if "build_backbone" not in lines:  # a mapping: it was drawn in these sizes
        return "random parameters"
    return f"`{name}`" if is_hub_name(name) else "a backbone in a folder of whoever trained it"


def _compare(folder: Path, trained: TrainedModel) -> None:
    """The package must say what the run says, on a padded batch of noise."""
    package = load_package(folder)
    trained.model.keep_tasks(set(TASKS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wavs = [torch.randn(int(s * SAMPLE_RATE)) for s in SECONDS]
    expected, found = (_outputs(model, wavs) for model in (trained.model, package.model))
    for name, value in expected.items():
        worst = float((value - found[name]).abs().max() / value.abs().max().clamp(min=1))
        if not worst <= TOLERANCE:
            raise UserError(f"the package's {name} logits differ from the run's by {worst:.1e}: nothing is written")


def _outputs(model: nn.Module, wavs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        outputs = model(**model_inputs(model, wavs, "cpu"))
    return {name: outputs[name] for name in TASKS if name in outputs}
