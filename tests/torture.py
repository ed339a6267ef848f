"""The real command on real data, killed at random moments and gone on with, until nobody can believe in luck.

    python -m tests.torture --kills 1000 --processes 2 --record benchmarks/records/torture.json [--seconds 3600]

`gradstep train RECIPE` is killed by SIGKILL, half of the time with its whole process group, half of the time alone, so
that its workers are orphans; `gradstep resume` goes on, and is killed again, until one comes to its end. What is left
then is compared, byte for byte, with a run that was never killed. One run is a line in the folder of work, so a torture
that is itself interrupted goes on when it is started again, as long as the code is the same.

Commands start as programs do; `--cold 0.2` forks four of five from a process that has torch imported already, which is
the same but for the first seconds, and saves them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: as many commands as processes train at once

import numpy
import torch
from PIL import Image

from gradstep import checkpoint
from gradstep.data import load_named
from tests.commands import ROOT, Command
from tests.killing import RECIPE, SCENARIOS, what_is_left

EARLY = 0.12  # this share of kills falls into start-up; the others fall at any moment after it
MANY = 40  # kills of one run, after which it is let come to its end
STEPS_AN_EPOCH = 10
IMAGES = 300


def pixels(image: Image.Image) -> torch.Tensor:
    """A transform of the user's own: with one, images are read each time they are asked for, by workers if any."""
    return torch.from_numpy(numpy.array(image)).float()[None] / 255


# One word of the recipes below is another than in tests/killing.py: where the data comes from.
WORKERS = {"momentum, dropout, augmentation": 2, "Adam, average, cosine": 1, "plateau, best, early stop": 2,
           "micro-batches, Adam, mixing, clip": 3}  # fmt: skip


def write_images(folder: Path) -> None:
    """The first digits as PNG files, a folder for each class."""
    images, labels = load_named("digits").train.batch(torch.arange(IMAGES), 0, 0)  # type: ignore[union-attr]
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{number}.png")


def write_recipes(folder: Path, epochs: int = 8) -> list[str]:
    """A recipe for each scenario, the images beside them. With eight epochs a run takes seconds."""
    write_images(folder / "images")
    for scenario, changes in SCENARIOS.items():
        recipe = {**RECIPE, **changes, "quiet": False, "log_every": "3 steps", "evaluate_every": "7 steps"}
        recipe |= {"steps": epochs * STEPS_AN_EPOCH - 5} if recipe.get("steps") else {"epochs": epochs}
        if "on_nonfinite" in recipe:
            recipe["on_nonfinite"] = {"rewind": 1000}  # a longer run has more such steps
        if scenario in WORKERS:
            own = {"train": str(folder / "images"), "transform": "tests.torture:pixels", "transforms": []}
            recipe |= {"data": {**recipe["data"], **own}, "workers": WORKERS[scenario]}
        recipe["data"] = {**recipe["data"], "limit": 24 * STEPS_AN_EPOCH}
        (folder / f"{_short(scenario)}.yaml").write_text(json.dumps(recipe))
    return list(SCENARIOS)


def _short(scenario: str) -> str:
    return scenario.split(",")[0].replace(" ", "-")


# One run.


@dataclass
class Killed:
    """One run, however often it was killed. `differences` are names of what is another than in a run never killed."""

    number: int
    scenario: str
    kills: int = 0
    alone: int = 0  # of the kills: the process alone, not its group
    phases: dict[str, int] = field(default_factory=dict)
    again_in_the_epoch: int = 0  # kills that came in the epoch in which the one before had come
    differences: list[str] = field(default_factory=list)
    leftovers: int = 0
    commands: int = 0
    seconds: float = 0.0


def begun(command: Command) -> bool:
    """Whether a command has come to its training: facts are all told, and the line after them."""
    return "\n\n" in command.said()


def start(folder: Path, scenario: str, out: Path, log: Path, warm: bool) -> Command:
    """Begins the run, or goes on with it where there is something to go on with."""
    recipe = next(out.glob("latest/recipe.yaml"), None)  # before it is there, no step was made
    words = ["resume"] if recipe else ["train", str(folder / f"{_short(scenario)}.yaml")]
    log.unlink(missing_ok=True)
    return Command([*words, "--out", str(out)], log, warm)


