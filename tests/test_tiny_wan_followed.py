"""What tiny Wan's videos show of their prompts, judged on rendered clips."""

from dataclasses import replace

import numpy as np

from benchmarks.tiny_wan.followed import ASPECTS, followed, masks, motion_of, stated
from benchmarks.tiny_wan.study import clips

CLIPS = clips(60)


def test_rendered_clips_show_what_they_say() -> None:
    found = [followed(clip.frames() / 255, clip) for clip in CLIPS]
    assert all(np.mean([each[aspect] for each in found]) >= 95 for aspect in ASPECTS)
    assert {stated(clip)[1] for clip in CLIPS} >= {"growing", "shrinking", "standing still", "moving left", "moving up"}


def test_other_clips_than_the_stated_are_told() -> None:
    moving = next(clip for clip in CLIPS if stated(clip)[1] == "moving left")
    frames = moving.frames() / 255
    assert followed(frames, moving)["motion"] == 100
    for wrong in (frames[::-1], np.repeat(frames[:1], len(frames), 0)):
        assert followed(wrong, moving) == followed(frames, moving) | {"motion": 0.0}
    growing = next(clip for clip in CLIPS if stated(clip)[1] == "growing")
    assert motion_of(masks(growing.frames()[::-1] / 255, growing)[0]) == "shrinking"


def test_colours_and_stripes_are_looked_at() -> None:
    striped = next(clip for clip in CLIPS if clip.scene.background == "hstripes")
    frames = striped.frames() / 255
    assert followed(frames, striped)["background"] == 100
    turned = replace(striped, scene=replace(striped.scene, background="vstripes"))
    assert followed(frames, turned)["background"] == 0
    assert followed(np.full_like(frames, 0.5), striped) == dict.fromkeys(ASPECTS, 0.0)
    solid = next(clip for clip in CLIPS if clip.scene.background == "solid")
    bare = solid.frames()[:, :1, :1] / 255 + np.zeros((9, 64, 64, 3))
    assert followed(bare, solid) == {"colour": 0.0, "background": 100.0, "motion": 0.0}
