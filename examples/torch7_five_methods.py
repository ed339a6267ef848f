"""Five ways to the gradient of a batch in Torch7, and three of them gone wrong: a document's table, made again.

A batch of 200 in micro-batches of 20: 1 takes it whole; 2 accumulates; 4 takes the criterion's gradient as a value and
sends it back at once; 5 forwards everything first and again before each backward. 3, and 4' and 5' (the document's
lines that are "commented out"), send the gradients of all micro-batches through the graph of the last one: the loss
hardly falls. 1, 2 and 5 are gradstep's one_pass, accumulate and two_pass; the others are written out. The document's
numbers lie in torch7_table.csv; its accuracy leaves one sample of every batch of 200 out but divides by all.

Run:     python examples/torch7_five_methods.py
Cost:    half a minute; in full, --seeds 0 1 2 --epochs 10 --samples 50000, an hour and a half on a free core
Result:  1, 2, 4, 5 are one update, and 3, 4', 5' another that is told by name; in full, the table's losses too
"""

import argparse
import csv
import itertools
import json
import os
import time
from pathlib import Path

import torch
from torch import nn

import gradstep
from gradstep.update.mismatch import MismatchError, check_backward

BATCH, PIECE = 200, 20
CORRECT, WRONG = ("1", "2", "4", "5"), ("3", "4'", "5'")
METHODS = ("1", "2", "3", "4", "4'", "5", "5'")
NAMES = {"3": "another forward's graph", "4'": "another forward's graph", "5'": "forward repeated on other inputs"}
PIECES = [slice(start, start + PIECE) for start in range(0, BATCH, PIECE)]
WIDENED = {CORRECT: 0.10, WRONG: 0.03}  # how far beyond the document's own spread a number may lie
TRAINING = 50_000


# The data and the net.


