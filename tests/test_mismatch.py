"""Every gradient through its own forward's graph: the document's wrong loops are told by name, right ones never."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from gradstep import data
from gradstep.errors import ModelError
from gradstep.update import Update, criterion_gradient
from gradstep.update.mismatch import OTHER_GRAPH, REPEATED_ON_OTHERS, STALE, MismatchError, check_backward

BATCH, PIECE = 24, 6
Watch = Callable[[Any], AbstractContextManager[None]]
Models = nn.Module | Iterable[nn.Module]


def unwatched(_models: Any) -> AbstractContextManager[None]:
    return nullcontext()


def digits(seed: int = 0, samples: int = BATCH, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A few of the real digits, in another order for each seed."""
    images, labels = data.load_named("digits").train.content
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:samples]
    return images[chosen].to(dtype) / 240, labels[chosen]


def net(dropout: float = 0.0, norm: bool = False, log_softmax: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 32), nn.ReLU()]
    layers += [nn.BatchNorm1d(32)] if norm else []
    layers += [nn.Dropout(dropout)] if dropout else []
    layers += [nn.Linear(32, 10)]
    layers += [nn.LogSoftmax(1)] if log_softmax else []
    return nn.Sequential(*layers).double()


def pieces() -> list[slice]:
    return [slice(start, start + PIECE) for start in range(0, BATCH, PIECE)]


def grads(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for module in modules for p in module.parameters() if p.grad is not None]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    one, other = (torch.cat([g.flatten() for g in side]) for side in (ours, theirs))
    return float((one - other).norm() / other.norm())


