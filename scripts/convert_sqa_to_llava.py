"""LLaVA's converter of ScienceQA; says what prepares ScienceQA here."""

from flowcut.cli.command_line import refuse

if __name__ == "__main__":
    refuse("error: not part of this project; python -m llava.eval.prepare sqa makes ScienceQA's question file")