def mnist(samples):
    """The first 50,000 training images, or fewer, and the last 10,000 (a fifth of `samples` where that is less)."""
    os.environ.setdefault("GRADSTEP_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    images, labels = gradstep.data.load_named("mnist").train.content
    values = (images.float() - images[:TRAINING].float().mean()) * (3.2 / 256)
    values = values.to(memory_format=torch.channels_last)
    valid = slice(TRAINING, TRAINING + min(10_000, max(BATCH, samples // 5)))
    return (values[:samples], labels[:samples]), (values[valid], labels[valid])


def net(seed):
    """No ReLU after the convolutions; weights uniform with standard deviation √(2/(fan in + fan out)), biases 0."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    for parameter in model.parameters():
        nn.init.xavier_uniform_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    return model.to(memory_format=torch.channels_last)


# The methods. Each adds the batch's gradient to `.grad` and returns the loss; `wrong` is what the document warns of.


def by_gradstep(method, micro_batch=None):
    def make(model, criterion):
        update = gradstep.Update(model, criterion, micro_batch=micro_batch, method=method)
        return lambda inputs, targets: update.backward(inputs, targets).loss

    return make


def method_3(model, criterion, inputs, targets, wrong):
    each = [model(inputs[piece]) for piece in PIECES]
    outputs = torch.cat([one.detach() for one in each])
    loss, gradient = 0, torch.zeros_like(outputs)
    for piece in PIECES:
        part, gradient[piece] = gradstep.criterion_gradient(criterion, outputs[piece], targets[piece])
        loss = loss + part * (PIECE / BATCH)
    for piece, own in zip(PIECES, each, strict=True):
        (each[-1] if wrong else own).backward(gradient[piece] * (PIECE / BATCH), retain_graph=True)
    return loss


def method_4(model, criterion, inputs, targets, wrong):
    loss, gradients = 0, []
    for piece in PIECES:
        outputs = model(inputs[piece])
        part, gradient = gradstep.criterion_gradient(criterion, outputs, targets[piece])
        loss = loss + part * (PIECE / BATCH)
        gradients.append(gradient * (PIECE / BATCH))
        if not wrong:
            outputs.backward(gradients[-1])
    for gradient in gradients if wrong else ():
        outputs.backward(gradient, retain_graph=True)
    return loss


def method_5(model, criterion, inputs, targets, wrong):
    loss, gradients = 0, []
    for piece in PIECES:
        part, gradient = gradstep.criterion_gradient(criterion, model(inputs[piece]), targets[piece])
        loss = loss + part * (PIECE / BATCH)
        gradients.append(gradient * (PIECE / BATCH))
    for piece, gradient in zip(PIECES, gradients, strict=True):
        outputs = model(inputs[PIECES[-1] if wrong else piece])
        outputs.backward(gradient)
    return loss


def by_hand(function, wrong):
    return lambda model, criterion: lambda inputs, targets: function(model, criterion, inputs, targets, wrong)


MAKE = {
    "1": by_gradstep("one_pass"),
    "2": by_gradstep("accumulate", PIECE),
    "3": by_hand(method_3, True),
    "4": by_hand(method_4, False),
    "4'": by_hand(method_4, True),
    "5": by_gradstep("two_pass", PIECE),
    "5'": by_hand(method_5, True),
}
RECOVERED = {"3": by_hand(method_3, False), "4'": by_hand(method_4, False), "5'": by_hand(method_5, False)}


# Training.


def train(method, seed, epochs, training, valid):
    """The rows of one run: epoch, loss (the mean of the batch losses, each before its update), accuracies, seconds."""
    model, criterion = net(seed), nn.NLLLoss()
    take = MAKE[method](model, criterion)
    # Torch7's optim.sgd: momentum 1e-4 whose dampening is the momentum, decay of the rate with every evaluation.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=1e-4, dampening=1e-4, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step * 1e-4))
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        model.train()
        order = torch.randperm(len(training[0]), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        losses = []
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            losses.append(take(training[0][batch], training[1][batch]))
            optimizer.step()
            schedule.step()
        seconds = time.perf_counter() - began
        yield {"epoch": epoch, "loss": float(torch.stack(losses).double().mean()), **accuracy(model, *valid)} | {
            "seconds": round(seconds, 1)
        }


@torch.no_grad()
def accuracy(model, images, labels):
    """True, and as the document prints it: without the last of every 200, divided by all."""
    model.eval()
    right = torch.cat([model(part).argmax(1) for part in images.split(BATCH)]) == labels
    counted = torch.arange(len(right)) % BATCH != BATCH - 1
    return {"printed": float((right & counted).double().mean()), "accuracy": float(right.double().mean())}


# What is checked.


def gradient(make, training):
    """The float64 gradient of the first step from seed 0, as one vector."""
    model = net(0).double()
    make(model, nn.NLLLoss())(training[0][:BATCH].double(), training[1][:BATCH])
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def apart(one, other):
    return float((one - other).norm() / other.norm())


def check_gradients(training):
    found = {method: gradient(MAKE[method], training) for method in METHODS}
    right = max(apart(found[method], found["1"]) for method in CORRECT)
    wrong = max(apart(found[one], found[other]) for one, other in itertools.combinations(WRONG, 2))
    recovered = max(apart(gradient(make, training), found["1"]) for make in RECOVERED.values())
    far = apart(found["3"], found["1"])
    yield f"the gradient of 1, 2, 4, 5 is one: {right:.1e} apart in float64", right <= 1e-12
    yield f"the gradient of 3, 4', 5' is one: {wrong:.1e} apart in float64", wrong <= 1e-12
    yield f"3, 4', 5' with the right forward are 1: {recovered:.1e} apart", recovered <= 1e-12
    yield f"the mismatched gradient is {far:.2f} times the right one's length from it", far > 0.1


def check_told(training):
    """`check_backward` names each mismatched loop before `.grad` changes, and says nothing of any right one."""
    inputs, targets = training[0][:BATCH], training[1][:BATCH]
    for method, name in NAMES.items():
        model, told = net(0), None
        try:
            with check_backward(model):
                MAKE[method](model, nn.NLLLoss())(inputs, targets)
        except MismatchError as error:
            told = str(error).split(":")[0]
        clean = all(parameter.grad is None for parameter in model.parameters())
        yield f"{method} is told: {told}", told == name and clean
    for make in [*RECOVERED.values(), *(MAKE[method] for method in CORRECT)]:
        model = net(0)
        with check_backward(model):  # an alarm would end the program here
            make(model, nn.NLLLoss())(inputs, targets)
    yield "right loops are not accused", True


def check_agreement(runs):
    """From one seed, the correct methods walk together."""
    for seed in sorted({seed for seed, _ in runs}):
        family = [runs[seed, method] for method in CORRECT if (seed, method) in runs]
        pairs = [pair for rows in zip(*family, strict=False) for pair in itertools.combinations(rows, 2)]
        if pairs:
            loss = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
            right = max(abs(a["accuracy"] - b["accuracy"]) for a, b in pairs)
            text = f"seed {seed}: {len(family)} correct methods agree to {loss:.1e} in loss, {right:.4f} in accuracy"
            yield text, loss <= 5e-4 and right <= 0.002


def check_ranges(runs, table):
    """Every epoch lies in its family's spread over the document, widened."""
    for (family, widened), name in itertools.product(WIDENED.items(), ("loss", "printed")):
        outside, count = [], 0
        for (seed, method), rows in runs.items():
            for row in rows if method in family else ():
                known = [table[one, row["epoch"]][name] for one in family]
                count += 1
                if not min(known) * (1 - widened) <= row[name] <= max(known) * (1 + widened):
                    spread = f"{row[name]:.4f} for {min(known):.4f} to {max(known):.4f}"
                    outside.append(f"method {method}, seed {seed}, epoch {row['epoch']}: {spread}")
        what = {"loss": "losses", "printed": "printed accuracies"}[name]
        text = f"{count - len(outside)} of {count} {what} of {', '.join(family)} in the table's spread ± {widened:.0%}"
        yield "; ".join([text, *outside]), not outside


def check_families(runs):
    worst = max(rows[-1]["loss"] for (_, method), rows in runs.items() if method in CORRECT)
    best = min(rows[-1]["loss"] for (_, method), rows in runs.items() if method in WRONG)
    yield (
        f"the correct methods end at a loss of {worst:.3f} at most, the mismatched at {best:.3f} at least",
        worst < best,
    )


# The program.


def order_of(seeds):
    """All methods from the first seed, one of each family from every other, and then the rest."""
    first = [(seeds[0], method) for method in METHODS]
    for number, seed in enumerate(seeds[1:], 1):
        first += [(seed, CORRECT[number % 4]), (seed, WRONG[number % 3])]
    return first + [(seed, method) for seed in seeds for method in METHODS if (seed, method) not in first]


def read_table():
    with (Path(__file__).parent / "torch7_table.csv").open() as file:
        return {
            (row["method"], int(row["epoch"])): {"loss": float(row["loss"]), "printed": float(row["accuracy_printed"])}
            for row in csv.DictReader(file)
        }


def earlier(options):
    """The runs that a record of the same setting holds already."""
    if options.record is None or not options.record.exists():
        return {}
    record = json.loads(options.record.read_text())
    same = record["settings"] == {"epochs": options.epochs, "samples": options.samples}
    return {(run["seed"], run["method"]): run["rows"] for run in record["runs"] if same}


def write(path, options, runs, checks):
    if path is None:
        return
    settings = {"epochs": options.epochs, "samples": options.samples}
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    listed = [{"method": method, "seed": seed, "rows": rows} for (seed, method), rows in runs.items()]
    told = [{"check": text, "holds": holds} for text, holds in checks]
    whole = {"machine": machine, "settings": settings, "checks": told, "runs": listed}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=1, help="at most 10, as the table has")
    parser.add_argument("--samples", type=int, default=4000, help="of the 50,000; the table is held against all only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--record", type=Path, help="a JSON file, written after every run; what it holds is not run again"
    )
    parser.add_argument("--recorded", action="store_true", help="checks what the record holds, and trains nothing")
    return parser.parse_args()


options = options()
torch.set_num_threads(options.threads)
training, valid = mnist(options.samples)
table, runs, checks = read_table(), earlier(options), [*check_gradients(training), *check_told(training)]
for seed, method in list(runs) if options.recorded else order_of(options.seeds):
    print(f"method {method}, seed {seed}\n  epoch    loss  accuracy (true)    in the document: loss, accuracy")
    rows = []
    for row in runs.get((seed, method)) or train(method, seed, options.epochs, training, valid):
        rows.append(row)
        loss, printed = table[method, row["epoch"]].values()
        ours = f"{row['epoch']:7d} {row['loss']:7.4f}    {row['printed']:.4f} ({row['accuracy']:.4f})"
        print(f"{ours} {loss:25.4f}    {printed:.4f}    {row['seconds']:.1f} s", flush=True)
    runs[seed, method] = rows
    write(options.record, options, runs, checks)
checks += check_agreement(runs)
if options.epochs * options.samples >= 4000:  # before that nothing is learned by any of them
    checks += check_families(runs)
if options.samples == TRAINING:
    checks += check_ranges(runs, table)
write(options.record, options, runs, checks)
for text, holds in checks:
    print("holds: " if holds else "FAILS: ", text)
assert all(holds for _, holds in checks)