def right_gradient(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    twin = copy.deepcopy(model)
    twin.zero_grad()
    criterion(twin(inputs), targets).backward()
    return grads(twin)


# The document's loops. `wrong` sends every gradient through the graph of the last micro-batch.


def method_3(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    each = [model(inputs[piece]) for piece in pieces()]
    outputs = torch.cat([one.detach() for one in each])
    gradient = torch.zeros_like(outputs)
    for piece in pieces():
        gradient[piece] = criterion_gradient(criterion, outputs[piece], targets[piece])[1]
    for piece, own in zip(pieces(), each, strict=True):
        (each[-1] if wrong else own).backward(gradient[piece] * (PIECE / BATCH), retain_graph=True)


def method_4(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    gradient = torch.zeros(BATCH, 10, dtype=inputs.dtype)
    for piece in pieces():
        outputs = model(inputs[piece])
        gradient[piece] = criterion_gradient(criterion, outputs, targets[piece])[1]
        if not wrong:
            outputs.backward(gradient[piece] * (PIECE / BATCH))
    if wrong:
        for piece in pieces():
            outputs.backward(gradient[piece] * (PIECE / BATCH), retain_graph=True)


def method_5(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    gradient = torch.zeros(BATCH, 10, dtype=inputs.dtype)
    for piece in pieces():
        gradient[piece] = criterion_gradient(criterion, model(inputs[piece]), targets[piece])[1]
    for piece in pieces():
        model(inputs[pieces()[-1] if wrong else piece]).backward(gradient[piece] * (PIECE / BATCH))


def whole_batch_leaf(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    """Method 3 where the criterion sees the whole batch at once."""
    each = [model(inputs[piece]) for piece in pieces()]
    leaf = torch.cat([one.detach() for one in each]).requires_grad_()
    criterion(leaf, targets).backward()
    for piece, own in zip(pieces(), each, strict=True):
        (each[-1] if wrong else own).backward(leaf.grad[piece], retain_graph=True)


def without_graph(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    """Method 5 where the first pass keeps no graph and takes the batch in other pieces."""
    with torch.no_grad():
        leaf = torch.cat([model(inputs[:9]), model(inputs[9:])])
    leaf.requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(leaf, targets), leaf)
    for piece in pieces():
        model(inputs[pieces()[-1] if wrong else piece]).backward(gradient[piece])


def surrogate(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    each = [model(inputs[piece]) for piece in pieces()]
    leaf = torch.cat(each).detach().requires_grad_()
    criterion(leaf, targets).backward()
    for piece, own in zip(pieces(), each, strict=True):
        ((each[-1] if wrong else own) * leaf.grad[piece]).sum().backward(retain_graph=True)


def one_call(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    """`torch.autograd.backward` with all outputs at once; wrong: two micro-batches changed over."""
    each = [model(inputs[piece]) for piece in pieces()]
    leaf = torch.cat(each).detach().requires_grad_()
    criterion(leaf, targets).backward()
    given = [leaf.grad[piece] for piece in pieces()]
    torch.autograd.backward([each[1], each[0], *each[2:]] if wrong else each, given)


def summed(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    """Method 3 in one backward: the sum of all gradients through the last graph is the same update."""
    each = [model(inputs[piece]) for piece in pieces()]
    leaf = torch.cat(each).detach().requires_grad_()
    criterion(leaf, targets).backward()
    if wrong:
        each[-1].backward(sum(leaf.grad[piece] for piece in pieces()))
    else:
        torch.cat(each).backward(leaf.grad)


def by_autograd_grad(model: nn.Module, criterion: Any, inputs: Tensor, targets: Tensor, wrong: bool) -> None:
    """Method 4 where the gradient is asked of the model's outputs themselves."""
    each = [model(inputs[piece]) for piece in pieces()]
    parts = [criterion(own, targets[piece]) for piece, own in zip(pieces(), each, strict=True)]
    given = [torch.autograd.grad(part, own, retain_graph=True)[0] for part, own in zip(parts, each, strict=True)]
    for own, gradient in zip(each, given, strict=True):
        (each[-1] if wrong else own).backward(gradient * (PIECE / BATCH), retain_graph=True)


LOOPS: dict[str, tuple[Any, str]] = {
    "method 3": (method_3, OTHER_GRAPH),
    "method 4": (method_4, OTHER_GRAPH),
    "method 5": (method_5, REPEATED_ON_OTHERS),
    "the criterion sees the whole batch": (whole_batch_leaf, OTHER_GRAPH),
    "a first pass without graph, in other pieces": (without_graph, REPEATED_ON_OTHERS),
    "a surrogate": (surrogate, OTHER_GRAPH),
    "one call": (one_call, OTHER_GRAPH),
    "summed": (summed, OTHER_GRAPH),
    "autograd.grad": (by_autograd_grad, OTHER_GRAPH),
}
CRITERIA: dict[str, tuple[bool, Any]] = {"cross entropy": (False, nn.CrossEntropyLoss()), "nll": (True, nn.NLLLoss())}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_wrong_loop_is_told_by_name_and_the_right_one_is_exact(loop: str, criterion: str) -> None:
    (method, kind), (log_softmax, loss) = LOOPS[loop], CRITERIA[criterion]
    model, (inputs, targets) = net(log_softmax=log_softmax), digits()
    expected = right_gradient(model, loss, inputs, targets)
    with pytest.raises(MismatchError) as caught, check_backward(model):
        method(model, loss, inputs, targets, wrong=True)
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{kind}: ")
    assert grads(model) == []
    with check_backward(model):
        method(model, loss, inputs, targets, wrong=False)
    assert distance(grads(model), expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loop", [name for name in LOOPS if name != "summed"])
def test_lower_precision_is_told_too(loop: str, dtype: torch.dtype) -> None:
    method, kind = LOOPS[loop]
    model, (inputs, targets) = net().to(dtype), digits(dtype=dtype)
    with check_backward(model):
        method(model, nn.CrossEntropyLoss(), inputs, targets, wrong=False)
    with pytest.raises(MismatchError) as caught, check_backward(model):
        method(model, nn.CrossEntropyLoss(), inputs, targets, wrong=True)
    assert caught.value.kind == kind


def test_the_documents_wrong_loops_are_one_update_and_far_from_the_right_one() -> None:
    inputs, targets = digits()
    found = []
    for method in (method_3, method_4, method_5):
        model = net(log_softmax=True)
        method(model, nn.NLLLoss(), inputs, targets, wrong=True)
        found.append(grads(model))
    for one, other in itertools.combinations(found, 2):
        assert distance(one, other) < 1e-12
    assert distance(found[0], right_gradient(net(log_softmax=True), nn.NLLLoss(), inputs, targets)) > 0.5


def test_the_message_tells_which_forwards_of_what_shape_and_which_rows() -> None:
    model, (inputs, targets) = net(), digits()
    with pytest.raises(MismatchError) as caught, check_backward(model):
        whole_batch_leaf(model, nn.CrossEntropyLoss(), inputs, targets, wrong=True)
    shapes = "(inputs 6×1×8×8 float64, outputs 6×10 float64)"
    assert str(caught.value) == (
        "another forward's graph: a gradient computed from the outputs of forward 1 " + shapes + " was sent through "
        "the graph of forward 4 " + shapes + ": rows 0 to 5 of the 24 of that gradient, times a number. A graph holds "
        "what its own forward left behind, so what would have reached the weights is the gradient of nothing. Keep "
        "the outputs of every micro-batch, and call outputs.backward(gradient) on the very outputs that the gradient "
        "was computed from. Or leave it all to gradstep.backward(model, criterion, inputs, targets, micro_batch=...)."
    )
    assert isinstance(caught.value, ModelError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.kind) == (str(caught.value), caught.value.kind)


def through_time(wrong: bool) -> None:
    """The batch is the second dimension, and outputs come with a state."""
    torch.manual_seed(0)
    model, inputs = nn.GRU(8, 6), torch.randn(7, 12, 8)
    with check_backward(model):
        each = [model(inputs[:, start : start + 4])[0] for start in (0, 4, 8)]
        leaf = torch.cat(each, 1).detach().requires_grad_()
        leaf.tanh().square().mean().backward()
        for number, own in enumerate(each):
            (each[-1] if wrong else own).backward(leaf.grad[:, 4 * number : 4 * number + 4], retain_graph=True)


def tokens(wrong: bool) -> None:
    """The criterion sees all tokens of all texts in one row of them."""
    torch.manual_seed(0)
    model, given, wanted = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20)), *torch.randint(20, (2, 12, 9))
    with check_backward(model):
        each = [model(given[start : start + 4]).flatten(0, 1) for start in (0, 4, 8)]
        leaf = torch.cat(each).detach().requires_grad_()
        F.cross_entropy(leaf, wanted.flatten()).backward()
        for number, own in enumerate(each):
            (each[-1] if wrong else own).backward(leaf.grad[36 * number : 36 * number + 36], retain_graph=True)


def one_number_each(wrong: bool) -> None:
    torch.manual_seed(0)
    model, (inputs, _) = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)).double(), digits()
    with check_backward(model):
        each = [model(inputs[piece]) for piece in pieces()]
        leaf = torch.cat(each).detach().requires_grad_()
        F.mse_loss(leaf, inputs.std((1, 2, 3))).backward()
        for piece, own in zip(pieces(), each, strict=True):
            (each[-1] if wrong else own).backward(leaf.grad[piece], retain_graph=True)


class SquareSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0]


def own_function_and_compiled(wrong: bool) -> None:
    model, (inputs, _) = net(), digits()
    compiled = torch.compile(model, backend="eager")
    with check_backward(compiled):
        each = [compiled(inputs[piece]) for piece in pieces()[:2]]
        leaf = each[0].detach().requires_grad_()
        SquareSum.apply(leaf).backward()
        each[wrong].backward(leaf.grad)


@pytest.mark.parametrize("loop", [through_time, tokens, one_number_each, own_function_and_compiled])
def test_outputs_of_other_shapes(loop: Callable[[bool], None]) -> None:
    loop(False)
    with pytest.raises(MismatchError, match="another forward's graph"):
        loop(True)


def test_other_things_of_torch_work_as_ever() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(8, 5), torch.randn(3, 8)
    sparse = nn.Embedding(9, 4, sparse=True)
    with check_backward([model, sparse]):
        torch.vmap(torch.func.grad(lambda row: model(row).sum()))(inputs)
        torch.autograd.functional.jacobian(model, inputs[0], vectorize=True)
        torch.autograd.functional.hvp(lambda row: model(row).square().sum(), inputs[0], inputs[0])
        torch.autograd.gradcheck(model.double(), inputs[:1].double().requires_grad_())
        model.float()
        with torch.inference_mode():
            model(inputs)
        model(torch.zeros(0, 8)).sum().backward()
        for _ in range(2):
            sparse(torch.tensor([1, 2])).square().sum().backward()
        outputs = model(inputs)
        leaf = outputs.detach().requires_grad_()
        (leaf * 2).sum().backward()
        for each in (model, leaf, copy.deepcopy(model)):
            pickle.dumps(each)


# Outputs that are no longer those that the gradient was computed from.


def two_pass(model: nn.Module, inputs: Tensor, targets: Tensor, between: Callable[[], object]) -> None:
    with torch.no_grad():
        leaf = torch.cat([model(inputs[piece]) for piece in pieces()])
    leaf.requires_grad_()
    F.cross_entropy(leaf, targets).backward()
    between()
    for piece in pieces():
        model(inputs[piece]).backward(leaf.grad[piece])


def test_a_step_of_the_optimizer_in_between_is_told() -> None:
    model, (inputs, targets) = net(), digits()
    F.cross_entropy(model(inputs), targets).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with (
        pytest.raises(MismatchError, match=r"stale outputs: .*The weights were changed in between") as caught,
        check_backward(model),
    ):
        two_pass(model, inputs, targets, optimizer.step)
    assert caught.value.kind == STALE


def test_another_dropout_mask_is_told_and_the_same_one_is_right() -> None:
    model, (inputs, targets) = net(dropout=0.5), digits()
    with (
        pytest.raises(MismatchError, match=r"stale outputs: .*draw the same masks again") as caught,
        check_backward(model),
    ):
        two_pass(model, inputs, targets, lambda: None)
    assert caught.value.kind == STALE
    state = torch.get_rng_state()
    with check_backward(model):
        two_pass(model, inputs, targets, lambda: torch.set_rng_state(state))


def test_a_first_pass_in_evaluation_mode_is_told() -> None:
    model, (inputs, targets) = net(norm=True).eval(), digits()
    with (
        pytest.raises(MismatchError, match=r"stale outputs: .*call model\.train\(\) before both"),
        check_backward(model),
    ):
        two_pass(model, inputs, targets, model.train)


def test_stale_outputs_under_a_linear_criterion_are_right_and_not_told() -> None:
    model, (inputs, targets) = net(dropout=0.5, log_softmax=True), digits()
    with check_backward(model):
        method_5(model, nn.NLLLoss(), inputs, targets, wrong=False)


# What the check leaves behind: nothing.


def hooks_everywhere(model: nn.Module, *tensors: Tensor) -> list[Any]:
    everywhere = [torch_module._global_forward_hooks, torch_module._global_forward_hooks_with_kwargs]
    held = [*everywhere, *(each._forward_hooks for each in model.modules())]
    return [*held, *(each._backward_hooks or {} for each in (*model.parameters(), *tensors))]


def test_grad_is_as_it_was_before_the_offending_backward() -> None:
    heads = nn.ModuleDict({"a": nn.Linear(64, 3), "b": nn.Linear(64, 3)}).double()

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = heads

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {name: head(inputs.flatten(1)) for name, head in self.heads.items()}

    model, (inputs, _) = Two(), digits()
    model(inputs)["a"].sum().backward()
    before = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}
    assert any(held is None for held, _ in before.values())

    def loop() -> None:
        one, other = model(inputs[:6]), model(inputs[6:12])
        leaves = {name: each.detach().requires_grad_() for name, each in one.items()}
        sum(each.square().sum() for each in leaves.values()).backward()
        given = [leaves["a"].grad, leaves["b"].grad]
        torch.autograd.backward([other["a"], one["b"]], given)  # the second is right, and may be through already

    with pytest.raises(MismatchError), check_backward(model):
        loop()
    for name, parameter in model.named_parameters():
        held, values = before[name]
        assert parameter.grad is held
        assert held is None or torch.equal(held, values)


def test_no_hook_stays_and_no_graph_is_kept_alive() -> None:
    model, (inputs, targets) = net(), digits()
    kept = model(inputs[:2])
    seen = [kept]

    def loop() -> None:
        seen.append(model(inputs))
        seen.append(seen[-1].detach().requires_grad_())
        (seen[-1] * 2).sum().backward()
        assert any(hooks_everywhere(model, *seen))
        method_3(model, nn.CrossEntropyLoss(), inputs, targets, wrong=True)

    with pytest.raises(MismatchError), check_backward(model):
        loop()
    assert not any(hooks_everywhere(model, *seen))
    with check_backward(model):
        outputs = model(inputs)
        in_graph = type("InGraph", (), {})()  # which nothing but the graph will hold
        outputs.register_hook(lambda gradient, held=in_graph: None)
        node = weakref.ref(in_graph)
        leaf = outputs.detach().requires_grad_()
        F.cross_entropy(leaf, targets).backward()
        outputs.backward(leaf.grad)
        cut = weakref.ref(leaf)
        del outputs, leaf, in_graph
        gc.collect()
        assert node() is None
        assert cut() is None
    with pytest.raises(ZeroDivisionError), check_backward(model):
        1 / 0  # noqa: B018
    assert not any(hooks_everywhere(model))


def test_what_is_remembered_is_bounded() -> None:
    model, (inputs, targets) = net(), digits()

    def loop() -> None:
        each = [model(inputs[piece]) for piece in pieces()]
        _, gradient = criterion_gradient(nn.CrossEntropyLoss(), each[0], targets[:PIECE])
        each[-1].backward(gradient)

    with check_backward(model, keep=3):  # the first is forgotten by then: nothing can be said of it
        loop()
    with pytest.raises(MismatchError), check_backward(model, keep=4):
        loop()


def test_outputs_of_one_forward_changed_over_are_its_loops_own_business() -> None:
    model, (inputs, _) = net(), digits()
    pair = nn.ModuleList([model, net(seed=1)])
    pair.forward = lambda given: [each(given) for each in pair]
    with check_backward(pair):
        one, other = pair(inputs)
        leaf = one.detach().requires_grad_()
        leaf.square().sum().backward()
        other.backward(leaf.grad)  # as in target propagation


def test_only_modules_are_watched() -> None:
    with pytest.raises(ModelError, match="takes a module, or a list of modules: int is none"), check_backward([3]):
        pass


def test_nested_checks_and_several_models() -> None:
    encoder, head = nn.Linear(64, 8).double(), nn.Linear(8, 10).double()
    inputs, targets = digits()
    with check_backward([encoder, head]), check_backward(encoder):
        hidden = encoder(inputs.flatten(1))
        leaf = hidden.detach().requires_grad_()
        F.cross_entropy(head(leaf), targets).backward()
        hidden.backward(leaf.grad)

    def loop() -> None:
        hidden = [encoder(inputs[piece].flatten(1)) for piece in pieces()]
        leaf = hidden[0].detach().requires_grad_()
        F.cross_entropy(head(leaf), targets[:PIECE]).backward()
        hidden[1].backward(leaf.grad)

    told = pytest.raises(MismatchError, match=r"forward 1 \(of model 1, Linear; inputs")
    with told, check_backward([encoder, head]), check_backward(head):
        loop()


# Right loops: none is ever accused, and none comes out otherwise for being watched.


def sgd(*modules: nn.Module, lr: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD([p for m in modules for p in m.parameters() if p.requires_grad], lr=lr, momentum=0.9)


def batches(steps: int = 4, samples: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    return (digits(seed, samples) for seed in range(steps))


def train(watch: Watch, model: nn.Module, step: Callable[[Tensor, Tensor], object], *more: nn.Module) -> list[Tensor]:
    """A few steps of `step(inputs, targets)`, which leaves its gradient in `.grad`."""
    optimizer = sgd(model, *more)
    with watch([model, *more]):
        for inputs, targets in batches():
            optimizer.zero_grad()
            step(inputs, targets)
            optimizer.step()
    return [p for m in (model, *more) for p in m.parameters()]


def plain(watch: Watch) -> list[Tensor]:
    model = net()
    return train(watch, model, lambda x, t: F.cross_entropy(model(x), t).backward())


def plain_nll_and_constants(watch: Watch) -> list[Tensor]:
    """One batch again and again, seen in two ways, under a criterion that is linear in the outputs."""
    model = net(log_softmax=True)

    def step(x: Tensor, t: Tensor) -> None:
        for view in (x, x.flip(-1), x + 0.1):
            F.nll_loss(model(view), t).backward()

    return train(watch, model, step)


def accumulation(watch: Watch) -> list[Tensor]:
    model = net()

    def step(x: Tensor, t: Tensor) -> None:
        for piece in pieces():
            (F.cross_entropy(model(x[piece]), t[piece]) * (PIECE / BATCH)).backward()

    return train(watch, model, step)


def weight_tying(watch: Watch) -> list[Tensor]:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(17, 12), nn.Linear(12, 17, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.embed(tokens).cumsum(1).tanh())

    torch.manual_seed(0)
    model = Tied()

    def step(x: Tensor, t: Tensor) -> None:
        tokens = (x.flatten(1)[:, 20:30] * 16).round().long()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()

    return train(watch, model, step)


def dropout_and_batch_norm(watch: Watch) -> list[Tensor]:
    model = net(dropout=0.5, norm=True)
    return train(watch, model, lambda x, t: F.cross_entropy(model(x), t).backward())


def checkpointed(reentrant: bool, whole: bool) -> Callable[[Watch], list[Tensor]]:
    def loop(watch: Watch) -> list[Tensor]:
        inner, head = net(dropout=0.3), nn.Linear(10, 10).double()

        def step(x: Tensor, t: Tensor) -> None:
            x = x.clone().requires_grad_()  # which the reentrant one needs
            if whole:
                leaf = (outputs := checkpoint(inner, x, use_reentrant=reentrant)).detach().requires_grad_()
                F.cross_entropy(head(leaf), t).backward()
                outputs.backward(leaf.grad)
            else:
                F.cross_entropy(head(checkpoint(inner, x, use_reentrant=reentrant)), t).backward()

        return train(watch, inner, step, head)

    return loop


def gan(watch: Watch) -> list[Tensor]:
    torch.manual_seed(0)
    g, d = (
        nn.Sequential(nn.Linear(4, 64)).double(),
        nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1)).double(),
    )
    of_g, of_d = sgd(g), sgd(d)
    with watch([g, d]):
        for x, _ in batches():
            ones, zeros = torch.ones(BATCH, 1).double(), torch.zeros(BATCH, 1).double()
            fake = g(torch.randn(BATCH, 4).double())
            of_d.zero_grad()
            real_loss = F.binary_cross_entropy_with_logits(d(x.flatten(1)), ones)
            (real_loss + F.binary_cross_entropy_with_logits(d(fake.detach()), zeros)).backward()
            of_d.step()
            of_g.zero_grad()
            F.binary_cross_entropy_with_logits(d(fake), ones).backward()
            of_g.step()
    return [*g.parameters(), *d.parameters()]


def gan_by_pieces(watch: Watch) -> list[Tensor]:
    """The generator's gradient taken by way of a leaf that the critic sees, as for a large generator."""
    torch.manual_seed(0)
    g, d = (
        nn.Sequential(nn.Linear(4, 64)).double(),
        nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1)).double(),
    )

    def step(x: Tensor, _: Tensor) -> None:
        fake = g(torch.randn(BATCH, 4).double())
        leaf = fake.detach().requires_grad_()
        (d(leaf).mean() - d(x.flatten(1)).mean()).backward()
        fake.backward(-leaf.grad)

    return train(watch, g, step, d)


def wgan_with_penalty(watch: Watch) -> list[Tensor]:
    torch.manual_seed(0)
    g, d = (
        nn.Sequential(nn.Linear(4, 64)).double(),
        nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1)).double(),
    )
    of_g, of_d = sgd(g, lr=1e-3), sgd(d, lr=1e-3)
    with watch([g, d]):
        for x, _ in batches():
            real, noise = x.flatten(1), torch.randn(BATCH, 4).double()
            of_d.zero_grad()
            fake = g(noise).detach()
            mixed = (fake + torch.rand(BATCH, 1) * (real - fake)).requires_grad_()
            (slope,) = torch.autograd.grad(d(mixed).sum(), mixed, create_graph=True)
            (d(fake).mean() - d(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()).backward()
            of_d.step()
            of_g.zero_grad()
            (-d(g(noise)).mean()).backward()
            of_g.step()
    return [*g.parameters(), *d.parameters()]


def lbfgs(watch: Watch) -> list[Tensor]:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")
    with watch(model):
        for x, t in batches(2):

            def closure(x: Tensor = x, t: Tensor = t) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), t)
                loss.backward()
                return loss

            optimizer.step(closure)
    return list(model.parameters())


