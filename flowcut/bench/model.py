"""A model of published size with random weights, its inputs, and the call that is timed."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.initialization import no_init_weights

from flowcut.attach import Handle, attach
from flowcut.bench.geometries import GEOMETRIES, PLACEHOLDER, VOCABULARY
from flowcut.bench.synthetic import draw_weights, media, sharpen
from flowcut.cost import decode_flops, encoder_flops, merging_encoder_flops, prefill_flops, projector_flops
from flowcut.pruner import Pruner
from flowcut.trace import Trace


class Bench:
    """A model, its inputs, and the one call that a command times.

    Attributes:
        model: what pruners are attached to.
        bare: whether it is an encoder alone.
        placeholders: visual tokens of a sample in the unpruned model.
        features: for each run of `prefill`, the encoder's output.
        first: for each `generate` so far, seconds to the first new token.
    """

    def __init__(self, args: argparse.Namespace, pruner: Pruner):
        self.args, self.geometry, self.device = args, GEOMETRIES[args.geometry], torch.device(args.device)
        self.bare = args.command == "encode" and self.geometry.family == "Llava"
        self.modality = "video" if self.geometry.family == "VideoLlava" else "image"
        self.placeholders = 0
        self.prompt: dict[str, Tensor] = {}
        self.features: dict[str, Any] = {}
        self.first: list[float] = []
        self.model = self.build()
        with attach(self.model, pruner):
            pass  # refuses before the long work begins what this model cannot do
        draw_weights(self.model, args.seed)
        if args.command != "prefill":
            others = self.media(2 if self.geometry.family == "Llava" else 1, args.seed + 1)
            sharpen(self.model, partial(self.encode, others))
        self.shown = self.media(args.batch, args.seed)

    def build(self) -> Any:
        """The model, its weights still to be drawn."""
        text = {"vocab_size": VOCABULARY, "num_hidden_layers": self.args.layers_slice}
        config = getattr(transformers, f"{self.geometry.family}Config")(
            vision_config=self.geometry.vision,
            text_config={**self.geometry.text, **text, "bos_token_id": 1, "eos_token_id": None},
            image_token_id=PLACEHOLDER,
            video_token_id=PLACEHOLDER,
            image_grid_pinpoints=[[2 * self.geometry.side] * 2],
            **self.geometry.fields,
        )
        cls = getattr(transformers, f"{self.geometry.family}ForConditionalGeneration")
        if self.bare:
            cls, config = transformers.CLIPVisionModel, config.vision_config
        dtype = getattr(torch, self.args.dtype)
        with no_init_weights(), self.device:
            return cls._from_config(config, attn_implementation=self.args.attention, dtype=dtype).eval()

    def media(self, samples: int, seed: int) -> dict[str, Tensor]:
        """Keyword arguments that bring one image, or one video, per sample, on the model's device."""
        found = media(self.geometry, samples, seed)
        return {
            name: tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in found.items()
        }

    def encode(self, media: dict[str, Tensor]) -> Any:
        if self.bare:
            return self.model(**media)
        return getattr(self.model.model, f"get_{self.modality}_features")(**media, return_dict=True)

    def attached(self, pruner: Pruner | None) -> Any:
        return nullcontext() if pruner is None else attach(self.model, pruner)

    def prepare(self, run: str, pruner: Pruner | None) -> Handle:
        """Encode and write the prompt where a run needs it, and go through its call once."""
        with self.attached(pruner) as handle:
            if self.args.command == "prefill" or (self.args.command == "generate" and pruner is None):
                encoded = self.encode(self.shown)
                if pruner is None:
                    visual = sum(math.prod(part.shape[:-1]) for part in encoded.pooler_output)
                    self.placeholders = visual // self.args.batch
                    self.prompt = self.write_prompt()
                self.features = {**self.features, run: encoded} if self.args.command == "prefill" else {}
            self.call(run)
        return handle

    def write_prompt(self) -> dict[str, Tensor]:
        """Half of the text, the placeholders of an image or video, the other half; the same in every row."""
        generator = torch.Generator().manual_seed(self.args.seed)
        text = torch.randint(3, VOCABULARY - 10, (self.args.text_tokens,), generator=generator)
        half = len(text) // 2
        row = torch.cat([text[:half], text.new_full((self.placeholders,), PLACEHOLDER), text[half:]])
        ids = row.expand(self.args.batch, -1).to(self.device)
        prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.geometry.packed:
            prompt["mm_token_type_ids"] = (ids == PLACEHOLDER).int()
            prompt["image_grid_thw"] = self.shown["image_grid_thw"]
        if self.geometry.family == "Gemma3":
            prompt["token_type_ids"] = (ids == PLACEHOLDER).int()
        return prompt

    def call(self, run: str) -> Any:
        """What is timed."""
        if self.args.command == "encode":
            return self.encode(self.shown)
        if self.args.command == "prefill":
            encoded = {self.modality: self.features[run]}
            return self.model(**self.prompt, mm_encoder_outputs=encoded, logits_to_keep=1)
        watch = _FirstToken()
        inputs = {**self.prompt, **self.shown}
        output = self.model.generate(
            **inputs, max_new_tokens=self.args.new_tokens, do_sample=False, streamer=watch, eos_token_id=None
        )
        self.first.append(watch.seconds)
        return output

    def decoder_paths(self, trace: Trace | None) -> list[list[int]]:
        """Visual tokens entering each decoder layer, per sample; those of the unpruned model if `trace` is None."""
        layers, batch = range(self.args.layers_slice), self.args.batch
        if self.args.command == "encode":
            return []
        if trace is None:
            return [[self.placeholders for _ in layers] for _ in range(batch)]
        entering: list[Sequence[int]] = [[len(tokens) for tokens in trace.tokens] for _ in layers]
        if trace.language is not None:
            entering = list(trace.language.entering)
        each = len(entering[0]) // batch  # a video is one image per frame
        return [[sum(counts[row * each : (row + 1) * each]) for counts in entering] for row in range(batch)]

    def flops(self, trace: Trace, pruned: bool) -> float:
        """FLOPs of the timed call by formula, for a trace's token counts or, not pruned, for all tokens."""
        config, total = self.model.config, 0.0
        vision = config if self.bare else config.vision_config
        inside = pruned and trace.merged_before_mlp
        rows = zip(zip(*trace.entering, strict=True), zip(*trace.leaving, strict=True), strict=True)
        for entering, leaving in rows if self.args.command != "prefill" else ():
            path, left = (entering, leaving[-1]) if pruned else (entering[:1] * len(entering), entering[0])
            if self.geometry.packed:
                total += merging_encoder_flops(vision, path, left)
            else:
                left += self.geometry.family == "VideoLlava"  # passes each frame's CLS on
                size, layers = self.geometry.patches_per_token, self.geometry.projector
                total += encoder_flops(vision, path, self.geometry.prefix, leaving if inside else None)
                width = vision.hidden_size * (1 if self.geometry.pooled else size)
                if not self.bare:
                    total += projector_flops(left // size, width, config.text_config.hidden_size, layers)
        for visual in self.decoder_paths(trace if pruned else None):
            lengths = [self.args.text_tokens + count for count in visual]
            total += prefill_flops(config.text_config, lengths)
            if self.args.command == "generate":
                total += decode_flops(config.text_config, lengths, self.args.new_tokens - 1)
        return total


class _FirstToken(BaseStreamer):
    """Seconds from when it was made to the first new token; `generate` puts the prompt before it."""

    def __init__(self) -> None:
        self.start, self.puts, self.seconds = time.perf_counter(), 0, math.nan

    def put(self, value: Any) -> None:
        self.puts += 1
        if self.puts == 2:
            self.seconds = time.perf_counter() - self.start

    def end(self) -> None:
        pass
