"""`compalign ui` in a real browser: the graph, the metadata, the links, and the README's pictures."""

import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from compalign_dagster.pages.cards import Card
from compalign_dagster.pages.crawl import crawl_page
from tests.support.processes import BIN, ROOT, environment, free_port, stop_group, wait_for
from tests.support.required import program

pytestmark = [pytest.mark.slow, pytest.mark.system]

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_README_PICTURES = ("graph.png", "filtered-dataset.png")
_UI_SECONDS = 120
_MILLISECONDS = 60_000


@dataclass(frozen=True)
class Ui:
    url: str
    pages: str
    home: Path


@pytest.fixture(scope="module")
def ui(demo) -> Iterator[Ui]:
    port, pages = free_port(), free_port()
    env = environment(demo.home, pages_port=pages)
    with (demo.home / "ui.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / "compalign"), "ui", "--port", str(port)],
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/server_info", _UI_SECONDS)
            yield Ui(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{pages}", demo.home)
        finally:
            stop_group(process)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = program("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield instance
        instance.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1500, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(_MILLISECONDS)
    yield tab
    context.close()


def _picture(page, name: str, tmp_path: Path, **options: object) -> None:
    """Take a picture for the README; it replaces the committed one only where that is asked for."""
    path = tmp_path / name
    page.screenshot(path=str(path), **options)
    assert path.stat().st_size > 10_000, "an empty page makes a small picture"
    if os.environ.get("UPDATE_PICTURES") and name in _README_PICTURES:
        shutil.copyfile(path, ROOT / "docs" / "images" / name)


def test_the_graph_shows_every_asset_materialised(ui, page, tmp_path):
    page.goto(f"{ui.url}/asset-groups", wait_until="networkidle")
    page.keyboard.press("Alt+E")  # groups are collapsed at first
    for name in ("raw_crawl", "reward_model", "scored_shards", "filtered_dataset", "eval_report"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.wait_for_timeout(4000)
    _picture(page, "graph.png", tmp_path)


def test_the_metadata_of_the_filtered_dataset_is_legible_and_its_page_opens(ui, page, tmp_path):
    page.goto(f"{ui.url}/assets/filtered_dataset", wait_until="networkidle")
    link = page.locator("a[href^='http://127.0.0.1'][href$='page.html']").first
    link.wait_for()
    _picture(page, "asset.png", tmp_path)
    address = link.get_attribute("href").replace("http://127.0.0.1:3001", ui.pages)
    page.goto(address, wait_until="networkidle")
    assert page.locator("h1").count() == 1
    _picture(page, "filtered-dataset.png", tmp_path)


def test_a_dropped_pairs_picture_with_its_reason_is_three_clicks_from_the_assets_page(ui, page):
    page.goto(f"{ui.url}/assets/filtered_dataset", wait_until="networkidle")
    link = page.locator("a[href^='http://127.0.0.1'][href$='page.html']").first  # the first click
    link.wait_for()
    page.goto(link.get_attribute("href").replace("http://127.0.0.1:3001", ui.pages), wait_until="networkidle")
    page.locator("a[href^='/browse/'][href$='/below_cut']").click()
    page.locator(".gallery a img").first.wait_for()
    wanted = page.locator(".gallery li").nth(7).get_attribute("data-pair")
    page.locator(".gallery a").nth(7).click()
    assert page.url.endswith(wanted)
    assert page.locator(".gallery img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert "a lower reward than the last kept pair" in page.inner_text("body")


_OVER_ITS_BOX = """() => [...document.querySelectorAll('.gallery img')].filter(
    image => image.getBoundingClientRect().bottom > image.closest('.picture').getBoundingClientRect().bottom + 1)"""


@pytest.mark.parametrize("link", ["", "/pair/1"])
def test_a_tall_picture_does_not_lie_over_its_caption(page, link):
    tall = io.BytesIO()
    Image.new("RGB", (200, 400)).save(tall, "PNG")
    card = Card(tall.getvalue(), "a caption", link=link)
    page.set_content(crawl_page({"batch": "batch-00001", "shards": []}, [card], []).decode())
    assert page.locator(".gallery img").first.evaluate("image => image.decode().then(() => image.height)") > 0
    assert page.evaluate(f"({_OVER_ITS_BOX})().length") == 0


def test_every_page_of_the_store_opens_and_asks_nothing_of_the_network(ui, page):
    outside: list[str] = []
    page.on(
        "request",
        lambda request: outside.append(request.url) if not request.url.startswith((ui.pages, "data:")) else None,
    )
    page.goto(ui.pages, wait_until="networkidle")
    links = [link.get_attribute("href") for link in page.locator("a").all()]
    wanted = [link for link in links if link and link.endswith(".html")]
    assert len(wanted) >= 7, links
    for link in wanted:
        response = page.goto(link if link.startswith("http") else f"{ui.pages}/{link.lstrip('/')}")
        assert response.status == 200, link
        assert page.locator("h1").count() == 1, link
    assert not outside


def test_the_report_is_readable(ui, page, tmp_path, demo):
    page.goto(demo.path("report").as_uri(), wait_until="load")
    assert "sample" in page.inner_text("body").lower()
    _picture(page, "report.png", tmp_path)


def test_a_shard_that_lands_is_scored_and_filtered_by_itself(ui, page, tmp_path):
    import time

    from compalign_dagster.crawl.batches import read_log
    from compalign_dagster.samples.crawl import write_sample_crawl
    from compalign_dagster.selection import current
    from compalign_dagster.store import LocalStore

    store = LocalStore(ui.home / "store")
    before = current.read(store)
    write_sample_crawl(tmp_path / "more", seed=23, pairs=100, judged_images=5, evaluation_pairs=5, shard_pairs=100)
    (source,) = (tmp_path / "more" / "landing" / "sample").glob("*.tar")
    target = ui.home / "landing" / "sample" / "70000.tar"
    shutil.copyfile(source, target.with_suffix(".part"))
    target.with_suffix(".part").rename(target)
    end = time.monotonic() + 420
    while current.read(store).manifest_key == before.manifest_key:
        assert time.monotonic() < end, (ui.home / "ui.log").read_text()[-4000:]
        time.sleep(3)
    now = current.read(store)
    assert now.facts["pairs"] > before.facts["pairs"]
    assert len(read_log(store)) == 2
    page.goto(f"{ui.url}/runs", wait_until="networkidle")
    page.get_by_text("compalign/started_by").first.wait_for()
    assert page.get_by_text("Failure", exact=True).count() == 0
