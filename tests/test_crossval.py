"""Cross-validation: which runs, in what order, what killing does to them, what is refused before any starts."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from speechbrain_ser.crossval import program
from speechbrain_ser.crossval.plan import make_plans, read_arguments, read_table
from speechbrain_ser.crossval.schedule import LocalProcesses, Schedule
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import is_locked, lock_path, locked, write_csv, write_json
from speechbrain_ser.training.brain import SERBrain
from speechbrain_ser.training.results import evaluate_and_write
from speechbrain_ser.training.run import _warn_where_imitated

from .conftest import ROOT
from .fake_crossval import FakeRun, fake_runs, work
from .fake_train import HANGS_AFTER

PATIENCE = 60  # seconds until a test stops waiting: other tests may keep the machine busy


def test_lock_of_a_killed_process(tmp_path):
    """Its file is left; a child of it that lives on holds nothing."""
    program = "import os, sys, time; from speechbrain_ser.files import locked\n"
    program += "with locked(sys.argv[1]):\n    child = os.fork()\n    child and print(child, flush=True)\n"
    program += "    time.sleep(60)"
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        child = int(process.stdout.readline())
        assert is_locked(tmp_path / "run")
        process.kill()
    wait(lambda: not is_locked(tmp_path / "run"))  # the child lets go as soon as it runs at all
    assert lock_path(tmp_path / "run").exists()
    with locked(tmp_path / "run"):
        os.kill(child, signal.SIGKILL)


def test_a_file_gets_no_bar(tmp_path):
    assert Schedule(fake_runs(tmp_path, 1, 0, ["a"]), LocalProcesses(1, Path())).bar.disable


def test_failures_are_tried_once_more_and_the_rest_goes_on(tmp_path):
    runs = fake_runs(tmp_path, 1, 0, ["a:fails", "b:fails once", "c", "d:works:a", "e:works:b"])
    outcome = work(runs)
    a, b, _c, d, e = runs
    assert [r.starts() for r in runs] == [2, 2, 1, 0, 1]
    assert outcome.failed == [a] and outcome.blocked == [d]
    assert (b.folder / "finished").stat().st_mtime <= (e.folder / "starts").stat().st_mtime  # needed runs go first
    said = str(outcome)
    assert "the reason of a" in said and str(a.log) in said and "NOT RUN: d: needs a" in said
    again = work(runs)  # what is finished is not run again, what failed is
    assert again.skipped == 3 and [r.starts() for r in runs] == [4, 2, 1, 0, 1]


def start(folder: Path, jobs: int, n_epochs: int, seconds: float, *names: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tests" / "fake_crossval.py"), str(folder), str(jobs), str(n_epochs)]
    # no GPUs to share out: nobody imports torch to count them
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    # under nohup the tests inherit an ignored SIGHUP, in a shell's background an ignored SIGINT
    return subprocess.Popen([*command, str(seconds), *names], env=environment, preexec_fn=_heed_signals)


def _heed_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait(condition, seconds: float = PATIENCE):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def epochs(run: FakeRun) -> list[str]:
    return (run.folder / "epochs.csv").read_text().split()


def hangs(run: FakeRun) -> bool:
    return run.epochs_done() == HANGS_AFTER


def test_kill_9_of_crossval(tmp_path):
    names = ["a", "b", "c:hangs once", "d:hangs once"]
    runs = fake_runs(tmp_path, 5, 0.1, names)
    crossval = start(tmp_path, 2, 5, 0.1, *names)
    wait(lambda: runs[0].finished() and runs[1].finished() and hangs(runs[2]) and hangs(runs[3]))
    crossval.kill()
    crossval.wait()
    assert work(runs).skipped == 2  # at once: children that still live, not for long, are waited for, not doubled
    assert [r.starts() for r in runs] == [1, 1, 2, 2]
    assert all(epochs(r) == ["epoch", *"12345"] for r in runs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(tmp_path, number):
    names = ["a:hangs once", "b:hangs once", "c"]
    runs = fake_runs(tmp_path, 5, 0.1, names)
    crossval = start(tmp_path, 2, 5, 0.1, *names)
    wait(lambda: hangs(runs[0]) and hangs(runs[1]))
    crossval.send_signal(number)
    assert crossval.wait(PATIENCE) == 130
    assert not list(tmp_path.glob("*.lock")) and runs[2].starts() == 0
    work(runs)
    assert all(epochs(r) == ["epoch", *"12345"] for r in runs)


class PretendedBrain(SERBrain):
    """Predicts the first class for the first utterance, and else the truth."""

    tested_epoch = 1
    measures_seen = False

    def __init__(self, run):
        self.run, self.loaders = run, {"test": "test", "valid": "valid"}

    def evaluate(self, loader, max_key):
        classes, rows = self.run.classes, self.run.part(loader).reset_index(drop=True)
        rows["predicted"] = rows["emotion"].where(rows.index > 0, classes[0])
        logits = 5.0 * (rows["predicted"].to_numpy()[:, None] == np.array(classes))
        self.rows, self.logits = rows, dict(zip(rows["ID"], logits.tolist(), strict=True))

    def predictions(self):
        rows = self.rows[["ID", "speaker", "emotion", "transcript", "predicted"]]
        posteriors = softmax([self.logits[utterance] for utterance in rows["ID"]], axis=1)
        rows = rows.join(pd.DataFrame(posteriors, columns=[f"posterior_{c}" for c in self.run.classes]))
        return rows.assign(hypothesis=rows["transcript"])


class Pretender:
    """An executor whose runs are finished at once."""

    started: list

    def __init__(self, jobs, command):
        self.over = []

    def room(self, run):
        return all(need.finished() for need in run.needs)

    def has(self, run):
        return False

    def start(self, run):
        self.started.append(run)
        self.over.append(run)
        run.folder.mkdir(parents=True)
        write_json(run.setup.science, run.folder / "configuration.json")
        write_csv(pd.DataFrame({"epoch": [1], "train_WA": [0.5], "valid_WA": [0.5]}), run.folder / "epochs.csv")
        evaluate_and_write(PretendedBrain(run.setup))

    def ended(self):
        over, self.over = self.over, []
        return over

    def stop(self):
        pass


@pytest.fixture
def argv(small, tmp_path):
    """A command line on the smallest of everything."""

    def make(*flags: str, yaml: str | Path = "cai_mtl.yaml", root: Path = ROOT) -> list[str]:
        argv = [str(root / "hparams" / yaml), "--corpus=emodb", f"--data_folder={small.corpus('emodb')}"]
        argv += [f"--encoder={small.backbone()}", f"--manifest_folder={small.folder / 'manifests'}"]
        return [*argv, f"--results_folder={tmp_path / 'results'}", "--tokens=characters", "--device=cpu", *flags]

    return make


@pytest.fixture
def planned(argv):
    """The runs of a command line."""
    return lambda *flags, root=ROOT, **yaml: (
        make_plans(read_arguments(argv(*flags, root=root, **yaml)), root / "hparams")[0].runs
    )


@pytest.fixture
def crossval(argv, monkeypatch, capfd):
    """crossval.py's main, its runs only pretended; gives what was run and said."""
    monkeypatch.setattr(program, "LocalProcesses", Pretender)

    def run(*flags: str, code: int = 0, root: Path = ROOT, **where):
        Pretender.started = []
        capfd.readouterr()
        assert program.main(argv(*flags, root=root, **where), root) == code
        out, err = capfd.readouterr()
        return (Pretender.started, out) if code == 0 else err

    return run


