"""Control the page in a headless Chromium: ask about a picture, with pruning and without, and take a screenshot.

    python -m scripts.serve_screenshot --out docs/images/serve.png

Starts `python -m llava.serve.demo` meanwhile. Needs Chromium and its driver (Debian: chromium,
chromium-driver) and the package selenium. The browser test uses the same class.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from PIL import Image

from flowcut.command_line import Parser, program

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0  # to start, and for each step


def find_browser() -> tuple[str, str] | None:
    """Paths of Chromium and its driver; None if they are not installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def running_demo(model: str, *flags: str) -> Iterator[str]:
    """`llava.serve.demo` in a separate process, on a free port; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "llava.serve.demo", "--model-path", model, "--port", str(port), *flags]
        log = Path(folder, "demo.log")
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            _wait(f"http://127.0.0.1:{port}/", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(SECONDS)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    end = monotonic() + SECONDS
    while monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            sleep(0.2)
    raise RuntimeError(f"the demo did not start: {log.read_text()[-1000:]}")


class Visitor:
    """A browser on the page. `with Visitor(url) as visitor: ...`"""

    def __init__(self, url: str, size: tuple[int, int] = (1440, 1290), dark: bool = False) -> None:
        from selenium import webdriver

        found = find_browser()
        if found is None:
            raise RuntimeError("no Chromium with its driver here; install chromium and chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = found[0]
        flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={size[0]},{size[1]}"]
        if os.geteuid() == 0:  # Chromium's sandbox does not work as root
            flags.append("--no-sandbox")
        if size[0] < 500:  # no window is so narrow, so a telephone is emulated
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 1.0}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        for flag in flags:
            options.add_argument(flag)
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
        self.url = f"{url}{'&' if '?' in url else '/?'}__theme={'dark' if dark else 'light'}"

    def __enter__(self) -> Visitor:
        self.browser.get(self.url)
        self.until(lambda: self.find("#question textarea"))
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.quit()

    def until(self, condition: Any) -> Any:
        """Wait until the condition is true; returns its value. An element that is being redrawn counts as false."""
        from selenium.common.exceptions import WebDriverException

        end = monotonic() + SECONDS
        while True:
            try:
                if found := condition():
                    return found
            except WebDriverException:
                pass
            if monotonic() > end:
                raise TimeoutError(f"the page did not get there; it says: {self.find('body')[0].text[-2000:]}")
            sleep(0.1)

    def find(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.find(selector)[0].text

    def upload(self, picture: Path) -> None:
        self.until(lambda: self.find("#picture input[type=file]"))[0].send_keys(str(picture.resolve()))
        self.until(lambda: self.find("#picture img"))

    def example(self, number: int = 0) -> None:
        """Take an example picture with its question."""
        self.until(lambda: self.find("#examples button img"))[number].click()
        self.until(lambda: self.find("#picture img"))

    def set_budget(self, budget: int, side: str = "second") -> None:
        from selenium.webdriver.common.keys import Keys

        number = self.until(lambda: self.find(f"#{side}-budget input[type=number]"))[0]
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys(str(budget), Keys.TAB)

    def choose(self, selector: str, value: str) -> None:
        """Choose in a dropdown."""
        from selenium.webdriver.common.keys import Keys

        box = self.find(f"{selector} input")[0]
        box.click()
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(value, Keys.ENTER)
        self.until(lambda: box.get_attribute("value") == value)

    def ask(self, text: str) -> str:
        """Ask a question, and wait for the figures of the answer; returns them."""
        before = self.history()
        self.find("#question textarea")[0].clear()
        self.find("#question textarea")[0].send_keys(text)
        self.find("#send")[0].click()
        return self.until(lambda: self._figures(before))

    def again(self) -> str:
        """Repeat the last question."""
        before = self.history()
        self.find("#again")[0].click()
        return self.until(lambda: self._figures(before))

    def _figures(self, before: list[str]) -> str:
        return self.text("#figures") if self.history() != before else ""

    def history(self) -> list[str]:
        """The lines of the history, the newest first."""
        return [one.text for one in self.find("#history tbody tr")]

    def answers(self, side: int = 1) -> list[str]:
        return [one.text for one in self.find(f"#chat-{side} .bot.message")]

    def screenshot(self, path: Path) -> None:
        """Save a PNG of 256 colours, chosen to cover all colours rather than the most frequent ones."""
        picture = Image.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", default="playground/embedded")
    parser.add_argument(
        "--image", also=["--image-file"], dest="image_file", type=Path, default=Path("docs/images/scene.png")
    )
    parser.add_argument("--query", default="What color is the star?")
    parser.add_argument("--pruner-budget", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("docs/images/serve.png"))
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        with running_demo(args.model_path) as url, Visitor(url) as visitor:
            visitor.upload(args.image_file)
            visitor.choose("#method", "none")
            visitor.ask(args.query)
            visitor.again()  # the first answer is slower: memory has to be allocated
            visitor.choose("#method", "flowcut")
            visitor.set_budget(args.pruner_budget)
            visitor.again()
            visitor.again()
            visitor.until(lambda: len(visitor.find("#kept img")) > 2)
            sleep(1)  # until the pictures are visible
            visitor.screenshot(args.out)
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(args.out)


if __name__ == "__main__":
    main()
