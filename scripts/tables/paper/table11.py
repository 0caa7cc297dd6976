"""Table 11: how often FlowCut selects, at 128 tokens."""

from scripts.tables.paper.spec import Table, benchmarks, row

TABLE = Table(
    number=11,
    title="selection after every n-th layer",
    family="v1_5",
    model="liuhaotian/llava-v1.5-7b",
    columns=benchmarks("POPE"),
    rows=(
        row("Vanilla", "none", "85.9", "576 tokens"),
        row("every 1 layer", "flowcut:budget=128,interval=1", "84.9", "128 tokens"),
        row("every 2 layers", "flowcut:budget=128", "85.2", "128 tokens"),
        row("every 3 layers", "flowcut:budget=128,interval=3", "84.6", "128 tokens"),
        row("every 4 layers", "flowcut:budget=128,interval=4", "84.6", "128 tokens"),
        row("every 6 layers", "flowcut:budget=128,interval=6", "84.3", "128 tokens"),
        row("every 8 layers", "flowcut:budget=128,interval=8", "84.3", "128 tokens"),
        row("every 12 layers", "flowcut:budget=128,interval=12", "84.0", "128 tokens"),
        row("last layer only", "flowcut:budget=128,interval=24", "83.9", "128 tokens"),
    ),
    notes=("Intervals count back from the last selection, which follows the layer before the one that LLaVA reads.",),
)
