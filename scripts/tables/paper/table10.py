"""Table 10: weight of the past against the present in the cumulative score, at 128 tokens."""

from scripts.tables.paper.spec import Table, benchmarks, row

TABLE = Table(
    number=10,
    title="history : current",
    family="v1_5",
    model="liuhaotian/llava-v1.5-7b",
    columns=benchmarks("POPE"),
    rows=(
        row("Vanilla", "none", "85.9", "576 tokens"),
        row("0:10", "flowcut:budget=128,history=0", "83.8", "128 tokens"),
        row("1:9", "flowcut:budget=128,history=0.1", "84.6", "128 tokens"),
        row("2:8", "flowcut:budget=128,history=0.2", "84.8", "128 tokens"),
        row("3:7", "flowcut:budget=128,history=0.3", "84.6", "128 tokens"),
        row("4:6", "flowcut:budget=128,history=0.4", "85.0", "128 tokens"),
        row("5:5", "flowcut:budget=128", "85.2", "128 tokens"),
        row("6:4", "flowcut:budget=128,history=0.6", "85.2", "128 tokens"),
        row("7:3", "flowcut:budget=128,history=0.7", "85.1", "128 tokens"),
        row("8:2", "flowcut:budget=128,history=0.8", "85.0", "128 tokens"),
        row("9:1", "flowcut:budget=128,history=0.9", "84.7", "128 tokens"),
    ),
    notes=("A weight h : c means S = h * S_before + c * I; 0:10 is without the cumulative score.",),
)
