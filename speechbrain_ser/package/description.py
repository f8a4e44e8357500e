"""From a run's YAML to the plain description of its model that a package holds; nothing of the YAML is executed."""

import inspect
import re
from collections.abc import Mapping, Sequence

import ruamel.yaml
from ruamel.yaml.comments import TaggedScalar

from speechbrain_ser.errors import UserError
from speechbrain_ser.package.classes import ENCODERS, MODELS, find_kind

#: tasks of a model that is used: other heads, and what only they read, are for training
TASKS = ("emotion", "asr")
TAG = re.compile(r"!(new|name):(.+)")


def describe(tree: Mapping, where: str) -> dict:
    """The line `model` of a run's YAML as plain data.

    Heads for other tasks than :data:`TASKS` are left out, and so are arguments that matter in training alone.

    Arguments
    ---------
    tree : mapping
        The YAML with its tags, as ruamel.yaml's round-trip loader reads it.
    where : str
        Its file, for messages.

    Returns
    -------
    dict
        What :func:`speechbrain_ser.package.classes.build_model` takes.

    Raises
    ------
    UserError
        For a class that no package may name, an unknown argument, or a value that is not plain.

    Example
    -------
    >>> text = '''
    ... model: !new:speechbrain_ser.models.cai.CaiModel
    ...   encoder: !new:speechbrain_ser.lobes.wav2vec2.Wav2Vec2 {source: /somewhere, weighted_sum: true}
    ...   pooling: !new:speechbrain_ser.nnet.pooling.MaskedPooling
    ...   heads: {emotion: !name:torch.nn.Linear {out_features: 4}, asr: !name:torch.nn.Linear {out_features: null}}
    ...   loss_weights: {emotion: 1.0, asr: 0}
    ...   seed: 1
    ... '''
    >>> found = describe(ruamel.yaml.YAML().load(text), "hyperparams.yaml")
    >>> found["class"], found["arguments"]["encoder"]["arguments"]
    ('speechbrain_ser.models.cai.CaiModel', {'weighted_sum': True})
    >>> found["arguments"]["heads"]
    {'emotion': {'partial': 'torch.nn.Linear', 'arguments': {'out_features': 4}}}
    """
    where = f"{where}: model"
    description = _plain(tree.get("model"), where)
    find_kind(description.get("class") if isinstance(description, dict) else description, where, MODELS)
    arguments = description["arguments"]
    weights = arguments.get("loss_weights", {})
    wanted = [task for task in TASKS if weights.get(task)]
    arguments["loss_weights"] = {task: weights[task] for task in wanted}
    arguments["heads"] = {task: maker for task, maker in arguments.get("heads", {}).items() if task in wanted}
    return description


def has_backbone(description: dict) -> bool:
    """Whether a model reads waveforms by a pretrained encoder, whose settings then go with it."""
    arguments = description.get("arguments")
    encoder = arguments.get("encoder") if isinstance(arguments, dict) else None
    return isinstance(encoder, dict) and encoder.get("class") in ENCODERS


def _plain(node, where: str):
    tag = str(getattr(getattr(node, "tag", None), "value", None) or "")
    if tag.startswith("!"):
        return _described(tag, node, where)
    if isinstance(node, Mapping):
        return {str(key): _plain(value, f"{where}: {key}") for key, value in node.items()}
    if isinstance(node, str):
        return _text(str(node))
    if isinstance(node, Sequence):
        return [_plain(value, f"{where}[{k}]") for k, value in enumerate(node)]
    return _scalar(node, where)


def _described(tag: str, node, where: str) -> dict:
    match = TAG.fullmatch(tag)
    if match is None:
        raise UserError(f"{where}: expected plain values and classes, found {tag}, which no package can hold")
    key, name = {"new": "class", "name": "partial"}[match[1]], match[2]
    kind = find_kind(name, where)
    given = [] if isinstance(node, TaggedScalar) else node
    named = dict(given) if isinstance(given, Mapping) else _by_name(kind.make, given, where)
    if unknown := sorted(set(named) - kind.arguments - kind.left_out):
        known = ", ".join(sorted(kind.arguments | kind.left_out))
        raise UserError(f"{where}: {name}: expected arguments {known}, found {', '.join(unknown)}")
    kept = {n: _plain(value, f"{where}: {n}") for n, value in named.items() if n in kind.arguments}
    return {key: name, "arguments": kept}


def _by_name(make, given: Sequence, where: str) -> dict:
    try:
        return inspect.signature(make).bind_partial(*given).arguments
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error


def _text(text: str):
    """HyperPyYAML reads ``(1, 2)`` as a tuple."""
    if not re.fullmatch(r"\(.*\)", text):
        return text
    return [_scalar(each, text) for each in ruamel.yaml.YAML(typ="safe").load(f"[{text[1:-1]}]")]


def _scalar(value, where: str):
    for kind in (bool, int, float, str):  # ruamel.yaml's own numbers remember how they were written
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise UserError(f"{where}: expected plain values, found {type(value).__name__}")
