"""Register a running worker with a controller by hand, for instance one started with --no-register.

python -m llava.serve.register_worker --controller http://localhost:21001 --worker-name http://localhost:21002
"""

from __future__ import annotations

import argparse
import sys

from llava.given import needs

with needs("serve", __name__, __doc__):
    from llava.serve.client import ControllerClient


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--worker-name", required=True, help="the worker's address")
    parser.add_argument("--check-heart-beat", action="store_true", help="drop it when it sends no heartbeats")
    args = parser.parse_args(argv)
    try:
        registered = ControllerClient(args.controller_address).register(args.worker_name, args.check_heart_beat)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not registered:
        sys.exit(f"error: {args.worker_name} does not say what it serves; does a worker run there?")


if __name__ == "__main__":
    main()
