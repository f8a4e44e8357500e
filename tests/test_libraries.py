"""Libraries that are installed and do not load: one line, exit status 2; what needs them not goes on."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from speechbrain_ser.errors import PAIR, libraries_that_load

from .conftest import ROOT

UNDEFINED = "libtorchaudio.so: undefined symbol: torch_library_impl\nsecond line"
PROGRAMS = {
    "train.py": ["train.py", "hparams/demo.yaml"],
    "crossval.py": ["crossval.py", "hparams/demo.yaml"],
    "predict": ["-m", "speechbrain_ser.cli", "predict", "a.wav", "--model=run"],
    "demo-corpus": ["-m", "speechbrain_ser.cli", "demo-corpus", "nowhere"],  # imports no torchaudio
}


@pytest.fixture
def broken(tmp_path):
    """Puts a library in front of the real one whose import fails; gives a program's exit status and stderr then."""

    def run(library: str, version: str, error: str, arguments: list[str]) -> tuple[int, str]:
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text(f"from {library} import native")
        (tmp_path / library / "native.py").write_text(f"raise {error}")
        (tmp_path / f"{library}-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {library}\nVersion: {version}\n"
        (tmp_path / f"{library}-{version}.dist-info" / "METADATA").write_text(metadata)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        found = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        return found.returncode, found.stderr

    return run


@pytest.mark.parametrize("program", ["train.py", "crossval.py", "predict"])
def test_a_pair_that_does_not_load_is_told_in_a_line(broken, program):
    status, told = broken("torchaudio", "2.99.7", f"OSError({UNDEFINED!r})", PROGRAMS[program])
    assert status == 2 and told.count("\n") == 1 and told.startswith("error: torchaudio 2.99.7 does not load beside ")
    assert f"torch {version('torch')}" in told and "undefined symbol" in told and told.endswith(f"pip install {PAIR}\n")


@pytest.mark.parametrize("program", ["train.py", "demo-corpus"])
def test_a_missing_libsndfile_is_told_in_a_line(broken, program):
    status, told = broken("soundfile", "0.99.7", "OSError('sndfile library not found')", PROGRAMS[program])
    assert status == 2 and told.count("\n") == 1 and told.startswith("error: soundfile 0.99.7 does not find libsndfile")
    assert "sndfile library not found" in told and "apt install libsndfile1" in told


def test_what_needs_no_torchaudio_goes_on(broken):
    status, told = broken("torchaudio", "2.99.7", "OSError", ["-m", "speechbrain_ser.cli", "report", "nowhere"])
    assert (status, told) == (2, "error: nowhere is not a folder\n")


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("soundfile"), ImportError("torchaudio")])
def test_other_errors_are_not_touched(error):
    with pytest.raises(type(error)) as found, libraries_that_load():
        raise error
    assert found.value is error
