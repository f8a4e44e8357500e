"""What README and docs/ say holds: links, commands, options, imports; by hand, the site and the commands' output."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speechbrain.utils.run_opts import RunOptions

from speechbrain_ser import cli
from speechbrain_ser.crossval import plan
from speechbrain_ser.training.config import read_config, yaml_named

from .conftest import NARROW, ROOT

HPARAMS = ROOT / "hparams"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted(p for where in ("recipes/*/README.md", "docs/*.md", "docs/[!_]*/*.md") for p in ROOT.glob(where))
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FENCED = re.compile(r"(?:<!-- run: (\w+) -->\n)?```([\w{}-]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = ("speechbrain-ser", "train.py", "crossval.py")


def prose(text: str) -> str:
    return FENCED.sub("", text)


def test_readme_has_at_most_150_lines():
    assert TEXTS["README.md"].count("\n") <= 150


def anchors(page: Path) -> set[str]:
    """The headings' names in links, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings(name):
    page = ROOT / name
    for link, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)\s]+))?\)", prose(TEXTS[name])):
        target = page.parent / link if link else page
        assert target.is_file(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target), f"{name}: {link}#{anchor}"


def command_lines(text: str) -> list[str]:
    """Lines of console and shell blocks (indented ones too), and inline commands, each in one line."""
    blocks = [block for _, language, block in FENCED.findall(text) if language in ("bash", "console")]
    blocks += re.findall(r"(?:^    \S.*\n)+(?:^        \S.*\n)*", prose(text), re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).split("\n")]
    inline = [" ".join(code.split()) for code in re.findall(r"`((?:python|speechbrain-ser) [^`]+)`", prose(text))]
    named = [f"{code} --help" if re.fullmatch("speechbrain-ser [a-z-]+", code) else code for code in inline]
    return [line.removeprefix("$ ") for line in lines] + named


def calls(text: str) -> list[list[str]]:
    """The words of every call of our programs, from the program's name on."""
    found = []
    for line in [line for line in command_lines(text) if any(f"{name} " in line for name in PROGRAMS)]:
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        joined = " ".join("\n" if re.fullmatch("[;&|>]+", word) else shlex.quote(word) for word in words)
        for call in map(shlex.split, joined.split("\n")):
            found += [call[k:] for k in range(len(call)) if call[k] in PROGRAMS][:1]
    return found


def parse(program: str, *rest: str) -> None:
    """Read a command line as its program does, up to where it would begin to work; errors are raised."""
    if program == "speechbrain-ser" and rest[0] not in cli.PROGRAMS:
        cli.main(rest)
    elif "train" in (program.removesuffix(".py"), rest[0]):
        read_config(list(rest[rest[0] == "train" :]), HPARAMS)
    else:
        request = plan.read_arguments(rest[rest[0] == "crossval" :])
        table = plan.read_table(yaml_named(request.yaml, HPARAMS), HPARAMS)
        swept = [f"--{key}={values[0]}" for key, values in request.sweep.items()]
        folder = [f"--data_folder={each}" for each in request.data_folders.values()][:1]  # of a table across corpora
        read_config([str(table.hparams if table else request.yaml), *request.options, *swept, *folder], HPARAMS)


@pytest.fixture
def problem(monkeypatch):
    """What our programs have against a command line."""
    monkeypatch.setattr(cli, "import_module", lambda _: sys.exit(0))  # understood; nothing is run
    monkeypatch.chdir(ROOT)

    def found(call: tuple[str, ...]) -> str | None:
        try:
            parse(*call)
        except (Exception, SystemExit) as error:
            return f"{shlex.join(call)}: {error}" if getattr(error, "code", 1) else None

    return found


def test_commands_are_understood(problem):
    """But for YAMLs that pages have the reader write: tests/test_train.py, and the tutorial's own test, train them."""
    every = {tuple(call) for text in TEXTS.values() for call in calls(text)}
    assert len(every) > 60
    theirs = re.compile(r"/(mine|gender)\.yaml")
    assert [wrong for wrong in map(problem, sorted(every)) if wrong and not theirs.search(wrong)] == []


