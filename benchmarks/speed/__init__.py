"""How fast a training is, beside loops written by hand and other tools: ratios measured in one run.

Every contender is a warm process of its own in which ONE endless training runs, by its tool's own loop. The clock is
in the feed (`clock.py`): between two blocks the training waits for its next batch. `problems.py` holds what every
contender is given, `batches.py` the order of the samples, `raw.py` and `with_*.py` the contenders, `server.py` the
process that is one of them; `processes.py`, `blocks.py`, `estimates.py` and `parity.py` measure, `cells.py` says what
is measured against what and with which goal, `__main__.py` runs it, `report.py` writes docs/BENCHMARKS.md.
"""
