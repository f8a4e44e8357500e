"""What a model reads of waveforms: themselves, and features of each as it would be alone."""

from collections.abc import Mapping, Sequence

import torch
from speechbrain.dataio.batch import PaddedData
from speechbrain.utils.data_utils import batch_pad_right
from torch import nn


def signals_of(model: nn.Module, wav: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model reads of one waveform, by name.

    Arguments
    ---------
    model : torch.nn.Module
        One of :mod:`speechbrain_ser.models`.
    wav : torch.Tensor
        [time], 16 kHz, on the CPU.

    Returns
    -------
    dict of str to torch.Tensor
        [time] or [frames, …] each.
    """
    return {name: wav if features is None else features.extract(wav) for name, features in model.inputs.items()}


def padded(signals: Sequence[Mapping[str, torch.Tensor]], device: str | torch.device) -> dict[str, PaddedData]:
    """Several waveforms' signals as the keyword arguments of a model's forward pass.

    Example
    -------
    >>> batch = padded([{"sig": torch.ones(4)}, {"sig": torch.ones(2)}], "cpu")
    >>> batch["sig"].data.shape, batch["sig"].lengths.tolist()
    (torch.Size([2, 4]), [1.0, 0.5])
    """
    inputs = {}
    for name in signals[0]:
        data, lengths = batch_pad_right([each[name] for each in signals])
        inputs[name] = PaddedData(data.to(device), lengths.to(device))
    return inputs


@torch.no_grad()
def model_inputs(model: nn.Module, wavs: Sequence[torch.Tensor], device: str | torch.device) -> dict[str, PaddedData]:
    """The keyword arguments of a model's forward pass on several waveforms [time], 16 kHz, on the CPU."""
    return padded([signals_of(model, wav) for wav in wavs], device)