def two_criteria_over_one_graph(watch: Watch) -> list[Tensor]:
    model = net()

    def step(x: Tensor, t: Tensor) -> None:
        outputs = model(x)
        F.cross_entropy(outputs, t).backward(retain_graph=True)
        F.cross_entropy(outputs, t).backward(retain_graph=True)  # the very same once more
        outputs.square().mean().backward()

    return train(watch, model, step)


def two_criteria_over_one_leaf(watch: Watch) -> list[Tensor]:
    model = net()

    def step(x: Tensor, t: Tensor) -> None:
        outputs = model(x)
        leaf = outputs.detach().requires_grad_()
        F.cross_entropy(leaf, t).backward()
        leaf.square().mean().backward()
        outputs.backward(leaf.grad)

    return train(watch, model, step)


def adversarial(watch: Watch) -> list[Tensor]:
    model = net()

    def step(x: Tensor, t: Tensor) -> None:
        near = x.clone().requires_grad_()
        for _ in range(2):
            (slope,) = torch.autograd.grad(F.cross_entropy(model(near), t), near)
            near.data += 0.1 * slope.sign()
        F.cross_entropy(model(near.detach()), t).backward()
        F.cross_entropy(model(x), t).backward()

    return train(watch, model, step)


def learned_offset(watch: Watch) -> list[Tensor]:
    """A tensor that is no parameter in the graph of the outputs themselves: earlier outputs, carried on."""
    model = net()
    with watch(model):
        carried = torch.zeros(BATCH, 10).double()
        for x, t in batches():
            leaf = carried.clone().requires_grad_()
            outputs = model(x) + leaf
            loss = F.cross_entropy(outputs, t)
            loss.backward(retain_graph=True)
            loss.backward()
            carried = model(x).detach()
    return list(grads(model))


