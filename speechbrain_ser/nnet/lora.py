"""LoRA (Hu et al. 2022): a transformer stays as it is; products of two thin matrices beside its own are trained.

SpeechBrain's ``AdaptedModel`` and ``LoRA`` do it; PEFT is not needed (it is without effect on WavLM, whose attention
reads its layers' weights).
"""

import copy
from collections.abc import Mapping
from fnmatch import fnmatch

import torch
from speechbrain.nnet.adapters import AdaptedModel, LoRA, replace_module
from torch import nn

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.nnet.initialization import build_seeded

DEFAULTS = {"rank": 8, "alpha": 16, "layers": ["q_proj", "v_proj"]}
RULES = {
    "rank": ("a whole number above 0", lambda x: isinstance(x, int) and x > 0),
    "alpha": ("a number above 0", lambda x: isinstance(x, int | float) and 0 < x < float("inf")),
    "layers": ("a list of names", lambda x: isinstance(x, list) and x and all(isinstance(name, str) for name in x)),
}


class LoRALinear(LoRA):
    """SpeechBrain's LoRA for code that reads a linear layer's weight instead of calling it (WavLM's attention)."""

    @property
    def weight(self) -> torch.Tensor:
        product = self.adapter_up_proj.weight @ self.adapter_down_proj.weight
        return self.pretrained_module.weight + self.scaling * product

    @property
    def bias(self) -> torch.Tensor | None:
        return self.pretrained_module.bias


def add_lora(model: nn.Module, blocks: nn.ModuleList, settings: Mapping, seed: int) -> None:
    """Freeze a model and give linear layers of its transformer blocks thin matrices, which alone are trained.

    The second matrix of each pair is 0, so that the model starts exactly as it is; it is changed in place. `blocks` are
    those of its transformer blocks that learn. `settings` are, perhaps without some of them, ``rank``, columns of the
    thin matrices; ``alpha``, their product counts alpha / rank times; ``layers``, names in a block or patterns of names
    (``["*"]``: every linear layer). `seed` is of the first matrices' initial weights; no other draw changes.

    Example
    -------
    >>> block = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "fc1": nn.Linear(4, 8)})
    >>> model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    >>> add_lora(model, model["layers"], {"rank": 2, "layers": ["fc?"]}, seed=1)
    >>> [(name, list(p.shape)) for name, p in block.named_parameters() if p.requires_grad]
    [('fc1.adapter_down_proj.weight', [2, 4]), ('fc1.adapter_up_proj.weight', [8, 2])]
    """
    settings = _checked(settings)
    linear = [name for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    for pattern in settings["layers"]:
        if not any(fnmatch(name, pattern) for name in known):
            there = ", ".join(known) or "a block's linear layers (no block is left to train)"
            raise UserError(f"lora: layers: expected names or patterns of {there}, found {pattern!r}")
    model.requires_grad_(False)
    build_seeded(
        AdaptedModel,
        "lora",
        seed,
        model_to_adapt=blocks,
        adapter_class=LoRALinear,
        target_layers=[n for n in linear if any(fnmatch(n.rpartition(".")[2], p) for p in settings["layers"])],
        adapter_kwargs={"rank": settings["rank"], "alpha": settings["alpha"]},
    )


def _checked(settings) -> dict:
    if not isinstance(settings, Mapping):
        raise UserError(f"lora: expected null or {DEFAULTS}, found {settings!r}")
    if unknown := sorted(set(map(str, settings)) - set(DEFAULTS)):
        raise UserError(f"lora: expected {', '.join(DEFAULTS)}, found {unknown[0]}{nearest(unknown[0], DEFAULTS)}")
    settings = DEFAULTS | dict(settings)
    for name, (expected, is_right) in RULES.items():
        if isinstance(settings[name], bool) or not is_right(settings[name]):
            raise UserError(f"lora: {name}: expected {expected}, found {settings[name]!r}")
    return settings


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Make plain linear layers of those with LoRA, in place: the same results, no more cost, the model's own names."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            module.pretrained_module.weight.copy_(module.weight)
            replace_module(model, name, module.pretrained_module)


def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a model's ``state_dict`` would be after :func:`merge_lora`; the model stays as it is."""
    merged = copy.deepcopy(model)
    merge_lora(merged)
    return merged.state_dict()
