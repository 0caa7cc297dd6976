"""The model families a pruner can be attached to, as tiny models with random weights, behind one small interface.

A sample is a prompt: a list of token ids with `IMAGE` (or `VIDEO`) where an image stands. Images are drawn from the
seeds listed beside it; where a family takes images of several sizes, the seed decides about the size too. Encoders
alone know no text, so there every image is a sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .base import DEPTH as DEPTH
from .base import GREEDY as GREEDY
from .base import GRIDS as GRIDS
from .base import IMAGE as IMAGE
from .base import IMAGE_TOKEN as IMAGE_TOKEN
from .base import PATCHES as PATCHES
from .base import SAMPLES as SAMPLES
from .base import TEXT as TEXT
from .base import VIDEO as VIDEO
from .base import VIDEO_SAMPLES as VIDEO_SAMPLES
from .base import VIDEO_TOKEN as VIDEO_TOKEN
from .base import VISION as VISION
from .base import Clip as Clip
from .base import Dinov2 as Dinov2
from .base import Sample as Sample
from .base import Siglip as Siglip
from .base import noise as noise
from .base import padded as padded
from .base import pixels as pixels
from .base import sharpen as sharpen
from .cells import HFGemma3 as HFGemma3
from .cells import HFInternVL as HFInternVL
from .cells import HFSmolVLM as HFSmolVLM
from .llava_hf import HFLlava as HFLlava
from .llava_hf import HFLlavaNext as HFLlavaNext
from .llava_hf import HFLlavaSiglip as HFLlavaSiglip
from .llava_hf import HFOnevision as HFOnevision
from .llava_hf import HFVideoLlava as HFVideoLlava
from .llava_hf import size_of as size_of
from .llava_hf import tiles_of as tiles_of
from .ours import OurLlava as OurLlava
from .ours import OurMistral as OurMistral
from .ours import OurNext as OurNext
from .packed import HFGlm4v as HFGlm4v
from .packed import HFGlm4vMoe as HFGlm4vMoe
from .packed import HFGlm46V as HFGlm46V
from .packed import HFQwen2VL as HFQwen2VL
from .packed import HFQwen3VL as HFQwen3VL
from .packed import HFQwen3VLMoe as HFQwen3VLMoe
from .packed import HFQwen25VL as HFQwen25VL
from .packed import HFQwen35 as HFQwen35
from .packed import HFQwen35Moe as HFQwen35Moe

WITH_PROMPT = [
    *("llava_hf", "llava_next_hf", "llava_onevision", "video_llava"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    *("internvl", "smolvlm", "gemma3"),
]
"""One host of each family of transformers' that is asked with a prompt."""


def all_hosts(folder: Path) -> dict[str, Any]:
    """Every host by name; `folder` gets the tower that this project's classes load."""
    clip = Clip()
    clip.build().save_pretrained(folder)
    theirs = (HFLlava(), HFLlavaSiglip(), HFLlavaNext(), HFOnevision(), HFVideoLlava())
    packed = (HFQwen2VL(), HFQwen25VL(), HFQwen3VL(), HFQwen3VLMoe(), HFQwen35(), HFGlm4v(), HFGlm46V())
    shuffled = (HFInternVL(), HFSmolVLM(), HFGemma3())
    ours = (OurLlava(folder), OurMistral(folder), OurNext(folder))
    return {host.name: host for host in (clip, Siglip(), Dinov2(), *theirs, *packed, *shuffled, *ours)}