def split_model(watch: Watch) -> list[Tensor]:
    torch.manual_seed(0)
    front, back = nn.Sequential(nn.Linear(64, 16), nn.Tanh()).double(), nn.Linear(16, 10).double()

    def step(x: Tensor, t: Tensor) -> None:
        hidden = front(x.flatten(1))
        leaf = hidden.detach().requires_grad_()
        F.cross_entropy(back(leaf), t).backward()
        hidden.backward(leaf.grad)

    return train(watch, front, step, back)


def gradient_cache(watch: Watch) -> list[Tensor]:
    """A contrastive loss of the whole batch, with dropout masks drawn again as they were."""
    model = net(dropout=0.5)

    def step(x: Tensor, _: Tensor) -> None:
        states, parts = [], []
        for piece in pieces():
            states.append(torch.get_rng_state())
            with torch.no_grad():
                parts.append(model(x[piece]))
        leaf = torch.cat(parts).requires_grad_()
        F.cross_entropy(F.normalize(leaf) @ F.normalize(leaf).T * 5, torch.arange(BATCH).roll(1)).backward()
        after = torch.get_rng_state()
        for piece, state in zip(pieces(), states, strict=True):
            torch.set_rng_state(state)
            (model(x[piece]) * leaf.grad[piece]).sum().backward()
        torch.set_rng_state(after)

    return train(watch, model, step)


