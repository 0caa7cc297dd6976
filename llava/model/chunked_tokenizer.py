"""A `tokenizer.json` that tokenises a whole prompt as LLaVA's programs do: the text after a picture by itself.

LLaVA cuts a prompt at `<image>` and tokenises each piece separately, so that each begins with SentencePiece's dummy
prefix. transformers' processors tokenise the prompt in one piece; in a tokenizer that is not `legacy` only its
beginning has the prefix then, and a model gets other tokens after a picture than in its training. No option of the
tokenizers library tells `<image>` from other special tokens, but its order of work does: a text is cut at the added
tokens that are not `normalized` before it is normalised, and at the others afterwards. So `<image>` alone cuts first,
and the normaliser writes the prefix.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_SPACE = "▁"


def tokenize_between_pictures(file: Path, image: int) -> None:
    """Rewrite the `tokenizer.json` of a LLaMA tokenizer so that every piece of text between pictures has the prefix.

    image: id of `<image>`; tokens from this id on were added for transformers, and separate pieces of text.

    Raises:
        ValueError: the file is not laid out as transformers 5 writes LLaMA's tokenizer.
    """
    fields: dict[str, Any] = json.loads(file.read_text("utf-8"))
    steps = fields["pre_tokenizer"] or {}
    scheme = steps.get("prepend_scheme")
    if fields["normalizer"] is not None or steps.get("type") != "Metaspace" or scheme not in ("first", "always"):
        raise ValueError(f"{file} is not laid out as LLaMA's tokenizer; expected Metaspace alone before the vocabulary")
    special = [token for token in fields["added_tokens"] if token["id"] < image]
    for token in special:
        token["normalized"] = True
    listed = "|".join(re.escape(token["content"]) for token in special)
    prefixes = [rf"\A(?!{listed})"]
    if scheme == "always":  # legacy: the text after a special token has it too, unless a space gives it one
        prefixes.append(rf"(?<={listed})(?!\z| |{_SPACE}|{listed})")
    fields["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            *({"type": "Replace", "pattern": {"Regex": prefix}, "content": _SPACE} for prefix in prefixes),
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ],
    }
    fields["pre_tokenizer"] = None
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")
