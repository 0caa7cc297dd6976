"""How well the kept tokens represent all tokens, for every method that works in the encoder. No question is asked.

    python -m scripts.real.coverage runs/real/photos --model-path runs/real/dinov2-small-saliency

Takes the folder of a CLIP, SigLIP or DINOv2 encoder, or a LLaVA checkpoint. For each picture and pruner, the tokens of
the layer that the language model reads are compared with those of the unpruned encoder there:

- coverage error: the mean over all unpruned tokens of 1 - cosine to the most similar remaining token;
- drift of CLS: 1 - cosine between the CLS tokens with and without the pruner, after the encoder's last layer. Of the
  layers after the one that is read, the cost counts none;
- projected error: the coverage error after the projector, where the model has one.

Writes OUT.json and journals each picture in OUT.jsonl, so an interrupted run continues where it stopped.
`python -m scripts.real.coverage_page` renders the committed file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, or folders of them")
    parser.add_argument("--image", action="append", default=[], help="the same")
    parser.add_argument(
        "--model-path", also=["--model"], required=True, help="folder of an encoder, or a LLaVA checkpoint"
    )
    parser.add_argument("--pruner", action="append", help="may be given again (default: all methods, all budgets)")
    parser.add_argument("--budget", type=int, nargs="+", default=[192, 128, 64, 32], help="tokens that remain")
    parser.add_argument("--out", type=Path, default=Path("runs/real/coverage"), help="(default: %(default)s.json)")
    return parser


parse_first(__name__, build_parser)

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from flowcut import attach, parse_pruner
from flowcut.cli.progress import progress_bar
from flowcut.cost import encoder_flops
from flowcut.flow.__main__ import read_pictures
from flowcut.flow.study import pruner_for_encoders
from flowcut.flow.subject import Subject, load_subject
from flowcut.pruner import Pruner
from flowcut.registry import METHODS
from llava.eval.files import drop_half_line, read_rows, write_atomic

WITHOUT_QUESTION = {"cdpruner": "condition=false", "rcom": "condition=false"}
DIGITS = 6

Picture = tuple[str, Image.Image]
"""File name and picture."""


def coverage_error(tokens: Tensor, remaining: Tensor) -> float:
    """The mean over `tokens` [n, d] of 1 - cosine to the most similar of `remaining` [k, d]."""
    similar = normalize(tokens.float(), dim=-1) @ normalize(remaining.float(), dim=-1).T
    return float(1 - similar.max(dim=1).values.mean())


def drift(before: Tensor, after: Tensor) -> float:
    """1 - cosine of two vectors."""
    return float(1 - torch.cosine_similarity(before.double(), after.double(), dim=0))


def default_pruners(budgets: Sequence[int], subject: Subject) -> tuple[list[str], dict[str, str]]:
    """Texts of all methods that this encoder can have, at all budgets; and why it cannot have the others."""
    found, refused = [], {}
    for name in METHODS:
        more = f",{WITHOUT_QUESTION[name]}" if name in WITHOUT_QUESTION else ""
        try:
            with attach(subject.encoder.model, pruner_for_encoders(f"{name}:budget={budgets[0]}{more}")):
                pass
        except ValueError as error:
            refused[name] = str(error)
        else:
            found += [f"{name}:budget={budget}{more}" for budget in budgets]
    return found, refused


class Comparison:
    """One picture's unpruned encoder, and pruners compared with it.

    Args:
        subject: the encoder.
        pixels: [1, 3, H, W].
    """

    def __init__(self, subject: Subject, pixels: Tensor):
        self.subject, self.pixels = subject, pixels
        self.prefix = subject.encoder.shape.num_prefix_tokens
        self.config = copy.copy(subject.encoder.model.config)
        self.config.image_size = pixels.shape[-1]  # the costs are those of this picture
        self.full, self.cls = self.states()

    def states(self) -> tuple[Tensor, Tensor]:
        """Tokens [n, d] of the layer that the language model reads, special ones first, and the last layer's first."""
        with torch.no_grad():
            states = self.subject.encoder.model(self.pixels, output_hidden_states=True).hidden_states
        return states[self.subject.feature_layer + 1][0], states[-1][0, 0]

    def flops(self, path: Sequence[int], leaving: Sequence[int] | None) -> float:
        read = self.subject.feature_layer + 1
        return encoder_flops(self.config, path[:read], self.prefix, None if leaving is None else leaving[:read])

    def measure(self, pruner: Pruner) -> dict[str, float]:
        """The pruner's numbers for this picture; share: of the unpruned FLOPs up to the layer that is read."""
        with attach(self.subject.encoder.model, pruner) as handle:
            left, cls = self.states()
            trace = handle.trace
        assert trace is not None
        path = trace.path()
        inside = [counts[0] for counts in trace.leaving] if pruner.merges_before_mlp else None
        numbers = {
            "error": coverage_error(self.full[self.prefix :], left[self.prefix :]),
            "share": self.flops(path, inside) / self.flops([path[0]] * len(path), None),
        }
        if self.prefix:
            numbers["drift"] = drift(self.cls, cls)
        project = self.subject.encoder.project
        if project is not None:
            with torch.no_grad():
                tokens, remaining = (project(states[None, self.prefix :])[0] for states in (self.full, left))
            numbers["projected"] = coverage_error(tokens, remaining)
        return {name: round(value, DIGITS) for name, value in numbers.items()}