def documents(method: Any) -> Callable[[Watch], list[Tensor]]:
    def loop(watch: Watch) -> list[Tensor]:
        model = net(log_softmax=True)
        return train(watch, model, lambda x, t: method(model, nn.NLLLoss(), x, t, wrong=False))

    return loop


def tempered(watch: Watch) -> list[Tensor]:
    """The criterion sees outputs / 2: the gradient that arrives is a multiple of one taken at other values."""
    model = net()

    def step(x: Tensor, t: Tensor) -> None:
        outputs = model(x) / 2
        leaf = outputs.detach().requires_grad_()
        F.cross_entropy(leaf, t).backward()
        outputs.backward(leaf.grad)

    return train(watch, model, step)


def siamese(watch: Watch) -> list[Tensor]:
    encoder = net()

    def step(x: Tensor, _: Tensor) -> None:
        F.mse_loss(encoder(x), encoder(x.flip(-1))).backward()

    return train(watch, encoder, step)


def distillation(watch: Watch) -> list[Tensor]:
    student, teacher = net(), net(seed=1)
    teacher.eval().requires_grad_(False)

    def step(x: Tensor, t: Tensor) -> None:
        with torch.no_grad():
            soft = teacher(x).softmax(1)
        F.cross_entropy(student(x), soft).backward()

    return train(watch, student, step, teacher)


