"""Laws of training: the loss of a batch, and layers that are computed again in the backward pass."""

import pytest
import torch
from hosts import IMAGE, IMAGE_TOKEN, VIDEO_TOKEN
from laws import built, close, some_speaking_pairs

from flowcut import VTW, attach

pytestmark = pytest.mark.usefixtures("no_gradients")


@some_speaking_pairs
def test_loss(host, pruner):
    """A batch's loss is the mean over all its labels, so it follows from the losses of its rows."""
    model = built(host.name)
    with attach(model, pruner):
        together = host.loss(model, host.samples())
        losses = [host.loss(model, [sample]) for sample in host.samples()]
    # Every row but one that begins with an image predicts all its text tokens but the first. Where nothing is left of
    # an image, nothing predicts the first, and a row of a single word has no loss of its own.
    withdrawn = isinstance(pruner, VTW)
    begins = [host.row(sample)[0] not in (IMAGE, IMAGE_TOKEN, VIDEO_TOKEN) for sample in host.samples()]
    labels = [host.text(s) - (withdrawn or text) for s, text in zip(host.samples(), begins, strict=True)]
    mean = sum(loss * n for loss, n in zip(losses, labels, strict=True) if n) / sum(labels)
    assert close([together], [mean])


@some_speaking_pairs
def test_recompute(host, pruner, reentrant):
    """Gradient checkpointing runs layers twice; loss and gradients must not notice."""
    losses, gradients = [], []
    for checkpointing in (False, True):
        model = host.build().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            host.tower(model).gradient_checkpointing_enable({"use_reentrant": reentrant})
        with torch.enable_grad(), attach(model, pruner):
            loss = host.loss(model, host.samples())
            loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert close(losses[:1], losses[1:], 1e-6)
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert close(gradients[0], gradients[1])
