"""Two mixins that turn a language model of transformers into LLaVA, one for the body, one for the head.

The body (`LlavaMetaModel`) owns the vision tower and the projector. The head (`LlavaMetaForCausalLM`) encodes images,
splices their tokens into the text (`llava.model.splice`) and passes ordinary embeddings to the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from flowcut import handle_of
from flowcut.compat import CACHE, one_cache, rename_cache
from flowcut.hooks.call_context import rows
from flowcut.hooks.packing import IMAGE_INDEX
from flowcut.hooks.placeholders import loaded
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import get_anyres_image_grid_shape
from llava.model.anyres import check_pixels, in_line, merge_tiles, read_newline, unpad_image
from llava.model.checkpoint import fill_projector, with_vision_model_level
from llava.model.generation import GeneratesFromImages, generating
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.partitioned import whole
from llava.model.recording_hooks import install_recording_hooks
from llava.model.splice import Spliced, positions, splice
from llava.model.vision_tokens import add_vision_tokens_for_training

# The mixin is a base class before a class of transformers, whose attributes it uses.
if TYPE_CHECKING:
    _Mixin = Any
else:
    _Mixin = object


def _has_newline(config: Any) -> bool:
    return "unpad" in (getattr(config, "mm_patch_merge_type", None) or "flat")


def new_newline(width: int) -> Tensor:
    """The initial value of the token that ends each row of an anyres image, with the scale of a word's embedding."""
    return torch.randn(width) * width**-0.5


class LlavaMetaModel(_Mixin):
    """Body mixin, before transformers' model: `class LlavaLlamaModel(LlavaMetaModel, LlamaModel)`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if getattr(config, "mm_vision_tower", None):
            self.vision_tower: Any = build_vision_tower(config, delay_load=True)
            self.mm_projector = build_vision_projector(config)
            if _has_newline(config):
                self.image_newline = nn.Parameter(new_newline(config.hidden_size))
            self.post_init()  # again: the first call, inside transformers' constructor, is before these modules exist
            # `device_map="auto"` must keep the tower on one device.
            self._no_split_modules.add("CLIPVisionTower")
        # When hidden states are requested for the first time, transformers hooks every layer below, including those of
        # a tower that was hooked before, and would then return each hidden state twice. Hooking here prevents that.
        install_recording_hooks(self)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and hasattr(self, "image_newline"):
            init.normal_(self.image_newline, std=self.config.hidden_size**-0.5)  # a checkpoint without one

    def forward(self, *args: Any, image_index: Tensor | None = None, **kwargs: Any) -> Any:
        """The language model's forward. `image_index` (see `Spliced`) is not used here: it tells a hook on this
        module which positions are visual.
        """
        rename_cache(kwargs)
        return super().forward(*args, **kwargs)

    def get_vision_tower(self) -> CLIPVisionTower | None:
        # FSDP keeps the tower in a list, so that it is not wrapped.
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Add tower and projector before training, and the config fields that name them.

        model_args: `vision_tower`, `mm_vision_select_layer`, `mm_vision_select_feature`, `mm_projector_type`,
            `mm_patch_merge_type`, `pretrain_mm_mlp_adapter`; optionally `unfreeze_mm_vision_tower`.
        Existing parts of a checkpoint (tower, projector) are kept; the projector becomes trainable again.
        """
        config, tower = self.config, self.get_vision_tower()
        random_state = torch.get_rng_state()
        if tower is None or not (tower.is_loaded or tower.vision_tower_name == model_args.vision_tower):
            tower = build_vision_tower(model_args)
            config.mm_vision_tower = model_args.vision_tower
            self.vision_tower = [tower] if fsdp else tower
        tower.load_model()
        # the number of random draws in loading depends on the ZeRO stage and the process
        torch.set_rng_state(random_state)
        unfreeze = bool(getattr(model_args, "unfreeze_mm_vision_tower", False))
        tower.requires_grad_(unfreeze)
        if unfreeze:
            config.unfreeze_mm_vision_tower = True  # from now on every checkpoint has to include the tower

        config.use_mm_proj = True
        if getattr(self, "mm_projector", None) is None:  # the flag's default must not rename an existing one
            config.mm_projector_type = getattr(model_args, "mm_projector_type", "linear")
        config.mm_hidden_size = tower.hidden_size
        config.mm_vision_select_layer = tower.select_layer = model_args.mm_vision_select_layer
        config.mm_vision_select_feature = tower.select_feature = model_args.mm_vision_select_feature
        config.mm_patch_merge_type = model_args.mm_patch_merge_type
        if getattr(self, "mm_projector", None) is None:
            self.mm_projector = build_vision_projector(config)
        if _has_newline(config) and not hasattr(self, "image_newline"):
            self.image_newline = nn.Parameter(new_newline(config.hidden_size).to(self.dtype))
        self.mm_projector.requires_grad_(True)  # LoRA may have frozen it
        if model_args.pretrain_mm_mlp_adapter is not None:
            with whole(self.mm_projector.parameters(), write=True):
                fill_projector(self.mm_projector, model_args.pretrain_mm_mlp_adapter)
            newline = read_newline(model_args.pretrain_mm_mlp_adapter)
            if newline is not None and hasattr(self, "image_newline"):
                with whole([self.image_newline], write=True):
                    self.image_newline.data.copy_(newline)


