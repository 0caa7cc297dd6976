"""Fetching, decoding and prefetching of pictures and videos."""
