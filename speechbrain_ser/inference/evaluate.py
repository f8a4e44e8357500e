"""`speechbrain-ser evaluate`: any model on any labelled corpus, judged as our own runs are.

A model is one of ours, or what an adapter makes of another: the names of its classes, and a function from waveforms to
posteriors.
"""

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from speechbrain_ser.data import manifest
from speechbrain_ser.data.batches import SAMPLE_RATE, checked_device, load_audio
from speechbrain_ser.data.corpora.table import read_table
from speechbrain_ser.data.labels import to_classes, yaml_mapping
from speechbrain_ser.data.protocols import choose_fold, make_folds
from speechbrain_ser.errors import Offenders, Untrusted, UserError, counted
from speechbrain_ser.evaluation.evaluated import Evaluation
from speechbrain_ser.evaluation.groups import GROUPED
from speechbrain_ser.evaluation.metrics import printed
from speechbrain_ser.evaluation.report import Report, build_evaluation_report
from speechbrain_ser.evaluation.runs import read_metrics, readable
from speechbrain_ser.evaluation.tables import evaluation_figures
from speechbrain_ser.files import write_csv, write_json
from speechbrain_ser.inference import adapters
from speechbrain_ser.inference.package import INT8, ONNX
from speechbrain_ser.inference.recognizer import EmotionRecognizer, Recognition, open_recognizer

MANIFESTS = Path("results", "manifests")  # where train.py has them
ROUNDING = 1e-3  # that a model's posteriors may be off 1 by, in all

# ------------------------------------------------------------------ models


@dataclass
class Judged:
    """A model that is judged: what it may answer, and its answers to the utterances of a manifest."""

    classes: list[str]
    answer: Callable[[pd.DataFrame], tuple[np.ndarray, Sequence[str] | None]]  # posteriors [utterances, classes]; texts
    recordings: frozenset[str] | None = None  # digests of what it was trained on; None: not known
    model_id: str | None = None  # by which its results are known
    #: names and waveforms [time], float32, 16 kHz -> posteriors [waveforms, classes]; None: it hears nothing
    hear: Callable[[Sequence[str], Iterable[np.ndarray]], np.ndarray] | None = None

    def predictions(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        """Return the table of predictions of a manifest's utterances, by ID, and the posteriors behind it."""
        frame = frame.sort_values("ID", ignore_index=True)
        posteriors, texts = self.answer(frame)
        return self.table(frame, posteriors, texts), posteriors

    def table(self, frame: pd.DataFrame, posteriors: np.ndarray, texts: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the table of predictions of what was answered to a manifest's utterances."""
        table = frame[["ID", "speaker", "emotion"]].assign(predicted=[self.classes[k] for k in posteriors.argmax(1)])
        table[[f"posterior_{name}" for name in self.classes]] = posteriors.round(6)
        table["transcript"] = frame["transcript"]
        if texts is not None and (frame["transcript"] != "").any():
            table["hypothesis"] = texts
        table["text_heard"] = None  # what others train on is not known
        return table.join(frame[[column for column in GROUPED if column in frame and column not in table]])


def open_model(model: str, data_folder: str | os.PathLike = ".", device: str | None = None, trust_run=False) -> Judged:
    """Open a model by its name.

    Arguments
    ---------
    model : str
        A run's folder; a package's, or ``user/model`` on the hub; a package's ``model.onnx`` or ``model.int8.onnx``;
        ``transformers:SOURCE`` and ``speechbrain:SOURCE``, folders or names on the hub; a CSV of posteriors;
        ``module:function``.
    data_folder : path
        Where paths in a CSV begin.
    device : str, optional
        That of the machine by default.
    trust_run : bool
        Execute the YAML of a run that is not below ``./results``, and SpeechBrain's.
    """
    kind, _, source = model.partition(":")
    device = checked_device(device)
    if kind == "speechbrain" and not trust_run:
        raise Untrusted(f"{source}: SpeechBrain executes its hyperparams.yaml. If you trust whoever made it:")
    if kind in ADAPTERS:
        return _called(model, _explained(model, ADAPTERS[kind], source, device))
    if model.endswith(".csv"):
        return _read_posteriors(Path(model), Path(data_folder))
    if re.fullmatch(r"[A-Za-z_][\w.]*:\w+", model):
        sys.path.insert(0, os.getcwd())  # which a console script does not look into
        return _called(model, _explained(model, lambda: getattr(importlib.import_module(kind), source)))
    options = {"run_opts": {"device": device}}
    if Path(model).name in (ONNX, INT8):
        return _ours(OnnxRecognizer.of(Path(model), **options))
    return _ours(open_recognizer(model, trust_run, **options))


def _explained(model: str, make: Callable, *arguments):
    """Other people's code fails in any way."""
    try:
        return make(*arguments)
    except Exception as error:
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{model}: {what}{str(error).removeprefix(f'{model}: ')}") from error


def _ours(recognizer: EmotionRecognizer) -> Judged:
    decode = recognizer.decode

    def posteriors_of(found: Sequence[Recognition], names: Iterable[str]) -> np.ndarray:
        offenders = Offenders("recordings that the model has no answer to")
        for name, result in zip(names, found, strict=True):
            if result.error is not None:
                offenders.add(result.error, name)
        offenders.raise_any()
        return np.array([[result.posteriors[c] for c in recognizer.classes] for result in found])

    def answer(frame: pd.DataFrame):
        recognizer.decode = decode if (frame["transcript"] != "").any() else None
        found = list(_progress(recognizer.classify_files(frame["wav"].tolist()), len(frame)))
        return posteriors_of(found, frame["wav"]), None if recognizer.decode is None else [
            result.transcript for result in found
        ]

    def hear(names: Sequence[str], wavs: Sequence[np.ndarray]) -> np.ndarray:
        recognizer.decode = None
        lengths = torch.tensor([len(wav) for wav in wavs], dtype=torch.double)
        batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wav) for wav in wavs], batch_first=True)
        return posteriors_of(recognizer.classify_batch(batch, lengths / lengths.max()), names)

    return Judged(recognizer.classes, answer, recognizer.recordings, recognizer.model_id, hear)


