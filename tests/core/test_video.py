"""Videos as cameras write them, in every container that is read: no frame is lost, doubled or another one's."""

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from segray.core import s3 as s3_requests
from segray.core import storage
from segray.core.video import index_video, read_frames
from segray.errors import DataError, StorageError


def write(path, codec="libx264", pts=range(30), **options):
    """Frames of growing brightness, a keyframe every 8, at 10 ticks a second (25 in .mpg, which has no 10)."""
    fps = 25 if codec == "mpeg2video" else 10
    texture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "8", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for i, time in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(7 * i + texture // 16, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def straight(uri):
    """What a decoder gives from the first frame to the last."""
    with av.open(uri) as container:
        return [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def has(codec):
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


B_FRAMES = {"bf": "3", "preset": "medium"}
OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:keyint=8:bframes=3:b-adapt=0"}
VP9 = {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"}
FILES = {
    "h264 with B-frames.mp4": B_FRAMES,
    "h264 with B-frames.mkv": B_FRAMES,
    "h264 with B-frames.mov": B_FRAMES,
    "h264 with B-frames.m4v": B_FRAMES,
    "h264 with B-frames.ts": B_FRAMES,
    "h264 with open groups.mp4": OPEN_GOP,
    "h264 with open groups.ts": OPEN_GOP,
    "h264.mkv": {},
    "hevc.mp4": {"codec": "libx265", "bf": "3", "x265-params": "log-level=none"},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4 with B-frames.mp4": {"codec": "mpeg4", "bf": "2"},
    "mpeg4 with B-frames.avi": {"codec": "mpeg4", "bf": "2"},
    "mpeg2.mpg": {"codec": "mpeg2video", "bf": "2"},
    "mpeg2.ts": {"codec": "mpeg2video", "bf": "2"},
    "vp9.webm": VP9,
    "vp9.mkv": VP9,
    "uneven.mkv": {"pts": [0, 1, 2, 5, 6, 11, *range(12, 40)]},
    "uneven with B-frames.mp4": {"pts": [0, 1, 2, 5, 6, 11, *range(12, 40)], **B_FRAMES},
    "late.mp4": {"pts": range(50, 80), **B_FRAMES},
}


@pytest.mark.parametrize("name", FILES)
def test_the_index_and_any_span_agree_with_a_straight_decode(tmp_path, name):
    if not has(FILES[name].get("codec", "libx264")):
        pytest.skip("this PyAV cannot write it")
    uri = write(tmp_path / name, **FILES[name])
    frames, index = straight(uri), index_video(uri)
    assert len(frames) == len(FILES[name].get("pts", range(30)))
    assert list(index.pts) == [pts for pts, _ in frames]
    assert index.keyframes[0] == 0
    image = dict(frames)

    def check(span):
        got = list(read_frames(uri, span))
        assert [frame.pts for frame in got] == sorted(span)
        for frame in got:
            assert np.array_equal(frame.image_hwc, image[frame.pts])

    for length in (1, 7):  # spans that begin and end anywhere between keyframes, and together cover every frame
        for start in range(0, len(frames), length):
            check(index.pts[start : start + length])
    for seed in range(5):
        check(random.Random(seed).sample(index.pts, 6))


def test_time_is_seconds_from_the_first_frame(tmp_path):
    index = index_video(write(tmp_path / "a.mp4", pts=range(5, 25)))
    assert index.time_s(10) == pytest.approx(1.0)


def test_a_truncated_file_keeps_its_good_frames(tmp_path):
    uri = write(tmp_path / "a.mkv")
    wanted, whole = index_video(uri).pts, dict(straight(uri))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) * 6 // 10])
    kept = list(read_frames(uri, wanted))
    assert 0 < len(kept) < len(wanted)
    stamps = [frame.pts for frame in kept]
    assert stamps == sorted(set(stamps))
    for frame in kept[:-1]:  # the last may be cut itself
        assert np.array_equal(frame.image_hwc, whole[frame.pts])
    assert len(index_video(uri).pts) < len(wanted)


@pytest.mark.parametrize("name", ["h264 with B-frames.mp4", "h264.mkv", "hevc.mp4", "mpeg4.mp4", "vp9.mkv"])
def test_damage_costs_frames_up_to_the_next_keyframe_and_no_more(tmp_path, name):
    if not has(FILES[name].get("codec", "libx264")):
        pytest.skip("this PyAV cannot write it")
    uri = write(tmp_path / name, **FILES[name])
    whole, index = dict(straight(uri)), index_video(uri)
    with av.open(uri) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
        place = next(i for i in range(9, len(packets)) if not packets[i].is_keyframe)
        hit, behind = packets[place], next(packet for packet in packets[place:] if packet.is_keyframe)
        data = bytearray((tmp_path / name).read_bytes())
        at = data.index(bytes(hit), hit.pos)  # in mkv a header comes before it
    data[at : at + hit.size] = b"\xff" * hit.size
    (tmp_path / name).write_bytes(data)
    got = {frame.pts: frame.image_hwc for frame in read_frames(uri, index.pts)}
    before = {packet.pts for packet in packets[:place]}
    assert before | {pts for pts in index.pts if pts >= behind.pts} <= got.keys() < whole.keys()
    assert list(got) == sorted(got)
    for pts, image in got.items():
        assert np.array_equal(image, whole[pts])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_damage_anywhere_is_fewer_frames_or_a_data_error(tmp_path, name):
    codec = {"codec": "mpeg4"} if name == "a.avi" else {}
    uri = write(tmp_path / name, **codec)
    data = (tmp_path / name).read_bytes()
    rng = random.Random(0)
    good = 0
    for _ in range(40):
        damaged = bytearray(data)
        start = rng.randrange(len(data))
        damaged[start : start + 300] = rng.randbytes(300)
        Path(uri).write_bytes(damaged)
        try:
            wanted = index_video(uri).pts
            stamps = [frame.pts for frame in read_frames(uri, wanted)]
            assert len(set(stamps)) == len(stamps)
            assert set(stamps) <= set(wanted)
            good += len(stamps)
        except DataError:
            continue  # the header was hit
    assert good > 100


@pytest.mark.parametrize(("turn", "quarter_turns"), [("right", -1), ("left", 1), ("over", 2), ("none", 0)])
def test_a_frame_is_upright_as_a_player_shows_it(tmp_path, turn, quarter_turns):
    """A phone held upright writes sideways pixels and a matrix in the header (tkhd) that turns them."""
    uri = write(tmp_path / "a.mp4")
    lying = straight(uri)[3][1]
    one = 0x10000
    a, b, c, d = {
        "right": (0, one, -one, 0),
        "left": (0, -one, one, 0),
        "over": (-one, 0, 0, -one),
        "none": (one, 0, 0, one),
    }[turn]
    data = bytearray(Path(uri).read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 2 * 4  # version and flags, 5 fields, reserved, layer to volume
    for k, value in enumerate((a, b, 0, c, d, 0)):
        data[at + 4 * k : at + 4 * k + 4] = value.to_bytes(4, "big", signed=True)
    Path(uri).write_bytes(data)
    assert np.array_equal(next(read_frames(uri, index_video(uri).pts[3:4])).image_hwc, np.rot90(lying, quarter_turns))


def test_an_audio_file_holds_no_video(tmp_path):
    uri = str(tmp_path / "a.mkv")
    with av.open(uri, "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError) as error:
        index_video(uri)
    assert str(error.value) == f"{uri} holds no video stream."


def test_no_frames_asked_opens_nothing(tmp_path):
    assert list(read_frames(str(tmp_path / "none.mp4"), [])) == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Invalid argument"),
        (b"text", "Invalid data found when processing input"),
        (bytes(5000), "Invalid data found when processing input"),
    ],
)
def test_what_is_no_video_says_so(tmp_path, data, why):
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(DataError) as error:
        index_video(str(tmp_path / "a.mp4"))
    assert str(error.value) == f"{tmp_path}/a.mp4 is not a video that can be read: {why}."


SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile other.mp4\n", SDP], ids=["playlist", "session"])
def test_a_file_that_names_other_sources_is_no_video_and_opens_none(tmp_path, text):
    write(tmp_path / "other.mp4")
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(DataError) as error:
        index_video(str(tmp_path / "a.mp4"))
    assert str(error.value) == f"{tmp_path}/a.mp4 is not a video that can be read: Invalid argument."


def test_a_video_on_s3_is_read_as_one_on_a_disk(tmp_path, s3):
    uri = write(tmp_path / "a.mp4")
    there = f"{s3}/{tmp_path.name}/a.mp4"
    storage.create(there, Path(uri).read_bytes())
    assert index_video(there) == index_video(uri)
    (frame,), (same,) = (list(read_frames(place, index_video(uri).pts[12:13])) for place in (there, uri))
    assert np.array_equal(frame.image_hwc, same.image_hwc)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mpg"])
def test_a_place_that_cannot_be_read_any_more_is_no_damage(tmp_path, s3, name, monkeypatch):
    """Whichever request fails: all frames or a StorageError, never fewer frames. FFmpeg goes on after some errors."""
    local = write(tmp_path / name, codec="mpeg2video" if name == "a.mpg" else "libx264", **B_FRAMES)
    uri = f"{s3}/{tmp_path.name}/{name}"
    storage.create(uri, Path(local).read_bytes())
    stamps = index_video(local).pts
    monkeypatch.setattr(storage, "READ_AHEAD", 512)
    request, outcomes = s3_requests.request, set()

    def failing_from(number):
        made = iter(range(10_000))

        def fail(method, **arguments):
            if next(made) >= number:
                raise ConnectionResetError(104, "Connection reset by peer")
            return request(method, **arguments)

        return fail

    for number in range(40):
        monkeypatch.setattr(s3_requests, "request", failing_from(number))
        for read in (lambda: index_video(uri).pts, lambda: [frame.pts for frame in read_frames(uri, stamps[9:])]):
            try:
                outcomes.add(len(read()))
            except StorageError:
                outcomes.add("error")
    assert outcomes <= {len(stamps), len(stamps) - 9, "error"}
    assert "error" in outcomes
