"""What a run's schedules say, step by step, for people: a row wherever something changes."""

from __future__ import annotations

from gradstep.setup import Training

_ROWS = 40


def timetable(training: Training) -> list[str]:
    """Lines of a table: step, epoch and each scheduled option of each group, as the step is made with it.

    Where more than forty steps change something, the epochs' first steps stand for them, or as many as fit; of a run of
    few epochs, steps at even distances too.
    """
    clock, groups = training.clock, training.state.optimizer.param_groups
    columns = [
        (option if len(groups) == 1 else f"{option}/{groups[number].get('name', number)}", function, base[option])
        for number, (own, base) in enumerate(zip(training.scheduled.functions, training.state.bases, strict=True))
        for option, function in own.items()
    ]
    if not columns:
        rates = ", ".join(f"{rate:g}" for rate in training.state.base_rates)
        return [f"no schedule: the rate is {rates} at all {clock.total:,} steps"]
    rows: list[tuple[int, list[float]]] = []
    changes, last = 0, None
    starts = range(0, clock.total, clock.steps_per_epoch)
    few = range(0, clock.total, -(-clock.total // (_ROWS // 2))) if len(starts) < _ROWS // 4 else range(0)
    thinned = {*starts[:: -(-len(starts) // _ROWS)], *few, clock.total - 1}
    for step in range(clock.total):
        values = [function(step, base) for _, function, base in columns]
        changed = values != last
        if (changed and changes < _ROWS) or step in thinned:
            rows.append((step, values))
        changes, last = changes + changed, values
    if changes > _ROWS:
        rows = [row for row in rows if row[0] in thinned]
    else:
        rows = [row for number, row in enumerate(rows) if not number or row[1] != rows[number - 1][1]]
    widths = [max(12, len(name) + 2) for name, _, _ in columns]
    lines = [f"{'step':>8}{'epoch':>7}" + "".join(f"{c[0]:>{w}}" for c, w in zip(columns, widths, strict=True))]
    for step, values in rows:
        numbers = "".join(f"{value:>{width}.4g}" for value, width in zip(values, widths, strict=True))
        lines.append(f"{step:>8}{clock.epoch(step):>7}{numbers}")
    if changes > _ROWS:
        lines.append(f"it changes at {changes:,} of {clock.total:,} steps; these are some of them, and the last")
    if training.scheduled.plateaus:
        lines.append("a part of it goes by a metric; this is how it goes if that never asks for less")
    return lines
