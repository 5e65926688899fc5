"""Takes docs/app.png, the app with a finished comparison, in the system's Chromium: `python docs/screenshot.py`."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from ralu_cache.app.serve import launch
from ralu_cache.generate import Request

TARGET = Path(__file__).with_name("app.png")
WIDTH, HEIGHT = 1280, 1480
SECONDS = 120_000  # milliseconds
PROMPT = "a large white ring on a red background"


def main() -> None:
    page, address = launch(Request("tiny-flux", [""]), "127.0.0.1", 7860, [])
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        view.goto(address)
        expect(view.locator("#guidance input")).to_have_value("6", timeout=SECONDS)  # the page is there
        view.locator("#prompt textarea").fill(PROMPT)
        view.locator("#draw").click()
        view.locator("#status .cards", has_text="PSNR").wait_for(timeout=SECONDS)
        view.wait_for_timeout(1500)
        shot = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
        browser.close()
    shot.save(TARGET, optimize=True)
    page.close()


if __name__ == "__main__":
    main()
