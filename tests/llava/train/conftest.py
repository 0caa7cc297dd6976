"""Tiny training data and the flags of a short run."""

import json

import pytest
from PIL import Image

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """captions.json and dialogues.json over four one-coloured pictures; every third dialogue has no picture."""
    folder = tmp_path_factory.mktemp("data")
    captions, dialogues = [], []
    for index in range(12):
        colour = COLOURS[index % 4]
        Image.new("RGB", (60, 50), colour).save(folder / f"{colour}.png")
        ask, answer = {"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"{colour} image"}
        captions.append({"id": str(index), "image": f"{colour}.png", "conversations": [ask, answer]})
        question = {"from": "human", "value": "<image>\nwhat is this?" if index % 3 else "hello?"}
        more = [{"from": "human", "value": "how many cats?"}, {"from": "gpt", "value": "two cats"}]
        picture = {"image": f"{colour}.png"} if index % 3 else {}
        dialogues.append({"id": str(index), "conversations": [question, answer, *more], **picture})
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "dialogues.json").write_text(json.dumps(dialogues))
    return folder


@pytest.fixture(scope="session")
def flags(data_folder, llama_folder, clip_folder):
    """Flags that both stages share; a function of the output folder and of more flags, which win."""

    def make(output_dir, *more: object) -> list[str]:
        shared = {
            "model_name_or_path": llama_folder,
            "vision_tower": clip_folder,
            "image_folder": data_folder,
            "output_dir": output_dir,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_use_im_patch_token": False,
            "per_device_train_batch_size": 4,
            "learning_rate": 3e-3,
            "max_steps": 6,
            "save_steps": 3,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return [text for name, value in shared.items() for text in (f"--{name}", str(value))] + [str(x) for x in more]

    return make