def truncated_through_time(watch: Watch) -> list[Tensor]:
    torch.manual_seed(0)
    cell, head = nn.GRUCell(8, 12).double(), nn.Linear(12, 10).double()

    def step(x: Tensor, t: Tensor) -> None:
        hidden = torch.zeros(BATCH, 12).double()
        for chunk in x.squeeze(1).split(4, dim=1):
            hidden = hidden.detach().requires_grad_()
            for line in chunk.unbind(1):
                hidden = cell(line, hidden)
            F.cross_entropy(head(hidden), t).backward()

    return train(watch, cell, step, head)


def by_hand_through_time(watch: Watch) -> list[Tensor]:
    torch.manual_seed(0)
    cell, head = nn.GRUCell(8, 12).double(), nn.Linear(12, 10).double()

    def step(x: Tensor, t: Tensor) -> None:
        leaves, outputs = [torch.zeros(BATCH, 12).double()], []
        for line in x.squeeze(1).unbind(1):
            outputs.append(cell(line, leaves[-1]))
            leaves.append(outputs[-1].detach().requires_grad_())
        F.cross_entropy(head(leaves[-1]), t).backward()
        for output, leaf in zip(reversed(outputs), reversed(leaves), strict=False):
            output.backward(leaf.grad)

    return train(watch, cell, step, head)


