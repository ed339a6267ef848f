"""Updates: they fill `.grad` with the exact gradient of one batch, and do nothing else."""

from gradstep.update.criterion import Ratio, Terms, criterion_gradient, read_loss, units_of
from gradstep.update.denominators import Sharing
from gradstep.update.mismatch import check_backward
from gradstep.update.outcome import Outcome
from gradstep.update.update import Update, backward
from gradstep.update.ways import Way

__all__ = [
    "Outcome",
    "Ratio",
    "Sharing",
    "Terms",
    "Update",
    "Way",
    "backward",
    "check_backward",
    "criterion_gradient",
    "read_loss",
    "units_of",
]
