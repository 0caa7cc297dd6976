"""Table 2: LLaVA-NeXT-7B, methods at 640, 320 and 160 of at most 2880 tokens."""

from scripts.tables.paper.spec import Table, benchmarks, row

TABLE = Table(
    number=2,
    title="LLaVA-NeXT-7B, image understanding",
    family="v1_6",
    model="liuhaotian/llava-v1.6-vicuna-7b",
    columns=benchmarks("GQA MMB MMB-CN MME POPE VQAv2 TextVQA SEED"),
    rows=(
        row("Vanilla", "none", "64.2 67.9 60.6 1846 86.4 81.8 61.3 63.6 Avg=100", "2880 tokens"),
        row("SparseVLM", "sparsevlm:budget=640", "60.3 65.8 58.5 1773 84.2 77.1 57.8 59.3 Avg=95.3", "640 tokens"),
        row("PDrop", "pdrop:budget=640", "60.6 65.5 58.5 1781 83.7 78.3 57.4 60.5 Avg=95.7", "640 tokens"),
        row("VisionZip", "visionzip:budget=640", "61.3 66.2 57.8 1787 85.9 79.1 60.2 60.9 Avg=96.9", "640 tokens"),
        row("FlowCut", "flowcut:budget=640", "61.9 66.7 59.2 1837 86.1 79.8 60.6 61.9 Avg=98.2", "640 tokens"),
        row("SparseVLM", "sparsevlm:budget=320", "57.7 63.2 54.4 1685 82.2 73.4 55.9 56.9 Avg=91.2", "320 tokens"),
        row("PDrop", "pdrop:budget=320", "58.3 63.9 56.8 1736 80.2 75.2 55.3 57.8 Avg=92.3", "320 tokens"),
        row("VisionZip", "visionzip:budget=320", "59.2 63.1 55.3 1702 82.1 76.2 58.9 58.2 Avg=93.0", "320 tokens"),
        row("FlowCut", "flowcut:budget=320", "59.8 65.3 57.5 1791 83.4 77.8 60.1 59.5 Avg=95.6", "320 tokens"),
        row(
            "SparseVLM",
            "sparsevlm:budget=160,layers=1/6/15",
            "51.2 52.1 48.6 1542 72.7 66.3 46.4 49.2 Avg=79.8",
            "160 tokens",
        ),
        row(
            "PDrop", "pdrop:budget=160,layers=1/8/16", "54.9 61.8 54.9 1513 72.3 70.2 52.7 53.9 Avg=86.2", "160 tokens"
        ),
        row("VisionZip", "visionzip:budget=160", "55.5 60.1 52.7 1628 74.8 71.4 56.2 54.2 Avg=87.6", "160 tokens"),
        row("FlowCut", "flowcut:budget=160", "57.6 62.8 55.2 1746 79.9 74.6 57.6 56.8 Avg=91.9", "160 tokens"),
    ),
    tokens=2880,
    notes=(
        "2880 is the most that a picture can have; a 640 x 480 one has 2,340 after unpadding.",
        "With 160 tokens, SparseVLM and PDrop cut a layer earlier than published: otherwise the layers that read all "
        "2880 would already be more than 160 on average. How the paper came to 160 is not known.",
        "FlowCut keeps twice the budget over all tiles in the encoder, and the budget after decoder layer 2.",
    ),
)
