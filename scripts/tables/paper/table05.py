"""Table 5: time and cost of a question of POPE, at 64 tokens of LLaVA-1.5-7B and 160 of LLaVA-NeXT-7B."""

from scripts.tables.paper.spec import Table, measured, row

NEXT = "liuhaotian/llava-v1.6-vicuna-7b"
TABLE = Table(
    number=5,
    title="efficiency",
    family="v1_5",
    model="liuhaotian/llava-v1.5-7b",
    columns=(
        measured("ms a question", "efficiency", "total"),
        measured("total speed-up", "efficiency", "total_speedup", 2),
        measured("prefill ms", "efficiency", "ttft"),
        measured("prefill speed-up", "efficiency", "ttft_speedup", 2),
        measured("TFLOPs", "efficiency", "tflops", 2),
    ),
    rows=(
        row("Vanilla", "none", "115.0 1.0 102 1.0 8.82", "LLaVA-1.5-7B"),
        row("FastV", "fastv:budget=64,layer=1,keep=64", "104.6 1.1 87.3 1.2 2.26", "LLaVA-1.5-7B"),
        row("SparseVLM", "sparsevlm:budget=64", "107.4 1.1 90.1 1.1 2.31", "LLaVA-1.5-7B"),
        row("PDrop", "pdrop:budget=64", "87.1 1.3 72.5 1.4 2.16", "LLaVA-1.5-7B"),
        row("VisionZip", "visionzip:budget=64", "81.9 1.4 69.2 1.5 2.03", "LLaVA-1.5-7B"),
        row("FlowCut", "flowcut:budget=64", "76.0 1.5 62.6 1.6 1.95", "LLaVA-1.5-7B"),
        row("Vanilla", "none", "237.5 1.0 206 1.0 31.03", "LLaVA-NeXT-7B", checkpoint=NEXT, of=2880),
        row(
            "FastV",
            "fastv:budget=160,layer=2,keep=160",
            "191.6 1.3 117 1.8 7.35",
            "LLaVA-NeXT-7B",
            checkpoint=NEXT,
            of=2880,
        ),
        row(
            "SparseVLM",
            "sparsevlm:budget=160,layers=1/6/15",
            "204.9 1.2 136 1.5 7.62",
            "LLaVA-NeXT-7B",
            checkpoint=NEXT,
            of=2880,
        ),
        row(
            "PDrop",
            "pdrop:budget=160,layers=1/8/16",
            "92.6 2.6 79.5 2.6 6.78",
            "LLaVA-NeXT-7B",
            checkpoint=NEXT,
            of=2880,
        ),
        row("VisionZip", "visionzip:budget=160", "84.4 2.8 69.9 2.9 4.72", "LLaVA-NeXT-7B", checkpoint=NEXT, of=2880),
        row("FlowCut", "flowcut:budget=160", "78.6 3.0 63.8 3.2 4.29", "LLaVA-NeXT-7B", checkpoint=NEXT, of=2880),
    ),
    misprints={
        ("LLaVA-NeXT-7B", "FastV", "total speed-up"): "1.24 by the printed times",
        ("LLaVA-NeXT-7B", "Vanilla", "TFLOPs"): "does not follow from 2,880 tokens, nor from 2,340; see docs/cost.md",
    },
    notes=(
        "The paper prints minutes and seconds for the 8,910 questions of POPE on an A800 (17:05 unpruned, 11:17 with "
        "FlowCut at 64 tokens); here they are divided by the questions. Ours are from pixels to the end of the answer; "
        "reading pictures is left out, as workers hide it. Compare speed-ups, not milliseconds.",
        "FastV's rows are those whose FLOPs fit: 64 tokens after one full layer, 160 after two (docs/cost.md).",
        "Prefill is from pixels to the first token's logits (encoder, projector, prompt); the paper does not say what "
        "its prefill time covers.",
    ),
)
