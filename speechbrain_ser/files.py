"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path

import pandas as pd


def write_text(text: str, path: str | os.PathLike) -> Path:
    """Write UTF-8 text to a temporary file beside `path`, then rename it.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> write_text("hello", folder / "note.txt").read_text()
    'hello'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return path


def write_json(content, path: str | os.PathLike) -> Path:
    """Write indented JSON in one step; NaN is refused."""
    return write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_csv(frame: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a table in one step, floats in full."""
    return write_text(frame.to_csv(index=False, lineterminator="\n"), path)
