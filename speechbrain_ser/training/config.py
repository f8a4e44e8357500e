"""From a command line to a checked configuration, before anything long starts.

What is read is HyperPyYAML, plus one line of ours: ``base: other.yaml`` takes every line of another file first, so that
a system is what differs from `hparams/base/`, and an ablation a file of a few lines.
"""

import argparse
import copy
import hashlib
import inspect
import io
import logging
import math
import pkgutil
import pydoc
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from speechbrain.utils.run_opts import RunOptions

from speechbrain_ser.data.manifest import corpus_name, second_corpora
from speechbrain_ser.data.protocols import unread_lines
from speechbrain_ser.errors import UserError, nearest

logger = logging.getLogger(__name__)
warn_once = cache(logger.warning)  # crossval.py reads one file for every run

# In the run folder's path by themselves
PATH_KEYS = frozenset({"corpus", "protocol", "fold", "seed"})
# Lines that change where, how long or how fast a run goes, not what one epoch of it computes
NEUTRAL_KEYS = frozenset(
    "data_folder second_data_folder output_folder results_folder manifest_folder cache_folder selection n_epochs "
    "test_every_epoch tracker num_workers micro_batch_size eval_batch_size table_file table_names table_name system "
    "slurm draw_every controls".split()
)
# SpeechBrain's run options that do change it
SCIENCE_OPTIONS = frozenset(
    "precision eval_precision max_grad_norm nonfinite_patience optimizer_step_limit remove_vector_weight_decay "
    "skip_nonfinite_grads".split()
)
FROM_DATA = "comes from the data"
REFUSED = {
    "grad_accumulation_factor": "set batch_size (utterances a step) and micro_batch_size (utterances at a time)",
    "auto_mix_prec": "use --precision=fp16",
    "bfloat16_mix_prec": "use --precision=bf16",
    "system": "a system is chosen by its YAML, the first argument",
    "n_tokens": FROM_DATA,  # as are the classes of each of the YAML's `labels_of`
}
RENAMED = {"wav2vec2_hub": "encoder"}  # lines that have another name now: they are understood, with a warning
PRECISIONS = ("fp32", "fp16", "bf16")
# what training needs of every system, beside the lines of hparams/base/run.yaml
NEEDED = ("system", "n_epochs", "batch_size", "loss_weights", "model", "modules", "brain_class")
CALLS = ("!new:", "!name:", "!apply:")

# HyperPyYAML teaches ruamel for good what (a, tuple) is when it first builds something: done now, so that a YAML read
# before that and one read afterwards are the same
load_hyperpyyaml("tuple: (1, 2)")


