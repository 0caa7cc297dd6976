"""TGIF-QA: zero-shot questions about animated GIFs; everything else is in `video_qa`."""

from llava.eval.benchmarks.video_qa import video_benchmark

BENCHMARK = video_benchmark("tgif", "TGIF-QA", ("mp4", "videos"), published=25751, paper=46.9)