def phase(command: Command, out: Path) -> str:
    """What a command that was just killed was doing, as far as the files tell."""
    if not begun(command):
        return "start-up"
    run = (out / "latest").resolve()
    folders = [path.name for path in (run / "checkpoints").iterdir()]
    if not any(name.startswith("step-") for name in folders):
        return "the first save"
    for prefix, name in ((".tmp-", "a save"), (".replaced-", "a save"), (".trash-", "pruning")):
        if any(each.startswith(prefix) for each in folders):
            return name
    if (run / "model.safetensors").exists():
        return "the end"
    rows = (run / "metrics.jsonl").read_bytes().splitlines() if (run / "metrics.jsonl").exists() else []
    return "steps" if any(b'"valid"' in row for row in rows) else "steps before the first evaluation"


def epoch_of_newest(out: Path) -> int | None:
    """The epoch in which the newest checkpoint lies: where a resume begins."""
    found = checkpoint.steps(out / "latest" / "checkpoints")
    return found[-1] // STEPS_AN_EPOCH if found else None


def one_run(
    folder: Path,
    number: int,
    scenario: str,
    seed: int,
    cold: float = 1.0,
    until: float = float("inf"),
    most: int = MANY,
) -> Killed:
    """Kills a run and goes on with it, until it ends by itself; after `until`, or `most` kills, no more."""
    draw, found, began = random.Random(f"{seed} {number}"), Killed(number, scenario), time.monotonic()
    out, log = folder / f"run-{number}", folder / f"run-{number}.log"
    shutil.rmtree(out, ignore_errors=True)
    whole = json.loads((folder / f"{_short(scenario)}.json").read_text())
    last_epoch = None
    while True:
        command = start(folder, scenario, out, log, draw.random() >= cold)
        found.commands += 1
        try:
            if found.kills < most and time.time() < until:
                _let_it_run(command, draw, whole, found.kills)
            else:
                command.wait(600)
            if command.ended():
                found.leftovers += len(command.left())
                break
            _kill(command, draw, out, found)
            epoch = epoch_of_newest(out)
            found.again_in_the_epoch += epoch is not None and epoch == last_epoch
            last_epoch = epoch
        finally:
            command.end()
    found.differences = _differences(command, out, whole["left"])
    found.seconds = time.monotonic() - began
    if not found.differences and not found.leftovers:
        shutil.rmtree(out)
        log.unlink()
    return found


def _let_it_run(command: Command, draw: random.Random, whole: dict[str, Any], kills: int) -> None:
    """Until the moment at which it is to be killed, or until it ends. Later and later, so that it comes to its end."""
    if draw.random() < EARLY:
        moment = command.began + draw.uniform(0, whole["start_up"])
    else:
        command.until(lambda: begun(command), 600)
        moment = time.monotonic() + draw.uniform(0, whole["training"] * (0.4 + 0.1 * kills))
    while time.monotonic() < moment and not command.ended():
        time.sleep(0.001)


def _kill(command: Command, draw: random.Random, out: Path, found: Killed) -> None:
    alone = draw.random() < 0.5
    command.send(signal.SIGKILL, group=not alone)
    command.wait()
    found.kills, found.alone = found.kills + 1, found.alone + alone
    during = phase(command, out)
    found.phases[during] = found.phases.get(during, 0) + 1
    found.leftovers += len(command.left())


def _differences(command: Command, out: Path, expected: dict[str, str]) -> list[str]:
    if command.code != 0:
        return [f"exit code {command.code}: {command.said()[-2000:]}"]
    left = what_is_left(out / "latest")
    return sorted(name for name in {*left, *expected} if left.get(name) != expected.get(name))