def where(runs) -> list[tuple]:
    return [(run.name, *run.folder.parts[-2:]) for run in runs]


def test_folds_seeds_and_sweeps(crossval, planned):
    runs, out = crossval("--folds=3,08", "--seeds=1,2", "--sweep=alpha=0,0.1", "--sweep", "pooling=sum")
    names = ("alpha=0, pooling=sum", "alpha=0.1, pooling=sum")
    assert where(runs) == [(n, f, s) for s in "12" for f in ("03", "08") for n in names]
    assert runs[0].folder.parts[-3] != runs[1].folder.parts[-3]
    assert "8 runs, 0 of them finished" in out and "runs are missing" not in out
    assert "Calibration, last epoch" in out and " calibrated " in out  # by the temperatures of the runs
    runs, out = crossval("--folds=3,08,9", "--seeds=1,2", "--sweep=alpha=0,0.1", "--sweep", "pooling=sum")
    assert {r.setup.fold.name for r in runs} == {"09"} and "12 runs, 8 of them finished" in out
    runs = planned("--seed=5")  # all folds
    assert len(runs) == 10 and {r.folder.name for r in runs} == {"5"}


@pytest.mark.parametrize(
    ("flags", "expect"),
    [
        (["--sweep=alhpa=0,1"], ["--alhpa is unknown (did you mean '--alpha'?)"]),
        (["--sweep=alpha=0,much"], ["--alpha expects a number"]),
        (["--sweep=pooling=mean,men"], ["men", "pooling=men"]),
        (["--sweep=alpha"], ["expected KEY=VALUE,VALUE"]),
        (["--sweep=alpha=0,0"], ["different values"]),
        (["--sweep=alpha=0", "--alpha=1"], ["--alpha is given twice"]),
        (["--sweep=n_epochs=1,2"], ["changes no training"]),
        (["--sweep=seed=1,2"], ["use --seeds"]),
        (["--sweep=protocol=random"], ["use --protocols"]),
        (["--protocols=random,speeker", "--protocol=x"], ["--protocol and --protocols"]),
        (["--folds=03,99,xx"], ["'99'", "'xx'", "folds: 03"]),
        (["--seeds=a", "--sweep=alpha=0", "--sweep=alpha=1"], ["whole numbers", "--sweep alpha is given twice"]),
        (["--seeds=1", "--seed=2", "--jobs=0", "--jobs=2"], ["--seed and --seeds", "--jobs is given twice"]),
        (["--executor=slrum", "--test_only"], ["invalid choice: 'slrum'", "'slurm'", "--test_only: use train.py"]),
        (["--exec=slurm"], ["--exec is unknown"]),
        (["--second_corpus=[emodb, savee]"], ["second_corpus: expected [{corpus: …"]),
        (["--fold=03", "--output_folder=x", "--debug"], ["use --folds", "results_folder", "use train.py"]),
        (["--opt=1", "--sweep=lrr=1"], ["--opt is unknown", "did you mean '--lr'"]),
    ],
    ids=lambda value: value[0] if value else None,
)
def test_refused_before_anything_starts(crossval, tmp_path, flags, expect):
    said = crossval(*flags, code=2)
    assert not Pretender.started and not list((tmp_path / "results").glob("cai_mtl"))
    assert "Traceback" not in said
    for words in expect:
        assert words in said, said


