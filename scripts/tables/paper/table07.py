"""Table 7: what each part of FlowCut does, LLaVA-1.5-7B at 128 of 576 tokens."""

from scripts.tables.paper.spec import Table, benchmarks, row

TABLE = Table(
    number=7,
    title="ablation of FlowCut's parts",
    family="v1_5",
    model="liuhaotian/llava-v1.5-7b",
    columns=benchmarks("TextVQA GQA POPE"),
    rows=(
        row("Vanilla", "none", "58.2 61.9 85.9", "576 tokens"),
        row(
            "Single layer",
            "flowcut:budget=128,interval=24,history=0,semantic=false,value=false",
            "55.3 54.9 76.6",
            "128 tokens",
        ),
        row(
            "Single layer: cumulative",
            "flowcut:budget=128,interval=24,semantic=false,value=false",
            "56.2 57.6 83.7",
            "128 tokens",
        ),
        row("Single layer: multi-criteria", "flowcut:budget=128,interval=24,history=0", "55.9 57.3 82.0", "128 tokens"),
        row(
            "Single layer: cumulative; multi-criteria", "flowcut:budget=128,interval=24", "56.8 57.8 83.9", "128 tokens"
        ),
        row(
            "Multi-layer",
            "flowcut:budget=128,adaptive=false,history=0,semantic=false,value=false",
            "56.2 56.3 81.5",
            "128 tokens",
        ),
        row(
            "Multi-layer: adaptive number",
            "flowcut:budget=128,history=0,semantic=false,value=false",
            "57.1 58.0 83.3",
            "128 tokens",
        ),
        row(
            "Multi-layer: cumulative",
            "flowcut:budget=128,adaptive=false,semantic=false,value=false",
            "56.8 58.2 83.8",
            "128 tokens",
        ),
        row(
            "Multi-layer: multi-criteria", "flowcut:budget=128,adaptive=false,history=0", "56.7 57.8 83.5", "128 tokens"
        ),
        row(
            "Multi-layer: adaptive number; cumulative",
            "flowcut:budget=128,semantic=false,value=false",
            "57.0 58.3 84.0",
            "128 tokens",
        ),
        row(
            "Multi-layer: adaptive number; multi-criteria",
            "flowcut:budget=128,history=0",
            "57.1 58.1 83.8",
            "128 tokens",
        ),
        row(
            "Multi-layer: cumulative; multi-criteria",
            "flowcut:budget=128,adaptive=false",
            "56.9 57.9 84.3",
            "128 tokens",
        ),
        row("FlowCut: all three", "flowcut:budget=128", "57.3 58.5 85.2", "128 tokens"),
    ),
    notes=(
        "Single layer: one selection, after the layer that LLaVA reads. Without the adaptive number, every selection "
        "drops the same share. Without the cumulative score, only the current layer's score counts. Without "
        "multi-criteria, the score is attention alone.",
    ),
)
