"""At most six frames from the user's `fit()` to the model's `forward`: fit counted, forward not."""

import sys

import torch
from torch import nn

import gradstep


def test_six_frames_from_fit_to_forward() -> None:
    seen: list[list[str]] = []

    class Net(nn.Linear):
        def forward(self, inputs):
            if torch.is_grad_enabled():  # a step, not the look before training or an evaluation
                frame, names = sys._getframe(1), []
                while frame is not None and frame.f_code.co_name != "test_six_frames_from_fit_to_forward":
                    names.append(frame.f_code.co_name)
                    frame = frame.f_back
                seen.append(names[::-1])
            return super().forward(inputs)

    data = (torch.rand(8, 3), torch.randint(2, (8,)))
    gradstep.fit(
        Net(3, 2), nn.CrossEntropyLoss(), data, data, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=2,
        batch_size=4, plan="plain", quiet=True,
    )  # fmt: skip
    assert len(seen) == 4
    for names in seen:
        assert names == ["fit", "_steps", "step", "backward", "_wrapped_call_impl", "_call_impl"]
