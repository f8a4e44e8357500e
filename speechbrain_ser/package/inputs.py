"""What a model reads of waveforms: themselves, and features of each as it would be alone."""

from collections.abc import Sequence

import torch
from speechbrain.dataio.batch import PaddedData
from speechbrain.utils.data_utils import batch_pad_right
from torch import nn


@torch.no_grad()
def model_inputs(model: nn.Module, wavs: Sequence[torch.Tensor], device: str | torch.device) -> dict[str, PaddedData]:
    """The keyword arguments of a model's forward pass.

    Arguments
    ---------
    model : torch.nn.Module
        One of :mod:`speechbrain_ser.models`.
    wavs : sequence of torch.Tensor
        Waveforms [time], 16 kHz, on the CPU.
    device : str or torch.device
        Where the model is.

    Returns
    -------
    dict of str to PaddedData
    """
    inputs = {}
    for name, features in model.inputs.items():
        data, lengths = batch_pad_right([wav if features is None else features.extract(wav) for wav in wavs])
        inputs[name] = PaddedData(data.to(device), lengths.to(device))
    return inputs
