"""JSON from strangers: small, flat, each key once, numbers that are numbers."""

import json
from collections.abc import Iterator
from pathlib import Path

from speechbrain_ser.errors import UserError

MOST_BYTES = 1 << 20
DEEPEST = 24


def read_json(path: Path, kind: type, most_bytes: int = MOST_BYTES):
    """The content of a JSON file, without any of the ways in which such a file can hurt.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    kind : type
        What it must hold, dict or list.
    most_bytes : int
        A larger file is not read.

    Returns
    -------
    dict or list

    Raises
    ------
    UserError
        When it is too large, too deeply nested, no JSON, no `kind`, says NaN, has a key twice, or control characters.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.json"
    >>> _ = path.write_text('{"a": 1, "a": 2}')
    >>> read_json(path, dict)
    Traceback (most recent call last):
        ...
    speechbrain_ser.errors.UserError: ...a.json: expected JSON: the key 'a' is there twice
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read: {error.strerror}") from error
    if len(data) > most_bytes:
        raise UserError(f"{path}: expected at most {most_bytes} bytes, found more")
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_each_once, parse_constant=_no_number)
    except RecursionError as error:
        raise UserError(f"{path}: expected at most {DEEPEST} levels, found more") from error
    except ValueError as error:
        raise UserError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: expected a JSON {_name(kind)}, found {_name(type(content))}")
    if _is_deeper(content, DEEPEST):
        raise UserError(f"{path}: expected at most {DEEPEST} levels, found more")
    if (text := next((text for text in _texts(content) if not text.isprintable()), None)) is not None:
        raise UserError(f"{path}: expected text that can be printed, found {text!a:.100}")
    return content


def _each_once(pairs: list) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r:.100} is there twice")
    return content


def _no_number(text: str):
    raise ValueError(f"{text} is no number")


def _is_deeper(content, levels: int) -> bool:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(each, levels - 1) for each in inner))


def _texts(content) -> Iterator[str]:
    """Keys and values: what a terminal would obey must not reach it."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for each in [*content, *(content.values() if isinstance(content, dict) else [])]:
            yield from _texts(each)


def _name(kind: type) -> str:
    return {dict: "object", list: "list"}.get(kind, kind.__name__)
