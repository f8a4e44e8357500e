"""From a command line to a checked configuration, before anything long starts.

SpeechBrain's own parsing has traps (each seen): argparse takes abbreviations, so ``--opt=…`` or ``--test`` silently
become other options; an ``=`` inside a value is lost; mistyped arguments of a ``!new:`` entry surface late or never.
They are dealt with here, and only here. What is read is HyperPyYAML, plus one line of ours: ``base: other.yaml`` takes
every line of another file first, so that an ablation is a file of a few lines.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import inspect
import io
import logging
import math
import pkgutil
import pydoc
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from speechbrain.utils.run_opts import RunOptions

from speechbrain_ser.errors import UserError, nearest

logger = logging.getLogger(__name__)

# In the run folder's path by themselves
PATH_KEYS = frozenset({"corpus", "protocol", "fold", "seed"})
# Lines that change where, how long or how fast a run goes, not what one epoch of it computes
NEUTRAL_KEYS = frozenset(
    "data_folder second_data_folder output_folder results_folder manifest_folder cache_folder selection n_epochs "
    "test_every_epoch tracker num_workers micro_batch_size eval_batch_size table_file system slurm draw_every".split()
)
NEUTRAL_OPTIONS = frozenset(
    "test_only debug debug_batches debug_epochs debug_persistently log_config device data_parallel_backend "
    "data_parallel_count distributed_backend distributed_launch find_unused_parameters jit jit_module_keys compile "
    "compile_module_keys compile_mode compile_using_fullgraph compile_using_dynamic_shape_tracing noprogressbar "
    "ckpt_interval_minutes ckpt_interval_steps tqdm_colored_bar tqdm_barcolor profile_training profile_warmup "
    "profile_steps param_file overridden_args".split()
)
REFUSED = {
    "grad_accumulation_factor": "set batch_size (utterances a step) and micro_batch_size (utterances at a time)",
    "auto_mix_prec": "use --precision=fp16",
    "bfloat16_mix_prec": "use --precision=bf16",
    "system": "a system is chosen by its YAML, the first argument",
    "n_emotions": "comes from the data",
    "n_tokens": "comes from the data",
    "n_speakers": "comes from the data",
}
#: keys that have another name now: they are understood, with a warning
RENAMED = {"wav2vec2_hub": "encoder"}
REFERENCE = re.compile(r"<([^>\[\]]+)")
CALLS = ("!new:", "!name:", "!apply:")

# HyperPyYAML teaches ruamel for good what (a, tuple) is when it first builds something: done now, so that a YAML read
# before that and one read afterwards are the same
load_hyperpyyaml("tuple: (1, 2)")


@dataclass
class Config:
    """A checked configuration: the YAML with every override in it, unresolved.

    Arguments
    ---------
    tree : CommentedMap
        The user's YAML and overrides.
    shipped : CommentedMap
        The project's YAML of the same system.
    run_opts : RunOptions
        SpeechBrain's run options.
    """

    tree: CommentedMap
    shipped: CommentedMap
    run_opts: RunOptions

    @property
    def system(self) -> str:
        """The system's name, that of its YAML in hparams/."""
        return str(self.tree["system"])

    @cached_property
    def plain(self) -> dict:
        """The values that are plain data, references resolved; objects to be built later appear as ``None``."""
        return _plain(_dump(self.tree))

    def changed(self) -> dict[str, str]:
        """Lines that change the science compared to the shipped YAML: key -> value as text, sorted."""
        keys = (set(self.tree) | set(self.shipped)) - set(self.plain.get("needs") or {})
        texts = {k: (_text(self.tree, k), _text(self.shipped, k)) for k in keys - PATH_KEYS - NEUTRAL_KEYS}
        changed = {k: mine for k, (mine, theirs) in texts.items() if mine != theirs}
        options = self.run_opts.overridden_args - NEUTRAL_OPTIONS
        return dict(sorted({**changed, **{k: str(self.run_opts[k]) for k in options}}.items()))

    def needs(self) -> dict[str, dict]:
        """Runs that this one starts from, by the line that takes such a run's folder.

        Declared as ``needs: {pretrained: {yaml: hsu_pretrain.yaml, when: [!ref <parts>], lines: {…}, fits: […]}}``:
        `lines` are what the needed run is given beyond the data, fold and seed, and `fits` those in which a run that
        the user names must agree (default: all); it is needed where all of `when` is true (a list with something in it
        is).
        """
        return {key: need for key, need in (self.plain.get("needs") or {}).items() if all(need.get("when", ()))}

    def variant(self) -> str:
        """The changed lines as a folder name: ``default``, or ``alpha=0,lr=0.002``."""
        name = ",".join(f"{k}={_short(k, v)}" for k, v in self.changed().items()) or "default"
        # file systems take 255 bytes
        return name if len(name.encode()) <= 200 else f"{name[:150]},{_hash(name)}"

    def science(self) -> dict[str, str]:
        """Everything that a run folder must agree on with itself when a run is continued."""
        keys = sorted(set(self.tree) - NEUTRAL_KEYS - set(self.plain.get("needs") or {}))
        return {**{k: _text(self.tree, k) for k in keys}, **self.changed()}

    def resolved(self, sizes: dict) -> str:
        """Return the complete YAML, overrides and the sizes that come from the data in it and references resolved."""
        return resolve_references(io.StringIO(_dump(self.tree)), sizes).getvalue()

    def build(self, sizes: dict) -> dict:
        """Build everything the YAML declares (HyperPyYAML), with the sizes that come from the data."""
        try:
            return load_hyperpyyaml(io.StringIO(_dump(self.tree)), sizes)
        except (TypeError, ValueError) as error:  # what a constructor says of its arguments
            raise UserError(str(error)) from error


