"""Curves and results in a real browser: cold links, clicks on charts, downloads, and a quiet console."""

import pytest
from helpers.browser import DESKTOP, PHONE, assert_nothing_is_wider, expect, settled

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

PAGE = "/Curves_and_results"
SAID = {
    "Training": "Best validation epoch",
    "Arena": "There are no two evaluated students of one task",
    "Images": "Anomalies with the lowest scores",
    "Map": "of the data set, chosen evenly",
}
DOTS, STRIPES = "patterns/tiny-vgg/dots", "patterns/tiny-vgg/stripes"


def chart(page, key: str):
    return page.locator(f".st-key-{key} svg.marks")


def metric(page, label: str):
    return page.get_by_test_id("stMetric").filter(has_text=label).get_by_test_id("stMetricValue")


def test_a_click_on_the_roc_moves_the_operating_point(visit):
    with visit(f"{PAGE}?student={DOTS}") as page:
        expect(chart(page, "roc")).to_be_visible()
        settled(page)
        slider, found = page.get_by_role("slider"), metric(page, "Anomalies found")
        before, share = slider.get_attribute("aria-valuenow"), found.inner_text()
        width = chart(page, "roc").bounding_box()["width"]
        chart(page, "roc").click(position={"x": width * 0.8, "y": 30})
        expect(slider).not_to_have_attribute("aria-valuenow", before)
        expect(found).not_to_have_text(share)


def test_a_click_on_a_class_compares_with_it_alone(visit):
    with visit(f"{PAGE}?student={STRIPES}") as page:
        expect(chart(page, "kinds")).to_be_visible()
        settled(page)
        chart(page, "kinds").locator(".mark-rect path").first.click()
        expect(page.get_by_text("200 normal and 200 anomalous images")).to_be_visible()
        expect(page.get_by_text("AUROC against checkerboard")).to_be_visible()


def test_sections_have_links_of_their_own(visit):
    with visit(f"{PAGE}?show=Training&student={STRIPES}") as page:
        expect(page.get_by_role("heading", name="Validation AUROC")).to_be_visible()
        page.get_by_text("Images", exact=True).click()
        expect(page.get_by_role("heading", name="Normal stripes with the highest scores")).to_be_visible()
        expect(page.get_by_role("img", name="stripes, test image")).to_have_count(12)
        assert "show=Images" in page.url


def test_raw_scores_can_be_downloaded(visit):
    with visit(f"{PAGE}?student={DOTS}") as page:
        with page.expect_download() as download:
            page.get_by_role("button", name="Scores (CSV)").click()
        lines = download.value.path().read_text().splitlines()
        assert lines[0] == "index,kind,anomalous,score"
        assert len(lines) == 2001


def test_nothing_is_wider_than_the_screen(visit):
    with visit(PAGE, PHONE, "dark") as page:
        assert_nothing_is_wider(page, PHONE)
        sections = page.get_by_test_id("stButtonGroup").first
        for name, said in SAID.items():
            sections.get_by_text(name, exact=True).click()
            expect(page.get_by_text(said)).to_be_visible()
            assert_nothing_is_wider(page, PHONE)
        sections.get_by_text("All classes", exact=True).click()
        expect(page.get_by_text(said)).to_have_count(0)
        assert_nothing_is_wider(page, PHONE)
        assert_nothing_is_wider(page, DESKTOP)
