"""Table 3: Qwen2-VL-7B, FastV and FlowCut at a third, 2/9 and 1/9 of each picture's own tokens."""

from scripts.tables.paper.spec import Table, benchmarks, row

TABLE = Table(
    number=3,
    title="Qwen2-VL-7B, image understanding",
    family="qwen2_vl",
    model="Qwen/Qwen2-VL-7B-Instruct",
    columns=benchmarks("GQA MMB MMB-CN MME POPE SQA TextVQA"),
    rows=(
        row("Vanilla", "none", "61.9 79.9 79.5 2338 87.2 85.1 82.2 Avg=100", "all tokens"),
        row("FastV", "fastv:budget=0.333", "58.0 76.1 73.9 2130 82.1 80.0 77.3 Avg=93.6", "66.7% fewer"),
        row("FlowCut", "flowcut:budget=0.333", "60.5 79.2 78.2 2335 86.0 84.0 81.1 Avg=98.7", "66.7% fewer"),
        row("FastV", "fastv:budget=0.222", "56.7 74.1 72.4 2031 79.2 78.3 72.0 Avg=90.4", "77.8% fewer"),
        row("FlowCut", "flowcut:budget=0.222", "59.2 77.8 76.9 2310 84.6 80.5 78.3 Avg=96.5", "77.8% fewer"),
        row("FastV", "fastv:budget=0.111", "51.9 70.1 63.8 1962 76.1 75.8 60.3 Avg=83.6", "88.9% fewer"),
        row("FlowCut", "flowcut:budget=0.111", "56.4 72.6 72.5 2252 81.8 78.2 68.9 Avg=91.3", "88.9% fewer"),
    ),
    notes=(
        "Budgets are shares of each picture's own number of tokens; the authors' processor takes at most "
        "1280 x 28 x 28 pixels (`--max-pixels 1003520`).",
        "The paper does not say which framework evaluated, nor at which resolution.",
    ),
)