@dataclass(frozen=True)
class Config:
    """A checked configuration."""

    tree: CommentedMap  # the user's YAML with every override in it, unresolved
    defaults: CommentedMap  # the shipped YAML of the system, or the user's own: a run is named after what differs
    run_opts: RunOptions

    @property
    def system(self) -> str:
        return str(self.tree["system"])

    @cached_property
    def plain(self) -> dict:
        """The values that are plain data, references resolved; objects to be built later appear as ``None``."""
        yaml = ruamel.yaml.YAML(typ="safe", pure=True)
        yaml.Constructor = _Plain
        return dict(yaml.load(self.resolved()))

    @cached_property
    def corpus(self) -> str:
        """What the corpus is called in results."""
        return corpus_name(self.plain)

    @cached_property
    def seconds(self) -> list[str]:
        """What the corpora that are joined to it are called."""
        return [corpus_name(lines) for lines in second_corpora(self.plain)]

    def changed(self) -> dict[str, str]:
        """Return the lines that change the science compared to the defaults, sorted, with their values as text."""
        mine, defaults = self._texts(self.tree), self._texts(self.defaults)
        keys = {*mine, *defaults} - PATH_KEYS
        changed = {key: mine.get(key, "") for key in keys if mine.get(key) != defaults.get(key)}
        options = self.run_opts.overridden_args & SCIENCE_OPTIONS
        return dict(sorted({**changed, **{key: str(self.run_opts[key]) for key in options}}.items()))

    def needs(self) -> dict[str, dict]:
        """Return the runs that this one starts from, by the line that takes such a run's folder.

        Declared as ``needs: {pretrained: {yaml: hsu_pretrain.yaml, when: [!ref <parts>], lines: {…}, fits: […]}}``:
        `lines` are what it is given beyond the data, fold and seed; in `fits` (default: all of them) a run that the
        user names must agree. It is needed where all of `when` is true.
        """
        return {key: need for key, need in (self.plain.get("needs") or {}).items() if all(need.get("when", ()))}

    def without(self, task: str) -> str:
        """Return what a command line says to leave a task out: the line that its weight is, such as ``--alpha=0``."""
        weight = re.fullmatch(r"<(\w+)>", str(getattr(self.tree["loss_weights"][task], "value", "")))
        return f"--{weight[1]}=0" if weight else f"--loss_weights='{{{task}: 0}}'"

    def variant(self) -> str:
        """Return the changed lines as a folder name: ``default``, or ``alpha=0,lr=0.002``."""
        name = ",".join(f"{k}={_short(k, v)}" for k, v in self.changed().items()) or "default"
        # file systems take 255 bytes
        return name if len(name.encode()) <= 200 else f"{name[:150]},{_hash(name)}"

    def science(self) -> dict[str, str]:
        """Return everything that a run folder must agree on with itself when a run is continued."""
        return {**self._texts(self.tree), **self.changed()}

    def _texts(self, tree: CommentedMap) -> dict[str, str]:
        neutral = NEUTRAL_KEYS | set(self.plain.get("needs") or {}) | unread_lines(str(self.plain.get("protocol")))
        texts = {key: text_of(tree[key]) for key in sorted(set(tree) - neutral)}
        if tree is self.tree and self.seconds:  # by their names and labels: folders may move
            second = self.plain["second_corpus"]
            labels = [each.get("labels") for each in second] if isinstance(second, list) else []
            texts["second_corpus"] = "+".join([*self.seconds, *([text_of(labels)] if any(labels) else [])])
        return texts

    def resolved(self, sizes: Mapping | None = None) -> str:
        """Return the whole YAML, overrides and sizes from the data (``n_emotions``, …) in it, references resolved."""
        try:
            text = resolve_references(io.StringIO(_dump(self.tree)), dict(sizes or {})).getvalue()
        except ValueError as error:  # The reference "lobe" is not valid
            raise UserError(
                f"the YAML of {self.tree['system']}: {error}: it has no such line (`lobe` is in base/encoder.yaml; "
                "what the data fill in is declared empty: `n_speakers: null`)"
            ) from error
        if re.search(r"^[^#\n]*!ref ", text, re.MULTILINE):  # to a later line that is a reference itself
            text = resolve_references(io.StringIO(text)).getvalue()
        return text

    def build(self, sizes: Mapping | None = None) -> dict:
        """Build everything that the YAML declares."""
        try:
            return load_hyperpyyaml(io.StringIO(self.resolved(sizes)))
        except (TypeError, ValueError) as error:  # what a constructor says of its arguments
            raise UserError(str(error)) from error


def read_config(argv: list[str], hparams_folder: Path) -> Config:
    """Read and check a command line such as ``hparams/cai_mtl.yaml --data_folder=… --alpha=0``.

    Modules beside the YAML can be imported from then on: ``brain_class: !name:my_brain.MyBrain``.
    """
    if not argv or argv[0].startswith("-"):
        if set(argv) & {"-h", "--help"}:
            RunOptions._create_parser().parse_args(["--help"])
        raise UserError(
            "usage: train.py (or speechbrain-ser train) hparams/SYSTEM.yaml --data_folder=… [--KEY=VALUE …]"
        )
    path = yaml_named(argv[0], hparams_folder)
    tree = _load(path, hparams_folder)
    # a user's own Brain, and the recipes
    sys.path += [place for f in (path, hparams_folder) if (place := str(f.parent.resolve())) not in sys.path]
    shipped = hparams_folder / f"{tree.get('system')}.yaml"
    is_own = not shipped.is_file()
    defaults = copy.deepcopy(tree) if is_own or shipped.samefile(path) else _load(shipped, hparams_folder)
    _check_lines(tree, _load(hparams_folder / "base" / "run.yaml", hparams_folder) if is_own else defaults, path)
    run_opts, overrides, problems = _read_options(argv, tree)
    _update(tree, overrides)
    if problems := [*problems, *_wrong_values(tree, defaults), *_wrong_arguments(tree, "")]:
        raise UserError("\n  ".join([f"on the command line or in {path}:", *problems]))
    if missing := [key for key, value in tree.items() if _tag(value) == "!PLACEHOLDER"]:
        raise UserError("please give " + " and ".join(f"--{key}=…" for key in missing))
    _warn_unread(tree, hparams_folder, path)
    return Config(tree, defaults, run_opts)


