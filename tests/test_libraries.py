"""Libraries that are installed and do not load: one line, exit status 2; what needs them not goes on."""

import gc
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from speechbrain_ser.errors import PAIR, libraries_that_load
from speechbrain_ser.inference.doctor import doctor
from speechbrain_ser.training.signals import importing

from .conftest import ROOT


@pytest.fixture
def broken(tmp_path):
    """Puts a library in front of the real one whose import fails; gives a program's exit status and stderr then."""

    def run(library: str, error: str, arguments: list[str]) -> tuple[int, str]:
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text(f"from {library} import native")
        (tmp_path / library / "native.py").write_text(f"raise {error}")
        (tmp_path / f"{library}-2.99.7.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {library}\nVersion: 2.99.7\n"
        (tmp_path / f"{library}-2.99.7.dist-info" / "METADATA").write_text(metadata)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        pipes = {"capture_output": True, "text": True, "check": False}
        found = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, **pipes)
        return found.returncode, found.stderr

    return run


TORCHAUDIO = ("torchaudio", r"OSError('libtorchaudio.so: undefined symbol: torch_library_impl\nsecond line')")
SOUNDFILE = ("soundfile", "OSError('sndfile library not found')")
CLI = ("-m", "speechbrain_ser.cli")
SAID = {
    "torchaudio": f"torchaudio 2.99.7 does not load beside torch {version('torch')} .*undefined.*pip install {PAIR}$",
    "soundfile": "soundfile 2.99.7 does not find libsndfile .sndfile library not found.*apt install libsndfile1",
}


@pytest.mark.parametrize(
    ("library", "program"),
    [
        (TORCHAUDIO, ["train.py", "hparams/demo.yaml"]),
        (TORCHAUDIO, ["crossval.py", "hparams/demo.yaml"]),
        (TORCHAUDIO, [*CLI, "predict", "a.wav", "--model=run"]),
        (SOUNDFILE, ["train.py", "hparams/demo.yaml"]),
        (SOUNDFILE, [*CLI, "demo-corpus", "nowhere"]),
    ],
)
def test_a_library_that_does_not_load_is_told_in_a_line(broken, library, program):
    status, told = broken(*library, program)
    assert status == 2 and told.count("\n") == 1 and re.match(f"error: {SAID[library[0]]}", told), told


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("program", ["train.py", "crossval.py", "cli"])
def test_a_signal_while_libraries_are_imported(broken, program, number):
    arguments = [*CLI, "predict", "a.wav", "--model=run"] if program == "cli" else [program, "hparams/demo.yaml"]
    killed = f"SystemExit(__import__('os').kill(__import__('os').getpid(), __import__('signal').{number}))"
    status, told = broken("torchaudio", killed, arguments)
    assert status == {"SIGTERM": 75, "SIGINT": 130}[number] and f"ended by {number}" in told


def test_the_garbage_collector_waits_for_a_program_that_starts_and_for_nobody_else():
    lines = "import gc; from speechbrain_ser.training.signals import importing"
    lines += "\nwith importing(): print(gc.isenabled())\nprint(gc.isenabled(), gc.get_freeze_count() > 1000)"
    assert subprocess.check_output([sys.executable, "-c", lines], cwd=ROOT, text=True) == "False\nTrue True\n"
    frozen = gc.get_freeze_count()
    with importing():  # as in a notebook
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_what_needs_no_torchaudio_goes_on(broken):
    assert broken(*TORCHAUDIO, [*CLI, "report", "nowhere"]) == (2, "error: nowhere is not a folder\n")


def test_other_errors_are_not_touched():
    with pytest.raises(ImportError, match="torchaudio"), libraries_that_load():
        raise ImportError("torchaudio")


def test_what_is_built_works_outside_the_checkout(tmp_path):
    """A wheel has hparams/, recipes/ and both programs in it, and finds them by name."""
    subprocess.run([sys.executable, "setup.py", "-q", "build", "-b", tmp_path / "built"], cwd=ROOT, check=True)
    (shipped,) = tmp_path.glob("built/lib*/speechbrain_ser/shipped")
    for pattern in ("hparams/**/*.yaml", "recipes/*/brain.py", "*.py"):
        expected = {path.relative_to(ROOT) for path in ROOT.glob(pattern) if path.name != "setup.py"}
        assert {path.relative_to(shipped) for path in shipped.glob(pattern)} == expected != set()
    environment = os.environ | {"PYTHONPATH": str(shipped.parents[1])}
    command = [sys.executable, *CLI, "train", "fu_cross_lingual", "--data_folder=nowhere"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "SAVEE: no such folder: " in found.stderr, found.stderr


def test_doctor_says_what_an_installation_can_do(small, tmp_path, capsys, monkeypatch):
    assert doctor(str(small.backbone()), tmp_path) == 0
    told = capsys.readouterr().out
    assert told.count("ok  ") == told.count("\n") == 8 and f"torch {version('torch')}" in told and "MP3" in told
    (tmp_path / "file").touch()
    monkeypatch.setattr("speechbrain_ser.inference.doctor.ENOUGH", 1e9)
    assert doctor(str(tmp_path / "no_encoder"), tmp_path) == 1
    told = capsys.readouterr().out
    assert re.search("FAIL  encoder .*no_encoder.*expected a folder", told) and "GB are free in" in told


def test_doctor_names_packages_of_another_version(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("speechbrain_ser.inference.doctor.version", lambda name: "0.0.1")
    assert doctor(str(tmp_path), tmp_path) == 1
    assert re.search(r"FAIL  packages: expected .*transformers<6,>=5 \(found 0.0.1\)", capsys.readouterr().out)
