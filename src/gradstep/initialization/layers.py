"""What each parameter of a layer is: a weight with its fans, a constant, or nothing that is known.

A fan is counted in one direction through the map that the layer is, for one output (fan-in) or one input (fan-out):

| layer | fan-in | fan-out |
|---|---|---|
| Linear | in | out |
| Bilinear | in1·in2 | out |
| Conv1d-3d | in/groups·kernel | out/groups·kernel |
| ConvTranspose1d-3d | in/groups·kernel | out/groups·kernel |
| Embedding, EmbeddingBag | 1 | dimension |
| RNN, LSTM, GRU, their cells: each gate | inputs, or hidden states | hidden |
| MultiheadAttention: query, key and value each | its inputs | its outputs |

Strides and dilation do not count. Where torch.nn.init's own fans, which see only a tensor's shape, say something else:
a transposed convolution's weight is [in, out/groups, *kernel], and torch's fan-in is its second size, the outputs; ours
is the number of inputs that feed one output at stride 1. torch's fan-out of grouped convolutions is that of all groups,
and its gates are one matrix. A Bilinear is here a Linear of the products of its two inputs; a lookup is a Linear of a
one-hot, of which one input at a time is not zero, so that a formula without fan-out gives all vocabularies one scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter to be drawn: `blocks` equal parts along the first dimension, each a map of its own with these fans.

    `inside` is the nonlinearity that follows where the layer itself says so, as `torch.nn.init.calculate_gain` names
    it; `zero_row` is an embedding's padding.
    """

    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    blocks: int = 1
    inside: str | None = None
    zero_row: int | None = None

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of one block as a matrix."""
        return self.shape[0] // self.blocks, math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True)
class Constant:
    """A bias, a norm's weight, or a norm's running statistic.

    `forget` marks an LSTM's bias whose second quarter, the forget gate's, may be raised.
    """

    kind: Literal["bias", "scale", "statistic"]
    value: float
    forget: bool = False


Role = Weight | Constant

_ZERO = Constant("bias", 0.0)


def _linear(_layer: nn.Module, name: str, values: Tensor) -> Role | None:
    if name == "weight":  # Linear's [out, in], and Bilinear's [out, in1, in2]
        return Weight(tuple(values.shape), fan_in=math.prod(values.shape[1:]), fan_out=values.shape[0])
    return _ZERO if name == "bias" else None


def _convolution(layer: nn.Module, name: str, values: Tensor) -> Role | None:
    if name != "weight":
        return _ZERO if name == "bias" else None
    groups, kernel = _number(layer, "groups"), math.prod(values.shape[2:])
    fan_in, fan_out = values.shape[1] * kernel, values.shape[0] // groups * kernel  # [out, in/groups, *kernel]
    return Weight(tuple(values.shape), fan_in, fan_out, blocks=groups)


def _transposed(layer: nn.Module, name: str, values: Tensor) -> Role | None:
    if name != "weight":
        return _ZERO if name == "bias" else None
    groups, kernel = _number(layer, "groups"), math.prod(values.shape[2:])
    fan_in, fan_out = values.shape[0] // groups * kernel, values.shape[1] * kernel  # [in, out/groups, *kernel]
    return Weight(tuple(values.shape), fan_in, fan_out, blocks=groups)


def _embedding(layer: nn.Module, name: str, values: Tensor) -> Role | None:
    padding = layer.padding_idx
    zero_row = int(padding) if isinstance(padding, int) else None
    shape = tuple(values.shape)
    return Weight(shape, fan_in=1, fan_out=shape[1], zero_row=zero_row) if name == "weight" else None


def _recurrent(layer: nn.Module, name: str, values: Tensor) -> Role | None:
    """Names as `weight_ih_l0_reverse`, in a cell without what comes after `ih`; `hr` is an LSTM's projection."""
    match = re.fullmatch(r"(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?", name)
    if match is None:
        return None
    if match[1] == "bias":
        return Constant("bias", 0.0, forget=match[2] == "ih" and isinstance(layer, (nn.LSTM, nn.LSTMCell)))
    outputs, inputs = values.shape
    if match[2] == "hr":
        return Weight((outputs, inputs), fan_in=inputs, fan_out=outputs, inside="linear")
    hidden = _number(layer, "hidden_size")
    own = getattr(layer, "nonlinearity", "sigmoid")  # gates are of both kinds; sigmoid's gain is 1
    return Weight((outputs, inputs), inputs, hidden, blocks=outputs // hidden, inside=own)


def _attention(_layer: nn.Module, name: str, values: Tensor) -> Role | None:
    """`bias_k` and `bias_v`, [1, 1, E], are one more key and value, not biases: fans E and E, as torch counts them."""
    if name == "in_proj_bias":
        return _ZERO
    if name in ("bias_k", "bias_v"):
        return Weight(tuple(values.shape), values.shape[2], values.shape[2], inside="linear")
    blocks = {"in_proj_weight": 3, "q_proj_weight": 1, "k_proj_weight": 1, "v_proj_weight": 1}.get(name)
    if blocks is None:
        return None
    outputs, inputs = values.shape
    return Weight((outputs, inputs), inputs, outputs // blocks, blocks, inside="linear")


def _norm(_layer: nn.Module, name: str, _values: Tensor) -> Role | None:
    return {"weight": Constant("scale", 1.0), "bias": _ZERO}.get(name)


def _number(layer: nn.Module, attribute: str) -> int:
    """A layer's whole number; through getattr, because torch types every attribute of a module as a tensor."""
    return int(getattr(layer, attribute))


_ROLES: dict[type[nn.Module], Callable[[nn.Module, str, Tensor], Role | None]] = {
    **dict.fromkeys((nn.Linear, nn.Bilinear), _linear),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), _embedding),
    **dict.fromkeys((nn.RNNBase, nn.RNNCellBase), _recurrent),
    nn.MultiheadAttention: _attention,
    **dict.fromkeys((_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), _norm),
}

_STATISTICS = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}


def base(layer: nn.Module) -> type[nn.Module] | None:
    """The known layer that `layer` is, or is derived from; None for any other module."""
    return next((kind for kind in type(layer).__mro__ if kind in _ROLES), None)


def role(layer: nn.Module, name: str, values: Tensor) -> Role | None:
    """What the layer's own parameter of this name is; None if that is not known."""
    kind = base(layer)
    return _ROLES[kind](layer, name, values) if kind is not None else None


def statistics(layer: nn.Module) -> dict[str, Constant]:
    """The running statistics that a norm holds, by the buffer's name, with what torch starts them at."""
    if not isinstance(layer, _NormBase):
        return {}
    held = {name for name, buffer in layer.named_buffers(recurse=False) if buffer is not None}
    return {name: Constant("statistic", value) for name, value in _STATISTICS.items() if name in held}