def weights_digest(subject: Subject) -> str:
    """Of the encoder's weights; two models of one name differ in it."""
    digest = hashlib.sha256()
    for name, weight in sorted(subject.encoder.model.state_dict().items()):
        digest.update(name.encode() + weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def read_journal(file: Path, model: str) -> dict[tuple[str, str], dict[str, float]]:
    """{(picture, pruner): numbers} of an interrupted run.

    Raises:
        ValueError: it is of another model.
    """
    done = {}
    drop_half_line(file)
    for row in read_rows(file, "measurement") if file.is_file() and file.stat().st_size else ():
        if row.pop("model") != model:
            raise ValueError(f"{file} is about another model than {model}; give another --out, or remove it")
        done[row.pop("picture"), row.pop("pruner")] = row
    return done


class Journal:
    """The numbers of all pictures, written one by one, so that an interrupted run goes on.

    Args:
        file: JSON lines.
        subject: whose weights a journal must be of.

    Raises:
        ValueError: it is of another model, or damaged.
    """

    def __init__(self, file: Path, subject: Subject):
        self.file, self.model = file, f"{subject.name} {weights_digest(subject)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.done = read_journal(file, self.model)

    def write(self, picture: str, pruner: str, numbers: dict[str, float]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"model": self.model, "picture": picture, "pruner": pruner, **numbers}) + "\n")
        self.done[picture, pruner] = numbers


def key_of(name: str, image: Image.Image) -> str:
    """A picture's name in the journal; another picture of the same file name has another."""
    return f"{name} {hashlib.sha256(image.tobytes()).hexdigest()[:12]}"


def measure_all(subject: Subject, pictures: Sequence[Picture], texts: Sequence[str], journal: Journal) -> None:
    pruners = {text: pruner_for_encoders(text) for text in texts}
    for name, image in progress_bar(pictures, desc="pictures", unit="picture"):
        key = key_of(name, image)
        missing = [text for text in texts if (key, text) not in journal.done]
        if missing:
            comparison = Comparison(subject, subject.pixels(image))
            for text in missing:
                journal.write(key, text, comparison.measure(pruners[text]))


def document(
    subject: Subject, pictures: Sequence[Picture], texts: Sequence[str], journal: Journal, refused: dict[str, str]
) -> str:
    """The numbers of all pictures as JSON, a line for each pruner."""
    rows = []
    for text in texts:
        own = [journal.done[key_of(name, image), text] for name, image in pictures]
        pruner = parse_pruner(text)
        assert pruner is not None
        values = {key: [row[key] for row in own] for key in own[0]}
        rows.append({"pruner": text, "method": text.partition(":")[0], "budget": pruner.budget, **values})
    names = [name for name, _ in pictures]
    whole = {"model": subject.name, "layer": subject.feature_layer, "pictures": names, "refused": refused, "rows": rows}
    return json.dumps(whole, indent=None, separators=(",", ":")).replace('{"pruner"', '\n{"pruner"') + "\n"


@program
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    pictures = read_pictures([*args.images, *args.image])
    subject = load_subject(args.model_path)
    texts, refused = (args.pruner, {}) if args.pruner else default_pruners(args.budget, subject)
    out = args.out.with_suffix(".json")
    journal = Journal(args.out.with_suffix(".jsonl"), subject)
    measure_all(subject, pictures, texts, journal)
    write_atomic(out, document(subject, pictures, texts, journal, refused))
    print(json.dumps({"file": str(out), "pictures": len(pictures), "pruners": len(texts), "refused": len(refused)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
