"""The plan: what will be done and why, decided before the first step, printed, and kept as plan.json."""

from gradstep.plan.asked import Asked as Asked
from gradstep.plan.document import Plan as Plan
from gradstep.plan.document import Verdict as Verdict
