"""Updates: they fill `.grad` with the exact gradient of one batch, and do nothing else."""

from gradstep.update.criterion import Terms, criterion_gradient, read_loss, sharing
from gradstep.update.one_pass import Outcome, Update

__all__ = ["Outcome", "Terms", "Update", "criterion_gradient", "read_loss", "sharing"]
