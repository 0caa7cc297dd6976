"""Pictures from files and from a (local) web server."""

import http.server
import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.eval.media import images
from llava.eval.media.images import decode_image, load_image

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
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_files_and_addresses_give_the_same_picture(tmp_path, address):
    (tmp_path / "a.png").write_bytes(png())
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), f"{address}/a.png"):
        assert np.array_equal(np.asarray(load_image(source, allow_private=True)), PIXELS)


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
            load_image(source, allow_private=True)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(images, "LARGEST_DOWNLOAD", 10)
    with pytest.raises(ValueError, match="larger than"):
        load_image(f"{address}/a.png", allow_private=True)


def test_without_permission_nothing_is_fetched_from_this_machine(address):
    with pytest.raises(ValueError, match=r"image http://127\.0\.0\.1\S* cannot be read \(127\.0\.0\.1 is not a public"):
        load_image(f"{address}/a.png")


def test_a_bomb_is_refused_by_its_header(tmp_path):
    Image.new("1", (20_000, 5_000)).save(tmp_path / "bomb.png")
    content = (tmp_path / "bomb.png").read_bytes()
    assert len(content) < 100_000
    for read in (lambda: load_image(tmp_path / "bomb.png"), lambda: decode_image(content)):
        with pytest.raises(ValueError, match="20000 x 5000 pixels are more than") as error:
            read()
        assert "\n" not in str(error.value)


def test_strangers_may_send_pictures_only_in_plain_formats():
    eps = io.BytesIO()
    Image.fromarray(PIXELS).save(eps, "EPS")
    for content in (eps.getvalue(), b"no picture", b""):
        with pytest.raises(ValueError, match="hold no picture; send one of BMP"):
            decode_image(content)
    assert np.array_equal(np.asarray(decode_image(png())), PIXELS)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells a process its peak there")
def test_memory_of_reading_is_bounded(tmp_path):
    """Of 4 million pixels in any mode: at most 12 bytes for each, above what the process has before."""
    side = 2000
    for mode in ("RGB", "L", "RGBA", "P", "I;16", "I", "CMYK"):
        Image.new(mode, (side, side)).save(tmp_path / f"{mode.replace(';', '')}.tiff")
    program = (
        "import sys\n"
        "from llava.pictures import read_picture\n"
        "def peak():\n"
        "    line = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "    return int(line.split()[1]) * 1024\n"
        "before = peak()\n"
        "for name in sys.argv[1:]: read_picture(name)\n"
        "print(peak() - before)"
    )
    files = [str(file) for file in tmp_path.iterdir()]
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert side * side * 3 < int(done.stdout) < side * side * 12