def yaml_named(name: str, hparams_folder: Path) -> Path:
    """Return the file that is meant: a path, or the name of a shipped one, such as `cai_mtl`."""
    name = Path(name)
    inner = Path(*name.parts[1:]) if name.parts[:1] == ("hparams",) else name
    places = [name, hparams_folder / inner, hparams_folder / f"{inner}.yaml"]
    return next((place for place in places if place.is_file()), name)


def _yaml() -> ruamel.yaml.YAML:
    yaml = ruamel.yaml.YAML()
    yaml.width = 10_000  # never folds a value, so that texts can be compared
    return yaml


class _Plain(ruamel.yaml.constructor.SafeConstructor):
    """Tagged nodes, which are objects of later, are None."""


_Plain.add_multi_constructor("!", lambda constructor, suffix, node: None)


def _load(path: Path, hparams_folder: Path, above: tuple[Path, ...] = ()) -> CommentedMap:
    """Read a YAML and its bases, each beside the file that names it or shipped."""
    if not path.is_file():
        known = sorted(p.relative_to(hparams_folder).as_posix() for p in hparams_folder.rglob("*.yaml"))
        namesakes = [name for name in known if Path(name).name == path.name]
        near = nearest(path.name, namesakes or known)
        raise UserError(f"no such file: {path}{near}; shipped: {', '.join(known)}")
    try:
        tree = _yaml().load(_with_new_names(path.read_text(encoding="utf-8"), path))
    except (ruamel.yaml.error.YAMLError, UnicodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path}: expected lines of the form 'key: value'")
    _to_block_style(tree)
    if "base" not in tree:
        return tree
    name, above = str(tree.pop("base")), (*above, path.resolve())
    places = [place for place in (path.parent / name, hparams_folder / name) if place.is_file()]
    # a file may have the name of the shipped one that it starts from
    ahead = [place for place in places if place.resolve() not in above]
    if places and not ahead:
        raise UserError(f"{path}: 'base: {name}' goes in a circle")
    base = _load(ahead[0] if ahead else hparams_folder / name, hparams_folder, above)
    if problems := list(_wrong_values({**base, **tree}, base)):
        raise UserError("\n  ".join([f"{path}:", *problems]))
    base.ca.comment = tree.ca.comment
    _update(base, tree)
    return base


def _with_new_names(text: str, path: Path) -> str:
    for old, new in RENAMED.items():
        text, times = re.subn(rf"^{old}(?=:)|(?<=<){old}(?=>)", new, text, flags=re.MULTILINE)
        if times:
            warn_once(f"{path}: {old} is named {new} now")
    return text


def _check_lines(tree: CommentedMap, needed: Iterable[str], path: Path) -> None:
    if missing := [key for key in dict.fromkeys([*NEEDED, *needed]) if key not in tree]:
        raise UserError(
            f"{path}: missing lines: {', '.join(missing)} (`base: base/training.yaml` has what all that is trained by "
            "gradients has, base/encoder.yaml an encoder too; hparams/cai_mtl.yaml shows the rest)"
        )
    if not re.fullmatch(r"[\w.+-]+", str(tree["system"])):
        raise UserError(f"{path}: system: expected a name that is fit for a folder, found '{tree['system']}'")
    if not (_tag(tree["brain_class"]) or "").startswith("!name:"):
        raise UserError(f"{path}: brain_class: expected !name:module.Class, found {tree['brain_class']!r}")


def _warn_unread(tree: CommentedMap, hparams_folder: Path, path: Path) -> None:
    """A key that no shipped YAML has should be read by another line, or by the Brain."""
    others = [file for file in hparams_folder.rglob("*.yaml") if not file.samefile(path)]
    shipped = "\n".join(file.read_text(encoding="utf-8") for file in others)
    known = {*re.findall(r"^(\w+):", shipped, re.MULTILINE), *RunOptions().as_dict(), *_references(tree)}
    own = [key for key in tree if key not in known and not key.startswith("__")]
    if own:
        brain = _locate(_tag(tree["brain_class"])[len("!name:") :])
        files = [*Path(__file__).parent.glob("*.py"), *map(inspect.getfile, brain.__mro__[:-1])]
        code = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
        for key in own:
            if not re.search(rf"\b{re.escape(key)}\b", code):
                warn_once(f"{path}: nothing reads the line '{key}:'{nearest(key, known)}")


def _children(node) -> list[tuple]:
    """Keys or places of a mapping or a list, and what is there."""
    if isinstance(node, Mapping):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, CommentedSeq) else []


