"""The app in a real browser: what a visitor types, presses and sees. Screenshots go to out/app/."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ralu_cache.app.results import open_front
from ralu_cache.app.serve import launch
from ralu_cache.generate import Request
from tests.sweep_results import fabricated, write_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = Path(__file__).parents[1] / "out" / "app"
SECONDS = 60_000  # milliseconds that a drawing may take on a busy machine

playwright = pytest.importorskip("playwright.sync_api", reason="SKIPPED: no Playwright, so the app was not tried")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="SKIPPED: no chromium on the PATH, so the app was not tried"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),  # of pandas
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"), fabricated())


@pytest.fixture(scope="module")
def address(results: Path) -> Iterator[str]:
    page, address = launch(Request("tiny-flux", [""]), "127.0.0.1", 7960, [results.parent])
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page as another visitor, each with cookies of its own; notes requests that leave this machine."""
    contexts, elsewhere = [], []

    def opened() -> Any:
        context = browser.new_context(viewport={"width": 1360, "height": 1500})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(address)
        page.locator("#guidance input").wait_for()
        for side in ("width", "height"):
            playwright.expect(page.locator(f"#{side} input")).to_have_value("128", timeout=SECONDS)
        fill(page, steps=6, width=32, height=32)
        return page

    yield opened
    for context in contexts:
        context.close()
    local = re.compile(r"^(http://127\.0\.0\.1[:/]|data:|blob:)")
    assert elsewhere and not [url for url in elsewhere if not local.match(url)]


def fill(page: Any, **values: Any) -> None:
    """Fields by their names on the page."""
    for name, value in values.items():
        field = page.locator(f"#{name} textarea, #{name} input").first
        field.fill(str(value))
        field.blur()


def parts(page: Any, **chosen: str) -> None:
    page.get_by_label("Each part").check()
    for name, value in chosen.items():
        field = page.locator(f"#{name} input")
        field.fill(value)
        field.press("Enter")


def draw(page: Any) -> None:
    page.locator("#draw").click()


def drawn(page: Any) -> str:
    """Waits for the figures; returns them."""
    page.locator("#status .cards", has_text="PSNR").wait_for()
    return str(page.locator("#status").inner_text())


def pictures(page: Any) -> list[bytes]:
    """Both pictures, as the browser was given them."""
    images = page.locator("#pair img")
    playwright.expect(images).to_have_count(2)
    return [page.request.get(images.nth(index).get_attribute("src")).body() for index in range(2)]


def shot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_type_draw_compare(visit: Any) -> None:
    page = visit()
    fill(page, prompt="a yellow cross on a purple background", seed=3)
    parts(page, spatial="none", temporal="forecast:2")
    draw(page)
    told = drawn(page)
    for word in ("full", "accelerated", "faster", "fewer FLOPs", "SSIM"):
        assert word in told
    full, fast = pictures(page)
    assert full != fast
    handle = page.locator("#pair .icon-wrap, #pair .handle, #pair .inner").first
    box = handle.bounding_box()
    before = page.locator("#pair").screenshot()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 100, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert page.locator("#pair").screenshot() != before, "the line moves"
    page.get_by_role("tab", name="Python").click()
    assert 'temporal="forecast:2"' in page.locator("#code").inner_text()
    page.get_by_role("tab", name="Report").click()
    assert "fewer FLOPs" in page.locator("#report").inner_text()
    shot(page, "compare")


@pytest.mark.slow
def test_cancel_in_the_middle_then_a_wrong_size_then_a_right_one(visit: Any) -> None:
    page = visit()
    fill(page, steps=200, width=128, height=128)
    draw(page)
    page.locator("#status", has_text="accelerated picture, step").wait_for()
    page.locator("#cancel").click()
    page.locator("#status", has_text="Cancelled").wait_for(timeout=15_000)
    shot(page, "cancelled")
    fill(page, steps=6, height=32, width=9999)
    draw(page)
    wrong = page.locator("#status .wrong")
    playwright.expect(wrong).to_contain_text("Width must be from 8 to 512, got 9999", timeout=SECONDS)
    shot(page, "wrong-size")
    fill(page, width=40)
    parts(page, spatial="ralu")
    draw(page)
    playwright.expect(wrong).to_contain_text("multiples of 16", timeout=SECONDS)
    fill(page, width=32)
    draw(page)
    assert "PSNR" in drawn(page)


@pytest.mark.slow
def test_two_visitors_at_once_get_their_own_pictures(visit: Any) -> None:
    one, two = visit(), visit()
    fill(one, prompt="a red circle on a blue background", steps=8)
    fill(two, prompt="a green square on a white background", steps=8)
    for page in (one, two):
        parts(page, spatial="none", temporal="forecast:2")
    draw(one)
    draw(two)
    drawn(one), drawn(two)
    for page, words in ((one, "red circle"), (two, "green square")):
        page.get_by_role("tab", name="Python").click()
        assert words in page.locator("#code").inner_text()
    both = pictures(one), pictures(two)
    assert len({*both[0], *both[1]}) == 4
    draw(two)
    page.wait_for_timeout(1000)
    drawn(two)
    assert pictures(one) == both[0] and pictures(two) == both[1]


@pytest.mark.slow
def test_another_model_and_a_point_on_the_front(visit: Any, results: Path) -> None:
    page = visit()
    page.locator("#model input").click()
    page.get_by_role("option", name="tiny-sd3").click()
    playwright.expect(page.locator("#height input")).to_have_value("128", timeout=SECONDS)
    page.get_by_role("tab", name="Results").click()
    plot, front = page.locator("#front img"), open_front(results)
    playwright.expect(page.locator("#told")).to_contain_text(front.told(len(front.names) - 1), timeout=SECONDS)
    box, picture = plot.bounding_box(), front.points.draw(0)
    x, y = front.points.pixels[3]
    page.mouse.click(box["x"] + x * box["width"] / picture.width, box["y"] + y * box["height"] / picture.height)
    playwright.expect(page.locator("#told")).to_contain_text(front.told(3), timeout=SECONDS)
    playwright.expect(page.locator("#pictures img").first).to_be_visible(timeout=SECONDS)
    shot(page, "front")
