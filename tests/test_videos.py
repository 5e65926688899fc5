"""Frames, film strips and GIFs of videos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ralu_cache.report.videos import (
    BETWEEN,
    LABEL,
    LINE,
    MARGIN,
    as_frames,
    beside,
    latent_frames,
    save_gif,
    side_by_side,
    still,
    tall,
    to_images,
)

VIDEO = np.arange(9)[:, None, None, None] / 10 + np.zeros((9, 4, 6, 3))  # frame i is i / 10


def test_frames_of_all_videos_follow_each_other() -> None:
    assert as_frames(np.stack([VIDEO, VIDEO])).shape == (18, 4, 6, 3)
    assert as_frames(VIDEO).shape == (9, 4, 6, 3), "pictures stay as they are"


def test_a_still_shows_a_frame_for_each_latent_one() -> None:
    shown = still(VIDEO, 5)
    assert shown.shape == (4, 30, 3)
    assert shown[0, ::6, 0] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert still(VIDEO[0], 1) is not None and still(VIDEO[0], 1).shape == (4, 6, 3)


def test_masks_and_frames_stand_alike() -> None:
    assert tall(VIDEO, 5)[::4, 0, 0] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    mask = np.zeros((10, 3), bool)
    mask[2:4] = True  # the second frame of five
    assert beside(mask, 5).shape == (2, 15) and beside(mask, 5)[:, 3:6].all() and beside(mask, 5).sum() == 6
    assert np.array_equal(beside(mask, 1), mask)


@pytest.mark.parametrize(("size", "frames"), [((40, 8), 5), ((8, 8), 1), ((8, 12), 1), ((20, 10), 3)])
def test_latent_frames_are_counted_by_the_sides(size: tuple[int, int], frames: int) -> None:
    rows, columns = size[0] // frames, size[1]
    assert latent_frames(size, np.zeros((2, 9, 8 * rows, 8 * columns, 3))) == frames


def test_columns_rows_and_captions_have_their_places(tmp_path: Path) -> None:
    red, blue = (to_images(np.full((3, 8, 20, 3), 1.0) * colour, 2) for colour in ((1, 0, 0), (0, 0, 1)))
    frames = side_by_side({"one": [red, red], "two\nlines": [blue, red]}, ["a red one", "another"])
    width, height, top = 40, 16, MARGIN + 2 * LINE
    assert len(frames) == 3 and frames[0].size == (LABEL + 2 * width + BETWEEN, top + 2 * height + BETWEEN)
    second = LABEL + width + BETWEEN
    assert frames[2].getpixel((LABEL, top)) == frames[2].getpixel((second, top + height + BETWEEN)) == (255, 0, 0)
    assert frames[2].getpixel((second + width - 1, top + height - 1)) == (0, 0, 255)
    assert np.asarray(frames[0])[top:, :LABEL].min() < 100, "labels are written"
    save_gif([*frames, *to_images(np.zeros((1, *np.asarray(frames[0]).shape)))], tmp_path / "new" / "a.gif", 4)
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert gif.info["loop"] == 0 and gif.info["duration"] == 3 * 250, "equal frames are joined"
        assert gif.size == frames[0].size and len(list(ImageSequence.Iterator(gif))) == 2


def test_videos_that_do_not_match_are_refused() -> None:
    short, long = to_images(VIDEO[:2]), to_images(VIDEO)
    for columns, rows in (({"a": [short], "b": [long]}, ()), ({"a": [long]}, ("x", "y"))):
        with pytest.raises(ValueError, match="must be alike"):
            side_by_side(columns, rows)