def test_a_processor_that_imitates_bf16_is_told_once(planned, monkeypatch, caplog):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    _warn_where_imitated.cache_clear()
    assert len(planned("--precision=bf16")) == 10 and caplog.text.count("--precision=fp32") == 1


def test_protocols_stand_side_by_side(crossval, tmp_path):
    """Each has a report of its own; a comparison pairs them on the same utterances."""
    runs, out = crossval("--protocols=random,speaker")
    assert len(runs) == 5 + 10 and {r.setup.config.plain["protocol"] for r in runs} == {"random", "speaker"}
    folder = tmp_path / "results" / "reports" / "cai_mtl-emodb-protocols"
    found = pd.read_csv(folder / "protocols.csv").set_index("protocol")
    ours, words = found.iloc[:2], found[found["variant"] == "words alone, no audio"]
    random, speaker = ours.loc["random (LEAKY)"], ours.loc["speaker"]
    assert random["n"] == speaker["n"] == len(runs[0].setup.frame) and words.loc["speaker", "WA"] < 0.9
    # speaker is the first that leaks nobody; the figure's interval is not the difference's
    assert random["WA_difference"] == pytest.approx(random["WA"] - speaker["WA"])
    assert random["WA_low"] <= random["WA"] <= random["WA_high"]
    assert (
        "random (LEAKY)" in out
        and "which is also UA by chance" in out
        and (folder / "protocols.png").stat().st_size
        and "Protocols," in out
    )
    assert "What the words alone would give" in out and "beyond" in out


