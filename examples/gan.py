"""A small GAN on MNIST: two nets and two optimizers that take turns, in a loop of one's own.

`fit` trains one model by one criterion. Here two nets pull at each other, so the loop is written out, and gradstep does
its parts of it: the batches, and the exact gradient of each turn. The discriminator has two losses, for real images and
for generated ones; both are added up in `.grad`, half each. The generator's loss goes through the discriminator, which
is frozen for that turn. Both turns take their batches in micro-batches, a matter of memory that changes no gradient, in
spite of the dropout.

Run:     python examples/gan.py
Cost:    20 seconds
Result:  the generated images' brightness, contrast and mean come near the data's, and deceive more than at first
"""

import copy
import os
from pathlib import Path

import torch
from torch import nn

import gradstep
from gradstep import data, keys

SEED, STEPS, BATCH, MICRO_BATCH, NOISE = 0, 400, 64, 32, 32
os.environ.setdefault("GRADSTEP_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))


# The data, the nets, and how each gets its gradient.

images = data.load_named("mnist").train.content[0][:6000].flatten(1).float() / 127.5 - 1  # from -1 to 1
feed = data.Feed(data.Tensors(images), BATCH, shuffle=True, drop_last=True, seed=SEED)

torch.manual_seed(SEED)
generator = nn.Sequential(nn.Linear(NOISE, 256), nn.LeakyReLU(0.2), nn.Linear(256, 784), nn.Tanh())
discriminator = nn.Sequential(nn.Linear(784, 256), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(256, 1))
criterion = nn.BCEWithLogitsLoss()
real, generated = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)

discriminate = gradstep.Update(discriminator, criterion, micro_batch=MICRO_BATCH)
# The model that gets the gradient is the generator. What the criterion sees is the discriminator's opinion.
generate = gradstep.Update(
    generator, criterion, micro_batch=MICRO_BATCH, forward=lambda model, noise: discriminator(model(noise))
)
of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
of_generator = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))


def noise(purpose, step, samples=BATCH):
    """A function of seed, purpose and step: whatever else is drawn, this stays as it is."""
    stream = torch.Generator().manual_seed(keys.key(SEED, purpose, index=step))
    return torch.randn(samples, NOISE, generator=stream)


# The turns.


def discriminator_s_turn(images, step):
    with torch.no_grad():
        forged = generator(noise("discriminator", step))
    of_discriminator.zero_grad()
    on_real = discriminate.backward(images, real, scale=0.5).loss
    on_forged = discriminate.backward(forged, generated, scale=0.5).loss
    of_discriminator.step()
    return float(on_real + on_forged) / 2


def generator_s_turn(step):
    discriminator.eval().requires_grad_(False)  # an opinion without dropout, and no gradient for who has it
    of_generator.zero_grad()
    loss = generate.backward(noise("generator", step), real).loss
    of_generator.step()
    discriminator.train().requires_grad_(True)
    return float(loss)


# What is looked at.


@torch.no_grad()
def gallery():
    return generator(noise("gallery", 0, 1000))


def likeness(made):
    """Brightness and contrast over all pixels, and how far the mean image is from the data's."""
    return float(made.mean()), float(made.std()), float((made.mean(0) - images.mean(0)).norm())


@torch.no_grad()
def taken_for_real(made):
    """The mean probability that the discriminator gives."""
    discriminator.eval()
    probability = float(discriminator(made).sigmoid().mean())
    discriminator.train()
    return probability


def gradient(micro_batch):
    """The discriminator's gradient of the first batch, as one vector in float64, from a copy of it."""
    model = copy.deepcopy(discriminator).double()
    model.zero_grad()
    gradstep.Update(model, criterion, micro_batch=micro_batch).backward(feed[0].double(), real.double(), step=1)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


untrained = gallery()
print("step   loss of discriminator, generator   brightness   contrast   mean image apart")
for step, batch in zip(range(1, STEPS + 1), feed.start(0), strict=False):
    losses = discriminator_s_turn(batch, step), generator_s_turn(step)
    if step % 100 == 0:
        print("{:4d} {:23.3f} {:10.3f} {:12.3f} {:10.3f} {:18.2f}".format(step, *losses, *likeness(gallery())))
print("data {:47.3f} {:10.3f} {:18.2f}".format(*likeness(images)))

trained = gallery()
probabilities = [taken_for_real(made) for made in (untrained, trained, images)]
print("taken for real: untrained {:.3f}, trained {:.3f}, data {:.3f}".format(*probabilities))
whole, pieces = gradient(None), gradient(MICRO_BATCH)
print(f"micro-batches and one pass: {float((pieces - whole).norm() / whole.norm()):.1e} apart in float64")

assert (pieces - whole).norm() <= 1e-12 * whole.norm()
assert probabilities[1] > probabilities[0] + 0.15
assert abs(likeness(trained)[0] - likeness(images)[0]) < 0.2
assert abs(likeness(trained)[1] - likeness(images)[1]) < 0.25
assert likeness(trained)[2] < 0.4 * likeness(untrained)[2]
