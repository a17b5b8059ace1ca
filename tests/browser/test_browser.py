"""The app in a real browser: cold links, uploads, clicks, downloads, and a quiet console."""

import io
import re
import tomllib
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
from helpers.browser import DESKTOP, P_VALUE, PHONE, ROOT, assert_nothing_is_wider, expect, marks, settled
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

DOTS, STRIPES = "patterns/tiny-vgg/dots", "patterns/tiny-vgg/stripes"


def picture(kind: str) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def test_home_leads_to_the_inspect_page(visit):
    with visit("/") as page:
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_text("Device: CPU").or_(page.get_by_text("Device: NVIDIA"))).to_be_visible()
        page.get_by_role("link", name="Inspect images").click()
        expect(page.get_by_role("heading", name="Inspect images")).to_be_visible()
        expect(page.get_by_text(P_VALUE)).to_be_visible()


def test_a_cold_deep_link_chooses_the_student(visit):
    with visit(f"/Inspect?student={STRIPES}&compare={DOTS}") as page:
        expect(page.get_by_text(P_VALUE)).to_have_count(2)
        expect(page.get_by_text("normal stripes images")).to_be_visible()


def test_a_link_to_nobody_says_so(visit):
    with visit("/Inspect?student=nobody") as page:
        expect(page.get_by_text("a student that cannot be chosen here: nobody")).to_be_visible()
        expect(page.get_by_text(P_VALUE)).to_be_visible()


def test_uploads_good_broken_and_oversized(visit, tmp_path):
    contents = {
        "good.png": picture("PNG"),
        "good.jpg": picture("JPEG"),
        "broken.png": b"no image at all",
        "huge.png": bytes(21 * 2**20),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with visit(f"/Inspect?student={DOTS}") as page:
        page.get_by_text("Upload", exact=True).click()
        expect(page.get_by_text("Drop one or more images")).to_be_visible()
        page.locator("input[type=file]").set_input_files([tmp_path / name for name in contents])
        expect(page.get_by_text("broken.png: not an image")).to_be_visible()
        expect(page.get_by_text("huge.png: larger than 20 MB")).to_be_visible()
        for name in ("good.png", "good.jpg"):
            expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()
        expect(page.get_by_text(P_VALUE)).to_be_visible()
        expect(marks(page).nth(1)).to_be_visible()


def test_a_patch_says_its_value_and_a_click_moves_the_square(visit):
    with visit(f"/Inspect?student={DOTS}") as page:
        page.get_by_text("Erase", exact=True).click()
        expect(page.get_by_text("with a square erased")).to_be_visible()
        settled(page)
        picture, heatmap = page.locator(".st-key-picture .marks"), marks(page).nth(1)
        side = min(picture.bounding_box()[length] for length in ("width", "height"))
        picture.click(position={"x": side * 7.5 / 8, "y": side * 1.5 / 8})
        expect(page.get_by_role("slider", name="Row")).to_have_value("2")
        expect(page.get_by_role("slider", name="Column")).to_have_value("8")
        settled(page)
        heatmap.hover(position={"x": side / 2, "y": side / 2})
        expect(page.locator("#vg-tooltip-element")).to_contain_text("above a typical normal")


def test_scores_and_heatmaps_can_be_downloaded(visit):
    with visit(f"/Inspect?student={DOTS}") as page:
        with page.expect_download() as table:
            page.get_by_role("button", name="Scores (CSV)").click()
        lines = table.value.path().read_text().splitlines()
        assert lines[0].startswith("image,student,score,p_value,is_anomaly,false_positive_rate,decision,layer1")
        assert len(lines) == 10
        page.get_by_text("Erase", exact=True).click()
        expect(page.get_by_text("with a square erased")).to_be_visible()
        settled(page)
        score = re.search(r"score (-?\d+\.\d{3})", page.get_by_text("p-value").inner_text())[1]
        with page.expect_download() as table:
            page.get_by_role("button", name="Scores (CSV)").click()
        changed = table.value.path().read_text().splitlines()
        assert changed[:10] == lines
        name, _, in_table = changed[10].split(",")[:3]
        assert name.endswith("with a square erased")
        assert f"{float(in_table):.3f}" == score
        with page.expect_download() as archive:
            page.get_by_role("button", name="Heatmaps (PNG)").click()
        with zipfile.ZipFile(archive.value.path()) as heatmaps:
            assert len(heatmaps.namelist()) == 10


@pytest.mark.parametrize("path", ["/", "/Inspect"])
def test_nothing_is_wider_than_the_screen(visit, path):
    with visit(path, PHONE, "dark") as page:
        assert_nothing_is_wider(page, PHONE)
        page.emulate_media(color_scheme="light")
        assert_nothing_is_wider(page, DESKTOP)


def test_an_upload_that_another_site_sends_is_refused(address):
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n0\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Origin": "http://elsewhere.example"}
    sent = urllib.request.Request(f"{address}/_stcore/upload_file/a/b", form, headers, method="PUT")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(sent, timeout=60)
    assert refusal.value.code == 403


def test_only_this_machine_is_listened_to():
    server = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["server"]
    assert server["address"] == "127.0.0.1"
    assert not {"enableXsrfProtection", "enableCORS"} & server.keys(), "both are on unless they are turned off"


def test_back_goes_one_page_back_and_undoes_a_choice_of_an_image(visit):
    with visit("/") as page:
        links = page.get_by_test_id("stSidebar")
        links.get_by_role("link", name="Inspect", exact=True).click()
        page.get_by_role("button", name="spot", exact=True).click()
        expect(page.get_by_role("heading", name="spot · defect")).to_be_visible()
        links.get_by_role("link", name="Train or load", exact=True).click()
        expect(page.get_by_role("heading", name="Train or load students")).to_be_visible()
        page.go_back()
        expect(page.get_by_role("heading", name="spot · defect")).to_be_visible()
        page.go_back()  # the image was chosen
        page.go_back()
        expect(page.get_by_role("link", name="Inspect images")).to_be_visible()
