"""CLIP as the vision tower: pixels in, patch features of one hidden layer out.

The tower's weights are loaded in one of two ways. Either they are read from `mm_vision_tower` by `load_model()`, after
the language model was loaded; or, when the checkpoint has its own fine-tuned tower (`unfreeze_mm_vision_tower`), the
constructor builds the modules from their config only and the checkpoint's loader fills them.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

# The PIL processor by name: `CLIPImageProcessor` depends on whether torchvision is installed and resizes differently.
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.clip.modeling_clip import CLIPEncoder

from llava.model.recording_hooks import install_recording_hooks

_VIT_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Towers with a built-in config, so that a checkpoint that includes the weights needs no network.
KNOWN_TOWERS = {
    "clip-vit-large-patch14": {**_VIT_LARGE, "image_size": 224},
    "clip-vit-large-patch14-336": {**_VIT_LARGE, "image_size": 336},
}


def locate_tower(name: str, checkpoint: str | None = None) -> str:
    """The folder of a tower's name, searched in the checkpoint's folder first; a Hub name is returned unchanged."""
    for folder in ([Path(checkpoint) / name] if checkpoint else []) + [Path(name)]:
        if folder.is_dir():
            return str(folder)
    return name


def tower_config(source: str) -> CLIPVisionConfig:
    """The vision config of a tower: from its folder, from the table of known towers, or else from the Hub."""
    known = KNOWN_TOWERS.get(Path(source).name)
    if known is not None and not (Path(source) / "config.json").is_file():
        return CLIPVisionConfig(**known)
    return CLIPVisionConfig.from_pretrained(source)


def tower_image_processor(source: str, image_size: int) -> CLIPImageProcessorPil:
    """The tower's image processor; without a `preprocessor_config.json`, CLIP's own at the tower's size."""
    folder = Path(source)
    if (folder / "preprocessor_config.json").is_file():
        return CLIPImageProcessorPil.from_pretrained(source)
    if folder.is_dir() or folder.name in KNOWN_TOWERS:
        return CLIPImageProcessorPil(
            size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
        )
    return CLIPImageProcessorPil.from_pretrained(source)


class FeatureLayer(NamedTuple):
    """A forward that ran no further than the feature layer, as `feature_select` reads it."""

    hidden_states: dict[int, Tensor]


def _with_old_name(model: CLIPVisionModel) -> CLIPVisionModel:
    """The model, which is also its own `vision_model`: LLaVA's programs reach its parts by that name.

    In transformers 5 both are one module. A subclass with a property would not do: transformers reads checkpoints of
    its own classes only under all names.
    """
    model.__dict__["vision_model"] = model
    return model


