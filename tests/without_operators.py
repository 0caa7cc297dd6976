"""DeepSpeed without the operator that it otherwise compiles on a CPU, which takes more than a minute.

The operator reduces over shared memory, for inference alone; training goes through gloo with it and without it.

python without_operators.py --local_rank=0 llava/train/train.py <flags>: runs that program so.
"""

import runpy
import sys


def leave_out_operators() -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


if __name__ == "__main__":
    [rank] = [argument for argument in sys.argv if argument.startswith("--local_rank")]
    rest = [argument for argument in sys.argv[1:] if argument != rank]
    sys.argv = [rest[0], rank, *rest[1:]]
    leave_out_operators()
    runpy.run_path(rest[0], run_name="__main__")
