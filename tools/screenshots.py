"""The picture of a suite's page for docs/checking_a_result.md: its first screen. Needs the pages
(`modbench report --results results --html`), Playwright and the machine's Chromium (extra `browser`)."""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
#: Width and height of a window, and the suite that it shows, by file.
PICTURES = {
    "page_quick.png": (1100, 900, "quick"),
}


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height, suite) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto((ROOT / "results" / suite / "index.html").as_uri())
            page.wait_for_timeout(500)  # the chart is drawn
            file = ROOT / "docs" / name
            page.screenshot(path=file)
            Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