class LlavaMetaForCausalLM(GeneratesFromImages):
    """Head mixin, to stand before transformers' causal language model."""

    # Trainer would otherwise pass the token count of the whole accumulated batch; LLaVA averages per micro-batch.
    accepts_loss_kwargs = False
    # A frozen tower's weights in a checkpoint are not read; the loader reports that in its own line.
    _keys_to_ignore_on_load_unexpected: Any = (r"rotary_emb\.inv_freq", r"vision_tower\.", r"position_ids")

    def get_model(self) -> Any:
        return self.model

    def get_vision_tower(self) -> Any:
        return self.get_model().get_vision_tower()

    def encode_images(self, images: Any) -> Any:
        """Visual tokens [B, n, hidden_size] of pixels [B, 3, H, W]; a list gives a list."""
        features = self.get_vision_tower()(images)
        return [self._project(one) for one in features] if isinstance(features, list) else self._project(features)

    def _project(self, features: Tensor) -> Tensor:
        projector = self.get_model().mm_projector
        weight = next(projector.parameters(), None)
        if weight is None:
            return projector(features)
        # Weights that accelerate keeps elsewhere are on "meta"; its hooks bring them and the features together.
        device = features.device if weight.is_meta else weight.device
        return projector(features.to(device=device, dtype=weight.dtype))

    def image_features(self, images: Any, image_sizes: Any = None) -> list[Tensor]:
        """One [n_i, hidden_size] per image.

        images: pixels [B, 3, H, W], one tile per image; or a list of (or [B, T, 3, H, W]) images of one or more tiles,
        whose tokens are then concatenated, or arranged on their joined grid if `mm_patch_merge_type` is "spatial".
        image_sizes: (width, height) of each image, needed for the latter.

        Raises ValueError for what is no pixels, tiles without sizes, or tiles that do not fit the checkpoint's grids.
        """
        check_pixels(images)
        tiles = [image[None] if image.ndim == 3 else image for image in images]
        groups = [number for number, image in enumerate(tiles) for _ in image]
        pixels = images if isinstance(images, Tensor) and images.ndim == 4 else torch.cat(tiles)
        with rows(groups, spread=True) as known:
            projected = self.encode_images(pixels)
        trace = known.trace
        if trace is not None:
            self._check_count(projected, trace.final)
        starts = [sum(len(tile) for tile in tiles[:number]) for number in range(len(tiles))]
        parts = [slice(start, start + len(tile)) for start, tile in zip(starts, tiles, strict=True)]
        merge = getattr(self.config, "mm_patch_merge_type", None) or "flat"
        result, tokens = [], []
        for number, part in enumerate(parts):
            kept = trace.final[part] if trace is not None else None
            if merge == "flat":
                features, places = in_line(projected[part], kept)
            elif merge.startswith("spatial"):
                features, places = self._on_grid(projected[part], kept, number, image_sizes, merge)
            else:
                raise ValueError(f"Unexpected mm_patch_merge_type: {merge}; use flat, spatial or spatial_unpad")
            result.append(features)
            tokens.append(torch.where(places >= 0, places + places.new_tensor([part.start, 0]), places))
        if trace is not None:
            trace.place(tokens)
        return result

    def _check_count(self, projected: Any, kept: Sequence[Tensor]) -> None:
        """Raise ValueError when `encode_images`, or a hook, dropped other tokens than the attached pruner."""
        left = max(len(positions) for positions in kept) + (self.get_vision_tower().select_feature == "cls_patch")
        given = max(len(features) for features in projected)
        if given != left:
            raise ValueError(
                f"the attached pruner left {left} tokens of an image but encode_images gave {given}; only one of them "
                "may drop tokens, so detach(model) the pruner or restore encode_images"
            )

    def _on_grid(
        self, tiles: Sequence[Tensor], kept: list[Tensor] | None, number: int, image_sizes: Any, merge: str
    ) -> tuple[Tensor, Tensor]:
        config, tower = self.config, self.get_vision_tower()
        grid, size, patches = (1, 1), (1, 1), tower.num_patches
        features = tiles if isinstance(tiles, Tensor) else torch.stack(list(tiles))
        if len(features) > 1:
            if getattr(config, "image_aspect_ratio", None) != "anyres":
                raise ValueError(f"{len(features)} tiles an image need image_aspect_ratio 'anyres' in the config")
            if image_sizes is None or len(image_sizes) <= number:
                raise ValueError("images of several tiles need image_sizes, (width, height) of each image")
            width, height = (int(side) for side in image_sizes[number])
            size = (width, height)
            grid = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, tower.config.image_size)
        if kept is not None and all(len(positions) == patches for positions in kept):
            kept = None  # nothing was dropped: the unpruned layout with newline tokens
        if kept is None and len(features) > 1 and features.shape[1] != patches:
            raise ValueError(
                f"encode_images gave {features.shape[1]} tokens of a tile of {patches} patches, which cannot be put on "
                "a grid; drop them in prepare_inputs_labels_for_multimodal instead"
            )
        with loaded(self.get_model()):
            newline = getattr(self.get_model(), "image_newline", None)
            merged = merge_tiles(features, patches, grid, size, merge, newline, kept, unpad_image)
        return merged.features, merged.tokens

    def splice_inputs(
        self,
        input_ids: Tensor,
        images: Tensor | list[Tensor] | None,
        image_sizes: Any = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        max_length: int | None = None,
        padding_side: str = "right",
        blank_images: bool = False,
        spare_images: bool = False,
    ) -> Spliced:
        """Embed text [B, L] and images into one padded batch; see `llava.model.splice.splice`.

        Raises ValueError when the numbers of placeholders and images differ.
        """
        seeing = images is not None and len(images) > 0 and self.get_vision_tower() is not None
        features = self.image_features(images, image_sizes) if seeing else []
        text = self.get_input_embeddings()(input_ids.masked_fill(input_ids == IMAGE_TOKEN_INDEX, 0))
        return splice(
            input_ids, text, features, attention_mask, labels, max_length, padding_side, blank_images, spare_images
        )

    def _holds_placeholders(self, input_ids: Tensor, images: Any) -> bool:
        """Whether there is an `<image>` to replace. Raises ValueError without images or vision tower."""
        if not bool((input_ids == IMAGE_TOKEN_INDEX).any()):
            return False
        if self.get_vision_tower() is None:
            raise ValueError("the prompt contains <image> but this model has no vision tower; load a LLaVA checkpoint")
        if images is None:
            raise ValueError(
                "the prompt contains <image> placeholders but no images were given; give one per placeholder"
            )
        return True

    def _needs_splice(self, input_ids: Tensor, images: Any) -> bool:
        decoding = not self._holds_placeholders(input_ids, images) and input_ids.shape[1] == 1
        return images is not None and self.get_vision_tower() is not None and not decoding

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Tensor | list[Tensor] | None,
        image_sizes: Any = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Any, Tensor | None, Tensor | None]:
        """The splice with LLaVA's signature: (input_ids, position_ids, attention_mask, past_key_values, embeds,
        labels).

        Without images, or while decoding, everything is returned unchanged and the embeddings are None. Otherwise
        input_ids is None, and arguments that are None stay None; only the mask is created if there is padding.
        """
        if input_ids is None or not self._needs_splice(input_ids, images):
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        how: dict[str, Any] = {"padding_side": "left", "spare_images": True}
        if not generating():
            length = getattr(self.config, "tokenizer_model_max_length", None)
            how = {"max_length": length, "padding_side": self._padding_side, "blank_images": True}
        spliced = self.splice_inputs(input_ids, images, image_sizes, attention_mask, labels, **how)
        mask = spliced.attention_mask if attention_mask is None else spliced.attention_mask.to(attention_mask.dtype)
        # LLaVA's form has no place for it. It is lost when another program makes new embeddings out of these, and
        # must be: it would not fit them.
        setattr(spliced.inputs_embeds, IMAGE_INDEX, spliced.image_index)
        return (
            None,
            None if position_ids is None else spliced.position_ids,
            None if attention_mask is None and bool(mask.all()) else mask,
            past_key_values,
            spliced.inputs_embeds,
            None if labels is None else spliced.labels,
        )

    def _image_index_of(self, embeds: Tensor) -> Tensor | None:
        """Where the visual tokens are in embeddings of `prepare_inputs_labels_for_multimodal`; None if not known.

        Raises ValueError when the attached pruner needs to know.
        """
        index = getattr(embeds, IMAGE_INDEX, None)
        handle = handle_of(self) if index is None else None
        if handle is not None and handle.watches_decoder:
            raise ValueError(
                "the attached pruner drops tokens in the language model, but another program's "
                "prepare_inputs_labels_for_multimodal does not say which are visual; detach(model) the pruner"
            )
        return index

    @property
    def _padding_side(self) -> str:
        return getattr(self.config, "tokenizer_padding_side", "right")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: Any = None,
        return_dict: bool | None = None,
        image_index: Tensor | None = None,
        cache: Any = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Logits and loss of text with images.

        input_ids [B, L] with IMAGE_TOKEN_INDEX at each image; images: see `image_features`; labels [B, L]
        aligned with input_ids. `image_index` belongs to `inputs_embeds` that are already spliced. `cache` is
        `past_key_values` under the name that transformers gave it in 5.24.
        Returns `CausalLMOutputWithPast` over the spliced positions.
        Raises ValueError when a cache is given under both names.
        """
        kwargs |= {"past_key_values": past_key_values, "cache": cache, "logits_to_keep": logits_to_keep}
        rename_cache(kwargs)
        if inputs_embeds is None:
            prepared = self.prepare_inputs_labels_for_multimodal(
                input_ids, position_ids, attention_mask, one_cache(kwargs), labels, images, image_sizes
            )
            input_ids, position_ids, attention_mask, kwargs[CACHE], inputs_embeds, labels = prepared
            if inputs_embeds is not None:
                image_index = self._image_index_of(inputs_embeds)
            if hasattr(inputs_embeds, IMAGE_INDEX):
                # With right padding the model's own 0..S-1 are used; ids that restart at 0 could be read as packed
                # sequences.
                position_ids = None
                if self._padding_side == "left" and attention_mask is not None:
                    position_ids = positions(attention_mask)
        # Arguments that are None are left out, because transformers would not treat an explicit None as a default.
        wishes = {
            "return_dict": return_dict,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
            "image_index": image_index,
            "use_cache": use_cache,
        }
        kwargs |= {name: wish for name, wish in wishes.items() if wish is not None}
        text = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "labels": labels}
        return super().forward(**text, position_ids=position_ids, attention_mask=attention_mask, **kwargs)

    def save_pretrained(
        self,
        save_directory: str,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """transformers' save_pretrained, with the tower's keys as all versions of LLaVA read them."""
        state_dict = self.state_dict() if state_dict is None else state_dict
        kwargs.setdefault("max_shard_size", "5GB")
        # Renaming is done here for fresh and loaded models alike; transformers would do it for loaded ones only.
        kwargs["save_original_format"] = False
        super().save_pretrained(save_directory, is_main_process, with_vision_model_level(state_dict), **kwargs)

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Before training: `<im_patch>`, `<im_start>` and `<im_end>`, as the arguments ask; see `vision_tokens`."""
        add_vision_tokens_for_training(self, model_args, tokenizer)
