"""MSVD-QA: zero-shot questions about short clips from the web; everything else is in `video_qa`."""

from llava.eval.benchmarks.video_qa import video_benchmark

BENCHMARK = video_benchmark("msvd", "MSVD-QA", ("videos",), published=13157, paper=69.8)
