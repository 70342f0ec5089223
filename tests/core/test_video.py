from fractions import Fraction

import av
import numpy as np
import pytest

from segray.core.video import index_video, read_frame, read_frames
from segray.errors import DataError


def write(path, codec="libx264", pts=range(30), **options):
    """Frames of growing brightness, a keyframe every 8, at 10 ticks a second."""
    texture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": "8", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for i, time in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(7 * i + texture // 16, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def straight(uri):
    """What a decoder gives from the first frame to the last."""
    with av.open(uri) as container:
        return [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


FILES = {
    "h264 with B-frames.mp4": {"bf": "3", "preset": "medium"},
    "h264.mkv": {},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "uneven.mkv": {"pts": [0, 1, 2, 5, 6, 11, *range(12, 40)]},
}


@pytest.mark.parametrize("name", FILES)
def test_the_index_and_any_span_agree_with_a_straight_decode(tmp_path, name):
    uri = write(tmp_path / name, **FILES[name])
    frames, index = straight(uri), index_video(uri)
    assert list(index.pts) == [pts for pts, _ in frames]
    for start in range(0, len(frames), 7):  # spans that begin anywhere between keyframes
        span = list(read_frames(uri, index.pts[start : start + 7]))
        assert [frame.pts for frame in span] == [pts for pts, _ in frames[start : start + 7]]
        for frame, (_, expected) in zip(span, frames[start:], strict=False):
            assert np.array_equal(frame.image_hwc, expected)


def test_time_is_seconds_from_the_first_frame(tmp_path):
    index = index_video(write(tmp_path / "a.mp4", pts=range(5, 25)))
    assert index.time_s(10) == pytest.approx(1.0)


def test_a_truncated_file_keeps_its_good_frames(tmp_path):
    uri = write(tmp_path / "a.mkv")
    wanted = index_video(uri).pts
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) * 6 // 10])
    kept = [frame.pts for frame in read_frames(uri, wanted)]
    assert 0 < len(kept) < len(wanted)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("data", [b"", b"text", bytes(5000)])
def test_what_is_no_video_says_so(tmp_path, data):
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.mp4 is not a video that can be read"):
        index_video(str(tmp_path / "a.mp4"))


def test_a_frame_by_its_number(tmp_path):
    uri = write(tmp_path / "a.mp4")
    assert np.array_equal(read_frame(uri, 12), straight(uri)[12][1])
    with pytest.raises(DataError, match="has frames 0 to 29; frame 30 was asked"):
        read_frame(uri, 30)