def _progress(items, n: int):
    return tqdm(items, "recordings", n, file=sys.stderr, disable=None)


class OnnxRecognizer(EmotionRecognizer):
    """A package's recogniser whose numbers are computed by its ``model.onnx``, or the one of eight bits."""

    @classmethod
    def of(cls, path: Path, **options) -> "OnnxRecognizer":
        """Load the package that a ``model.onnx`` lies in, whose hashes are checked, and the graph."""
        found = cls.from_package(path.parent, **options)
        adapters.take_waveforms(found.model)
        # a graph encodes no pieces of more than 30 s, where a Whisper has to
        found.longest = getattr(getattr(found.model, "encoder", None), "longest", None)
        # activations in eight bits have one scale a batch: what is said of an utterance would depend on the others
        found.one_by_one = path.name == INT8
        found.graph, found.session = str(path), _explained(str(path), adapters.open_graph, path)
        return found

    def _outputs(self, signals):
        names = [output.name for output in self.session.get_outputs()]
        batches = [[each] for each in signals] if self.one_by_one else [signals]
        found = [_explained(self.graph, self.session.run, names, adapters.feeds(batch)) for batch in batches]
        outputs = dict(zip(names, map(_joined, zip(*found, strict=True)), strict=True))
        shape, right = list(outputs["emotion"].shape), [len(signals), len(self.classes)]
        if shape != right:
            raise UserError(f"{self.graph}: expected logits {right}, utterances and classes, found {shape}")
        return outputs