def never_killed(folder: Path, scenario: str, cold: bool = True) -> None:
    """Runs a scenario through, and notes what is left of it and how long it takes, beside its recipe."""
    out, log = folder / f"whole-{_short(scenario)}", folder / "whole.log"
    command = start(folder, scenario, out, log, warm=not cold)
    command.until(lambda: begun(command), 600)
    trains = time.monotonic()
    assert command.wait(600) == 0, command.said()
    known = {
        "left": what_is_left(out / "latest"), "start_up": trains - command.began, "training": time.monotonic() - trains
    }  # fmt: skip
    (folder / f"{_short(scenario)}.json").write_text(json.dumps(known))


# Many runs.


def prepared(folder: Path, cold: bool = True) -> list[str]:
    """The scenarios. Recipes, images and runs that were never killed are in the folder; made where they aren't."""
    code = _code()
    if not (folder / "code").exists() or (folder / "code").read_text() != code:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for scenario in write_recipes(folder):
            never_killed(folder, scenario, cold)
        (folder / "code").write_text(code)
    return list(SCENARIOS)


def _code() -> str:
    """What a torture may go on with is one of the same code."""
    sources = [*sorted((ROOT / "src").rglob("*.py")), Path(__file__), ROOT / "tests" / "killing.py"]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _runs(folder: Path, given: argparse.Namespace, done: dict[int, Killed]) -> Iterator[Killed]:
    """Runs that come to their end one after the other, those of earlier calls first, until there are enough kills."""
    yield from done.values()
    kills, until = sum(run.kills for run in done.values()), time.time() + given.seconds
    numbers = (number for number in range(10**9) if number not in done)
    at_work: set[Future[Killed]] = set()
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("fork")) as pool:
        while True:
            while len(at_work) < given.processes and kills < given.kills and time.time() < until:
                number = next(numbers)
                scenario = list(SCENARIOS)[number % len(SCENARIOS)]
                at_work.add(pool.submit(one_run, folder, number, scenario, given.seed, given.cold, until))
            if not at_work:
                return
            ended, at_work = wait(at_work, return_when=FIRST_COMPLETED)
            for each in ended:
                kills += each.result().kills
                yield each.result()


def _record(runs: list[Killed], given: argparse.Namespace) -> dict[str, Any]:
    phases = sum((Counter(run.phases) for run in runs), Counter())
    return {
        "kills": sum(run.kills for run in runs),
        "kills_of_the_process_alone": sum(run.alone for run in runs),
        "kills_by_phase": dict(phases.most_common()),
        "kills_again_in_the_same_epoch": sum(run.again_in_the_epoch for run in runs),
        "runs": len(runs),
        "runs_by_scenario": dict(Counter(run.scenario for run in runs)),
        "commands": sum(run.commands for run in runs),
        "differences": sum(bool(run.differences) for run in runs),
        "leftover_processes": sum(run.leftovers for run in runs),
        "different": [asdict(run) for run in runs if run.differences or run.leftovers],
        "share_of_cold_starts": given.cold,
        "workers": WORKERS,
        "seed": given.seed,
        "seconds_of_all_runs": round(sum(run.seconds for run in runs)),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="no kill after so many; what was reached is recorded"
    )
    parser.add_argument("--record", type=Path, help="where the record goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold", type=float, default=1.0, help="share of commands that start from nothing")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gradstep-torture")
    given = parser.parse_args()
    folder = given.folder.resolve()
    prepared(folder)
    lines = folder / f"runs-{given.seed}.jsonl"
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {each["number"]: Killed(**each) for each in found}
    print(f"{folder}: {len(done)} runs were done before", flush=True)
    runs: list[Killed] = []
    for run in _runs(folder, given, done):
        runs.append(run)
        record = _record(runs, given)
        if given.record is not None:
            given.record.write_text(json.dumps(record, indent=1) + "\n")
        if run.number in done:
            continue
        with lines.open("a") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        counts = [f"{name} {record[name]}" for name in ("kills", "runs", "differences", "leftover_processes")]
        print("  ".join([*counts, f"{run.scenario}: {run.kills} kills", *run.differences]), flush=True)
    raise SystemExit(any(run.differences or run.leftovers for run in runs))


if __name__ == "__main__":
    main()
