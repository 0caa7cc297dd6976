"""Table 8: LLaVA-1.5-7B at 32 of 576 tokens."""

from scripts.tables.paper.spec import Table, benchmarks, row

TABLE = Table(
    number=8,
    title="LLaVA-1.5-7B at an extreme budget",
    family="v1_5",
    model="liuhaotian/llava-v1.5-7b",
    columns=benchmarks("GQA TextVQA VQAv2 POPE SQA VizWiz"),
    rows=(
        row("Vanilla", "none", "61.9 58.2 78.5 85.9 69.5 50.0 Avg=100", "576 tokens"),
        row("FastV", "fastv:budget=32", "46.2 51.5 56.0 35.7 68.3 49.1 Avg=78.7", "32 tokens"),
        row("VisionZip", "visionzip:budget=32", "51.5 51.7 65.1 68.3 68.2 49.9 Avg=88.7", "32 tokens"),
        row("FlowCut", "flowcut:budget=32", "52.1 53.0 66.9 69.6 68.7 52.3 Avg=90.8", "32 tokens"),
    ),
)
