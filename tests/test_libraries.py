"""Libraries that are installed and do not load: one line, exit status 2; what needs them not goes on."""

import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from speechbrain_ser.errors import PAIR, libraries_that_load

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


def test_what_needs_no_torchaudio_goes_on(broken):
    assert broken(*TORCHAUDIO, [*CLI, "report", "nowhere"]) == (2, "error: nowhere is not a folder\n")


def test_other_errors_are_not_touched():
    with pytest.raises(ImportError, match="torchaudio"), libraries_that_load():
        raise ImportError("torchaudio")
