"""LLaVA's converter of ScienceQA; says what prepares ScienceQA here."""

import sys

if __name__ == "__main__":
    sys.exit("error: not part of this project; python -m llava.eval.prepare sqa makes ScienceQA's question file")
