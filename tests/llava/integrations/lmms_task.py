"""A tiny task for lmms-eval: a folder with a task file, its functions, and four questions about pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

FUNCTIONS = """
from pathlib import Path
from PIL import Image

FOLDER = Path(__file__).parent


def visual(doc):
    return [Image.open(FOLDER / doc["picture"])]


def text(doc, kwargs=None):
    return doc["question"]


def target(doc):
    return doc["answer"]


def results(doc, results):
    return {"length": len(results[0].split())}


def mean(items):
    return sum(items) / len(items)
"""
TASK = """
dataset_path: json
dataset_kwargs:
  data_files: {data_files}
task: tiny_task
test_split: train
output_type: generate_until
doc_to_visual: !function functions.visual
doc_to_text: !function functions.text
doc_to_target: !function functions.target
process_results: !function functions.results
generation_kwargs:
  max_new_tokens: 12
  temperature: 0
  do_sample: false
metric_list:
  - metric: length
    aggregation: !function functions.mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
QUESTIONS = ("what is in this image", "how many cats", "two", "hello red star")


def write_task(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number, question in enumerate(QUESTIONS):
        picture = Image.fromarray(rng.integers(0, 255, (30, 30 + 10 * number, 3), dtype=np.uint8))
        picture.save(folder / f"{number}.png")
        rows.append({"picture": f"{number}.png", "question": question, "answer": "yes"})
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "functions.py").write_text(FUNCTIONS)
    (folder / "tiny_task.yaml").write_text(TASK.format(data_files=folder / "rows.json"))
    return folder
