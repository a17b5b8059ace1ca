"""Makes the pictures of the app in the README: `python -m docs.make_screenshots`. Needs Chromium and playwright."""

import io
from pathlib import Path

from PIL import Image

from tests.helpers.browser import DESKTOP, P_VALUE, expect, running_chromium, serving_app, settled

DOCS = Path(__file__).parent
TALL = {"width": 1280, "height": 1200}
PAGES = {
    "home": ("/", DESKTOP),
    "results": ("/Curves_and_results", TALL),
}
DRAWING_MILLISECONDS = 1500


def main() -> None:
    """Start the app, open each page as a newcomer would, and save what shows."""
    with serving_app() as address, running_chromium() as chromium:
        for name, (path, size) in PAGES.items():
            page = opened(chromium, address + path, size)
            save(page, DOCS / f"{name}.png")
            page.close()
        page = opened(chromium, f"{address}/Inspect", TALL)
        page.get_by_text(P_VALUE).first.wait_for()
        page.wait_for_timeout(DRAWING_MILLISECONDS)
        save(page, DOCS / "inspect.png")
        page.close()


def save(page, file: Path) -> None:
    """Save what shows in 256 colours, for a clone to stay small."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, optimize=True)


def opened(chromium, address: str, size: dict):
    """A page that has come to rest."""
    page = chromium.new_page(viewport=size)
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    settled(page)
    page.wait_for_timeout(DRAWING_MILLISECONDS)
    return page


if __name__ == "__main__":
    main()
