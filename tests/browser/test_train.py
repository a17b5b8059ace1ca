"""Training through the page in a real browser: to the end, over a reload, and with a stop and a resume."""

import io
import re
import zipfile

import pytest
from helpers.browser import DESKTOP, P_VALUE, PHONE, assert_nothing_is_wider, expect, settled
from PIL import Image

from kdad.data import patterns

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

PAGE = "/Train_or_load"
TO_THE_END = 100_000  # milliseconds


def choose(page, label: str, option: str) -> None:
    settled(page)  # a script that ends later would close the list of options
    box = page.get_by_role("combobox", name=label)
    box.click()
    box.fill(option)
    page.get_by_role("option", name=option, exact=True).click()
    settled(page)


def ask_for_zip(page, name: str, epochs: int) -> None:
    """Give the form the images of a student in a zip file, and start."""
    content = zip_of_patterns(name)
    file = {"name": f"{name}.zip", "mimeType": "application/zip", "buffer": content}
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text(f"{name}.zip")).to_be_visible()
    expect(page.get_by_alt_text("at the size at which it is read").first).to_be_visible()  # unpacked and looked at
    settled(page)
    start(page, epochs)


def start(page, epochs: int) -> None:
    number = page.get_by_role("spinbutton", name="Epochs")
    number.fill(str(epochs))
    number.press("Tab")
    settled(page)
    page.get_by_role("button", name="Start training").click()


def card(page, title: str | re.Pattern):
    return page.locator("[class*=st-key-job-]").filter(has_text=title)


def zip_of_patterns(folder: str) -> bytes:
    """Dots as normals, and dots and stripes to test on, in one folder of a zip file, as people pack them."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for place, kind, count in (("train/good", "dots", 12), ("test/good", "dots", 4), ("test/odd", "stripes", 4)):
            for index, pixels in enumerate(patterns.normals(kind, count, seed=len(place))):
                encoded = io.BytesIO()
                Image.fromarray(pixels.transpose(1, 2, 0)).save(encoded, "PNG")
                archive.writestr(f"{folder}/{place}/{index}.png", encoded.getvalue())
    return content.getvalue()


def badge(card):
    return card.get_by_test_id("stMarkdown").filter(has=card.page.locator(".stMarkdownBadge"))


def test_a_run_is_stopped_and_resumed_and_own_images_are_trained_on_to_the_end(visit, app_root):
    with visit(PAGE) as page:
        choose(page, "Data set", "my own images")
        page.get_by_text("Zip file", exact=True).click()
        ask_for_zip(page, "cups", 10_000)
        cups = card(page, "cups · good")
        expect(cups).to_be_visible()
        settled(page)
        ask_for_zip(page, "mugs", 1)
        mugs = card(page, "mugs · good")
        expect(mugs.get_by_text("Queued: 1 job ahead.")).to_be_visible()
        expect(cups.get_by_text(re.compile(r"epoch \d+ of 10000 · .* left"))).to_be_visible(timeout=TO_THE_END)
        page.reload()
        expect(cups.get_by_text(re.compile(r"epoch \d+ of 10000"))).to_be_visible()
        expect(cups.locator(".marks")).to_be_visible(timeout=TO_THE_END)
        cups.get_by_role("button", name="Stop").click()
        expect(badge(cups)).to_contain_text("stopped")
        expect(mugs.get_by_text("Test AUROC")).to_be_visible(timeout=TO_THE_END)
        stopped, ended = (app_root / name / "lite0-imagenet" / "good" for name in ("cups", "mugs"))
        assert (ended / "evaluation.json").is_file()
        assert not (stopped / "model.safetensors").exists()
        cups.get_by_role("button", name="Resume").click()
        expect(badge(cups)).to_contain_text("running")
        cups.get_by_role("button", name="Stop").click()
        expect(badge(cups)).to_contain_text("stopped")
        mugs.get_by_role("link", name="Inspect images").click()
        expect(page.get_by_text(P_VALUE)).to_be_visible()


def test_a_student_is_deleted_only_after_the_second_question(visit, app_root):
    with visit(f"{PAGE}?view=Load") as page:
        stripes = app_root / "patterns" / "tiny-vgg" / "stripes"
        settled(page)
        row = page.locator("[class*=st-key-student-patterns]").filter(has_text="stripes")
        row.get_by_role("button", name="Delete").click()
        expect(page.get_by_text("This cannot be undone")).to_be_visible()
        assert stripes.exists()
        page.get_by_role("button", name="Delete for good").click()
        expect(page.get_by_text("This cannot be undone")).to_have_count(0)
        expect(row).to_have_count(0)
        assert not stripes.exists()


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}?view=Load"])
def test_nothing_is_wider_than_the_screen(visit, path):
    with visit(path, PHONE, "dark") as page:
        assert_nothing_is_wider(page, PHONE)
        page.emulate_media(color_scheme="light")
        assert_nothing_is_wider(page, DESKTOP)
