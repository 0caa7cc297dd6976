"""The web page, which uses a controller.

    python -m llava.serve.gradio_web_server --controller-url http://localhost:21001 --model-list-mode reload

By default it listens on this machine only (LLaVA's listens on all addresses: --host 0.0.0.0).
"""

from __future__ import annotations

import argparse
from typing import Any

from flowcut.cli.command_line import Parser, needs, parse_first, program
from llava.serve.flags import add_page_flags


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--controller-url", default="http://localhost:21001")
    add_page_flags(parser)
    parser.add_argument(
        "--model-list-mode", choices=["once", "reload"], default="once", help="when to update the list of models"
    )
    return parser


parse_first(__name__, build_parser)

with needs(__name__):
    import gradio as gr

    from llava.serve.chatlog import ChatLog
    from llava.serve.client import ControllerClient
    from llava.serve.layout import CSS
    from llava.serve.page import PageSettings, build_page
    from llava.serve.server import end_on_sigterm
    from llava.utils import build_logger, moderation_key


LARGEST_UPLOAD = "20mb"


def settings_of(args: argparse.Namespace, controller: str, reload: bool) -> PageSettings:
    """Raises ValueError, one line, when moderation is requested without a key."""
    if args.moderate:
        moderation_key()
    log = ChatLog(args.log_dir) if args.log_dir else None
    return PageSettings(ControllerClient(controller), log, reload, args.moderate, args.embed)


def launch(page: gr.Blocks, args: argparse.Namespace, block: bool = True) -> Any:
    """Serve the page; returns (app, local address, public address) when it runs, or with `block` when it has ended.

    Raises OSError when the port is taken.
    """
    page.queue(default_concurrency_limit=args.concurrency_count, api_open=False)
    return page.launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        max_file_size=LARGEST_UPLOAD,
        prevent_thread_lock=not block,
        ssr_mode=False,
        footer_links=[],
        css=CSS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no external fonts
    )


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    build_logger("gradio_web_server", "gradio_web_server.log", args.log_dir)
    page = build_page(settings_of(args, args.controller_url, args.model_list_mode == "reload"))
    end_on_sigterm()
    launch(page, args)


if __name__ == "__main__":
    main()
