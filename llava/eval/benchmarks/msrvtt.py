"""MSRVTT-QA: zero-shot questions about clips of web videos; everything else is in `video_qa`."""

from llava.eval.benchmarks.video_qa import video_benchmark

BENCHMARK = video_benchmark("msrvtt", "MSRVTT-QA", ("videos/all", "videos"), published=72821, paper=57.1)
