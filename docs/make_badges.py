"""Makes the badges of the README: `python -m docs.make_badges`, once pyproject.toml or an install's size changes."""

import json
import tomllib
from pathlib import Path

from benchmarks.install import RESULTS, ROOT
from kdad.files import write_text

BADGES = Path(__file__).parent / "assets" / "badges"
LETTER, HEIGHT, PADDING = 6.3, 20, 10


def main() -> None:
    """Write every badge."""
    BADGES.mkdir(parents=True, exist_ok=True)
    for name, (label, value) in facts().items():
        write_text(BADGES / f"{name}.svg", badge(label, value))


def facts() -> dict[str, tuple[str, str]]:
    """What the badges say: from pyproject.toml, and from the installations that were measured."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sizes = sorted(row["megabytes"] for row in json.loads(RESULTS.read_text(encoding="utf-8")).values())
    gigabytes = [f"{size / 1000:.1f}" for size in (sizes[0], sizes[-1])]
    return {
        "python": ("Python", project["requires-python"].replace(">=", "≥ ")),
        "licence": ("licence", project["license"]),
        "install": ("install", f"{' to '.join(dict.fromkeys(gigabytes))} GB"),
    }


def badge(label: str, value: str) -> str:
    """A label and its value in two colours, as SVG."""
    left, right = (round(len(words) * LETTER + 2 * PADDING) for words in (label, value))
    escaped = value.replace("<", "&lt;")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" role="img" '
        f'aria-label="{label}: {escaped}"><rect width="{left + right}" height="{HEIGHT}" rx="3" fill="#5b2a6b"/>'
        f'<rect width="{left}" height="{HEIGHT}" rx="3" fill="#444"/>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{left / 2}" y="14">{label}</text><text x="{left + right / 2}" y="14">{escaped}</text></g></svg>\n'
    )


if __name__ == "__main__":
    main()