def _references(node) -> Iterator[str]:
    """Keys that `!ref <key>` and its like name below a node; what comments say does not count."""
    for _, child in _children(node):
        yield from _references(child)
    if isinstance(node, TaggedScalar):
        yield from re.findall(r"<([^>\[\]]+)", str(node.value))


def _to_block_style(node) -> bool:
    """One line a value around tagged mappings: ruamel cannot read back its own ``[!new:x {a: 1}]``."""
    around = any([_to_block_style(child) for _, child in _children(node)])
    if around:
        node.fa.set_block_style()
    return around or (isinstance(node, Mapping) and _tag(node) is not None)


def _update(tree: CommentedMap, changes: CommentedMap) -> None:
    """Like SpeechBrain's recursive_update, but a mapping with a ``!new:`` tag of its own replaces, never merges."""
    for key, value in changes.items():
        old = tree.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and _tag(value) in (None, _tag(old)):
            _update(old, value)
            continue
        if key not in tree and key in changes.ca.items:
            tree.ca.items[key] = changes.ca.items[key]  # its comment
        tree[key] = value


# ------------------------------------------------------------------ the command line


def strict(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Forbid abbreviations (``--test`` for ``--test_only``), and have argparse raise its errors as `UserError`."""

    def error(message: str):
        raise UserError(message)

    parser.allow_abbrev = False
    parser.error = error
    return parser


def given_names(argv: Iterable[str]) -> Counter[str]:
    """Count the options of a command line, ``--alpha=0`` as ``--alpha``, an old name as the new one."""
    names = [word.partition("=")[0][2:] for word in argv if word.startswith("--")]
    return Counter(f"--{RENAMED.get(name, name)}" for name in names)


def _read_options(argv: list[str], tree: CommentedMap) -> tuple[RunOptions, CommentedMap, list[str]]:
    """SpeechBrain's run options, the overrides of the YAML, and what is wrong with the rest."""
    parser = strict(RunOptions._create_parser())
    # a YAML's line comes before a run option of its name
    group = parser.add_argument_group("lines of the YAML", conflict_handler="resolve")
    group.add_argument("--optimizer_step_limit", type=int)  # SpeechBrain leaves it a text, and fails in comparing it
    lines = [key for key in tree if not key.startswith("__")]
    for key in lines:
        old = [f"--{old}" for old, new in RENAMED.items() if new == key]
        group.add_argument(f"--{key}", *old, default=argparse.SUPPRESS, metavar="…")
        for name in {word.partition("=")[0] for word in argv} & set(old):
            warn_once(f"{name} is named --{key} now")
    names = given_names(argv)
    given = " ".join(word for word in argv if word.startswith("--labels_of="))
    labels = ["emotion", "speaker", *(tree.get("labels_of") or []), *re.findall(r"\w+", given)]
    refused = REFUSED | {f"n_{label}s": FROM_DATA for label in labels}
    problems = [f"{name}: {refused[name[2:]]}" for name in names if name[2:] in refused]
    problems += [f"{name} is given twice" for name, times in names.items() if times > 1]
    try:
        found, rest = parser.parse_known_args(argv)
    except UserError as error:
        return RunOptions(), CommentedMap(), [*problems, str(error).removeprefix("argument ")]
    problems += _unknown(rest, [f"--{name}" for name in [*lines, *RunOptions().as_dict()]], refused)
    overrides = CommentedMap()
    for key in [key for key in lines if key in found]:
        try:
            overrides[key] = _value(key, vars(found).pop(key), tree[key])
        except UserError as error:
            problems.append(str(error))
    found.overridden_args = {name[2:] for name in names} & set(vars(found))
    return RunOptions(**vars(found)), overrides, problems


def _unknown(rest: list[str], known: list[str], refused: Mapping[str, str]) -> Iterator[str]:
    """What argparse did not take: options nobody knows, or else words that belong to none."""
    names = [word.partition("=")[0] for word in rest if word.startswith("--")]
    if not names:
        yield from (f"{word}: expected --key=value" for word in rest)
    for name in names:
        longer = sorted(k for k in known if k.startswith(name))  # an abbreviation
        if name[2:] not in refused:
            hint = f" (names are written in full: {', '.join(longer)})" if longer else nearest(name, known)
            yield f"{name} is unknown{hint}"


def _value(key: str, text: str, default):
    """A value as YAML reads it, except that a line of text stays text (a fold 03 is not the number 3)."""
    is_text = (
        isinstance(default, str) or _tag(default) == "!PLACEHOLDER" or key.endswith(("_folder", "_file", "table_name"))
    )
    if is_text and text[:1] not in "!{[" and text not in ("", "null", "~"):
        return text
    try:
        value = _yaml().load(f"{key}: {text}")[key]
    except ruamel.yaml.error.YAMLError as error:
        raise UserError(f"--{key}={text} is not valid YAML: {error}") from None
    _to_block_style(value)
    if text == "" and (isinstance(default, str) or key in ("cache_folder", "manifest_folder")):
        raise UserError(f"--{key} expects a text, found none: is it a variable that the shell does not know?")
    if value is not None and (expected := _expected(value, default)):
        raise UserError(f"--{key} expects {expected}, found '{text}'")
    return value


def _expected(value, default) -> str | None:
    """What a value should have been, by the kind of its default; None where it is right or cannot be judged."""
    if _tag(value) or _tag(default):  # computed, or an object
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    kinds = (
        (bool, isinstance(value, bool), f"true or false (like {default})"),
        (int, is_number and isinstance(value, int), f"a whole number (like {default})"),
        (float, is_number, f"a number (like {default})"),
        (Mapping, isinstance(value, Mapping), "{name: value, …}"),
    )
    return next((None if right else words for kind, right, words in kinds if isinstance(default, kind)), None)


def _wrong_values(tree: Mapping, defaults: Mapping) -> Iterator[str]:
    """Values of another kind than the defaults', or no choice."""
    for key, default in defaults.items():
        value = tree[key]
        if expected := _expected(value, default):
            yield f"{key}: expected {expected}, found {value!r}"
        if key == "precision" and value not in PRECISIONS:
            yield f"{key}: expected one of {', '.join(PRECISIONS)}, found {value!r}{nearest(value, PRECISIONS)}"


def _wrong_arguments(node, where: str) -> Iterator[str]:
    """Mistyped names and arguments of every ``!new:``, ``!name:`` and ``!apply:`` below a node."""
    tag = _tag(node) or ""
    if tag.startswith(CALLS):
        name = tag.partition(":")[2]
        if (target := _locate(name)) is None:
            yield f"{where}: cannot import {name}{_nearest_sibling(name)}"
        elif isinstance(node, Mapping):
            known = _parameters(target)
            unknown = [key for key in node if known is not None and key not in known]
            yield from (f"{where}: {name} has no argument '{key}'{nearest(key, known)}" for key in unknown)
    for key, child in _children(node):
        place = f"{where}[{key}]" if isinstance(node, CommentedSeq) else f"{where}.{key}" if where else str(key)
        yield from _wrong_arguments(child, place)


def _locate(name: str):
    try:
        return pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"importing {name} failed: {error}") from None