def multi_task(watch: Watch) -> list[Tensor]:
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Linear(64, 16), nn.Linear(16, 10), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.body(x.flatten(1)).relu()
            return {"digit": self.a(hidden), "ink": self.b(hidden)}

    torch.manual_seed(0)
    model = Tasks().double()

    def step(x: Tensor, t: Tensor) -> None:
        outputs = model(x)
        leaves = {name: each.detach().requires_grad_() for name, each in outputs.items()}
        for given in (outputs, leaves):  # both ways
            loss = F.cross_entropy(given["digit"], t) + F.mse_loss(given["ink"][:, 0], x.mean((1, 2, 3)))
            loss.backward(retain_graph=True)
        torch.autograd.backward(list(outputs.values()), [leaf.grad for leaf in leaves.values()])

    return train(watch, model, step)


def functional_gradient(watch: Watch) -> list[Tensor]:
    model = net()
    with watch(model):
        for x, t in batches():
            found = torch.autograd.grad(F.cross_entropy(model(x), t), list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), found, strict=True):
                    parameter -= 0.05 * gradient
            torch.func.grad(lambda w, x=x, t=t: F.cross_entropy(torch.func.functional_call(model, w, (x,)), t))(
                {name: p.detach() for name, p in model.named_parameters()}
            )
    return list(model.parameters())


def meta_learning(watch: Watch) -> list[Tensor]:
    model = net()

    def step(x: Tensor, t: Tensor) -> None:
        fast = dict(model.named_parameters())
        loss = F.cross_entropy(torch.func.functional_call(model, fast, (x[:12],)), t[:12])
        found = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), found, strict=True)}
        F.cross_entropy(torch.func.functional_call(model, fast, (x[12:],)), t[12:]).backward()

    return train(watch, model, step)


def frozen_layers(watch: Watch) -> list[Tensor]:
    model = net()
    model[1].requires_grad_(False)
    return train(watch, model, lambda x, t: F.cross_entropy(model(x), t).backward())


def ema_teacher(watch: Watch) -> list[Tensor]:
    online, predictor = net(), nn.Linear(10, 10).double()
    optimizer = sgd(online, predictor)
    with watch([online, predictor]):
        target = copy.deepcopy(online).requires_grad_(False)  # made while watched
        for x, _ in batches():
            optimizer.zero_grad()
            one, other = predictor(online(x)), target(x.flip(-1)).detach()
            (2 - 2 * F.cosine_similarity(one, other)).mean().backward()
            optimizer.step()
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.lerp_(fast.detach(), 0.1)
    return [*online.parameters(), *target.parameters()]


def straight_through(watch: Watch) -> list[Tensor]:
    model, head = net(), nn.Linear(10, 10).double()

    def step(x: Tensor, t: Tensor) -> None:
        hard = F.gumbel_softmax(model(x), hard=True)
        soft = model(x).softmax(1)
        snapped = soft + (soft.round() - soft).detach()
        F.cross_entropy(head(hard) + head(snapped), t).backward()

    return train(watch, model, step, head)


def policy_gradient(watch: Watch) -> list[Tensor]:
    """Linear in the outputs, with weights by row, several times over one batch: on a leaf and without one."""
    model = net(log_softmax=True)

    def step(x: Tensor, t: Tensor) -> None:
        advantage = x.flatten(1).std(1)
        for with_leaf in (True, False, True):
            outputs = model(x)
            given = outputs.detach().requires_grad_() if with_leaf else outputs
            (-advantage * given.gather(1, t[:, None])[:, 0]).mean().backward()
            if with_leaf:
                outputs.backward(given.grad)
            with torch.no_grad():
                model[1].weight -= 1e-3

    return train(watch, model, step)


def one_output_one_sample(watch: Watch) -> list[Tensor]:
    """Numbers of one: any is a multiple of any other, so nothing may be concluded from them."""
    torch.manual_seed(0)
    model = nn.Linear(64, 1).double()

    def step(x: Tensor, t: Tensor) -> None:
        outputs = model(x[:8].flatten(1))
        leaf = outputs.detach().requires_grad_()
        F.mse_loss(leaf[:, 0], t[:8].double()).backward()
        outputs.backward(leaf.grad)
        for row in range(8, 12):
            F.mse_loss(model(x[row].flatten())[0], t[row].double()).backward()

    return train(watch, model, step)


