"""What changed since a checkpoint: whatever would make it another run is named, and what would not does not stop it."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradstep import facts, schedules
from gradstep.changes import _MEANS, _OF_ENVIRONMENT, Change, compare, compare_environment, lines, refusal
from gradstep.data import Augmented, Feed, Items, Part
from gradstep.errors import ChangedError
from gradstep.meaning import EPOCH, LENGTH, SCHEDULE, meaning
from gradstep.setup import Training, assemble

PER_EPOCH = 8
RECORD = {
    "log_every": 50,
    "evaluate_every": PER_EPOCH,
    "evaluate_train": False,
    "metrics": ["accuracy"],
    "monitor": ["valid/accuracy", True],
    "patience": None,
    "valid": True,
    "test": False,
}


def training(steps: int = 40, **changes: Any) -> Training:
    data = torch.zeros(4 * PER_EPOCH, 3), torch.zeros(4 * PER_EPOCH, dtype=torch.long)
    given: dict[str, Any] = {
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        **dict.fromkeys(("epochs", "schedule", "micro_batch", "stat_group", "clip", "ema", "unpack", "forward")),
        "batch_size": 4,
        "drop_last": False,
        "seed": 0,
        "dropout": "keyed",
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "plan": "plain",
        **changes,
    }
    return assemble(
        given.pop("model", None) or nn.Linear(3, 2),
        nn.CrossEntropyLoss(),
        data,
        steps=steps,
        on_nonfinite="stop",
        **given,
    )


def meant(steps: int = 40, record: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """As it comes back out of a checkpoint."""
    said = meaning(training(steps, **changes), {}, None, RECORD | (record or {}))
    kept: dict[str, Any] = json.loads(json.dumps(said, allow_nan=False))
    return kept


def broken(changes: list[Change]) -> list[str]:
    return [change.what for change in changes if change.breaks]


FULL: dict[str, Any] = {"schedule": schedules.cosine(), "clip": 1.0, "ema": 0.9}


def test_what_is_as_it_was_is_no_change_though_it_went_through_json() -> None:
    now = meaning(training(**FULL), {}, None, RECORD)
    assert compare(meant(**FULL), now, 12) == []
    assert compare_environment(json.loads(json.dumps(facts.environment())), facts.environment()) == []


@pytest.mark.parametrize("label", sorted(set(meant(**FULL)) - {LENGTH, SCHEDULE}))
def test_every_label_that_is_another_breaks_the_run_and_is_said_in_its_own_words(label: str) -> None:
    then = meant(**FULL)
    (change,) = compare(then, {**then, label: "another"}, 12)
    assert (change.what, change.breaks, change.now) == (label, True, "another")
    assert change.means == _MEANS.get(label, "every step is another")
    assert label in _MEANS or label == "what SGD is given"


def test_no_words_are_for_a_label_that_there_is_not() -> None:
    assert set(_MEANS) <= set(meant())
    assert set(_OF_ENVIRONMENT) <= {*facts.environment(), "code", "device", "micro_batch", "on_nonfinite"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dropout": "stream"}, ["dropout: keyed -> stream (the masks of dropout are others)"]),
        (
            {"batch_size": 8, "steps": 20},
            [
                "batch_size: 4 -> 8 (every batch is another)",
                f"{EPOCH}: 8 -> 4 (epochs begin elsewhere)",
                f"{LENGTH}: 40 -> 20 (the run is made shorter; no schedule depends on its length)",
            ],
        ),
        (
            {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, nesterov=True)},
            [
                "what SGD is given, momentum: 0.9 -> 0.5 (every step is another)",
                "what SGD is given, nesterov: no -> yes (every step is another)",
            ],
        ),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9)},
         ["the learning rate: [0.1] -> [0.2] (every step is another)"]),
        ({"clip": 1.0}, ['clip: none -> {"norm": 1.0, "value": null, "type": 2.0} (every step is another)']),
        ({"schedule": schedules.cosine()},
         ["the schedule at step 0: none -> [0.1] (the steps done were made with other values)"]),
        ({"record": {"metrics": ["accuracy", "mae"]}},
         ['metrics: ["accuracy"] -> ["accuracy", "mae"] (the metrics file is another)']),
    ],
)  # fmt: skip
def test_a_change_is_said_by_the_word_that_the_user_would_type(changes: dict[str, Any], said: list[str]) -> None:
    assert lines(compare(meant(), meant(**changes), 12)) == said


def test_the_refusal_lists_what_breaks_and_what_to_do() -> None:
    error = refusal(compare(meant(), meant(50, seed=3, record={"log_every": 5}), 12), Path("runs/0001-x"))
    assert isinstance(error, ChangedError)
    assert error.exit_code == 2
    assert str(error) == (
        "runs/0001-x can't go on as the run that it began as:\n"
        "  seed: 0 -> 3 (every random draw is another: the order, the augmentation, the masks of dropout)\n"
        "  log_every: 50 -> 5 (the metrics file is another)\n"
        "Give what it began with; or, where what is saved still fits, go on as another run with --allow-changes (from "
        "Python: allow_changes=True); or begin a new run, under another name=."
    )


@given(st.data())
def test_what_one_version_alone_knows_is_left_out(data: st.DataObject) -> None:
    whole = FULL_MEANING
    then = {label: whole[label] for label in data.draw(st.sets(st.sampled_from(sorted(whole))))}
    now = {label: whole[label] for label in data.draw(st.sets(st.sampled_from(sorted(whole))))}
    assert compare(then, now, 12) == []


FULL_MEANING = meant(**FULL)


# The length of the run.


LENGTHS = st.integers(1, 60) | st.sampled_from([PER_EPOCH, 3 * PER_EPOCH])


@settings(max_examples=300)
@given(LENGTHS, LENGTHS, LENGTHS, st.booleans(), st.integers(1, 20))
def test_another_length_is_the_same_run_only_while_the_record_is_as_it_would_have_been(
    old: int, new: int, step: int, evaluates: bool, every: int
) -> None:
    """Nothing depends on the length here but where the end is; `step` is where the checkpoint was written."""
    step = min(step, old)
    common = {EPOCH: PER_EPOCH, SCHEDULE: {}, "valid": evaluates, "evaluate_train": False, "evaluate_every": every}
    changes = compare({**common, LENGTH: old}, {**common, LENGTH: new}, step)

    def record(total: int) -> list[tuple[int, str]]:
        """What a run of this length writes up to `step`, as `fit` does it."""
        rows = [(0, "start")]
        for done in range(1, min(step, total) + 1):
            if done % PER_EPOCH == 0 or done == total:
                rows.append((done, "epoch"))
            if evaluates and (done % every == 0 or done == total):
                rows.append((done, "valid"))
            if done % PER_EPOCH == 0 and (done < total or done == step == old):
                rows.append((done, "start"))  # a run made longer gets it when it goes on
        return rows

    if old == new:
        assert changes == []
    else:
        (change,) = changes
        assert change.what == LENGTH
        same = new >= step and record(old) == record(new)
        # One that would end exactly here has another end to come: tests, and no epoch begun.
        assert change.breaks == (not same or new == step)
        assert ("longer" in change.means) == (new > old) or change.breaks


SHAPES: list[Callable[[], Any]] = [
    lambda: None,
    lambda: schedules.constant(),
    lambda: schedules.cosine(),
    lambda: schedules.cosine(warmup="5 steps"),
    lambda: schedules.one_cycle(),
    lambda: schedules.exponential("1 epoch"),
    lambda: lambda step, base: base / (1 + step),
]


@settings(max_examples=150)
@given(st.sampled_from(SHAPES), st.integers(6, 80), st.integers(6, 80), st.data())
def test_no_run_of_another_length_goes_on_whose_steps_would_have_had_other_rates(
    shape: Callable[[], Any], old: int, new: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, old))
    before, after = training(old, schedule=shape()), training(new, schedule=shape())

    def rates(of: Training, at: int) -> list[float]:
        return [rate(at, base["lr"]) for own, base in zip(of.scheduled.functions, of.state.bases, strict=True)
                for rate in own.values()]  # fmt: skip

    then, now = meaning(before, {}, None, RECORD), meaning(after, {}, None, RECORD)
    found = broken(compare(json.loads(json.dumps(then)), now, step))
    if any(rates(before, at) != rates(after, at) for at in range(min(step, new))):
        assert f"{LENGTH}" in found
        assert any(what.startswith(SCHEDULE) for what in found)
    free = all(rates(before, at) == rates(after, at) for at in range(max(old, new, PER_EPOCH) + 1))
    if free and new > old > step:
        assert found == []


def test_a_schedule_over_the_run_s_length_says_why_the_run_can_not_be_made_longer() -> None:
    then, now = meant(16, schedule=schedules.cosine()), meant(24, schedule=schedules.cosine())
    shown = lines(compare(then, now, 16))
    assert shown[0].startswith("the schedule at step 1: [0.09")
    assert shown[1] == (
        f"{LENGTH}: 16 -> 24 (a schedule depends on the run's length: the steps done were made with the shorter run's "
        "rates)"
    )
    assert lines(compare(meant(16), meant(24), 16)) == [
        f"{LENGTH}: 16 -> 24 (the run is made longer; no schedule depends on its length)"
    ]


def test_a_schedule_that_changes_after_the_checkpoint_breaks_the_run_too() -> None:
    one, other = (schedules.piecewise({"3 epochs": factor}) for factor in (0.1, 0.5))
    (change,) = compare(meant(schedule=one), meant(schedule=other), 10)
    assert change.breaks
    assert int(change.what.split()[-1]) > 10
    assert change.means == "the steps to come get other values"


def test_a_scheduler_of_torch_s_that_gives_nothing_after_its_end_has_not_changed_there() -> None:
    then = {SCHEDULE: {"0": [0.1], "8": [0.2], "16": [None]}, LENGTH: 16, EPOCH: 8}
    now = {SCHEDULE: {"0": [0.1], "8": [0.2], "16": [0.3], "24": [0.4]}, LENGTH: 24, EPOCH: 8}
    assert broken(compare(then, now, 16)) == []


# The environment and the code.


def test_a_change_of_the_environment_never_breaks_a_run_and_is_said_where_it_may_change_bits() -> None:
    then, now = facts.environment(), facts.environment()
    then |= {"torch": "2.12.0", "threads": 64, "platform": "other", "kernel": "other", "cores": 1, "gradstep": "0.0.1"}
    then["variables"] = {"MKL_CBWR": "AVX2"}
    now["variables"] = {}
    changes = compare_environment(then, now)
    assert broken(changes) == []
    assert lines(changes) == [
        f"gradstep: 0.0.1 -> {now['gradstep']} (see CHANGELOG.md)",
        f"torch: 2.12.0 -> {torch.__version__} (other kernels: the same to rounding, not bit for bit)",
        "threads: 64 -> 1 (sums are added in another order: the same to rounding, not bit for bit)",
        "MKL_CBWR: AVX2 -> none (other kernels: the same to rounding, not bit for bit)",
    ]


def test_what_is_set_in_this_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts.environment()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    try:
        changes = compare_environment(before, facts.environment())
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.fp32_precision = before["tf32"]["matmul"]
    assert [change.what for change in changes] == [
        "threads", "deterministic", "cudnn benchmark", "tf32, matmul", "ATEN_CPU_CAPABILITY"
    ]  # fmt: skip


def module(path: Path, text: str) -> ModuleType:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    name = f"of_the_user_{abs(hash(str(path)))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def test_the_user_s_files_are_known_by_name_and_content_wherever_they_lie(tmp_path: Path) -> None:
    net = "from torch import nn\nclass Part(nn.Linear): pass\n"
    one, two = module(tmp_path / "here" / "net.py", net), module(tmp_path / "there" / "net.py", net)
    more = module(tmp_path / "here" / "more.py", "def loss(o, t): return o.sum()\nclass Hook:\n  def on(self): pass\n")

    def model(of: ModuleType) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Sequential(of.Part(2, 2)))

    known = facts.code([model(one)])
    assert list(known) == ["net.py"]
    assert len(known["net.py"]) == 12
    assert facts.code([model(two)]) == facts.code([model(one), model(two), None]) == known
    held = [more.loss, functools.partial(more.loss, t=1), more.Hook(), more.Hook().on, {"a": more.loss}, [more.Hook]]
    assert {tuple(facts.code([each])) for each in held} == {("more.py",)}

    class Here(one.Part): ...

    assert list(facts.code([Here(1, 1)])) == ["net.py", Path(__file__).name]  # what it is made from is its code too
    (tmp_path / "here" / "net.py").write_text(net + "# another\n")
    (change,) = compare_environment({"code": known}, {"code": facts.code([model(one), more.loss])})[1:]
    assert change.what == "net.py"
    assert lines([change])[0].endswith("(changed since: gradstep can't tell whether a step is another)")


def test_a_user_s_function_is_found_inside_what_gradstep_made_of_it(tmp_path: Path) -> None:
    from gradstep import Terms
    from gradstep.metrics import resolve

    own = module(tmp_path / "own.py", "def measure(outputs, targets): return outputs.mean()\n")
    assert list(facts.code([resolve({"mine": own.measure})])) == ["own.py"]
    assert list(facts.code([Terms({"a": own.measure, "b": nn.MSELoss()})])) == ["own.py"]


def test_the_code_behind_the_data_is_found_under_what_lies_over_it(tmp_path: Path) -> None:
    own = module(
        tmp_path / "sets.py",
        "class Set:\n  def __len__(self): return 9\n  def __getitem__(self, n): return float(n), n\n"
        "def join(samples): return samples\n",
    )
    kept = module(tmp_path / "sizes.py", "class Mine:\n  def __call__(self, inputs, draws): return inputs\n")
    over = Part(Items(own.Set()), torch.arange(4))
    assert list(facts.code(facts.behind_data(Feed(over, 2, shuffle=True)))) == ["sets.py"]
    assert list(facts.code(facts.behind_data(Items([1, 2], own.join)))) == ["sets.py"]
    assert list(facts.code(facts.behind_data(Augmented(over, (kept.Mine(),))))) == ["sets.py", "sizes.py"]

    class Endless:
        def __getattr__(self, name: str) -> Any:
            return Endless()

    assert set(facts.code(facts.behind_data(Endless()))) == {Path(__file__).name}


def test_code_that_is_not_the_user_s_is_left_out_and_nothing_raises() -> None:
    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    class Broken(nn.Module):
        def modules(self) -> Any:
            raise RuntimeError

    assert facts.code([nn.Linear(1, 1), nn.CrossEntropyLoss(), torch.sigmoid, len, 3, "word", json.dumps, None]) == {}
    assert set(facts.code([Odd(), Broken(), eval("lambda x: x")])) <= {Path(__file__).name}


def test_looking_at_the_code_of_a_large_model_takes_no_time() -> None:
    class Block(nn.Linear): ...

    model = nn.Sequential(*(Block(1, 1) for _ in range(1000)))
    facts.code([model])
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        assert list(facts.code([model])) == [Path(__file__).name]
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.005
