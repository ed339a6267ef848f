"""Updates: they fill `.grad` with the exact gradient of one batch, and do nothing else."""

from gradstep.update.criterion import Sharing, Terms, criterion_gradient, read_loss
from gradstep.update.one_pass import Outcome, Update

__all__ = ["Outcome", "Sharing", "Terms", "Update", "criterion_gradient", "read_loss"]