def read_config(argv: list[str], hparams_folder: Path) -> Config:
    """Read and check a command line such as ``hparams/cai_mtl.yaml --data_folder=… --alpha=0``.

    Arguments
    ---------
    argv : list of str
        The arguments, the YAML first.
    hparams_folder : pathlib.Path
        Where the project's own YAMLs are.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        Naming every unknown key, mistyped argument or missing value at once, with the nearest known one.
    """
    if not argv or argv[0].startswith("-"):
        if set(argv) & {"-h", "--help"}:
            RunOptions.from_command_line_args(["--help"])
        raise UserError("usage: python train.py hparams/SYSTEM.yaml --data_folder=… [--KEY=VALUE …]")
    tree = _load(Path(argv[0]), hparams_folder)
    shipped = _shipped(tree, hparams_folder, argv[0])
    _check_against_shipped(tree, shipped, argv[0])
    options, overrides, problems = _split([_by_new_name(word) for word in argv[1:]], tree)
    _update(tree, overrides)
    if problems := [*problems, *_wrong_values(tree, shipped), *_wrong_arguments(tree, "")]:
        raise UserError("\n  ".join([f"on the command line or in {argv[0]}:", *problems]))
    config = Config(tree, shipped, _run_options([argv[0], *options]))
    missing = [k for k, v in tree.items() if _tag(v) == "!PLACEHOLDER"]
    if missing:
        raise UserError("please give " + " and ".join(f"--{k}=…" for k in missing))
    return config


# ------------------------------------------------------------------ reading


def _yaml() -> ruamel.yaml.YAML:
    yaml = ruamel.yaml.YAML()
    yaml.width = 10_000  # never folds a value, so that texts can be compared
    return yaml


