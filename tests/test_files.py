"""Names from data as parts of paths, files with long names; what long work says."""

import io
import itertools
import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from speechbrain_ser.errors import followed
from speechbrain_ser.files import below, file_stem, path_component, write_text

HOSTILE = ["", ".", "..", "/tmp/x", "../../up", "b/1", "b\\1", "con", "NUL.txt", "a.", "a ", ".a", "x" * 256, "ü" * 90]
HOSTILE += ["a\n", "a\0b", "~root", "a~0123456789ab", "$(reboot)", "-\u202e", "C:", "*", "\ud800"]
ANY = st.one_of(st.sampled_from(HOSTILE), st.text("./\\~ aA0", max_size=6), st.text(max_size=300))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY, ANY)
@example("a/", path_component("a/"))
def test_a_name_is_one_component_inside_and_no_other_names(tmp_path, name, other):
    path = below(tmp_path, name, other)
    path.mkdir(parents=True, exist_ok=True)
    assert path.parent.parent == tmp_path and path.resolve() == tmp_path.resolve() / path.relative_to(tmp_path)
    assert len(os.fsencode(path.name)) <= 200 and path.name.isascii() and path.name[0] != "." != path.name[-1]
    assert (path.parent.name == path.name) == (name == other)


def test_readable_names_stay_as_they_are():
    for name in ("01F", "Ses01", "DC", "r0", "speaker_1", "default", "alpha=0,lr=1e-05", "a.b+c-d", "-1"):
        assert path_component(name) == file_stem(name) == name


def test_a_file_of_a_long_name_is_written_whole(tmp_path):
    assert write_text("x", tmp_path / ("ü" * 120)).read_text() == "x" and len(os.listdir(tmp_path)) == 1
    assert file_stem("Größe a") == "Größe a" and len(file_stem("ü" * 120)) < 60 and Path(file_stem("x" * 201)).name


def test_long_work_has_a_bar_on_a_terminal_and_a_line_in_a_file(monkeypatch):
    def said(seconds: float, is_terminal: bool, *show: bool) -> str:
        screen, clock = io.StringIO(), itertools.count(0, seconds)
        screen.isatty = lambda: is_terminal
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", screen)
            patch.setattr("time.monotonic", lambda: next(clock))
            patch.setattr("tqdm.std.time", lambda: next(clock))
            assert list(followed("abc", "resampling", 3, *show)) == ["a", "b", "c"]
        return screen.getvalue()

    assert said(2, False) == "resampling: 3\n" and "resampling:  67%" in said(2, True)
    assert said(0.01, False) == said(2, False, False) == said(2, True, False) == ""