def _nearest_sibling(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if not module:
        return ""
    if (parent := _locate(module)) is None:
        return _nearest_sibling(module)
    modules = (m.name for m in pkgutil.iter_modules(getattr(parent, "__path__", ())))
    return nearest(leaf, [*dir(parent), *modules])


def _parameters(target) -> Mapping | None:
    """The arguments that a callable takes; None where it takes any, or does not tell."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else parameters


# ------------------------------------------------------------------ values as text


def _tag(node) -> str | None:
    value = getattr(getattr(node, "tag", None), "value", None)
    return value if isinstance(value, str) and value.startswith("!") else None


def _dump(tree) -> str:
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    return stream.getvalue()


def text_of(value) -> str:
    """Write a value as text, comments left out, so that equal values give equal texts.

    Example
    -------
    >>> text_of({"units": 8.0, "layers": [1, 2.5]}), text_of(True)
    ("{'units': 8, 'layers': [1, 2.5]}", 'True')
    """
    return str(_bare(value))


def _bare(node):
    tag = _tag(node)
    if isinstance(node, Mapping):
        value = {str(k): _bare(v) for k, v in node.items()}
    elif isinstance(node, list):
        value = [_bare(v) for v in node]
    elif isinstance(node, TaggedScalar):
        value = node.value
    elif isinstance(node, float):  # 1.0 is 1; and no ScalarFloat, which remembers how it was written
        value = int(node) if node.is_integer() and abs(node) < 1e15 else float(node)
    else:
        value = node if node is None or isinstance(node, (bool, int)) else str(node)
    return (tag, value) if tag and tag != "!tuple" else value


def _short(key: str, text: str) -> str:
    """A value fit for a folder name: a path by its last part, anything long by a hash."""
    text = Path(text).name if key == "encoder" else text
    return text if len(text) <= 40 and re.fullmatch(r"[\w.+-]+", text) else _hash(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