def test_protocols_of_which_nothing_has_finished_are_not_compared(crossval, argv, monkeypatch):
    """Though an earlier command's report of them lies there."""
    flags = ("--protocols=random,speaker", "--folds=first")
    crossval(*flags)
    plans = make_plans(read_arguments(argv(*flags)), ROOT / "hparams")
    assert "report: " in program._compare_protocols(plans, "cai_mtl")
    monkeypatch.setattr(program.PlannedRun, "finished", lambda run: run.setup.config.plain["protocol"] == "random")
    assert program._compare_protocols(plans, "cai_mtl").startswith("fewer than two protocols")


TWO_CLASSES = "{labels: {angry: angry, sad: sad, '*': null}}"
CORPORA = (
    f"table: Across\nhparams: cai_mtl.yaml\ncorpora:\n  emodb: {TWO_CLASSES}\n  iemocap: {TWO_CLASSES}\n  savee: {{}}\n"
    "rows:\n- {name: Cai, lines: {alpha: 0}}\n"
)


@pytest.fixture
def across(small, tmp_path, monkeypatch, capfd):
    """crossval.py's main on several corpora: runs are pretended, their models call everything angry elsewhere."""
    monkeypatch.setattr(program, "LocalProcesses", Pretender)
    (tmp_path / "across.yaml").write_text(CORPORA)
    asked = []

    class Angry:
        def predictions(self, frame):
            asked.append(len(frame))
            rows = frame.sort_values("ID")[["ID", "speaker", "emotion"]]
            return rows.assign(predicted="angry"), None

    monkeypatch.setattr(program, "open_model", lambda folder, **_: Angry())

    def run(*corpora: str, flags=(), code: int = 0):
        Pretender.started = []
        asked.clear()
        folders = ", ".join(
            f"{corpus}: {small.folder if corpus == 'demo' else small.corpus(corpus)}" for corpus in corpora
        )
        argv = [str(tmp_path / "across.yaml"), f"--data_folders={{{folders}}}", f"--encoder={small.backbone()}", *flags]
        argv += [f"--results_folder={tmp_path / 'results'}", f"--manifest_folder={small.folder / 'manifests'}"]
        capfd.readouterr()
        assert program.main([*argv, "--device=cpu", "--folds=first"], ROOT) == code
        out, err = capfd.readouterr()
        return err if code else (out, [*asked])

    return run


