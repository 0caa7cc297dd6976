"""MMBench-CN, dev: MMBench in Chinese, scored the same way. Its table may be in `mmbench_cn/` or in `mmbench/`."""

from __future__ import annotations

from llava.eval.benchmarks.mmbench import benchmark, dev

BENCHMARK = benchmark(
    "mmbench_cn",
    "MMBench-CN",
    ("mmbench_cn", "mmbench"),
    (dev("dev_cn", "mmbench_dev_cn_20231003.tsv", 4329),),
    58.1,
)
