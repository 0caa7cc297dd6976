"""LLaVA's names for the TextVQA metric; the rules are in `llava.eval.metrics.vqa_normalise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.eval.metrics.vqa_normalise import m4c, m4c_accuracy


class EvalAIAnswerProcessor:
    """An answer's normal form, by calling."""

    def __call__(self, item: str) -> str:
        return m4c(item)


class TextVQAAccuracyEvaluator:
    """The mean accuracy of answers against ten humans each."""

    def eval_pred_list(self, pred_list: Sequence[dict[str, Any]]) -> float:
        """pred_list: `pred_answer` and `gt_answers` (ten) each -> 0..1. Raises ValueError for an empty list."""
        if not pred_list:
            raise ValueError("no answers to score; give at least one")
        return sum(m4c_accuracy(one["pred_answer"], one["gt_answers"]) for one in pred_list) / len(pred_list)