def refilled_buffer(watch: Watch) -> list[Tensor]:
    """One buffer for all outputs, filled again in every step."""
    model = net()
    buffer = torch.zeros(BATCH, 10).double().requires_grad_()

    def step(x: Tensor, t: Tensor) -> None:
        buffer.grad = None
        each = [model(x[piece]) for piece in pieces()]
        with torch.no_grad():
            for piece, own in zip(pieces(), each, strict=True):
                buffer[piece] = own
        F.cross_entropy(buffer, t).backward()
        for piece, own in zip(pieces(), each, strict=True):
            own.backward(buffer.grad[piece])

    return train(watch, model, step)


def gradsteps_own(method: str) -> Callable[[Watch], list[Tensor]]:
    def loop(watch: Watch) -> list[Tensor]:
        model = net(dropout=0.5)
        micro_batch = None if method == "one_pass" else PIECE
        update = Update(model, nn.CrossEntropyLoss(), micro_batch=micro_batch, method=method)
        return train(watch, model, lambda x, t: update.backward(x, t))

    return loop


def all_in_one(criterion: str) -> Callable[[Watch], list[Tensor]]:
    """Every way in turn over one model and the same batch, which comes again, changed and unchanged."""

    def loop(watch: Watch) -> list[Tensor]:
        log_softmax, loss = CRITERIA[criterion]
        model = net(log_softmax=log_softmax)
        optimizer = sgd(model)
        with watch(model):
            for turn, (x, t) in itertools.product(range(2), batches(1)):
                for view in (x, x.flip(-1), x + 0.1):
                    loss(model(view), t).backward()
                    for method, _ in LOOPS.values():
                        method(model, loss, view, t, wrong=False)
                        loss(model(view.flip(-2)), t).backward()
                    if turn:
                        optimizer.step()
                        optimizer.zero_grad()
        return list(model.parameters())

    return loop


def scaled_for_half(watch: Watch) -> list[Tensor]:
    """Autocast to bfloat16 with the loss scaled up, and the gradient sent on at another scale."""
    model = net().float()
    optimizer = sgd(model)
    with watch(model):
        for x, t in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(x.float())
            leaf = outputs.detach().float().requires_grad_()
            (F.cross_entropy(leaf, t) * 1024).backward()
            outputs.backward((leaf.grad / 1024).to(outputs.dtype))
            optimizer.step()
    return list(model.parameters())


RIGHT: dict[str, Callable[[Watch], list[Tensor]]] = {
    "plain": plain,
    "linear criterion, same targets for several views": plain_nll_and_constants,
    "accumulation": accumulation,
    "weight tying": weight_tying,
    "dropout and batch norm": dropout_and_batch_norm,
    "checkpoint, reentrant": checkpointed(True, False),
    "checkpoint, not reentrant": checkpointed(False, False),
    "checkpoint, reentrant, before a leaf": checkpointed(True, True),
    "checkpoint, not reentrant, before a leaf": checkpointed(False, True),
    "GAN": gan,
    "GAN through a leaf": gan_by_pieces,
    "WGAN with gradient penalty": wgan_with_penalty,
    "LBFGS": lbfgs,
    "two criteria over one graph": two_criteria_over_one_graph,
    "two criteria over one leaf": two_criteria_over_one_leaf,
    "adversarial inputs": adversarial,
    "an offset in the graph": learned_offset,
    "split model": split_model,
    "gradient cache, masks drawn again": gradient_cache,
    "method 3": documents(method_3),
    "method 4": documents(method_4),
    "method 5": documents(method_5),
    "outputs changed on their way": tempered,
    "siamese": siamese,
    "distillation": distillation,
    "truncated through time": truncated_through_time,
    "by hand through time": by_hand_through_time,
    "multi-task": multi_task,
    "functional gradients": functional_gradient,
    "meta-learning": meta_learning,
    "frozen layers": frozen_layers,
    "EMA teacher": ema_teacher,
    "straight-through": straight_through,
    "policy gradient": policy_gradient,
    "one output, one sample": one_output_one_sample,
    "a buffer filled again": refilled_buffer,
    "gradstep, one pass": gradsteps_own("one_pass"),
    "gradstep, accumulate": gradsteps_own("accumulate"),
    "gradstep, two passes": gradsteps_own("two_pass"),
    "all ways in turn, cross entropy": all_in_one("cross entropy"),
    "all ways in turn, nll": all_in_one("nll"),
    "autocast, scaled": scaled_for_half,
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_loop_is_never_accused_and_comes_out_the_same(name: str) -> None:
    torch.manual_seed(1)
    expected = [each.detach().clone() for each in RIGHT[name](unwatched)]
    torch.manual_seed(1)
    found = RIGHT[name](check_backward)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
