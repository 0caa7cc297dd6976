"""Models that answer: this project's LLaVA classes, and transformers' own behind the same face."""

from llava.eval.hosts.answer import HostAnswerer
from llava.eval.hosts.checkpoint import HostCheckpoint, load_host
from llava.eval.hosts.choose import HOSTS, is_ours, load_answerer

__all__ = ["HOSTS", "HostAnswerer", "HostCheckpoint", "is_ours", "load_answerer", "load_host"]
