"""Make a run's folder a package, with its model card, and SpeechBrain's own layout beside it."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors.torch import save_file
from speechbrain.dataio.encoder import CategoricalEncoder
from torch import nn

from speechbrain_ser import __version__
from speechbrain_ser.data import manifest
from speechbrain_ser.data.batches import SAMPLE_RATE
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.calibration import read_calibration, temperature_of
from speechbrain_ser.evaluation.intervals import speaker_interval, speaker_sums
from speechbrain_ser.evaluation.metrics import FIGURES, SELECTIONS, printed, with_interval
from speechbrain_ser.evaluation.runs import in_words_of_texts, read_metrics
from speechbrain_ser.evaluation.tables import in_markdown
from speechbrain_ser.files import folder_written_whole, read_csv, sha256, write_json, write_text
from speechbrain_ser.inference import adapters, package
from speechbrain_ser.inference.package import CONFIG, LABELS, PARAMETERS, TASKS
from speechbrain_ser.inference.recognizer import TrainedModel, finished, load_model, read_yaml
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
MEASURED = ("WA", "UA", "F1", "WER")
HUB_METRICS = {"WA": "accuracy", "UA": "recall", "WER": "wer"}  # as the Hugging Face hub calls them
PATH = re.compile(r"""(?<![^\s'"\[{(=,:])(~?/|[A-Za-z]:\\)[^'",\]})]+""")  # of whoever trained it: nobody's business
PARTS = {"all": "all", "text_heard": "whose text was heard in training", "text_disjoint": "whose text never was"}


def model_card(metrics: Mapping, predictions: pd.DataFrame, config: Mapping, backbone: str | None = None) -> ModelCard:
    """Fill in card.md from a run's ``metrics.json``, its ``predictions.csv`` (as text) and the package's config.json.

    Without ``files`` in the config, nothing is said of loading it. `backbone` is what the encoder started from.
    """
    chosen = metrics["selections"][metrics["selection"]]
    corpora = [c for c in (metrics["corpus"], metrics["second_corpus"]) if c]
    data, results = _card_data(metrics, chosen, corpora), _results(metrics, chosen, predictions)
    metrics, chosen, config, corpora = in_markdown([metrics, chosen, config, corpora])
    changed = {key: value for key, value in metrics["changed"].items() if key != "encoder"}  # that is the backbone
    calibration = config["calibration"] or {}
    with_second = metrics["second_corpus"] and chosen.get("second")
    return ModelCard.from_template(
        data,
        Path(__file__).with_name("card.md"),
        m=metrics,
        chosen=chosen,
        corpora=corpora,
        config=config,
        backbone=backbone,
        acted=ACTED,
        texts=in_words_of_texts(metrics["texts"]) if "texts" in metrics else "",  # a run of an earlier version
        selected=SELECTIONS[metrics["selection"]].in_full,
        changed=[f"`{key}: {PATH.sub('…', str(value))}`" for key, value in changed.items()],
        recall=[f"{c} {printed(r)}" for c, r in chosen["all"]["recall"].items() if r is not None],
        second=[f"{f} {printed(chosen['second'][f])} %" for f in ("WA", "UA")] if with_second else [],
        calibration=calibration,
        temperature=calibration.get("temperature"),
        **results,
    )


def run_card(run: Path) -> str:
    """The model card of a run that is no package, without front matter."""
    metrics, predictions = read_metrics(run), _predictions(run)
    config = {"classes": metrics["classes"], "decoding": "hypothesis" in predictions, "files": ()}
    config |= {"calibration": read_calibration(run), "speechbrain_ser": __version__}
    return model_card(metrics, predictions, config).text


def _card_data(metrics: Mapping, chosen: Mapping, corpora: list[str]) -> ModelCardData:
    selected = "" if metrics["selection"] == "last" else f", {chosen['selected_by']}"
    leaky = "" if metrics["speaker_disjoint"] else " (LEAKY)"
    dataset = f"{' and '.join(corpora)}, protocol {metrics['protocol']}{leaky}, fold {metrics['fold']}"
    of = {"task_type": "audio-classification", "dataset_type": corpora[0], "dataset_name": dataset}
    figures = {name: chosen["all"][name] for name in HUB_METRICS if chosen["all"].get(name) is not None}
    return ModelCardData(
        language=sorted({LANGUAGES[c] for c in corpora if c in LANGUAGES}) or None,
        library_name="speechbrain-ser",
        pipeline_tag="audio-classification",
        tags=["speech-emotion-recognition", "speechbrain", metrics["system"]],
        model_name=metrics["system"],
        eval_results=[
            EvalResult(
                **of, metric_type=HUB_METRICS[name], metric_name=f"{name}{selected}", metric_value=round(value, 4)
            )
            for name, value in figures.items()
        ],
    )


def _results(metrics: Mapping, chosen: Mapping, predictions: pd.DataFrame) -> dict[str, str]:
    """The table of figures, and what it says of their spread over speakers."""
    measured = [FIGURES[name] for name in MEASURED if chosen["all"].get(name) is not None]
    rows = [["test utterances", "n", *(f.heading for f in measured)], ["---"] * (2 + len(measured))]
    is_known = (predictions["speaker"] != "").all()
    sums = speaker_sums(predictions, metrics["classes"], MEASURED) if is_known else {}
    intervals = {name: ends for name, of in sums.items() if (ends := speaker_interval(of, FIGURES[name].scale))}
    for part, words in PARTS.items():
        if (figures := chosen.get(part, "none")) != "none":
            ends = intervals if part == "all" else {}
            values = [with_interval(f.text, figures.get(f.name), ends.get(f.name)) for f in measured]
            rows.append([words, str(figures["n"]), *values])
    spread = "The test part has one speaker, or none is known: there is no interval, and other speakers may do worse."
    if intervals:
        n_speakers = predictions["speaker"].nunique()
        spread = f"In brackets: 95 % intervals over the {n_speakers} speakers of this fold's test part."
    return {"table": "\n".join(f"| {' | '.join(row)} |" for row in rows), "spread": spread}


def _predictions(run: Path) -> pd.DataFrame:
    return read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)


