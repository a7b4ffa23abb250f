"""Videos hold the frames that were given, or do not exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from flowmbpo.errors import DataError, StorageError
from flowmbpo.tracking.video import write_video


def frames(count: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    for index in range(count):
        yield np.full((height, width, 3), 20 * index, dtype=np.uint8)


def test_video_holds_the_frames_in_order(tmp_path: Path) -> None:
    path = write_video(frames(10), tmp_path / "new" / "episode.mp4", fps=25)
    decoded = imageio.imread(path, plugin="FFMPEG")
    assert decoded.shape == (10, 48, 64, 3)
    np.testing.assert_allclose(decoded.mean(axis=(1, 2, 3)), 20 * np.arange(10), atol=6)
    assert imageio.immeta(path, plugin="FFMPEG")["fps"] == pytest.approx(25)
    assert [file.name for file in path.parent.iterdir()] == ["episode.mp4"]


def test_odd_sizes_are_padded_to_even_ones(tmp_path: Path) -> None:
    path = write_video(frames(3, height=47, width=63), tmp_path / "odd.mp4", fps=10)
    assert imageio.imread(path, plugin="FFMPEG").shape[1:] == (48, 64, 3)


def test_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames"):
        write_video([], tmp_path / "a.mp4", fps=10)


def test_other_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.gif: videos are written as \.mp4"):
        write_video(frames(2), tmp_path / "a.gif", fps=10)


@pytest.mark.parametrize("odd", [np.zeros((48, 64, 3), np.float32), np.zeros((48, 66, 3), np.uint8)])
def test_unlike_frame_is_refused_and_no_file_is_left(tmp_path: Path, odd: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"a\.mp4: a frame is \w+ \(48, 6\d, 3\)"):
        write_video([*frames(2), odd], tmp_path / "a.mp4", fps=10)
    assert list(tmp_path.iterdir()) == []


def test_earlier_video_is_kept_when_the_new_one_fails(tmp_path: Path) -> None:
    path = write_video(frames(2), tmp_path / "a.mp4", fps=10)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"a\.mp4: ffmpeg could not encode it"):
        write_video(frames(2), path, fps=-1)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_missing_encoder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imageio_ffmpeg

    def absent() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", absent)
    with pytest.raises(StorageError, match="there is no ffmpeg to encode with"):
        write_video(frames(2), tmp_path / "a.mp4", fps=10)
