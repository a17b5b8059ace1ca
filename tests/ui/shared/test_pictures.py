"""Pictures: where they come from and how large they are shown."""

import io

import numpy as np
import pytest
from PIL import Image

from kdad.data import patterns
from kdad.data.images import SUFFIXES
from ui.shared import pictures
from ui.shared.pictures import DISPLAY_SIDE, TYPES, Picture, card, display_size, to_display, uploaded
from ui.shared.samples import of_pattern


def test_samples_hold_normals_every_defect_and_other_textures():
    drawn = of_pattern("bricks", 0)
    assert [picture.truth for picture in drawn] == ["normal"] * 3 + ["defect"] * 4 + ["other texture"] * 2
    assert [picture.name for picture in drawn[3:7]] == list(patterns.DEFECTS)
    assert len({picture.digest for picture in drawn}) == 9
    assert "bricks" not in [picture.name for picture in drawn]


def test_samples_are_the_same_for_the_same_draw_and_differ_between_draws():
    first, again, other = of_pattern("dots", 0), of_pattern("dots", 0), of_pattern("dots", 1)
    assert [picture.digest for picture in first] == [picture.digest for picture in again]
    assert not {picture.digest for picture in first[:3]} & {picture.digest for picture in other[:3]}


def test_what_may_be_uploaded_can_be_read():
    assert {f".{kind}" for kind in TYPES} <= SUFFIXES


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((32, 32), (448, 448)),
        ((1, 1), (448, 448)),
        ((300, 400), (300, 400)),
        ((600, 900), (299, 448)),
        ((1, 9000), (1, 448)),
    ],
)
def test_pictures_fit_the_screen_and_keep_their_shape(shape, size):
    assert display_size(np.zeros((*shape, 3), np.uint8)) == size


def test_small_images_grow_by_whole_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    shown = to_display(pixels)
    assert shown.shape == (DISPLAY_SIDE, DISPLAY_SIDE, 3)
    assert np.array_equal(shown[:: DISPLAY_SIDE // 4, :: DISPLAY_SIDE // 4], pixels)


def test_a_card_is_square_and_transparent_around_the_picture():
    pixels = card(np.full((100, 50, 3), 200, np.uint8), 40)
    assert pixels.shape == (40, 40, 4)
    assert (pixels[:, 10:30, 3] == 255).all()
    assert not pixels[:, :10, 3].any()


def test_a_digest_tells_content_and_shape_apart():
    pixels = np.zeros((2, 6, 3), np.uint8)
    assert Picture.of("a", pixels).digest == Picture.of("b", pixels.copy()).digest
    assert Picture.of("a", pixels).digest != Picture.of("a", pixels.reshape(6, 2, 3)).digest
    assert Picture.of("a", pixels).digest != Picture.of("a", pixels + 1).digest


def test_the_gallery_shows_exactly_the_test_part():
    from kdad.data.loading import load_task

    test = load_task("patterns-defects", "bricks").test
    good = pictures.gallery_page(pictures.gallery("patterns-defects", "bricks"), "bricks", "good", 2, 12)
    assert [picture.name for picture in good] == [f"good {i}" for i in range(12, 24)]
    assert np.array_equal(good[0].pixels, test.images[12].permute(1, 2, 0))
    holes = pictures.gallery_page(pictures.gallery("patterns-defects", "bricks"), "bricks", "hole", 1, 100)
    assert len(holes) == 50
    assert all(picture.truth == "anomaly" for picture in holes)


class Upload(io.BytesIO):
    """As Streamlit hands an uploaded file over."""

    def __init__(self, name: str):
        super().__init__()
        Image.new("RGB", (8, 8)).save(self, "PNG")
        self.seek(0)
        self.name, self.size, self.file_id = name, len(self.getvalue()), name


def test_uploaded_masks_are_told_and_not_scored():
    found, problems = uploaded([Upload("a.png"), Upload("a_mask.png"), Upload("b_mask.png")], 0)
    assert [picture.name for picture in found] == ["a.png", "b_mask.png"]
    assert problems == ["1 mask beside images, such as a_mask.png, was not scored"]


def test_a_gallery_follows_the_files_of_a_folder(tmp_path):
    rng = np.random.default_rng(0)

    def draw(place: str) -> None:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / place)

    for place in ("test/good/b.png", "test/scratch/b.png", *(f"train/good/{index}.png" for index in range(10))):
        draw(place)
    before = pictures.gallery(f"folder:{tmp_path}", "good")
    assert before is pictures.gallery(f"folder:{tmp_path}", "good")
    draw("test/good/a.png")
    after = pictures.gallery(f"folder:{tmp_path}", "good")
    assert [shown.name(0) for shown in (before, after)] == ["good/b.png", "good/a.png"]
    assert before.fingerprint() != after.fingerprint()