def test_models_of_each_corpus_are_tested_on_the_others(across, tmp_path):
    out, asked = across("emodb", "iemocap")
    runs = {run.setup.config.plain["corpus"]: run for run in Pretender.started}
    folder = tmp_path / "results" / "reports" / "across-corpora"
    found = pd.read_csv(folder / "corpora.csv").set_index(["trained_on", "tested_on"])
    emodb, iemocap = (len(runs[corpus].setup.frame) for corpus in ("emodb", "iemocap"))
    assert sorted(asked) == sorted([emodb, iemocap]) and list(found["utterances"].iloc[1:3]) == [iemocap, emodb]
    assert found["UA"]["emodb", "iemocap"] == found["UA"]["iemocap", "emodb"] == 0.5
    own = pd.read_csv(runs["emodb"].folder / "predictions.csv")
    assert found["WA"]["emodb", "emodb"] == (own["emotion"] == own["predicted"]).mean()
    assert "Across corpora" in out and "50.0 % by chance" in out and (folder / "corpora.png").stat().st_size
    assert across("emodb", "iemocap")[1] == []  # it goes on with what is there
    run = runs["emodb"]
    assert program._test(run, runs["iemocap"].setup.frame, tmp_path / "a.csv") is None
    assert "recordings were in the model's training" in program._test(run, run.setup.frame, tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("corpora", "flags", "said"),
    [
        (["emodb"], [], "--data_folders: expected folders of two at least of emodb, iemocap, savee"),
        (["emodb", "savee"], [], "expected the same classes everywhere"),
        (["emodb", "iemocap"], ["--corpus=emodb"], "--corpus is given twice"),
        (["emodb", "demo"], [], "--data_folders: no demo in `corpora:`"),
        (["emodb", "iemocap"], ["--protocols=speaker,random"], "several protocols, or several corpora: not both"),
    ],
)
def test_corpora_that_cannot_stand_in_one_matrix(across, corpora, flags, said):
    assert said in across(*corpora, flags=flags, code=2) and not Pretender.started


def test_an_unfinished_fold_is_named(crossval, monkeypatch, capfd):
    def start(self, run, real=Pretender.start):
        self.over.append(run) if run.setup.fold.name == "08" else real(self, run)

    monkeypatch.setattr(Pretender, "start", start)
    with pytest.raises(AssertionError):  # it returns 1
        crossval("--folds=03,08")
    out, err = capfd.readouterr()
    assert "INCOMPLETE, 1 of 2 runs are missing: default, fold 08, seed 1" in out
    assert "FAILED 2 times: default, fold 08" in err and "(no log)" in err


def test_table_and_the_papers_numbers(crossval, planned):
    table = {"yaml": "tables/cai_table4.yaml"}
    runs = planned("--folds=03", "--test_every_epoch=False", "--sweep=pooling=sum", **table)
    assert not runs[0].setup.config.plain["test_every_epoch"]  # the user's word, not the table's
    assert runs[0].name == "alpha = 0, pooling=sum"
    runs, out = crossval("--folds=03", "--test_every_epoch=False", **table)
    assert [r.name for r in runs] == ["alpha = 0", "alpha = 0.001", "alpha = 0.01", "alpha = 0.1"]
    assert "Table 4" in out and "paper" in out and re.search(r"78\.[12]", out) and re.search(r"19\.[23]", out)


def test_rows_of_several_systems_stand_in_one_table(crossval, tmp_path):
    path = tmp_path / "systems.yaml"
    (tmp_path / "mine.yaml").write_text("base: ha_speaker_norm.yaml\nsystem: mine\n")  # beside the table
    path.write_text(
        "table: Two systems\nhparams: cai_mtl.yaml\nrows:\n- {name: Cai, lines: {alpha: 0}}\n"
        "- {name: Ha, hparams: mine.yaml, lines: {alpha: 0}}\n- {name: Cai and ASR}\n"
    )
    runs, out = crossval("--folds=03", yaml=path)
    assert [(run.name, run.setup.config.system) for run in runs] == [
        *(("Cai", "cai_mtl"), ("Ha", "mine"), ("Cai and ASR", "cai_mtl"))
    ]
    shown = [re.match(r"(Cai and ASR|Cai|Ha) ", line) for line in out.splitlines()]
    assert [match[1] for match in shown if match][:3] == ["Cai", "Ha", "Cai and ASR"]


