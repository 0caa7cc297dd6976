"""Controller, worker and page in one process.

    python -m llava.serve.demo --model-path playground/embedded

Then open the address it prints. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from llava.given import needs, told_in_one_line

with needs("serve", __name__, __doc__):
    from llava.serve.controller import Controller, build_app
    from llava.serve.gradio_web_server import add_page_flags, launch, settings_of
    from llava.serve.loading import add_model_flags, load_engine
    from llava.serve.model_worker import ModelWorker
    from llava.serve.page import build_page
    from llava.serve.server import LocalServer, end_on_sigterm
    from llava.serve.worker import Place


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    parser.set_defaults(model_path="playground/embedded")
    for action in parser._actions:
        action.required = False
    add_page_flags(parser)
    return parser


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


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    with told_in_one_line(), services(args) as controller:
        page = build_page(settings_of(args, controller, reload=False))
        end_on_sigterm()
        launch(page, args)


if __name__ == "__main__":
    main()
