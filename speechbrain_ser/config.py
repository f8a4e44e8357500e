"""From a command line to a checked configuration, before anything long starts.

SpeechBrain's own parsing has traps (each seen): argparse takes abbreviations, so ``--opt=…`` or ``--test`` silently
become other options; an ``=`` inside a value is lost; mistyped arguments of a ``!new:`` entry surface late or never.
They are dealt with here, and only here. What is read is HyperPyYAML, plus one line of ours: ``base: other.yaml`` takes
every line of another file first, so that an ablation is a file of a few lines.
"""

import hashlib
import inspect
import io
import pydoc
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from speechbrain.utils.run_opts import RunOptions

from speechbrain_ser.errors import UserError, nearest

# In the run folder's path by themselves
PATH_KEYS = frozenset({"corpus", "protocol", "fold", "seed"})
# Lines that change where, how long or how fast a run goes, not what one epoch of it computes
NEUTRAL_KEYS = frozenset(
    "data_folder output_folder results_folder manifest_folder cache_folder selection n_epochs test_every_epoch "
    "tracker num_workers micro_batch_size table_file system".split()
)
NEUTRAL_OPTIONS = frozenset(
    "test_only debug debug_batches debug_epochs debug_persistently log_config device data_parallel_backend "
    "data_parallel_count distributed_backend distributed_launch find_unused_parameters jit jit_module_keys compile "
    "compile_module_keys compile_mode compile_using_fullgraph compile_using_dynamic_shape_tracing noprogressbar "
    "ckpt_interval_minutes ckpt_interval_steps tqdm_colored_bar tqdm_barcolor profile_training profile_warmup "
    "profile_steps param_file overridden_args".split()
)
REFUSED_OPTIONS = {
    "grad_accumulation_factor": "set batch_size (utterances a step) and micro_batch_size (utterances at a time)",
    "auto_mix_prec": "use --precision=fp16",
    "bfloat16_mix_prec": "use --precision=bf16",
}
REFERENCE = re.compile(r"<([^>\[\]]+)")
CALLS = ("!new:", "!name:", "!apply:")


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
    computed: dict = field(default_factory=dict)

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
        keys = set(self.tree) | set(self.shipped)
        texts = {k: (_text(self.tree, k), _text(self.shipped, k)) for k in keys - PATH_KEYS - NEUTRAL_KEYS}
        changed = {k: mine for k, (mine, theirs) in texts.items() if mine != theirs}
        options = self.run_opts.overridden_args - NEUTRAL_OPTIONS
        return dict(sorted({**changed, **{k: str(self.run_opts[k]) for k in options}}.items()))

    def variant(self) -> str:
        """The changed lines as a folder name: ``default``, or ``alpha=0,lr=0.002``."""
        return ",".join(f"{k}={_short(k, v)}" for k, v in self.changed().items()) or "default"

    def science(self) -> dict[str, str]:
        """Everything that a run folder must agree on with itself when a run is continued."""
        keys = sorted(set(self.tree) - NEUTRAL_KEYS)
        return {**{k: _text(self.tree, k) for k in keys}, **self.changed()}

    def resolved(self) -> str:
        """The complete YAML, overrides and computed sizes in it and references resolved."""
        return resolve_references(io.StringIO(_dump(self.tree)), self.computed).getvalue()

    def build(self) -> dict:
        """Everything the YAML declares, built (HyperPyYAML)."""
        try:
            return load_hyperpyyaml(io.StringIO(_dump(self.tree)), self.computed)
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
    options, overrides = _split(argv[1:], tree)
    _update(tree, overrides)
    if problems := list(_wrong_arguments(tree, "")):
        raise UserError(f"{argv[0]}:\n  " + "\n  ".join(problems))
    run_opts = RunOptions.from_command_line_args([argv[0], *options])[1]
    config = Config(tree, shipped, run_opts)
    missing = [k for k, v in tree.items() if _tag(v) == "!PLACEHOLDER"]
    if missing:
        raise UserError("please give " + " and ".join(f"--{k}=…" for k in missing))
    return config


# ------------------------------------------------------------------ reading


def _yaml() -> ruamel.yaml.YAML:
    yaml = ruamel.yaml.YAML()
    yaml.width = 10_000  # never folds a value, so that texts can be compared
    return yaml


