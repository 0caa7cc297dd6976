"""LLaVA's review program before LLaVA-Bench; says which program reviews here."""

from flowcut.cli.command_line import refuse

if __name__ == "__main__":
    refuse("error: not part of this project; use python -m llava.eval.eval_gpt_review_bench, which has its flags")
