"""The model card of a package: what it was trained on, how well it does on whom, and what it must not be used for."""

import re
from collections.abc import Mapping

import pandas as pd
import yaml

from speechbrain_ser.evaluation.cells import heading, unit_of, with_interval
from speechbrain_ser.evaluation.intervals import SCALES, speaker_interval, speaker_sums
from speechbrain_ser.evaluation.metrics import word_errors
from speechbrain_ser.package.layout import ONNX, SPEECHBRAIN_FILES

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
        "```python\nfrom speechbrain_ser.inference import EmotionRecognizer\n\n"
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