def _write_speechbrain_layout(folder: Path, config: Mapping, backbone: Sequence[dict | None]) -> None:
    plain = dict(zip(("description", "backbone", "preprocessor"), (config["model"], *backbone), strict=True))
    yaml_file, labels_file = package.SPEECHBRAIN_FILES
    template = Path(__file__).with_name("speechbrain.yaml").read_text(encoding="utf-8")
    text = template.format(
        sample_rate=SAMPLE_RATE,
        description=yaml.safe_dump(plain, sort_keys=False),
        n_classes=len(config["classes"]),
        temperature=float((config["calibration"] or {}).get("temperature") or 1.0),
        parameters=PARAMETERS,
        labels=labels_file,
    )
    write_text(text, folder / yaml_file)
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(config["classes"], sequence_input=False)
    encoder.save(folder / labels_file)


SECONDS = (1.5, 0.9, 0.4)  # of the random utterances on which a package is compared with its run


def export_run(
    run_folder: str | os.PathLike,
    out: str | os.PathLike,
    with_onnx: bool = False,
    with_speechbrain: bool = False,
    trust_run: bool = True,
    with_int8: bool = False,
) -> Path:
    """Write a package of a finished run, which :func:`load_model` executes, and return its folder `out`.

    It appears whole or not at all, in a folder that must not exist, or be empty. The speaker head and what only
    training needs (Hsu's decoder and the encoders that it alone reads) stay behind. A package that says something else
    than the run, on a padded batch of noise, is not kept. `with_onnx` adds a ``model.onnx``, `with_int8` beside it a
    ``model.int8.onnx``, smaller, which decides as it does, and `with_speechbrain` what
    ``speechbrain.inference.classifiers.EncoderClassifier.from_hparams`` reads.
    """
    out, run = _free(out), Path(run_folder)
    description = _description(run)
    if with_int8 and not with_onnx:
        raise UserError("--int8: expected --onnx beside it, of which it is made")
    if with_onnx:
        adapters.check_possible()
    recordings = _tested(run) if with_int8 else None
    trained = load_model(run, trust_run)
    with folder_written_whole(out) as temporary:
        _write(temporary, run, trained, description, with_onnx, with_speechbrain, recordings)
        _compare(temporary, trained)
    return out


def _free(out: str | os.PathLike) -> Path:
    out = Path(os.path.abspath(Path(out).expanduser()))
    is_folder = out.is_dir() and not out.is_symlink()
    if os.path.lexists(out) and not (is_folder and not any(out.iterdir())):
        found = "a folder with files in it" if out.is_dir() else "something else"
        raise UserError(f"{out}: expected a new or an empty folder, found {found}: give another one, or remove it")
    return out


def _description(run: Path) -> dict:
    """Of the run's model; read from the YAML, before anything of it is executed."""
    path = finished(run) / "hyperparams.yaml"
    tree = read_yaml(path)
    if tree.get("kind") == "pretraining":
        raise UserError(f"{run}: {tree.get('system')} recognises no emotion: export the system that it pre-trains")
    return package.describe(tree, str(path))