@pytest.mark.parametrize("path", sorted((ROOT / "hparams" / "tables").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_tables_are_read(path):
    table = read_table(path, ROOT / "hparams")
    assert table.lines["test_every_epoch"] == "True" and all(row.name for row in table.rows)
    # a paper's table has the paper's numbers in every row, and says how they came about; one of our own has none
    assert {bool(row.paper) for row in table.rows} == {bool(table.published)}


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.MantissaNoDotYAML1_1Warning")
@pytest.mark.parametrize("head", ["", "%YAML 1.1\n---\n"], ids=["YAML 1.2", "YAML 1.1"])
def test_a_tables_small_numbers_are_numbers(tmp_path, head):
    """Some readers of YAML take 5e-4, which has no point, or 5.3e4, which has no sign, for texts."""
    path = tmp_path / "t.yaml"
    papers = ("{WA: 0.7609, MSE: 5.3e-4, speaker: 0.984}", "{MSE: 5.3E-04}", "{MSE: 53e-5}", "{MSE: 0.00053}")
    rows = "".join(f"- {{lines: {{alpha: {k}}}, paper: {paper}}}\n" for k, paper in enumerate(papers))
    path.write_text(f"{head}table: T\nhparams: cai_mtl.yaml\nrows:\n{rows}")
    found = [row.paper for row in read_table(path, ROOT / "hparams").rows]
    assert [paper["MSE"] for paper in found] == [5.3e-4] * 4
    assert all(type(value) is float for paper in found for value in paper.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *(
            (f"rows: [{{paper: {{MSE: {v}}}}}]", "row 1: MSE must be a number")
            for v in ("'5.3e-4'", "true", ".inf", -1)
        ),
        ("rows: [{paper: {WAA: 1}}]", "row 1: unknown figure WAA (did you mean 'WA'?)"),
        ("rows: [{linse: {}}]", "row 1: unknown linse (did you mean 'lines'?)"),
        ("rows: [x]", "row 1: expected name, lines, paper, found 'x'"),
        ("linse: {}", "unknown line linse (did you mean 'lines'?)\n  no line 'rows:'"),
        ("rows: [{hparams: ha_norm.yaml}]", "no ha_norm.yaml among"),
        ("rows: 5", "rows: expected a list, found 5"),
        ("rows: [{lines: [alpha]}]", "row 1: lines: expected a mapping, found ['alpha']"),
        ("rows: [{paper: [1]}]", "row 1: paper: expected a mapping"),
        ("rows: [{}]\nprotocols: speaker", "protocols: expected a list"),
        ("rows: [{}]\ncorpora: [emodb, savee]", "corpora: expected a mapping"),
    ],
)
def test_wrong_table(tmp_path, text, said):
    path = tmp_path / "t.yaml"
    path.write_text(f"table: T\nhparams: cai_mtl.yaml\n{text}\n")
    with pytest.raises(UserError) as error:
        read_table(path, ROOT / "hparams")
    assert said in str(error.value)


@pytest.fixture
def two_stages(tmp_path):
    """A system that needs a run of another one first, and hands a line on to it."""
    root = tmp_path / "root"
    shutil.copytree(ROOT / "hparams" / "base", root / "hparams" / "base")
    text = (ROOT / "hparams" / "cai_mtl.yaml").read_text()
    (root / "hparams" / "pre.yaml").write_text(text.replace("system: cai_mtl", "system: pre", 1))
    handed_on = "".join(f"      {key}: !ref <{key}>\n" for key in ("encoder", "tokens", "pooling"))
    more = f"pretrained: null\nneeds:\n  pretrained:\n    yaml: pre.yaml\n    lines:\n      n_epochs: 7\n{handed_on}"
    (root / "hparams" / "joint.yaml").write_text(text.replace("system: cai_mtl", "system: joint", 1) + more)
    return root


@pytest.mark.slow  # several trainings
def test_needed_runs_are_shared_between_variants(crossval, planned, two_stages):
    flags = ("--folds=03,08", "--sweep=alpha=0,0.1")
    runs, out = crossval(*flags, yaml="joint.yaml", root=two_stages)
    systems = [r.setup.config.system for r in runs]
    assert systems.count("pre") == 2 and systems.count("joint") == 4
    pre = {r.setup.fold.name: r for r in runs if r.setup.config.system == "pre"}
    for run in runs:
        if run.setup.config.system == "joint":
            assert run.needs == [pre[run.setup.fold.name]] and runs.index(run.needs[0]) < runs.index(run)
            assert run.setup.config.plain["pretrained"] == str(run.needs[0].folder)
    assert pre["03"].n_epochs == 7 and "pre," not in out.split("\n\n")[1]
    assert crossval(*flags, yaml="joint.yaml", root=two_stages)[0] == []  # the digest on disk is the planned one
    runs = planned("--folds=03", "--sweep=pooling=sum", yaml="joint.yaml", root=two_stages)
    assert [r.setup.config.system for r in runs] == ["pre", "joint"]  # another pooling is another pre-training


def test_a_needed_run_is_asked_for_by_train(argv, two_stages, tmp_path, capfd):
    from speechbrain_ser.training.run import main

    for flags, words in (([], "--pretrained="), ([f"--pretrained={tmp_path}"], "holds no finished run of pre.yaml")):
        assert main(argv(*flags, yaml="joint.yaml", root=two_stages), two_stages / "hparams") == 2
        assert words in capfd.readouterr().err


@pytest.mark.slow  # several trainings
def test_dropped_optimizer(train, crossval, small, tmp_path):
    from .test_train import folder_of

    flags = ("--test_every_epoch=True",)
    folder = folder_of(train(*flags))
    assert len(list(folder.glob("save/CKPT*/optimizer.ckpt"))) == 1
    same = ("--folds=03", "--n_epochs=1", "--lr=0.001", "--spec_augment=False")
    crossval("--keep_optimizer", *same, *flags)
    assert list(folder.glob("save/CKPT*/optimizer.ckpt")) and not Pretender.started
    crossval(*same, *flags)
    assert not list(folder.glob("save/CKPT*/optimizer.ckpt")) and not Pretender.started
    assert "best on validation" in train(*flags, "--selection=valid")  # tested anew
    said = train("--n_epochs=3", code=2)
    assert "optimiser state was dropped" in said and "--keep_optimizer" in said
    assert "optimiser state was dropped" in crossval(*same[:1], "--n_epochs=3", *same[2:], code=2)


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
def test_end_to_end(small, tmp_path):
    """2 jobs, 2 folds, 2 alphas; a training and crossval itself are killed; the report is that of a quiet run."""
    flags = ["--corpus=demo", f"--data_folder={small.corpus('iemocap')}", f"--encoder={small.backbone()}"]
    flags += ["--spec_augment=False", "--tokens=characters", "--lr=0.001", "--device=cpu"]
    flags += ["--folds=01F,02M", "--jobs=2", "--sweep=alpha=0,0.1", "--n_epochs=4", "--test_every_epoch=True"]
    command = [sys.executable, str(ROOT / "crossval.py"), str(ROOT / "hparams" / "cai_mtl.yaml"), *flags]

    def begin(results: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
        return subprocess.Popen([*command, f"--results_folder={results}"], **pipes)

    undisturbed = begin("quiet")
    quiet = undisturbed.communicate(timeout=300)[0]
    assert undisturbed.returncode == 0, quiet
    first = begin("killed")
    locks = tmp_path / "killed" / "cai_mtl"
    lock = wait(lambda: next(locks.glob("*/*/*/*.lock"), None), 60)
    wait(lambda: is_locked(lock.with_suffix("")), 60)
    training = next(run for child in children_of(first.pid) for run in children_of(child))  # runs are forked by a child
    os.kill(training, signal.SIGKILL)
    wait(lambda: len(list(locks.glob("*/*/*/*/metrics.json"))) >= 1, 120)
    first.kill()
    first.wait()
    finished = {p: p.stat().st_mtime_ns for p in locks.glob("*/*/*/*/metrics.json")}
    second = begin("killed")
    out = second.communicate(timeout=300)[0]
    assert second.returncode == 0, out
    assert all(p.stat().st_mtime_ns == before for p, before in finished.items())

    def report(text):
        return text[text.index("cai_mtl: demo") :].replace("killed", "quiet")

    assert report(out) == report(quiet)
