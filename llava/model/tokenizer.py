"""LLaMA's tokenizer, loaded and saved so that it tokenises text as in the checkpoints' training.

transformers 5 silently changes the tokens in two ways: before 5.24 the Auto class uses a tokenizer without the
dummy prefix for checkpoints of type "llava", and `LlamaTokenizer` omits BOS by default. Both are
corrected here, and the result is checked.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

_LISTS = ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens")
_SOURCE_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class LlamaTokenizer(transformers.LlamaTokenizer):
    """transformers' tokenizer with what LLaVA's programs expect of its slow one: the dummy prefix also before a text
    that begins with a space, a vocabulary in the order of the ids, and `tokenizer.model` among the saved files.
    """

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> Any:
        given = text
        if not kwargs.get("is_split_into_words"):
            text, text_pair = _prefixed(text), _prefixed(text_pair)
        encoding = super()._encode_plus(text, text_pair, *args, **kwargs)
        if kwargs.get("return_offsets_mapping") and not kwargs.get("return_tensors"):
            places = encoding["offset_mapping"]
            if isinstance(given, str):
                encoding["offset_mapping"] = _unprefixed(places, given != text)
            elif len(places) == len(given):
                encoding["offset_mapping"] = [
                    _unprefixed(row, before != after) for row, before, after in zip(places, given, text, strict=True)
                ]
        return encoding

    def get_vocab(self) -> dict[str, int]:
        return dict(sorted(super().get_vocab().items(), key=lambda entry: entry[1]))

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """transformers', and the files of the tokenizer's own folder; see `save_llama_tokenizer`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        _complete(self, Path(save_directory))
        return tuple(str(file) for file in sorted(Path(save_directory).glob("*token*")))


def _prefixed(text: Any) -> Any:
    """A text, or texts and pairs of texts in lists, with an explicit dummy prefix where transformers omits it."""
    if isinstance(text, str):
        return "▁" + text if text.startswith((" ", "▁")) else text
    return [_prefixed(part) for part in text] if isinstance(text, list) else text


def _unprefixed(places: list[tuple[int, int]], prefixed: bool) -> list[tuple[int, int]]:
    """Places of tokens in a text as it was given."""
    return [(max(start - prefixed, 0), max(end - prefixed, 0)) for start, end in places]


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def load_llama_tokenizer(folder: str | Path, below: int | None = None, **kwargs: Any) -> LlamaTokenizer:
    """The tokenizer in a checkpoint's folder. kwargs are passed to `LlamaTokenizer.from_pretrained`.

    below: leave out added tokens from this id on; checkpoints in transformers' layout add two to the vocabulary.

    Raises ValueError when there is none, or when it tokenises differently from LLaMA's.
    """
    folder = Path(folder)
    if not has_tokenizer(folder):
        raise ValueError(
            f"{folder} has no tokenizer; put the tokenizer.model (or tokenizer.json) of its base model there"
        )
    settings = _read_json(folder / "tokenizer_config.json")
    if "legacy" in settings or (folder / "tokenizer.model").is_file():
        # In files of transformers 4.x, a missing key means True.
        kwargs.setdefault("legacy", settings.get("legacy", True))
    kwargs.setdefault("padding_side", settings.get("padding_side", "right"))
    if below is None:
        tokenizer = transformers.LlamaTokenizer.from_pretrained(folder, add_bos_token=True, **kwargs)
    else:
        with tempfile.TemporaryDirectory() as lean:
            _copy_without_additions(folder, Path(lean), below)
            tokenizer = transformers.LlamaTokenizer.from_pretrained(lean, add_bos_token=True, **kwargs)
            tokenizer.name_or_path = str(folder)
    # Loaded by our class it would be converted from its files in another way, which depends on transformers' version.
    tokenizer.__class__ = LlamaTokenizer
    check_llama_tokenizer(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def _copy_without_additions(source: Path, target: Path, below: int) -> None:
    """The tokenizer's files, without added tokens of ids from `below` on."""
    whole = _read_json(source / "tokenizer.json")
    settings = _read_json(source / "tokenizer_config.json")
    dropped = {token["content"] for token in whole.get("added_tokens", []) if token["id"] >= below}
    listed = settings.get("added_tokens_decoder", {})
    dropped |= {token["content"] for number, token in listed.items() if int(number) >= below}
    if whole:
        whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] < below]
        (target / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), "utf-8")
    if (source / "tokenizer.model").is_file():
        shutil.copyfile(source / "tokenizer.model", target / "tokenizer.model")
    (target / "tokenizer_config.json").write_text(json.dumps(_without(settings, dropped, below)), "utf-8")


def _without(settings: dict[str, Any], dropped: set[str], below: int) -> dict[str, Any]:
    """Settings of a tokenizer without the dropped tokens."""
    kept = {
        name: value
        for name, value in settings.items()
        if name not in (*_LISTS, "added_tokens_decoder") and _content(value) not in dropped
    }
    decoder = settings.get("added_tokens_decoder", {})
    kept["added_tokens_decoder"] = {number: token for number, token in decoder.items() if int(number) < below}
    return kept


def check_llama_tokenizer(tokenizer: Any) -> None:
    """Raise ValueError unless text begins with BOS and its first word with the dummy prefix."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Hello").input_ids)
    if tokens[0] != tokenizer.bos_token:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} puts no BOS before text ('Hello' -> {tokens})")
    if not tokens[1].startswith("▁"):
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no dummy prefix ('Hello' -> {tokens})")


def save_llama_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Write a tokenizer so that old and new programs read the same one.

    `save_pretrained` of transformers 5 writes only `tokenizer.json` and omits `legacy`. Therefore the SentencePiece
    model is copied from the tokenizer's folder, and its settings are written too.
    """
    PreTrainedTokenizerBase.save_pretrained(tokenizer, str(folder))
    _complete(tokenizer, Path(folder))


def _complete(tokenizer: Any, folder: Path) -> None:
    source = Path(tokenizer.name_or_path)
    settings = _read_json(folder / "tokenizer_config.json")
    if (source / "tokenizer.model").is_file():
        if source.resolve() != folder.resolve():
            for name in _SOURCE_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
        if len(tokenizer) == tokenizer.vocab_size:
            # Nothing was added to the SentencePiece model, so it is complete, as in the published checkpoints.
            (folder / "tokenizer.json").unlink(missing_ok=True)
            settings = _read_json(folder / "tokenizer_config.json")
    settings |= {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": bool(getattr(tokenizer, "legacy", False)),
        "padding_side": tokenizer.padding_side,
        "model_max_length": tokenizer.model_max_length,
    }
    # The source may list tokens that this tokenizer was loaded without.
    gone = _named(settings) - set(tokenizer.get_vocab())
    if gone:
        settings = _without(settings, gone, len(tokenizer))
        names = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _named(settings: dict[str, Any]) -> set[str]:
    """Every token that a tokenizer's settings name."""
    values = [value for name, value in settings.items() if name.endswith("_token")]
    values += settings.get("added_tokens_decoder", {}).values()
    values += [token for name in _LISTS if isinstance(settings.get(name), list) for token in settings[name]]
    return {token for token in map(_content, values) if isinstance(token, str)}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