def _load(path: Path, hparams_folder: Path) -> CommentedMap:
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
    if "base" not in tree:
        return tree
    name = str(tree.pop("base"))
    near = path.parent / name
    base = _load(near if near.is_file() else hparams_folder / name, hparams_folder)
    _refuse_unknown(tree, base, f"{path} (base {name})")
    _update(base, tree)
    return base


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
    used = set(REFERENCE.findall(_dump(tree)))
    if unknown := [k for k in tree if k not in known and k not in used and not str(k).startswith("__")]:
        hints = "\n  ".join(f"{k}{nearest(k, known)}" for k in unknown)
        raise UserError(f"{name}: keys that nothing reads:\n  {hints}")


def _split(argv: list[str], tree: CommentedMap) -> tuple[list[str], CommentedMap]:
    """Tell run options from overrides of the YAML; abbreviations and unknown names are refused."""
    actions = {o: a for a in RunOptions._create_parser()._actions for o in a.option_strings}
    options, overrides, problems = [], CommentedMap(), []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        key = name[2:]
        if not name.startswith("--") or not key:
            problems.append(f"{word}: expected --key=value")
        elif key in REFUSED_OPTIONS:
            problems.append(f"{name}: {REFUSED_OPTIONS[key]}")
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
            options.append(word)
            if actions[name].nargs == 0 or equals:
                continue
            while rest and not rest[0].startswith("--"):
                options.append(rest.pop(0))
                if actions[name].nargs != "*":
                    break
        else:
            problems.append(f"{name} is unknown{nearest(name, [*(f'--{k}' for k in tree), *actions])}")
    if problems:
        raise UserError("\n  ".join(["on the command line:", *problems]))
    return options, overrides


def _value(tree: CommentedMap, key: str, text: str):
    """A value as YAML reads it, except that a line of text stays text (a fold 03 is not the number 3)."""
    default = tree[key]
    is_text = isinstance(default, str) or _tag(default) == "!PLACEHOLDER"
    if is_text and text[:1] not in "!{[" and text not in ("", "null", "~"):
        return text
    try:
        value = _yaml().load(f"{key}: {text}")[key]
    except ruamel.yaml.error.YAMLError as error:
        raise UserError(f"--{key}={text} is not valid YAML: {error}") from None
    _to_block_style(value)
    kind = bool if isinstance(default, bool) else (int, float) if isinstance(default, (int, float)) else object
    right = isinstance(value, kind) and (kind in (bool, object) or not isinstance(value, bool))
    if not right and value is not None and not _tag(value):
        expected = "true or false" if kind is bool else "a number"
        raise UserError(f"--{key} expects {expected} (like {default}), found '{text}'")
    return value


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
    parent = _locate(module) if module else None
    return nearest(leaf, dir(parent)) if parent is not None else ""


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
    """A line's value as text, comments left out, so that equal values give equal texts."""
    if key not in tree:
        return ""
    return repr(_bare(tree[key])) if not isinstance(tree[key], (str, int, float)) else str(tree[key])


def _bare(node):
    tag = _tag(node)
    if isinstance(node, Mapping):
        value = {str(k): _bare(v) for k, v in node.items()}
    elif isinstance(node, CommentedSeq):
        value = [_bare(v) for v in node]
    elif isinstance(node, TaggedScalar):
        value = node.value
    else:
        value = node if node is None or isinstance(node, (bool, int, float)) else str(node)
        value = float(value) if isinstance(value, float) else value
    return (tag, value) if tag else value


def _short(key: str, text: str) -> str:
    """A value fit for a folder name: a path by its last part, anything long by a hash."""
    text = text.rstrip("/").rsplit("/", 1)[-1] if key == "wav2vec2_hub" else text
    if len(text) <= 40 and re.fullmatch(r"[\w.+-]+", text):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _plain(text: str) -> dict:
    loader = ruamel.yaml.YAML(typ="safe", pure=True)

    class Constructor(ruamel.yaml.constructor.SafeConstructor):
        """Tagged nodes are objects of later: None."""

    Constructor.add_multi_constructor("!", lambda constructor, suffix, node: None)
    loader.Constructor = Constructor
    return dict(loader.load(resolve_references(io.StringIO(text)).getvalue()))
