"""Table 6: LLaVA-1.5-7B trained with 192 and 128 tokens."""

from scripts.tables.paper.spec import Table, benchmarks, measured, row

TABLE = Table(
    number=6,
    title="LLaVA-1.5-7B, trained with pruned tokens",
    family="v1_5",
    model="liuhaotian/llava-v1.5-7b",
    columns=(
        measured("hours", "training", "hours", 2),
        measured("speed-up", "training", "speedup", 2),
        *benchmarks("GQA MMB MMB-CN MME POPE SQA VQAv2 TextVQA SEED MM-Vet"),
    ),
    rows=(
        row(
            "Vanilla",
            "none",
            "12.97 1.0 61.9 64.7 58.1 1862 85.9 69.5 78.5 58.2 59.3 31.1 Avg=100",
            "576 tokens",
            trained=("checkpoints/llava-v1.5-7b-pretrain", "checkpoints/llava-v1.5-7b"),
        ),
        row(
            "FlowCut",
            "flowcut:budget=192",
            "8.65 1.5 62.0 66.4 59.2 1840 86.0 68.9 78.7 58.1 59.2 33.6 Avg=101.1",
            "192 tokens",
            checkpoint="JosephTong/llava-v1.5-7b-flowcut192",
            trained=("checkpoints/llava-v1.5-7b-pretrain-flowcut192", "checkpoints/llava-v1.5-7b-flowcut192"),
        ),
        row(
            "FlowCut",
            "flowcut:budget=128",
            "7.98 1.6 60.8 66.9 59.5 1835 84.5 69.2 77.9 57.9 58.6 31.2 Avg=99.8",
            "128 tokens",
            checkpoint="JosephTong/llava-v1.5-7b-flowcut128",
            trained=("checkpoints/llava-v1.5-7b-pretrain-flowcut128", "checkpoints/llava-v1.5-7b-flowcut128"),
        ),
    ),
    notes=(
        "Hours of both stages on 8 GPUs. `bash scripts/v1_5/pretrain_flowcut.sh` and `finetune_flowcut.sh` with BUDGET "
        "train a row's model. If its folder exists, it is scored and its own hours are shown; otherwise the authors' "
        "checkpoint is scored.",
    ),
)
