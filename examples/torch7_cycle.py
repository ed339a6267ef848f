"""The bare cycle of Torch7's `nn` package, line by line, on the digits.

Run:     python examples/torch7_cycle.py
Cost:    a few seconds
Result:  training accuracy >= 0.90 after 5 epochs; every update is p <- p - lr * g, exactly
"""

import torch
from torch import nn

import gradstep

LEARNING_RATE = 0.05

source = gradstep.data.prepare(gradstep.data.load_named("digits"), [gradstep.data.ToFloat()]).train
feed = gradstep.data.Feed(source, 16, shuffle=True)
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10), nn.LogSoftmax(1))
criterion = nn.NLLLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

for step in range(5 * feed.steps_per_epoch):
    inputs, targets = feed[step]
    model.train()  # model:training()
    optimizer.zero_grad()  # model:zeroGradParameters()
    outputs = model(inputs)  # model:forward(inputs)
    # criterion:forward(outputs, targets) and criterion:backward(outputs, targets): the gradient is a value of its own
    loss, gradient = gradstep.criterion_gradient(criterion, outputs, targets)
    outputs.backward(gradient)  # model:backward(inputs, gradient)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()  # model:updateParameters(lr)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old.add(parameter.grad, alpha=-LEARNING_RATE))

accuracy = gradstep.evaluate(model, criterion, source, metrics="accuracy")["accuracy"]
print(f"loss {loss:.4f}  training accuracy {accuracy:.4f}")
assert accuracy >= 0.90
