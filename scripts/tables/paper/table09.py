"""Table 9: more methods on LLaVA-1.5-7B, and ST3 at equal cost."""

from scripts.tables.paper.spec import Table, benchmarks, measured, row

TABLE = Table(
    number=9,
    title="LLaVA-1.5-7B, further methods",
    family="v1_5",
    model="liuhaotian/llava-v1.5-7b",
    columns=(measured("TFLOPs", "flops", "total", 2), *benchmarks("TextVQA VQAv2 POPE MMB SQA AI2D MMMU")),
    rows=(
        row("Vanilla", "none", "8.82 58.2 78.5 85.9 64.7 69.5 - -", "576 tokens"),
        row("PruMerge", "prumerge:budget=64", "1.95 53.5 65.9 70.7 56.8 68.5 - -", "64 tokens"),
        row(
            "VTW (K=5)",
            "vtw:budget=90,layer=5",
            "2.01 8.1 42.7 46.0 21.3 65.3 - -",
            "64 tokens",
            embedded="vtw:budget=128,layer=1",
        ),
        row("RCom", "rcom:budget=64", "1.96 55.5 70.4 72.0 57.9 69.0 - -", "64 tokens"),
        row("FasterVLM", "fastervlm:budget=64", "1.97 55.2 71.9 76.1 60.4 68.9 - -", "64 tokens"),
        row("FlowCut", "flowcut:budget=64", "1.95 55.6 72.8 80.2 60.8 69.1 - -", "64 tokens"),
        row("ST3", "st3:budget=236", "4.27 - - 85.2 63.8 68.9 55.4 35.3", "against ST3"),
        row("FlowCut", "flowcut:budget=236", "4.25 - - 86.1 64.3 69.2 55.8 36.2", "against ST3"),
    ),
    notes=(
        "VTW with K=5 lets layers 0 to 4 of 32 read all tokens: 90 on average.",
        "ST3 has no public code. Ours follows its paper's description, with constants of this project. 4.25 TFLOPs are "
        "about 236 tokens by our formulas (docs/cost.md); FlowCut's paper does not say how many it kept.",
    ),
)
