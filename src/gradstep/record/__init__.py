"""What a run leaves and shows: metrics.jsonl and timing.jsonl, the console, TensorBoard."""

from gradstep.record.console import Console
from gradstep.record.journal import Journal, Mark, Row
from gradstep.record.ledger import Ledger
from gradstep.record.printing import PrintLoss
from gradstep.record.recorder import Recorder
from gradstep.record.stopwatch import Stopwatch
from gradstep.record.tensorboard import TensorBoard

__all__ = ["Console", "Journal", "Ledger", "Mark", "PrintLoss", "Recorder", "Row", "Stopwatch", "TensorBoard"]
