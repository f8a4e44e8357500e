"""The site: ``pip install -c constraints.txt -e ".[docs]" && sphinx-build -W -b html docs docs/_build``."""

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from speechbrain_ser import __version__  # noqa: E402

project, author, release = "speechbrain-ser", "speechbrain-ser developers", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"speechbrain-ser {release}"
html_show_copyright = False
html_static_path, html_css_files = ["_static"], ["site.css"]
highlight_language = "text"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
suppress_warnings = ["ref.python"]  # two classes are named Run, each in a room of its own
autodoc_typehints = "none"  # signatures stay readable; docstrings have shapes and units
# pages of the site whose text lies elsewhere, beside what it is about
ELSEWHERE = {readme: DOCS / "systems" / f"{readme.parent.name}.md" for readme in ROOT.glob("recipes/*/README.md")}
ELSEWHERE[ROOT / "benchmarks" / "README.md"] = DOCS / "benchmarks.md"

NEEDS_EXTRAS = ("page",)  # modules that only their extra can import


def modules(room: str) -> str:
    """Return what makes Sphinx read the docstrings of a room's modules, whichever there are."""
    names = sorted(path.stem for path in (ROOT / "speechbrain_ser" / room).glob("[!_]*.py"))
    lines = [f".. automodule:: speechbrain_ser.{room}.{n}\n   :members:\n" for n in names if n not in NEEDS_EXTRAS]
    return "\n".join(["\n```{eval-rst}", *lines, "```"])


def relinked(text: str, before: Path, after: Path) -> str:
    """Return a text that was written for one folder with relative links that hold in another, within the site."""

    def link(found: re.Match) -> str:
        path = (before / found[1]).resolve()
        path = ELSEWHERE.get(path, path)
        other = "path:" if path.suffix == ".md" and DOCS not in path.parents else ""  # a file to read, not a page
        return f"]({other}{Path(os.path.relpath(path, after)).as_posix()}"

    return re.sub(r"\]\((?!https?:|#)([^)#\s]+)", link, text)


def read_source(app, docname: str, source: list[str]) -> None:
    """Fill in what lies elsewhere, and mend its links; add a room's modules to its page."""
    page = DOCS / f"{docname}.md"
    origin = {page: readme for readme, page in ELSEWHERE.items()}.get(page)
    if origin:
        app.env.note_dependency(str(origin))
    text = origin.read_text(encoding="utf-8") if origin else source[0]
    source[0] = relinked(text, (origin or page).parent, page.parent)
    if docname.startswith("api/"):
        source[0] += modules(page.stem)


def setup(app) -> None:
    """Have every page read so."""
    app.connect("source-read", read_source)