class CLIPVisionTower(nn.Module):
    """`CLIPVisionModel` with LLaVA's choice of layer and tokens.

    vision_tower: Hub name, local folder, or folder inside the checkpoint the config came from.
    args: config or model arguments; reads `mm_vision_select_layer`, `mm_vision_select_feature`,
        `unfreeze_mm_vision_tower`, and `mm_vision_tower_config`: the tower's config, where no folder has it.
    delay_load: leave the weights for a later `load_model()`.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        self.vision_tower_name = vision_tower
        self.source = locate_tower(vision_tower, getattr(args, "_name_or_path", None))
        self.select_layer = args.mm_vision_select_layer
        self.select_feature = getattr(args, "mm_vision_select_feature", "patch")
        self._own_config = getattr(args, "mm_vision_tower_config", None)
        self.is_loaded = False
        if not delay_load:
            self.load_model()
        elif getattr(args, "unfreeze_mm_vision_tower", False):
            # No from_pretrained here: transformers builds the outer model on the meta device and rejects a nested call.
            self.vision_tower = _with_old_name(CLIPVisionModel(self.cfg_only))
            self.image_processor = tower_image_processor(self.source, self.config.image_size)
            self.is_loaded = True

    @property
    def cfg_only(self) -> CLIPVisionConfig:
        """The tower's config before the weights are loaded."""
        if self._own_config:
            return CLIPVisionConfig.from_dict(self._own_config)
        return tower_config(self.source)

    def load_model(self, device_map: Any = None) -> None:
        """Read the weights from `vision_tower`, frozen. Does nothing when they are loaded already.

        Raises ValueError when nothing can be loaded under that name.
        """
        if self.is_loaded:
            return
        loading: Any = CLIPVisionModel.from_pretrained  # its annotation does not know of the report
        try:
            model, report = loading(self.source, device_map=device_map, dtype=torch.float32, output_loading_info=True)
            self.vision_tower = _with_old_name(model)
            self.image_processor = tower_image_processor(self.source, self.config.image_size)
        except Exception as error:  # transformers raises many kinds for damaged files and odd configs
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"vision tower {self.vision_tower_name!r} cannot be loaded; give a folder with CLIP weights or a name "
                f"that the Hugging Face Hub (or its local cache) knows ({type(error).__name__}: {reason})"
            ) from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(
                f"vision tower {self.vision_tower_name!r} lacks {len(missing)} weights of a CLIP vision model, such as "
                f"{missing[0]}; give a complete one"
            )
        self.vision_tower.requires_grad_(False)
        self.is_loaded = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Weights are loaded with and without the level `vision_model` in their names."""
        old, new = f"{prefix}vision_tower.vision_model.", f"{prefix}vision_tower."
        for name in [name for name in state_dict if name.startswith(old)]:
            state_dict[new + name.removeprefix(old)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """Pick hidden layer and tokens: "patch" drops the CLS token, "cls_patch" keeps it."""
        features = image_forward_outs.hidden_states[self.select_layer]
        if self.select_feature == "patch":
            return features[:, 1:]
        if self.select_feature == "cls_patch":
            return features
        raise ValueError(f"Unexpected select feature: {self.select_feature}; use patch or cls_patch")

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Features [B, n, hidden_size] of images [B, 3, H, W], in the images' dtype.

        A list of [3, H, W] gives a list of [1, n_i, hidden_size]. n is `num_patches` unless a pruner shortens it;
        images that it leaves with fewer tokens than others are padded at the end.
        Gradients flow only when some parameter of the tower is trainable.
        Raises ValueError before the weights are loaded.
        """
        if not self.is_loaded:
            raise ValueError(f"vision tower {self.vision_tower_name} is not loaded yet; call load_model() first")
        if isinstance(images, list):
            return [self._encode(image[None]) for image in images]
        return self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        trainable = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            device = images.device if self.device.type == "meta" else self.device  # where accelerate keeps the weights
            features = self.feature_select(self._run(images.to(device=device, dtype=self.dtype)))
        return features.to(images.dtype)

    def _run(self, pixels: Tensor) -> Any:
        """The encoder's outputs with `hidden_states`; of these only the feature layer's, and layers after it are not
        run, unless another program reads more.
        """
        model = self.vision_tower
        if self._is_changed():
            return model(pixels, output_hidden_states=True)
        encoder = copy.copy(model.encoder)
        encoder._modules = {**model.encoder._modules, "layers": model.encoder.layers[: self.layers_run]}
        short = copy.copy(model)
        short._modules = {**model._modules, "encoder": encoder}
        return FeatureLayer({self.select_layer: short(pixels).last_hidden_state})

    def _is_changed(self) -> bool:
        """Whether another program put something of its own on the encoder, which may need all of its outputs."""
        model = self.vision_tower
        if "encoder" not in model._modules:  # PEFT wrapped it
            return True
        if not getattr(model, "_output_capturing_hooks_installed", False):
            install_recording_hooks(model)  # else transformers would do it for each of the copies in `_run`
        encoder = model.encoder
        methods = (self.feature_select, model.forward, encoder.forward)
        if any(getattr(method, "__func__", None) is not own for method, own in zip(methods, _OWN_METHODS, strict=True)):
            return True
        left_out = [part for layer in encoder.layers[self.layers_run :] for part in layer.modules()]
        hooked = any(_is_hooked(module) for module in (model, encoder, model.post_layernorm, *left_out))
        return hooked or bool(model.config.output_attentions or model.config.output_hidden_states)

    @property
    def dummy_feature(self) -> Tensor:
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def config(self) -> Any:
        return self.vision_tower.config if "vision_tower" in self._modules else self.cfg_only

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def layers_run(self) -> int:
        """The number of encoder layers that a forward runs: up to the feature layer."""
        return self.select_layer if self.select_layer >= 0 else self.config.num_hidden_layers + 1 + self.select_layer

    @property
    def num_patches_per_side(self) -> int:
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        return self.num_patches_per_side**2


_OWN_METHODS = CLIPVisionTower.feature_select, CLIPVisionModel.forward, CLIPEncoder.forward
_OWN_HOOKS = "flowcut.", "llava.", "transformers.utils.output_capturing"


def _is_hooked(module: nn.Module) -> bool:
    """Whether another program has hooks on a module."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not str(getattr(hook, "__module__", "")).startswith(_OWN_HOOKS) for hook in hooks)
