"""Rendered episodes as mp4 files."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from flowmbpo.errors import DataError, StorageError
from flowmbpo.files import refused


def write_video(frames: Iterable[np.ndarray], path: Path, fps: float) -> Path:
    """Encode uint8 frames [height, width, 3] of equal shape as H.264 mp4, `fps` frames per second.

    Frames are taken one by one, so any length fits in memory. Odd sizes get a repeated last row or
    column: the format stores colour at half resolution. The file appears only when it is complete.

    Raises DataError on no frames, unlike frames, or a wrong suffix; StorageError when the file
    cannot be written or encoded.
    """
    if path.suffix.lower() != ".mp4":
        raise DataError(f"{path}: videos are written as .mp4. Name a file that ends in .mp4.")
    even = _even_frames(frames, path)
    first = next(even, None)
    if first is None:
        raise DataError(f"{path}: there are no frames to write. Render at least one step.")
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _encode(first, even, partial, fps, path)
        os.replace(partial, path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _even_frames(frames: Iterable[np.ndarray], named: Path) -> Iterator[np.ndarray]:
    """All frames, checked, and padded to even height and width by repeating the last row and column."""
    shape: tuple[int, ...] = ()
    for frame in frames:
        shape = shape or frame.shape
        if frame.dtype != np.uint8 or frame.shape != shape or len(shape) != 3 or shape[2] != 3:
            raise DataError(
                f"{named}: a frame is {frame.dtype} {frame.shape}; all must be uint8 [height, width, 3] of one "
                f"shape (the first is {shape})."
            )
        pad = ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0))
        yield np.ascontiguousarray(np.pad(frame, pad, mode="edge"))


def _encode(first: np.ndarray, others: Iterator[np.ndarray], target: Path, fps: float, named: Path) -> None:
    """Feed ffmpeg. Its messages go to a file: a full pipe of them would stall both sides."""
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        program = get_ffmpeg_exe()
    except RuntimeError as error:
        raise StorageError(f"{named}: there is no ffmpeg to encode with ({error}). Install imageio-ffmpeg.") from error
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{first.shape[1]}x{first.shape[0]}", "-r", f"{fps:g}"]
    output = ["-an", "-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = [program, "-y", "-loglevel", "error", *source, "-i", "-", *output, str(target)]
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages)
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                for frame in chain([first], others):
                    pipe.write(frame.data)
        except BrokenPipeError:  # an ffmpeg that stopped reading explains itself by its exit status
            pass
        except BaseException:  # no encoder outlives an interrupt; passed on
            process.kill()
            process.wait()
            raise
        if process.wait() != 0:
            messages.seek(0)
            reason = messages.read().decode("utf-8", "replace").strip().splitlines() or ["no message"]
            raise StorageError(f"{named}: ffmpeg could not encode it: {reason[-1]}")
