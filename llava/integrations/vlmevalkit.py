"""VLMEvalKit with this project's models: a model class, and a launcher, because the kit has no plug-ins.

python -m llava.integrations.vlmevalkit --kit FOLDER_OF_THE_KIT --model-path Qwen/Qwen2-VL-7B-Instruct \\
    --pruner flowcut:budget=64 --name qwen2-vl-flowcut-64 -- --data MME --judge exact_matching

The arguments after `--` are passed to the kit's own `run.py`, with the model's name. Written for the kit's
documented interface (0.1.0 in its repository; it is not published as a package) and not tested with the real kit.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program
from llava.eval.media.images import load_image
from llava.eval.models.reply import BACKENDS, DTYPES, Generation
from llava.given import home_path


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--kit", required=True, type=Path, help="folder of VLMEvalKit's repository")
    parser.add_argument("--name", default="llava_flowcut", help="the model's name in the kit and in its results")
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--model-base", help="base model of a LoRA adapter or a projector")
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")
    parser.add_argument("--conv-mode", help="prompt template (default: the checkpoint's own)")
    parser.add_argument(
        "--host",
        dest="backend",
        choices=BACKENDS,
        default="auto",
        help="which classes to use (default: LLaVA's if they fit)",
    )
    parser.add_argument("--frames", type=int, default=8, help="of each video")
    parser.add_argument("--max-pixels", type=int, help="of each picture, for Qwen2-VL; the authors used 1003520")
    parser.add_argument("--max-new-tokens", type=int, default=2048)
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    parser.add_argument("run", nargs="*", help="flags of the kit's run.py, after --")
    return parser


parse_first(__name__, build_parser)

from llava.eval.models.load import load_answerer


def model_class() -> Any:
    """The kit's model class for this project's models. Raises ValueError where the kit cannot be imported."""
    try:
        base: Any = importlib.import_module("vlmeval.vlm.base").BaseModel
    except ImportError as error:
        raise ValueError(
            f"VLMEvalKit cannot be imported ({error}); install it from its repository, or give --kit"
        ) from error

    class LlavaFlowcut(base):
        """Answers greedily with the model that `load_answerer` loads from `settings`."""

        INTERLEAVE = False

        def __init__(self, max_new_tokens: int = 2048, **settings: Any) -> None:
            super().__init__()
            self.answerer = load_answerer(generation=Generation(max_new_tokens=max_new_tokens), **settings)

        def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
            return answer(self.answerer, message)

    return LlavaFlowcut


def answer(answerer: Any, message: Sequence[Mapping[str, str]]) -> str:
    """The answer to a message of the kit: pictures and videos by their paths, then the texts, one per line.

    Raises ValueError, one line, for parts of another type, and videos where the model takes pictures only.
    """
    texts: list[str] = []
    shown: list[Any] = []
    for part in message:
        if part["type"] == "text":
            texts.append(part["value"])
        elif part["type"] == "image":
            shown.append(load_image(part["value"]))
        elif part["type"] == "video" and answerer.takes_video:
            shown.append(part["value"])
        else:
            raise ValueError(f"a part of type {part['type']!r} cannot be shown to {answerer.checkpoint.name}")
    [reply] = answerer(["\n".join(texts)], [shown])
    return reply.text


def register(name: str, **settings: Any) -> None:
    """Add a model to the kit's table of models. Raises ValueError when the name exists already."""
    table = importlib.import_module("vlmeval.config").supported_VLM
    if name in table:
        raise ValueError(f"VLMEvalKit has a model {name} already; give another --name")
    table[name] = partial(model_class(), **settings)


def load_run(kit: Path) -> ModuleType:
    """The kit's `run.py`, which lies next to its package. Raises ValueError when it is not there."""
    file = kit / "run.py"
    if not file.is_file():
        raise ValueError(f"{file} does not exist; give the folder of VLMEvalKit's repository")
    spec = importlib.util.spec_from_file_location("vlmevalkit_run", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@program
def main(argv: list[str] | None = None) -> None:
    args = vars(build_parser().parse_args(argv))
    kit, name, flags = home_path(args.pop("kit")).resolve(), args.pop("name"), args.pop("run")
    before = sys.argv
    sys.path.insert(0, str(kit))
    sys.argv = [str(kit / "run.py"), *flags, "--model", name]
    try:
        register(name, **args)
        load_run(kit).main()
    finally:
        sys.argv = before
        sys.path.remove(str(kit))


if __name__ == "__main__":
    main()
