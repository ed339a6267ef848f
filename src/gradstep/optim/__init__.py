"""Optimizers, the groups they hold, and what is done to gradients and weights around them.

`param_groups` and `SGD` are for torch's way of optimizing; `flatten_parameters` and the functions, `sgd` to `cg`, for
Torch7's: one flat vector, one call, one step.
"""

from gradstep.optim.averaging import Average, Averaging
from gradstep.optim.clipping import Clip
from gradstep.optim.descent import SGD
from gradstep.optim.differences import checkgrad
from gradstep.optim.flat import FlatParameters, flatten_parameters
from gradstep.optim.freezing import apply_freezing, frozen_at
from gradstep.optim.functional import adadelta, adagrad, adam, adamax, asgd, rmsprop, rprop
from gradstep.optim.groups import param_groups
from gradstep.optim.options import check_groups
from gradstep.optim.replacing import Replaced, replace
from gradstep.optim.search import cg, lbfgs
from gradstep.optim.showing import table
from gradstep.optim.torch7 import nag, sgd

__all__ = [
    "SGD",
    "Average",
    "Averaging",
    "Clip",
    "FlatParameters",
    "Replaced",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "apply_freezing",
    "asgd",
    "cg",
    "check_groups",
    "checkgrad",
    "flatten_parameters",
    "frozen_at",
    "lbfgs",
    "nag",
    "param_groups",
    "replace",
    "rmsprop",
    "rprop",
    "sgd",
    "table",
]
