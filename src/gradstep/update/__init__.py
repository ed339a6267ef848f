"""Updates: they fill `.grad` with the exact gradient of one batch, and do nothing else."""

from gradstep.update.criterion import Ratio, Terms, criterion_gradient, read_loss, units_of
from gradstep.update.denominators import Sharing
from gradstep.update.outcome import Outcome
from gradstep.update.update import Update, backward

__all__ = ["Outcome", "Ratio", "Sharing", "Terms", "Update", "backward", "criterion_gradient", "read_loss", "units_of"]
