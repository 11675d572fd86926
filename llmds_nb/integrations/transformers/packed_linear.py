"""PackedLinear: linear layers over the same input as one product with packed weights."""

from typing import Any

import torch

from llmds_nb.attention import linear_unchecked, pack_weights


class PackedLinear:
    """``x -> x W^T + b``, where W and b are those of several linear layers, one behind another.

    Parameters
    ----------
    layers : list of torch.nn.Linear
        Of float32, with equal in_features; their weights are copied.
    """

    def __init__(self, layers: list[torch.nn.Linear]) -> None:
        self._n = sum(layer.out_features for layer in layers)
        self._panels = pack_weights([_array(layer.weight) for layer in layers])
        self._bias: Any = None
        if any(layer.bias is not None for layer in layers):
            biases = [
                layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
                for layer in layers
            ]
            self._bias = torch.cat(biases).detach().numpy()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Of float32[M, K], contiguous: [M, sum of out_features]."""
        threads = torch.get_num_threads()
        found = linear_unchecked(x.numpy(), self._panels, self._bias, self._n, threads)
        return torch.from_numpy(found)


def _array(weight):
    return weight.detach().contiguous().numpy()


def packed_bytes(layers: list[torch.nn.Linear]) -> int:
    """Bytes that a PackedLinear of these layers takes, about."""
    return sum(4 * layer.in_features * layer.out_features for layer in layers)