def test_commands_that_are_wrong_are_found(problem):
    text = "```bash\npython train.py hparams/cai_mtl.yaml --data_folder=… --alhpa=0  # a slip\n```\n"
    text += "`speechbrain-ser predict a.wav --modle=RUN`, `python crossval.py hparams/cai_mlt.yaml\n--data_folder=…`\n"
    text += "```console\n$ find . | speechbrain-ser predict - --model=RUN\n```\n`speechbrain-ser sreve`\n"
    found = [(call[0], problem(call) is None) for call in calls(text)]
    ours, alone = "speechbrain-ser", ("train.py", "crossval.py")
    assert found == [(alone[0], False), (ours, True), (ours, False), (alone[1], False), (ours, False)]


def test_options_that_are_named_exist():
    """Those in running text and tables."""
    files = [*HPARAMS.rglob("*.yaml"), *ROOT.glob("benchmarks/*.py"), Path(cli.__file__), Path(plan.__file__)]
    keys = re.findall(r'^(\w+):|"--([\w-]+)"', "\n".join(f.read_text(encoding="utf-8") for f in files), re.MULTILINE)
    known = {f"--{line or option}" for line, option in [*keys, *((key, "") for key in RunOptions().as_dict())]}
    inline = [c for text in TEXTS.values() for c in re.findall(r"`(?!pip|pytest|pre-commit)([^`]+)`", prose(text))]
    named = {option for code in inline for option in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", code)}
    assert len(named) > 60 and named - known == set()


def test_python_blocks_import_what_there_is():
    blocks = [block for text in TEXTS.values() for _, language, block in FENCED.findall(text) if language == "python"]
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if node.module.startswith(("speechbrain", "recipes"))]
    assert ours and all(hasattr(import_module(node.module), name.name) for node in ours for name in node.names)


@pytest.mark.slow
def test_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("furo", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder like the repository's, for results of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train.py", "crossval.py", "hparams", "recipes", "speechbrain_ser"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def marked(kind: str) -> list:
    blocks = [(name, block) for name, text in TEXTS.items() for of, _, block in FENCED.findall(text) if of == kind]
    return [pytest.param(block, id=f"{name}-{number}") for number, (name, block) in enumerate(blocks)]


@pytest.mark.slow
@pytest.mark.parametrize("block", marked("small"))
def test_block_runs_on_small_corpora(block, checkout, small, table):
    """Each command as it stands, but for the corpus, a tiny encoder and one epoch."""
    for name, layout in {"IEMOCAP_full_release": "iemocap", "EMO-DB": "emodb", "SAVEE": "savee"}.items():
        block = block.replace(f"/corpora/{name}", str(small.corpus(layout)))
    block = block.replace("=…", f"={small.corpus('iemocap')}").replace("/my/recordings", str(table))
    for line in re.sub(r"\\\n\s*", " ", block).strip().split("\n"):
        narrow = [lines for start, lines in NARROW.items() if f"hparams/{start}" in line]
        lines = narrow[0] if narrow else {"--encoder": small.backbone(), "--spec_augment": False}
        lines = {} if "hparams/demo" in line else lines  # which has an encoder of its own
        lines = {} if line.startswith("speechbrain-ser") else {"--n_epochs": 1, **lines}
        run(shlex.join([*shlex.split(line), *(f"{k}={v}" for k, v in lines.items())]), checkout)


@pytest.fixture(scope="module")
def demo(checkout) -> Path:
    """The checkout in which the README's first command has trained, and a few recordings of its corpus."""
    run(command_lines(TEXTS["README.md"])[0].partition("&& ")[2], checkout)
    (checkout / "recordings").mkdir()
    for name in sorted(set(re.findall(r"Ses05[FM]_\w+\.wav", TEXTS["docs/predict.md"]))):
        shutil.copy(next((checkout / "demo_corpus").rglob(name)), checkout / "recordings")
    (checkout / "recordings" / "notes.wav").write_text("minutes of a meeting\n")
    named_as_in_pages(checkout, sorted((checkout / "recordings").glob("Ses05*.wav")))
    return checkout


def named_as_in_pages(folder: Path, wavs: list[Path]) -> None:
    """What pages call RUN, RECORDINGS, talk.mp3 …: the run, utterances, two of them with pauses as a meeting."""
    (folder / "RUN").symlink_to("results/demo/demo-session/default/Ses05/1")
    for name in ("RECORDINGS", "CORPUS/more", "TALKS"):
        shutil.copytree(wavs[0].parent, folder / name, ignore=lambda *_: ["notes.wav"])
    parts, lines, rate = [], [], 16_000
    for wav, speaker in zip(wavs[:2], "AB", strict=True):
        samples = soundfile.read(wav, dtype="float32")[0]
        start = sum(map(len, parts)) / rate
        lines.append(f"SPEAKER meeting 1 {start:.3f} {len(samples) / rate:.3f} <NA> <NA> {speaker} <NA> <NA>\n")
        parts += [samples, np.zeros(rate, np.float32)]
    (folder / "meeting.rttm").write_text("".join(lines))
    for name in ("meeting.wav", "talk.wav", "talk.mp3"):
        soundfile.write(folder / name, np.concatenate(parts), rate)
    for name, wav in zip(("a.flac", "b.wav"), wavs, strict=False):
        soundfile.write(folder / name, *soundfile.read(wav))
    shutil.copy(wavs[0], folder / "a.wav")


def steady(text: str) -> set[str]:
    """Lines without numbers, widths and transcripts, which another machine's rounding moves."""
    moved = r"[\d.,]+|-{3,}|\b[A-Z][A-Z ]{3,}\b"
    return {" ".join(re.sub(moved, "#", line).split()) for line in text.strip().split("\n")}


def check(block: str, folder: Path) -> None:
    """Execute a block: each command after a `$`, which backslashes continue, prints what stands below it."""
    for call in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:] or [f"set -e\n{block}"]:
        command = re.match(r"(?:.*\\\n)*.*", call)[0] if block.startswith("$ ") else call
        printed = run(command, folder).replace(str(folder), "/home/me")
        assert steady(call.removeprefix(command)) - {""} <= steady(printed), printed


