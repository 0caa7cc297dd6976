"""Send a running worker one question and stream its answer, to test an installation.

python -m llava.serve.test_message --model-name embedded --message "What color is the star?" --image PICTURE
"""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path

from flowcut.cli.command_line import Parser, needs, parse_first, program


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--worker-address", help="use this worker, without a controller")
    parser.add_argument("--model-name", help="default: the first that the controller knows")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--message", default="Tell me a story with more than 1000 words.")
    parser.add_argument("--image", also=["--image-file"], dest="image_file", help="a picture to ask about")
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the worker's)")
    return parser


parse_first(__name__, build_parser)

with needs(__name__):
    from llava.serve.client import ControllerClient, status_of, stream, template_of
    from llava.serve.protocol import NoWorkerError
    from llava.serve.terminal import Typist
    from llava.serve.turns import prompt_of, stop_of


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        ask(args)
    except NoWorkerError as error:
        raise ValueError(str(error)) from error


def ask(args: argparse.Namespace) -> None:
    """Raises ValueError, one line, for a service that does not answer or an answer that failed."""
    name, address = args.model_name, args.worker_address
    if address is None:
        controller = ControllerClient(args.controller_address)
        controller.refresh()
        models = controller.models()
        name = name or next(iter(models), "")
        address = controller.worker(name)
    status = status_of(address)
    name = name or next(iter(status.model_names), "")
    template = template_of(status, name)
    images = [base64.b64encode(Path(args.image_file).read_bytes()).decode()] if args.image_file else []
    prompt = prompt_of(template, [(args.message, None)], images=len(images))
    request = {
        "model": name,
        "prompt": prompt,
        "max_new_tokens": args.max_new_tokens,
        "temperature": 0,
        "stop": stop_of(template),
        "images": images,
        "pruner": args.pruner,
    }
    typist = Typist(sys.stdout)
    for document in stream(address, request):
        if document["error_code"]:
            raise ValueError(document["text"])
        typist.show(document["text"][len(prompt) :])
    typist.end()


if __name__ == "__main__":
    main()