def _joined(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """Of several batches' outputs one batch's; frames [batch, frames, tokens] are padded."""
    parts = list(map(torch.from_numpy, arrays))
    if parts[0].dim() < 3:
        return torch.cat(parts)
    return torch.nn.utils.rnn.pad_sequence([row for part in parts for row in part], batch_first=True)


# ------------------------------------------------------------------ adapters: classes, and waveforms to posteriors


def _called(model: str, function: Callable[[np.ndarray], Sequence[float]]) -> Judged:
    """Of a function of one waveform [time], float32, 16 kHz, that has its ``classes``."""
    classes = [str(name) for name in getattr(function, "classes", ())]
    if not classes or len(set(classes)) < len(classes):
        raise UserError(f"{model}: expected different `classes`, in the posteriors' order, found {classes}")

    def hear(names: Sequence[str], wavs: Iterable[np.ndarray]) -> np.ndarray:
        rows = [np.asarray(_explained(model, function, wav), float).ravel() for wav in wavs]
        return _checked(rows, names, len(classes))

    def answer(frame: pd.DataFrame):
        wavs = (load_audio(path).numpy() for path in frame["wav"])
        return hear(frame["ID"], _progress(wavs, len(frame))), None

    return Judged(classes, answer, hear=hear)


def _checked(rows: Sequence[np.ndarray], ids: Sequence[str], n: int) -> np.ndarray:
    """Posteriors, not logits: calibration is of what the model says itself."""
    offenders = Offenders(f"expected posteriors of {n} classes: from 0 to 1, together 1", UserError)
    for name, row in zip(ids, rows, strict=True):
        if len(row) != n or not (row >= 0).all() or not abs(row.sum() - 1) <= ROUNDING:
            offenders.add("found others", f"{name}: {np.array2string(row[:10], precision=3, separator=', ')}")
    offenders.raise_any()
    return np.stack(rows)


def _transformers(source: str, device: str) -> Callable:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    extract = AutoFeatureExtractor.from_pretrained(source)
    model, info = AutoModelForAudioClassification.from_pretrained(source, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"expected a trained classifier, found none: it lacks {', '.join(missing[:5])}")
    model.eval().to(device)

    @torch.inference_mode()
    def posteriors(wav: np.ndarray) -> np.ndarray:
        inputs = extract(wav, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(device)
        return model(**inputs).logits[0].float().softmax(-1).cpu().numpy()

    posteriors.classes = [model.config.id2label[k] for k in range(model.config.num_labels)]
    return posteriors


def _speechbrain(source: str, device: str) -> Callable:
    from speechbrain.inference.classifiers import EncoderClassifier

    savedir = tempfile.mkdtemp(prefix="speechbrain-ser-")
    model = EncoderClassifier.from_hparams(source, savedir=savedir, run_opts={"device": device})
    labels = model.hparams.label_encoder

    def posteriors(wav: np.ndarray) -> np.ndarray:
        return model.classify_batch(torch.from_numpy(wav)[None])[0][0].softmax(-1).cpu().numpy()

    posteriors.classes = [labels.ind2lab[k] for k in range(len(labels))]
    return posteriors


ADAPTERS = {"transformers": _transformers, "speechbrain": _speechbrain}

# ------------------------------------------------------------------ posteriors that somebody has written

KEYS = ("ID", "path", "wav", "file")
OTHERS = ("speaker", "emotion", "predicted", "transcript", "hypothesis", "text_heard", "model", *GROUPED)


def _read_posteriors(path: Path, data_folder: Path) -> Judged:
    """A column ID or path, and of each class one of its name, or ``posterior_<class>``, as our own commands write."""
    offenders = Offenders(f"table {path}", UserError)
    header, lines = read_table(path, offenders)
    offenders.raise_any()
    table = pd.DataFrame(lines.values(), columns=header)
    key = next((name for name in KEYS if name in table), None)
    columns = [c for c in header if c.startswith("posterior_")] or [c for c in header if c not in (*KEYS, *OTHERS)]
    if key is None or not columns:
        raise UserError(f"{path}: expected a column {' or '.join(KEYS)} and one a class, found {', '.join(header)}")
    values = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    names = table[key] if key == "ID" else [os.path.abspath(data_folder / name) for name in table[key]]
    rows = {name: k for k, name in enumerate(names)}

    def answer(frame: pd.DataFrame):
        wanted = frame["ID"] if key == "ID" else [os.path.abspath(wav) for wav in frame["wav"]]
        for name in (name for name in wanted if name not in rows):
            offenders.add(f"no row of an utterance, by its {key}", name)
        offenders.raise_any()
        places = [rows[name] for name in wanted]
        texts = table["hypothesis"].iloc[places].tolist() if "hypothesis" in table else None
        return _checked(list(values[places]), wanted, len(columns)), texts

    if len(rows) < len(table):
        raise UserError(f"{path}: expected a row an utterance, found {len(table) - len(rows)} more")
    return Judged([column.removeprefix("posterior_") for column in columns], answer)


# ------------------------------------------------------------------ what is judged


@dataclass
class Subject:
    """A model and the utterances of a corpus that it is asked for."""

    model: str  # its name, without where it lies on this machine
    judged: Judged
    every: pd.DataFrame  # the corpus's whole manifest
    frame: pd.DataFrame  # what of it is tested: emotions are the model's classes
    where: str  # corpus, protocol and folds
    leak: str | None  # in words, what the model knows of it
    left_out: pd.Series  # utterances by emotion that no class stands for


def open_subject(
    model: str,
    corpus: str,
    data_folder: str,
    labels: str | None = None,
    protocol: str | None = None,
    fold: str | None = None,
    device: str | None = None,
    trust_run: bool = False,
    allow_leaky: bool = False,
    table_file: str | None = None,
    table_columns: str = "{}",
    table_names: str = "{}",
) -> Subject:
    """Open a model and a corpus, as the options of `evaluate` and `stress` name them; what it knows is refused."""
    judged = open_model(model, data_folder, device, trust_run)
    options = manifest.given_options(corpus, table_file, table_columns, table_names)
    path = manifest.prepare(corpus, data_folder, MANIFESTS, **options)
    every = manifest.read_manifest(path, data_folder)
    expected = "--labels: expected YAML, such as '{angry: anger, boredom: null}'"
    rules = None if labels is None else yaml_mapping(labels, expected)
    frame = to_classes(every, judged.classes, rules)
    left_out = every[~every["ID"].isin(frame["ID"])]["emotion"].value_counts()
    where = manifest.corpus_name({"corpus": corpus, "data_folder": data_folder, "table_file": table_file})
    if protocol is not None:
        frame, folds = _test_part(frame, protocol, fold)
        where = f"{where}, protocol {protocol}, test part of {folds}"
    elif fold is not None:
        raise UserError(f"--fold={fold}: of which --protocol?")
    leak = known_to(judged.recordings, every, frame)
    if leak and not allow_leaky:
        raise UserError(
            f"{model} on {where}: {leak}. Give another corpus, or the part that it has not heard, by --protocol=… and "
            "--fold=… of its run; --allow-leaky judges it all the same, and says LEAKY wherever a figure appears"
        )
    return Subject(_name(model), judged, every, frame, where, leak, left_out)


def evaluate(model: str, corpus: str, data_folder: str, out: str = "evaluation", **options) -> Report:
    """Judge a model on a labelled corpus, as ``speechbrain-ser evaluate --help`` says it.

    The folder `out` gets predictions.csv, metrics.json and the report; `options` are those of :func:`open_subject`.
    """
    subject = open_subject(model, corpus, data_folder, **options)
    judged, leak = subject.judged, subject.leak
    predictions, posteriors = judged.predictions(subject.frame)
    notes = list(notes_of(subject, predictions))
    rows = predictions if (subject.frame["speaker"] != "").all() else predictions.assign(speaker="")
    evaluation = Evaluation(subject.model, subject.where, judged.classes, rows, posteriors, leak, notes)
    found = evaluation_figures(evaluation)
    write_csv(predictions, Path(out, "predictions.csv"))
    report = build_evaluation_report(evaluation, found, out)
    facts = {"kind": "evaluation", "model": evaluation.model, "model_id": judged.model_id, "tested_on": subject.where}
    facts |= {"leak": leak, "classes": judged.classes, "left_out": subject.left_out.to_dict(), "notes": notes}
    write_json(facts | found, Path(out, "metrics.json"))  # last: its presence says that all is there
    return report


def _name(model: str) -> str:
    """Without where it lies on this machine."""
    path = Path(model)
    if (path / "metrics.json").exists():  # a run
        changed = read_metrics(path)["changed"]
        return "/".join(readable(part, changed) for part in path.resolve().parts[-5:])
    return path.resolve().name if path.exists() else model


def _test_part(frame: pd.DataFrame, protocol: str, fold: str | None) -> tuple[pd.DataFrame, str]:
    folds = make_folds(frame, protocol)
    chosen = [choose_fold(folds, name) for name in (fold.split(",") if fold else folds)]
    tested = {name for each in chosen for name in each.test}
    said = f"fold {', '.join(each.name for each in chosen)}" if fold else "all folds"
    return frame[frame["ID"].isin(tested)].reset_index(drop=True), said


def known_to(recordings: frozenset[str] | None, every: pd.DataFrame, frame: pd.DataFrame) -> str | None:
    """Say which of the utterances to be tested a model knows, or whose speakers; None where nothing is found.

    `recordings` are digests of what it was trained on, `every` is the whole manifest: who is trained on with any of it
    is no new speaker in the rest.
    """
    if not recordings:
        return None
    is_known = every["recording"].isin(recordings)
    speakers = set(every["speaker"][is_known]) - {""}
    n, of_speakers = frame["recording"].isin(recordings).sum(), frame["speaker"].isin(speakers).sum()
    if not (n or of_speakers):
        return None
    return f"{n} of {len(frame)} recordings were in the model's training, and {of_speakers} are of speakers who were"


def notes_of(subject: Subject, predictions: pd.DataFrame) -> Iterator[str]:
    """Say who is tested with what, and whether the model may know it."""
    judged, left_out = subject.judged, subject.left_out
    speaker, emotion, predicted = (predictions[column] for column in ("speaker", "emotion", "predicted"))
    who = f" of {counted(speaker.nunique(), 'speaker')}" if (speaker != "").all() else ""
    counts = ", ".join(f"{name} {n}" for name, n in emotion.value_counts().sort_index().items())
    yield f"{counted(len(predictions), 'utterance')}{who}: {counts}."
    if len(left_out):
        counts = ", ".join(f"{name} {n}" for name, n in left_out.items())
        yield f"Left out, having no class of the model: {counts}."
    if absent := [name for name in judged.classes if name not in set(emotion)]:
        share = printed(predicted.isin(absent).mean())
        yield f"The corpus has no {', '.join(absent)}: {share} % of the answers are so all the same, and wrong."
    if judged.recordings is None:
        yield "What the model was trained on is not known here: whether it has heard these recordings, nobody can say."
    elif subject.leak is None:
        yield "None of these recordings or speakers was in its training, as far as equal samples tell."
