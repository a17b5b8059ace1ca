import pytest
import torch

from kdad.detection.tiles import PIECES_AT_ONCE, Tiling, in_chunks


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (33, 200), (20, 20), (10, 90)])
def test_tiles_cover_every_pixel_and_stay_inside(size):
    tiling = Tiling(*size, tile_size=32, image_size=8)
    covered = torch.zeros(size)
    height, width = tiling.shape
    for row, column in tiling.places:
        piece = covered[row : row + height, column : column + width]
        assert piece.shape == (height, width)
        piece += 1
    assert covered.min() >= 1
    assert len(set(tiling.places)) == len(tiling.places)


def test_cut_keeps_the_tiles_of_an_image_together():
    images = torch.arange(2 * 3 * 48 * 48).view(2, 3, 48, 48)
    tiling = Tiling(48, 48, tile_size=32, image_size=8)
    tiles = tiling.cut(images)
    assert tiling.places == [(0, 0), (0, 16), (16, 0), (16, 16)]
    assert torch.equal(tiles[4], images[1, :, :32, :32])
    assert torch.equal(tiles[7], images[1, :, 16:, 16:])


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (20, 20)])
def test_stitching_maps_that_agree_gives_what_they_say(size):
    """Each tile shows its part of one plane: stitched, the plane is whole again."""
    tiling = Tiling(*size, tile_size=32, image_size=16)
    height, width = tiling.shape
    rows, columns = torch.arange(16) / 16 * height, torch.arange(16) / 16 * width
    maps = torch.stack([(row + rows)[:, None] + 2 * (column + columns) for row, column in tiling.places])
    stitched = tiling.stitch(maps)[0]
    scale = height / 16, width / 16
    expected = (torch.arange(stitched.shape[0]) * scale[0])[:, None] + 2 * torch.arange(stitched.shape[1]) * scale[1]
    torch.testing.assert_close(stitched, expected, atol=max(scale) * 3, rtol=0)


def test_a_spot_is_where_its_tile_shows_it():
    tiling = Tiling(96, 96, tile_size=32, image_size=32)
    images = torch.zeros(1, 3, 96, 96)
    images[:, :, 70:74, 20:24] = 1
    stitched = tiling.stitch(tiling.cut(images)[:, 0])
    torch.testing.assert_close(stitched, images[:, 0])


def test_what_a_tile_does_not_show_does_not_count():
    tiling = Tiling(32, 32, tile_size=32, image_size=32, border=4)
    maps = torch.ones(1, 32, 32)
    stitched = tiling.stitch(maps)[0]
    assert stitched[2:30, 2:30].eq(1).all()
    assert stitched[:2].eq(0).all()


def test_tiles_are_looked_at_a_few_at_once():
    seen = []

    def look(tiles):
        seen.append(len(tiles))
        return tiles.sum((1, 2, 3)), tiles[:, 0]

    tiles = torch.rand(PIECES_AT_ONCE + 5, 3, 2, 2)
    sums, first = in_chunks(look, tiles)
    assert seen == [PIECES_AT_ONCE, 5]
    torch.testing.assert_close(sums, tiles.sum((1, 2, 3)))
    torch.testing.assert_close(first, tiles[:, 0])