def _tested(run: Path) -> list[str]:
    """The recordings of a run's predictions.csv, where the corpus of its YAML has them."""
    lines = read_yaml(run / "hyperparams.yaml")
    frame = manifest.read_corpus(lines)
    wanted = set(_predictions(run)["ID"])
    if lacking := sorted(wanted - {*frame["ID"]}):
        raise UserError(f"--int8: {lines['data_folder']}: expected the run's test utterances, found no {lacking[0]}")
    return frame["wav"][frame["ID"].isin(wanted)].tolist()


def _write(
    folder: Path,
    run: Path,
    trained: TrainedModel,
    description: dict,
    with_onnx: bool,
    with_speechbrain: bool,
    recordings: Sequence[str] | None,
):
    """Everything but the hashes first, config.json with them last."""
    calibration = trained.calibration
    if (reason := temperature_of(calibration, trained.epoch)[1]) and calibration is not None:  # of other parameters
        calibration = {"temperature": None, "reason": reason}
    config = {
        "format": package.FORMAT,
        "format_version": package.VERSION,
        "speechbrain_ser": __version__,
        "model": description,
        "classes": trained.classes,
        "decoding": trained.decoding,
        "sample_rate": SAMPLE_RATE,
        "calibration": calibration,
    }
    write_json(config["classes"], folder / LABELS)
    if trained.recordings is not None:
        write_text("".join(f"{digest}\n" for digest in sorted(trained.recordings)), folder / package.RECORDINGS)
    if trained.tokens is not None:
        shutil.copyfile(run / "save" / "tokens.json", folder / package.TOKENS)
    encoder = description["arguments"].get("encoder")
    has_backbone = isinstance(encoder, dict) and encoder.get("class") in package.ENCODERS
    backbone = _write_backbone(folder, trained.model) if has_backbone else (None, None)
    model = package.build_model(description, str(run / "hyperparams.yaml"), str(folder / package.BACKBONE))
    _write_parameters(folder / PARAMETERS, model, trained.model)
    if with_onnx:
        adapters.write_onnx(model, folder / package.ONNX)
        if (read := package.describe_graph(model)) is not None:
            config[package.GRAPH] = read
    if recordings is not None:
        adapters.write_int8(model, folder / package.ONNX, folder / package.INT8, recordings)
    if with_speechbrain:
        _write_speechbrain_layout(folder, config, backbone)
    config["files"] = {name: sha256(folder / name) for name in package.FILES if (folder / name).is_file()}
    card = model_card(trained.metrics, _predictions(run), config, _backbone_name(trained.lines))
    write_text(str(card), folder / package.CARD)
    write_json(config, folder / CONFIG)


def _write_backbone(folder: Path, model: nn.Module) -> tuple[dict, dict]:
    (folder / package.BACKBONE).mkdir()
    contents = backbone_settings(model.encoder.model.config.to_dict()), preprocessor_settings(model.encoder)
    for name, content in zip(package.BACKBONE_FILES, contents, strict=True):
        write_json(content, folder / name)
    return contents


def _write_parameters(path: Path, model: nn.Module, trained: nn.Module) -> None:
    """Of the run's parameters those that the package's model has; the model gets them as well."""
    state = merged_state(trained)  # a package's layers are plain ones
    if lacking := [name for name in model.state_dict() if name not in state]:
        raise UserError(f"the run's model lacks {', '.join(lacking[:5])}, which its description has")
    if wrong := [name for name, built in model.state_dict().items() if built.shape != state[name].shape]:
        raise UserError(f"{wrong[0]}: a package has no line for its size (SETTINGS of lobes/backbone.py)")
    state = {name: state[name].detach().cpu().clone().contiguous() for name in model.state_dict()}
    model.load_state_dict(state)
    save_file(state, path, {"format": "pt"})


def _backbone_name(lines: dict) -> str | None:
    """What the encoder's parameters were before the training: a hub name, and never a path of this machine."""
    if not (name := lines.get("encoder")):
        return None
    if "build_backbone" not in lines:  # a mapping: it was drawn in these sizes
        return "random parameters"
    return f"`{name}`" if package.is_hub_name(name) else "a backbone in a folder of whoever trained it"


def _compare(folder: Path, trained: TrainedModel) -> None:
    """The package must say what the run says, on a padded batch of noise."""
    exported = package.load_package(folder).model
    trained.model.keep_tasks(set(TASKS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wavs = [torch.randn(int(s * SAMPLE_RATE)) for s in SECONDS]
    with torch.inference_mode():
        expected, found = (model(**model_inputs(model, wavs, "cpu")) for model in (trained.model, exported))
    for name in [task for task in TASKS if task in expected]:
        worst = float((expected[name] - found[name]).abs().max() / expected[name].abs().max().clamp(min=1))
        if not worst <= adapters.TOLERANCE:
            raise UserError(f"the package's {name} logits differ from the run's by {worst:.1e}: nothing is written")
