"""How a model's weights start: `initialize(model, "xavier", seed=0)` and the report of what that touches.

`plan_initialization` says what will happen to every parameter, one row each; `initialize` carries exactly that out;
`describe` prints the rows as a table and `summary` as one line.
"""

from gradstep.initialization.planning import initialize, plan_initialization
from gradstep.initialization.touch import Touch, describe, summary

__all__ = ["Touch", "describe", "initialize", "plan_initialization", "summary"]
