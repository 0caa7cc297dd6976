"""Controller, worker and page in one process.

    python -m llava.serve.demo --model-path playground/embedded

Then open the address it prints. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from flowcut.cli.command_line import Parser, needs, parse_first, program
from llava.serve.flags import add_model_flags, add_page_flags


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add_model_flags(parser)
    parser.set_defaults(model_path="playground/embedded")
    for action in parser._actions:
        action.required = False
    add_page_flags(parser)
    return parser


parse_first(__name__, build_parser)

with needs(__name__):
    from llava.serve.controller import Controller, build_app
    from llava.serve.gradio_web_server import launch, settings_of
    from llava.serve.loading import load_engine
    from llava.serve.model_worker import ModelWorker
    from llava.serve.page import build_page
    from llava.serve.server import LocalServer, end_on_sigterm
    from llava.serve.worker import Place


@contextmanager
def services(args: argparse.Namespace) -> Iterator[str]:
    """A controller and a worker on free loopback ports; the controller's address."""
    engine = load_engine(args)
    controller = Controller()
    with LocalServer(build_app(controller)) as front:

        def make(url: str) -> object:
            worker = ModelWorker(engine, Place(url, front.url))
            controller.register(url, True, worker.status())  # so that the page need not wait for its first heartbeat
            return worker.build_app()

        with LocalServer(make):
            yield front.url


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    with services(args) as controller:
        page = build_page(settings_of(args, controller, reload=False))
        end_on_sigterm()
        launch(page, args)


if __name__ == "__main__":
    main()