def _load(path: Path, hparams_folder: Path, above: tuple[Path, ...] = ()) -> CommentedMap:
    if not path.is_file():
        known = sorted(p.name for p in hparams_folder.glob("*.yaml"))
        raise UserError(f"no such file: {path}{nearest(path.name, known)}; shipped: {', '.join(known)}")
    try:
        tree = _yaml().load(path)
    except ruamel.yaml.error.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path}: expected lines of the form 'key: value'")
    _to_block_style(tree)
    for old in [key for key in tree if key in RENAMED]:
        _warn_renamed(f"{path}: {old}", RENAMED[old])
        tree.insert(list(tree).index(old), RENAMED[old], tree.pop(old))
    if "base" not in tree:
        return tree
    name = str(tree.pop("base"))
    above = (*above, path.resolve())
    places = [p for p in (path.parent / name, hparams_folder / name) if p.is_file()]
    # a file may have the name of the shipped one that it starts from
    ahead = [p for p in places if p.resolve() not in above]
    if places and not ahead:
        raise UserError(f"{path}: 'base: {name}' goes in a circle")
    base = _load(ahead[0] if ahead else hparams_folder / name, hparams_folder, above)
    _refuse_unknown(tree, base, f"{path} (base {name})")
    _update(base, tree)
    return base


def _by_new_name(word: str) -> str:
    name, equals, value = word.partition("=")
    if (key := name.removeprefix("--")) not in RENAMED or key == name:
        return word
    _warn_renamed(name, f"--{RENAMED[key]}")
    return f"--{RENAMED[key]}{equals}{value}"


def _warn_renamed(old: str, new: str) -> None:
    logger.warning(f"{old} is named {new} now")


def _shipped(tree: CommentedMap, hparams_folder: Path, name: str) -> CommentedMap:
    known = sorted(p.stem for p in hparams_folder.glob("*.yaml"))
    system = str(tree.get("system", ""))
    if system not in known:
        raise UserError(
            f"{name}: the line 'system:' must name one of {', '.join(known)}; found '{system}'{nearest(system, known)}"
        )
    return _load(hparams_folder / f"{system}.yaml", hparams_folder)


def _check_against_shipped(tree: CommentedMap, shipped: CommentedMap, name: str) -> None:
    _refuse_unknown(tree, shipped, name)
    if missing := [k for k in shipped if k not in tree]:
        raise UserError(f"{name}: missing lines (the shipped {tree['system']}.yaml has them): {', '.join(missing)}")


def _refuse_unknown(tree: CommentedMap, known: CommentedMap, name: str) -> None:
    """A key that nobody knows must at least be used by another line of the file."""
    used = set(_references(tree))
    if unknown := [k for k in tree if k not in known and k not in used and not str(k).startswith("__")]:
        hints = "\n  ".join(f"{k}{nearest(k, known)}" for k in unknown)
        raise UserError(f"{name}: keys that nothing reads:\n  {hints}")


def _references(node) -> Iterator[str]:
    """Keys that `!ref <key>` and its like name below a node; what comments say does not count."""
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, CommentedSeq):
        for value in node:
            yield from _references(value)
    elif _tag(node):
        yield from REFERENCE.findall(str(node.value))


def _split(argv: list[str], tree: CommentedMap) -> tuple[list[str], CommentedMap, list[str]]:
    """Tell run options from overrides of the YAML; abbreviations and unknown names come back as problems."""
    actions = _run_option_actions()
    options, overrides, problems = [], CommentedMap(), []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        key = name[2:]
        if word in ("-h", "--help"):
            options.append(word)
        elif not name.startswith("--") or not key:
            problems.append(f"{word}: expected --key=value")
        elif key in REFUSED:
            problems.append(f"{name}: {REFUSED[key]}")
        elif key in tree:  # also where a run option has the same name: then the YAML's line is what counts
            if not equals:
                if not rest or rest[0].startswith("--"):
                    problems.append(f"{name} needs a value: {name}=…")
                    continue
                value = rest.pop(0)
            if key in overrides:
                problems.append(f"{name} is given twice")
                continue
            try:
                overrides[key] = _value(tree, key, value)
            except UserError as error:
                problems.append(str(error))
        elif name in actions:
            if name in (o.partition("=")[0] for o in options):
                problems.append(f"{name} is given twice")
            options.append(word)
            if actions[name].nargs == 0 or equals:
                continue
            while rest and not rest[0].startswith("--"):
                options.append(rest.pop(0))
                if actions[name].nargs != "*":
                    break
        else:
            problems.append(f"{name} is unknown{_hint(name, [*(f'--{k}' for k in tree), *actions])}")
    return options, overrides, problems


