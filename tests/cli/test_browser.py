"""What a person sees in a browser: the MLflow dashboard and the report, in a real Chromium.

Needs Debian's `chromium` (or any that is on the path); Python packages cannot bring one.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.cli.test_study import prepare
from tests.servers import answers, free_port, kill_group, start_process, wait_until

# No sandbox as root; nothing here may look for addresses outside of this machine.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
WITHIN = 60_000  # milliseconds, for a page on a busy machine
ARMS = ("adamw-constant", "sgd-cosine")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a study has run with MLflow on; `said` holds what it wrote to stderr."""
    folder = tmp_path_factory.mktemp("study")
    prepare(folder)
    tuner = str(Path(sys.executable).parent / "tuner")
    done = subprocess.run(
        [tuner, "study", "start", "small.toml"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        assert path, "tests in a browser need chromium: apt-get install chromium"
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(WITHIN)
    yield page
    page.close()


def said(folder: Path, what: str) -> str:
    """What the study's end says after a word."""
    found = re.search(rf"^ *{what}: +(.+)$", (folder / "said").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_the_dashboard_shows_the_answer(folder: Path, page: Page) -> None:
    port = str(free_port())
    command = said(folder, "dashboard").replace("5000", port)
    server = start_process(["sh", "-c", command], {}, folder)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 90, "the dashboard")
        page.goto(said(folder, "its page").replace("5000", port))
        page.locator("a[href*='/runs/']", has_text="small").click()
        expect(page.get_by_text("tuner.answer").first).to_be_visible(timeout=WITHIN)
    finally:
        kill_group(server)


def test_the_report_asks_nobody_and_shows_its_figures(folder: Path, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((folder / said(folder, "report")).as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    for arm in ARMS:
        expect(page.get_by_text(arm).first).to_be_visible()
    pictures = page.locator("img").all()
    assert pictures
    assert all(int(p.evaluate("image => image.naturalWidth")) > 100 for p in pictures)
