"""Makes `docs/poster.svg`, kdad on one page: `python -m docs.make_poster`, after `python -m docs.make_figures`."""

import base64
import json
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.tables import DATASET, FRONT_FOLDERS, FRONT_TEACHERS, ROOT
from docs.make_figures import FIGURES, SCHEMES
from kdad.evaluation import results_file
from kdad.files import write_text

POSTER = Path(__file__).parent / "poster.svg"
RESULTS = ROOT / "benchmarks" / "results"
WIDTH, HEIGHT, LEFT, MIDDLE, COLUMN = 1600, 1130, 60, 830, 710
COLOURS = SCHEMES["light"]
LINE = 78  # characters that fit into a column
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def main() -> None:
    """Write the poster."""
    write_text(POSTER, poster())


def poster() -> str:
    """The page as SVG, its pictures inside."""
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/><rect width="{WIDTH}" height="120" fill="#2a1636"/>',
        words(LEFT, 60, "kdad", 44, "#fff", "bold"),
        words(LEFT, 96, "knowledge-distillation anomaly detection: what does not belong, and where", 22, "#fff"),
        part(LEFT, 170, "A student copies a frozen teacher, on normal images only", "copy-light.png", 160),
        words(LEFT, 395, "Where the copy fails, the image is anomalous.", 18),
        part(MIDDLE, 170, "The way of an image", "way-light.svg", 260),
        part(LEFT, 500, "A score becomes a p-value, by normals that were held out", "verdict-light.svg", 210),
        part(MIDDLE, 500, "What a teacher saw is said beside every figure", "labels-light.svg", 165),
        words(LEFT, 830, "What it finds", 24, COLOURS["accent"], "bold"),
        *(words(LEFT, 870 + 34 * row, line, 18) for row, line in enumerate(figures())),
        words(MIDDLE, 830, "How to begin", 24, COLOURS["accent"], "bold"),
    ]
    for row, line in enumerate(("make app", "kdad train --dataset folder:photos", "kdad score STUDENT new/")):
        parts.append(words(MIDDLE, 870 + 34 * row, line, 18, font="monospace"))
    parts.append(words(MIDDLE, 980, "In the browser, from the shell, from Python; offline, on two cores.", 18))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="kdad on one page">\n{chr(10).join(parts)}\n</svg>\n'
    )


def figures() -> list[str]:
    """Our figures on photographs and on CIFAR-10, and what they are, in lines that fit into a column."""
    rows = json.loads((RESULTS / "photographs.json").read_text(encoding="utf-8"))["rows"]
    entries = results_file.load_results(RESULTS / "one_vs_rest.json")
    lines = [
        f"{FRONT_FOLDERS[row['dataset']]}: {100 * row['auroc']:.1f} images, {100 * row['pixel_auroc']:.1f} pixels, "
        f"{row['seconds']} s on two cores"
        for row in rows
        if row["dataset"] in FRONT_FOLDERS
    ]
    for teacher, seen in FRONT_TEACHERS.items():
        mean = 100 * results_file.headline_of(entries[f"{DATASET}/{teacher}"], "auroc").mean
        lines.append(f"CIFAR-10, one class against the rest, {seen}: {mean:.1f}")
    lines.append("AUROC on test parts, per cent. The photographs' are development sets.")
    return [short for line in lines for short in textwrap.wrap(line, LINE, subsequent_indent="\N{NO-BREAK SPACE}" * 4)]


def part(x: int, y: int, title: str, file: str, height: int) -> str:
    """A title and a figure below it, as wide as a column."""
    place = FIGURES / file
    inside = base64.b64encode(place.read_bytes()).decode()
    picture = f'<image x="{x}" y="{y + 20}" width="{COLUMN}" height="{height}" preserveAspectRatio="xMinYMin meet" '
    head = words(x, y, title, 24, COLOURS["accent"], "bold")
    return f'{head}{picture}href="data:{TYPES[place.suffix]};base64,{inside}"/>'


def words(
    x: int, y: int, text: str, size: int, fill: str = "#222", weight: str = "normal", font: str = "sans-serif"
) -> str:
    """A line of text."""
    style = f'font-family="{font}" font-size="{size}" font-weight="{weight}" fill="{fill}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


if __name__ == "__main__":
    main()