def _hint(name: str, known: list[str]) -> str:
    """Of an abbreviation, what it may have meant; else the nearest name."""
    longer = sorted({k for k in known if k.startswith(name)})
    return f" (names are written in full: {', '.join(longer)})" if longer else nearest(name, known)


def _run_option_actions() -> dict[str, argparse.Action]:
    return {o: a for a in RunOptions._create_parser()._actions for o in a.option_strings}


def _run_options(argv: list[str]) -> RunOptions:
    """SpeechBrain's own reading of its run options; what argparse says of them becomes a short error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = RunOptions.from_command_line_args(argv)[1]
        if options.optimizer_step_limit is not None:  # SpeechBrain leaves it a text, and fails in comparing it
            options = dataclasses.replace(options, optimizer_step_limit=int(options.optimizer_step_limit))
    except SystemExit as exit:
        if not exit.code:  # --help
            raise
        raise UserError(f"on the command line:\n  {said.getvalue().strip().rpartition('error: ')[2]}") from None
    except ValueError as error:
        raise UserError(f"--optimizer_step_limit: {error}") from None
    return options


def _value(tree: CommentedMap, key: str, text: str):
    """A value as YAML reads it, except that a line of text stays text (a fold 03 is not the number 3)."""
    default = tree[key]
    is_text = isinstance(default, str) or _tag(default) == "!PLACEHOLDER" or key.endswith(("_folder", "_file"))
    if is_text and text[:1] not in "!{[" and text not in ("", "null", "~"):
        return text
    try:
        value = _yaml().load(f"{key}: {text}")[key]
    except ruamel.yaml.error.YAMLError as error:
        raise UserError(f"--{key}={text} is not valid YAML: {error}") from None
    _to_block_style(value)
    if value is not None and (expected := _expected(value, default)):
        raise UserError(f"--{key} expects {expected}, found '{text}'")
    return value


def _expected(value, default) -> str | None:
    """What a value should have been, by the kind of its default; None where it is right or cannot be judged."""
    if _tag(value) or _tag(default):  # computed, or an object
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else f"true or false (like {default})"
    if isinstance(default, int):
        return None if isinstance(value, int) and not isinstance(value, bool) else f"a whole number (like {default})"
    if isinstance(default, float):
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if right else f"a number (like {default})"
    if isinstance(default, Mapping):
        return None if isinstance(value, Mapping) else "{name: value, …}"
    return None


def _to_block_style(node) -> bool:
    """One line a value around tagged mappings: ruamel cannot read back its own ``[!new:x {a: 1}]``."""
    if not isinstance(node, CommentedMap | CommentedSeq):
        return False
    children = list(node.values() if isinstance(node, Mapping) else node)
    around = any([_to_block_style(child) for child in children])
    if around:
        node.fa.set_block_style()
    return around or (isinstance(node, Mapping) and _tag(node) is not None)


def _update(tree: CommentedMap, changes: Mapping) -> None:
    """Like SpeechBrain's recursive_update, but a mapping with a ``!new:`` tag of its own replaces, never merges."""
    for key, value in changes.items():
        old = tree.get(key)
        merge = isinstance(value, Mapping) and isinstance(old, Mapping) and _tag(value) in (None, _tag(old))
        if merge:
            _update(old, value)
        else:
            tree[key] = value


# ------------------------------------------------------------------ checking


def _tag(node) -> str | None:
    tag = getattr(node, "tag", None)
    value = getattr(tag, "value", None)
    return value if isinstance(value, str) and value.startswith("!") else None


