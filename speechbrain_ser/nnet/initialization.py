"""Initial weights: drawn by a part's own name and the seed, or as Keras draws them."""

import zlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


def build_seeded(make: Callable[..., T], name: str, seed: int, **arguments) -> T:
    """Build a part of a model whose initial weights depend on nothing but the seed and its own name.

    Leaving a part out then changes no other random draw: with ``alpha: 0`` the emotion head, the shuffling and every
    dropout mask are what they are with the ASR head beside them.

    `make` is a constructor, perhaps with some of its arguments, as ``!name:torch.nn.Linear`` gives it; `arguments` are
    those it still lacks; `name` is the part's: for a head, its task's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{name}:{seed}".encode()))
        return make(**arguments)


@torch.no_grad()
def keras_init_(module: nn.Module) -> nn.Module:
    """Draw new weights as Keras' layers do by default, in place, for papers that used Keras; return the module.

    Convolutions and dense layers: Glorot-uniform weights, zero bias. LSTMs: Glorot-uniform input kernels, orthogonal
    recurrent kernels, zero bias but 1 for the forget gate (Keras' ``unit_forget_bias``). The fans are Keras': an LSTM's
    four gates are one kernel of 4 x units columns. Keras has one bias a gate, PyTorch has two that are summed: the
    input's holds it, the recurrent one starts at zero. Modules of other kinds keep their values.

    Example
    -------
    >>> lstm = keras_init_(nn.LSTM(3, 2))
    >>> lstm.bias_ih_l0 + lstm.bias_hh_l0  # gates: input, forget, cell, output
    tensor([0., 0., 1., 1., 0., 0., 0., 0.], grad_fn=<AddBackward0>)
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)  # of a convolution, fans count the kernel's width, as Keras' do
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.LSTM):
            _init_lstm(layer)
    return module


def _init_lstm(lstm: nn.LSTM) -> None:
    for name, parameter in lstm.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.xavier_uniform_(parameter)  # [4 units, inputs]: Keras' kernel [inputs, 4 units] transposed
        elif name.startswith("weight_hh"):
            nn.init.orthogonal_(parameter)  # [4 units, units]: orthonormal columns, Keras' orthonormal rows
        else:
            parameter.zero_()
            if name.startswith("bias_ih"):
                parameter[lstm.hidden_size : 2 * lstm.hidden_size] = 1.0  # gates: input, forget, cell, output
