"""Pictures from files and from a (local) web server."""

import http.server
import io
import threading

import numpy as np
import pytest
from PIL import Image

from llava.eval import images
from llava.eval.images import load_image

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def address():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/a.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(png() if found else b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_files_and_addresses_give_the_same_picture(tmp_path, address):
    (tmp_path / "a.png").write_bytes(png())
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), f"{address}/a.png"):
        assert np.array_equal(np.asarray(load_image(source)), PIXELS)


def test_every_picture_comes_in_rgb(tmp_path):
    Image.fromarray(PIXELS[..., 0], "L").convert("P").save(tmp_path / "grey.png")
    assert load_image(tmp_path / "grey.png").mode == "RGB"


def test_what_cannot_be_read_is_said_in_one_line(tmp_path, address, monkeypatch):
    (tmp_path / "cut.png").write_bytes(png()[:50])
    (tmp_path / "text.png").write_text("no picture")
    cases = {
        str(tmp_path / "gone.png"): "does not exist",
        str(tmp_path / "cut.png"): "cannot be read",
        str(tmp_path / "text.png"): "cannot be read",
        str(tmp_path): "cannot be read",
        f"{address}/b.png": "404",
    }
    for source, reason in cases.items():
        with pytest.raises(ValueError, match=reason) as error:
            load_image(source)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(images, "LARGEST_DOWNLOAD", 10)
    with pytest.raises(ValueError, match="larger than"):
        load_image(f"{address}/a.png")
