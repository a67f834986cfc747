"""web_ui_chat.py URL KEY_FILE PICTURE: chat with llama.cpp's page as a person does, in a headless Chromium.

The key is entered where the page asks for it; a wrong one is refused. Runs where Chromium and playwright are.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import time

from playwright.sync_api import Page, sync_playwright

WAIT_MS = 300_000
QUESTION = "Which card is faster?"


def enter_key(page: Page, key: str) -> None:
    """Enter a key where the page asks for one."""
    page.get_by_placeholder("Enter your API key...").fill(key)
    page.get_by_role("button", name="Save & Retry").click()


def chat(page: Page, url: str, key: str, picture: str) -> None:
    """Enter the key, send a message and see the answer grow."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(url)
    assert answer is not None and answer.status == 200 and "text/html" in answer.headers["content-type"]
    page.get_by_role("button", name="Enter API Key").click()
    enter_key(page, "not-the-key-of-the-server")
    page.get_by_text("Invalid API key").wait_for()
    page.get_by_role("button", name="Save & Retry").wait_for()
    enter_key(page, key)
    box = page.get_by_placeholder("Type a message")
    box.wait_for()
    box.fill(QUESTION)
    box.press("Enter")
    said = page.locator('[aria-label*="Assistant message"]').last
    said.wait_for()
    lengths: list[int] = []
    stop = page.get_by_role("button", name="Stop")
    deadline = time.monotonic() + WAIT_MS / 1000
    while time.monotonic() < deadline:
        length = len(said.inner_text())
        if not lengths or length > lengths[-1]:
            lengths.append(length)
        if len(lengths) > 4 and lengths[-1] > 200:
            break
        page.wait_for_timeout(100)
    if stop.count():
        stop.first.click()
    page.wait_for_timeout(1000)
    page.screenshot(path=picture)
    assert len(lengths) > 4, f"the answer did not grow: {lengths}"
    elsewhere = [address for address in asked if not address.startswith((url, "data:", "blob:"))]
    assert not elsewhere, f"the page asked other servers: {elsewhere}"
    print(f"the answer grew through {lengths} characters: {said.inner_text()[:80]!r}")
    print(f"{len(asked)} requests, none to another server")


def main(url: str, key_file: str, picture: str) -> int:
    """Return 0 when the page answered."""
    with sync_playwright() as playwright:
        # a container has no user namespaces for Chromium's own sandbox
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 720}, color_scheme="dark")
        page.set_default_timeout(WAIT_MS)
        try:
            chat(page, url, pathlib.Path(key_file).read_text(encoding="utf-8").strip(), picture)
        except Exception:
            page.screenshot(path=picture)
            raise
        finally:
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
