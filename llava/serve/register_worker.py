"""Register a running worker with a controller by hand, for instance one started with --no-register.

python -m llava.serve.register_worker --controller-address http://localhost:21001 --worker-name http://localhost:21002
"""

from __future__ import annotations

from flowcut.cli.command_line import Parser, needs, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--worker-name", required=True, help="the worker's address")
    parser.add_argument("--check-heart-beat", action="store_true", help="drop it when it sends no heartbeats")
    return parser


parse_first(__name__, build_parser)

with needs(__name__):
    from llava.serve.client import ControllerClient


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if not ControllerClient(args.controller_address).register(args.worker_name, args.check_heart_beat):
        raise ValueError(f"{args.worker_name} does not say what it serves; is a worker running there?")


if __name__ == "__main__":
    main()