def _wrong_values(tree: CommentedMap, shipped: CommentedMap) -> Iterator[str]:
    """Values of another kind than the shipped YAML's, or outside a run option's choices."""
    actions = _run_option_actions()
    for key, default in shipped.items():
        value = tree[key]
        if expected := _expected(value, default):
            yield f"{key}: expected {expected}, found {value!r}"
        choices = getattr(actions.get(f"--{key}"), "choices", None)
        if choices and value not in choices:
            yield f"{key}: expected one of {', '.join(choices)}, found {value!r}{nearest(value, choices)}"


def _wrong_arguments(node, where: str) -> Iterator[str]:
    """Mistyped names and arguments of every ``!new:``, ``!name:`` and ``!apply:`` below a node."""
    tag = _tag(node) or ""
    call = next((c for c in CALLS if tag.startswith(c)), None)
    if call:
        name = tag[len(call) :]
        target = _locate(name)
        if target is None:
            yield f"{where}: cannot import {name}{_nearest_sibling(name)}"
        elif isinstance(node, Mapping):
            yield from _unknown_parameters(target, name, node, where)
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _wrong_arguments(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, CommentedSeq):
        for k, value in enumerate(node):
            yield from _wrong_arguments(value, f"{where}[{k}]")


def _locate(name: str):
    try:
        return pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"importing {name} failed: {error}") from None


def _nearest_sibling(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if not module:
        return ""
    parent = _locate(module)
    if parent is None:
        return _nearest_sibling(module)
    modules = (m.name for m in pkgutil.iter_modules(getattr(parent, "__path__", ())))
    return nearest(leaf, [*dir(parent), *modules])


def _unknown_parameters(target, name: str, node: Mapping, where: str) -> Iterator[str]:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins tell no signature
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in node:
        if key not in parameters:
            yield f"{where}: {name} has no argument '{key}'{nearest(key, parameters)}"


# ------------------------------------------------------------------ writing


def _dump(tree) -> str:
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    return stream.getvalue()


def _text(tree: CommentedMap, key: str) -> str:
    """A line's value as text; empty where there is no such line."""
    return text_of(tree[key]) if key in tree else ""


def text_of(value) -> str:
    """A value as text, comments left out, so that equal values give equal texts.

    Example
    -------
    >>> text_of({"units": 8.0, "layers": [1, 2.5]}), text_of(True)
    ("{'units': 8, 'layers': [1, 2.5]}", 'True')
    """
    value = _bare(value)
    return str(value) if isinstance(value, (str, int, float)) else repr(value)


def _bare(node):
    tag = _tag(node)
    if isinstance(node, Mapping):
        value = {str(k): _bare(v) for k, v in node.items()}
    elif isinstance(node, list):
        value = [_bare(v) for v in node]
    elif isinstance(node, TaggedScalar):
        value = node.value
    else:
        value = node if node is None or isinstance(node, (bool, int, float)) else str(node)
        if isinstance(value, float):  # 1.0 is 1; and no ScalarFloat, which remembers how it was written
            value = int(value) if value.is_integer() and abs(value) < 1e15 else float(value)
    return (tag, value) if tag and tag != "!tuple" else value


def _short(key: str, text: str) -> str:
    """A value fit for a folder name: a path by its last part, anything long by a hash."""
    text = text.rstrip("/").rsplit("/", 1)[-1] if key == "encoder" else text
    if len(text) <= 40 and re.fullmatch(r"[\w.+-]+", text):
        return text
    return _hash(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _plain(text: str) -> dict:
    loader = ruamel.yaml.YAML(typ="safe", pure=True)

    class Constructor(ruamel.yaml.constructor.SafeConstructor):
        """Tagged nodes are objects of later: None."""

    Constructor.add_multi_constructor("!", lambda constructor, suffix, node: None)
    loader.Constructor = Constructor
    return dict(loader.load(resolve_references(io.StringIO(text)).getvalue()))
