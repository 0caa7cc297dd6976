"""Control the page in a headless Chromium, and take the screenshots of the documentation.

    python -m scripts.serve_screenshot

Runs the demo meanwhile. Needs Chromium and its driver (Debian: chromium,
chromium-driver) and the package selenium. The browser test uses the same class.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from PIL import Image

from flowcut.cli.command_line import Parser, program

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 180.0  # at most, for each step


def find_browser() -> tuple[str, str] | None:
    """Paths of Chromium and its driver; None if they are not installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def running_demo(*flags: str) -> Iterator[str]:
    """What `python -m llava.serve.demo` runs with these flags, in this process; the page's address."""
    from llava.serve import demo
    from llava.serve.gradio_web_server import launch, settings_of
    from llava.serve.page import build_page

    args = demo.build_parser().parse_args(flags)
    with demo.services(args) as controller:
        page = build_page(settings_of(args, controller, reload=False))
        try:
            yield launch(page, args, block=False)[1].rstrip("/")
        finally:
            page.close()


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
        self.url = f"{url.rstrip('/')}{'&' if '?' in url else '/?'}__theme={'dark' if dark else 'light'}"

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
        """The text of the element; "" as long as it is not on the page."""
        return next((one.text for one in self.find(selector)), "")

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

        box = self.until(lambda: self.find(f"{selector} input"))[0]
        if box.get_attribute("value") == value:
            return
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

    def screenshot(self, path: Path, most: int = 2000) -> None:
        """Save a PNG of the page from its top, at most `most` pixels high, in 256 colours, chosen to cover all colours
        rather than the most frequent ones.
        """
        root = "return document.documentElement"
        width, height = (self.browser.execute_script(f"{root}.{side}") for side in ("clientWidth", "scrollHeight"))
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, most), "scale": 1}
        wanted = {"captureBeyondViewport": True, "clip": clip}
        taken = base64.b64decode(self.browser.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"])
        picture = Image.open(io.BytesIO(taken)).convert("RGB")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)


PAGES = {
    # name: width, most pixels of height, dark, method on the left, method on the right
    "serve": (1440, 1400, False, "none", "flowcut"),
    "serve_merged": (1440, 800, True, "flowcut", "tome"),
    "serve_phone": (390, 1300, False, "none", "flowcut"),
}


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", default="playground/embedded")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder (default: %(default)s)")
    parser.add_argument("--only", choices=PAGES, help="one picture alone")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        with running_demo("--model-path", args.model_path) as url:
            for name in [args.only] if args.only else PAGES:
                print(picture_of(url, args.out / f"{name}.png", *PAGES[name]))
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def picture_of(url: str, path: Path, width: int, most: int, dark: bool, left: str, right: str) -> Path:
    """Ask about the first example with both methods, and save what the page shows."""
    with Visitor(url, (width, 844), dark) as visitor:
        visitor.example()
        visitor.choose("#first-method", left)
        visitor.choose("#second-method", right)
        visitor.find("#send")[0].click()
        visitor.until(lambda: len(visitor.history()) == 2)
        visitor.until(lambda: len(visitor.find("#kept-1 img, #kept-2 img")) == 2)
        sleep(1)  # until the pictures are visible
        visitor.screenshot(path, most)
    return path


if __name__ == "__main__":
    main()
