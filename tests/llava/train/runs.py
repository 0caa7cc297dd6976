"""Looking at runs that have ended, and killing some before."""

import pytest
import torch

from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import train


class Killed(Exception):
    """Takes the place of a signal."""


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def kill_at(step: int, argv: list[str]) -> None:
    """Start a run that dies in the given step."""
    whole = LLaVATrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return whole(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LLaVATrainer, "training_step", dying)
        with pytest.raises(Killed):
            train(argv=argv)