@pytest.mark.slow
@pytest.mark.parametrize("block", marked("demo"))
def test_block_prints_what_is_quoted(block, demo):
    check(block, demo)


@pytest.mark.slow
def test_the_page_answers_as_quoted(demo):
    serve, ask = (block for _, language, block in FENCED.findall(TEXTS["docs/page.md"]) if language == "console")
    command, ready = serve.removeprefix("$ ").strip().split("\n")
    command = [sys.executable, "-m", "speechbrain_ser.cli", *shlex.split(command)[1:]]
    with subprocess.Popen(command, cwd=demo, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline().strip() == ready
            parts = {said: [] for said in (True, False)}
            for line in ask.split("\n"):
                parts[line.startswith(("event", "data"))].append(line.removeprefix("$ "))
            printed = run("\n".join(parts[False]), demo)
            assert steady("\n".join(parts[True])) <= steady(printed), printed
        finally:
            server.terminate()
            server.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("block", marked("decomposing"))
def test_block_runs_on_a_run_that_decomposes(block, small, trained, tmp_path):
    for name, wav in zip("ab", sorted(small.corpus("emodb").glob("wav/*.wav")), strict=False):
        shutil.copy(wav, tmp_path / f"{name}.wav")
    run_folder = trained(yaml="hsu_pretrain")
    run(block.replace("RUN", f"{run_folder} --trust-run").replace("FOLDER", "wheels"), tmp_path)


SLURM = "docs/tutorials/slurm.md"
TUTORIALS = sorted(name for name in TEXTS if name.startswith("docs/tutorials/"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_prints_what_is_quoted(name, demo):
    """All its blocks, in order."""
    if name == SLURM:
        pytest.importorskip("submitit", reason='pip install -e ".[slurm]"')
        if shutil.which("sbatch"):
            pytest.skip("Slurm is here: the page shows what is said without it")
    for of, _, block in FENCED.findall(TEXTS[name]):
        if of == "tutorial":
            check(block, demo)


def test_tutorials_are_executed():
    """But for what needs a cluster."""
    blocks = [(name, of) for name in TUTORIALS for of, language, _ in FENCED.findall(TEXTS[name]) if language]
    assert len(TUTORIALS) == 10 and set(blocks) == {*((n, "tutorial") for n in TUTORIALS), (SLURM, "nowhere")}
