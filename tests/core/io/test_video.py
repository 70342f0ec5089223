"""Videos as cameras write them, in every container that is read: no frame is lost, doubled or another one's."""

import io
import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from hanging import leased
from labelled import plan_rows, settings_of
from PIL import Image
from videos import (
    B_FRAMES,
    CODECS,
    HEVC,
    INTRA_REFRESH,
    KINDS,
    OPEN_GROUPS,
    VP9,
    copy,
    h264_units,
    has,
    hide,
    paff_units,
    picture,
    straight,
    transport_stream,
    write,
)

from segray.core.clock import Clock, moved
from segray.core.data import streets
from segray.core.infer.decode import decoded
from segray.core.io import decoding, read_ahead, storage
from segray.core.io import s3 as s3_requests
from segray.core.io.decoding import metadata_options
from segray.core.io.headers import lacks_picture
from segray.core.io.hollow import Hollow
from segray.core.io.packets import Packet, with_swallowed
from segray.core.io.video import index_video, read_frames
from segray.core.labels import units
from segray.core.labels.plan import PlanReader
from segray.core.labels.planning import make_plan
from segray.errors import DataError, StorageError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A kind of videos.KINDS → its file, made once."""
    folder = tmp_path_factory.mktemp("videos")

    def make(name):
        if not has(CODECS.get(name.partition(".")[0], "libx264")):
            pytest.skip("this PyAV cannot write it")
        if not (folder / name).exists():
            KINDS[name](folder / name)
        return str(folder / name)

    return make


def frames_of(plan):
    """Each planned row's pixels, or None where there is a reason why not, shard by shard as actors decode them."""
    found = []
    with ThreadPoolExecutor(1) as pool:
        for shard in range(plan.shards):
            rows = PlanReader(plan).shard(shard)
            shown = decoded(rows, lambda image_hwc: image_hwc, Clock(), pool)
            found += [(frame.row, frame.seen_hwc) for frame in shown if not frame.lead]
    return found


@pytest.mark.skipif(not has(CODECS["av1"]) or not hasattr(os, "sched_getscheduler"), reason="needs AV1, and Linux")
def test_who_writes_av1_leaves_the_processors_to_others(made):
    made("av1.mp4")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (not n.endswith(".mp4"))) for n in KINDS])
def test_rows_are_the_frames_of_a_straight_decode(tmp_path, made, name):
    uri = made(name)
    frames, index = straight(uri), index_video(uri)
    plan = make_plan(str(tmp_path / "out"), settings_of([uri], shard_size=1), streets.LABEL_SPACE)
    rows = frames_of(plan)
    assert plan.shards > 1
    assert [row["frame_index"] for row, _ in rows] == list(range(len(frames)))
    assert [row["error"] for row, _ in rows] == [None] * len(frames)
    assert all(np.array_equal(image, frame) for (_, image), frame in zip(rows, frames, strict=True))
    times = [row["time_s"] for row, _ in rows]
    assert times[0] == 0
    assert times == sorted(set(times))
    assert index.damage is None

    for seed in range(4):  # any frames, in one go
        some = random.Random(seed).sample(range(len(frames)), 5)
        got = list(read_frames(uri, [index.keys[i] for i in some], by_index=index.pts is None))
        assert [frame.key for frame in got] == [index.keys[i] for i in sorted(some)]
        assert all(np.array_equal(got[k].image_hwc, frames[i]) for k, i in enumerate(sorted(some)))


@pytest.mark.parametrize("name", ["fields alone.ts", "fields later.ts", "fields later.mkv", "hidden later.webm"])
def test_two_packets_of_one_frame_are_one_row_wherever_they_stand(tmp_path, name):
    """Also behind the packets that are looked at first, and where each frame is a keyframe."""
    uri, ts = tmp_path / name, tmp_path / "fields.ts"
    if name == "hidden later.webm":
        if not has("libvpx"):
            pytest.skip("this PyAV cannot write it")
        write(uri, codec="libvpx", **{"deadline": "realtime", "cpu-used": "8"})
        hide(uri, 20)
    elif name == "fields alone.ts":
        uri.write_bytes(transport_stream(paff_units(keyint=1, of_fields=lambda number: True)))
    else:
        ts.write_bytes(transport_stream(paff_units(of_fields=lambda number: number > 18)))
        copy(str(ts), str(uri))
    frames, index = straight(str(uri)), index_video(str(uri))
    assert (len(index.keys), index.lost) == (len(frames), frozenset())
    got = {frame.key: frame.image_hwc for frame in read_frames(str(uri), index.keys)}
    assert all(np.array_equal(got[key], frame) for key, frame in zip(index.keys, frames, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mpeg2.vob", "mpeg2.mpg", "hevc.hevc", "mpeg4 with B-frames.avi", "h264 with B-frames.h264"]
)
def test_a_video_that_is_numbered_by_decoding_is_decoded_twice_and_not_again_for_each_shard(
    tmp_path, name, monkeypatch
):
    """Once to number its frames, and once to label them, each shard from the keyframe before the frame that leads it."""
    if not has(CODECS.get(name.partition(".")[0], "libx264")):
        pytest.skip("this PyAV cannot write it")
    uri, packets = str(tmp_path / name), []
    options = {
        "hevc": HEVC,
        "mpeg2": {"codec": "mpeg2video", "bf": "2"},
        "mpeg4 with B-frames": {"codec": "mpeg4", "bf": "2"},
    }
    write(uri, pts=range(160), fps=25, **options.get(name.partition(".")[0], B_FRAMES))
    frames = straight(uri)
    assert index_video(uri).pts is None
    given = decoding.frames_of
    monkeypatch.setattr(decoding, "frames_of", lambda *args, **how: packets.append(args) or given(*args, **how))
    rows = frames_of(make_plan(str(tmp_path / "out"), settings_of([uri], shard_size=16), streets.LABEL_SPACE))
    assert [row["frame_index"] for row, _ in rows] == list(range(len(frames)))
    assert all(np.array_equal(image, frame) for (_, image), frame in zip(rows, frames, strict=True))
    assert len(packets) < 4 * len(frames)
    at = index_video(uri).start_of(60)
    for wrong in (at._replace(checksum=0), at._replace(byte=at.byte + 1), at._replace(byte=10**9)):
        (frame,) = read_frames(uri, [60], by_index=True, begin=wrong)
        assert np.array_equal(frame.image_hwc, frames[60])


@pytest.mark.parametrize("later", [0, 900, 28 * 3600 + 900, -45000])
def test_two_recordings_in_one_file_have_each_frame_once(tmp_path, later):
    """As `cat a.ts b.ts` makes them. The second's time stamps begin so many ticks behind the first's: they repeat, stand
    between those, or come before. The last frame of the first may have lost its end.
    """
    uri, units = tmp_path / "joined.ts", h264_units()
    behind = [unit._replace(pts=unit.pts + later, dts=unit.dts + later) for unit in units]
    uri.write_bytes(transport_stream(units) + transport_stream(behind))
    frames = straight(str(uri))
    rows = frames_of(make_plan(str(tmp_path / "out"), settings_of([uri], shard_size=4), streets.LABEL_SPACE))
    assert [row["frame_index"] for row, _ in rows] == list(range(len(frames))) == list(range(60))
    good = [(image, frame) for (_, image), frame in zip(rows, frames, strict=True) if image is not None]
    assert len(good) >= 58
    assert all(np.array_equal(image, frame) for image, frame in good)
    assert [row["time_s"] for row, _ in rows] == pytest.approx([i / 25 for i in range(60)])


@pytest.mark.parametrize(("jump", "suffix"), [(2, ".ts"), (250, ".ts"), (250, ".mkv")])
def test_a_leap_of_the_stamps_between_a_frame_and_those_shown_before_it_leaves_the_frames_in_order(
    tmp_path, jump, suffix
):
    """As a receiver writes it that lost some seconds: the frame has an earlier stamp than those shown before it."""
    uri, units = tmp_path / "a.ts", h264_units()
    ticks = jump * 3600
    late = [unit._replace(pts=unit.pts + ticks, dts=unit.dts + ticks) for unit in units]
    for at in (18, 20, 23):
        uri.write_bytes(transport_stream(units[:at] + late[at:]))
        place = str(uri.with_suffix(suffix))
        if suffix != ".ts":
            copy(str(uri), place)
        frames = straight(place)
        rows = frames_of(make_plan(str(tmp_path / f"out{at}"), settings_of([place]), streets.LABEL_SPACE))
        assert [row["frame_index"] for row, _ in rows] == list(range(30))
        assert all(np.array_equal(image, frame) for (_, image), frame in zip(rows, frames, strict=True))


def test_the_best_video_of_several_is_labelled_and_it_is_said(tmp_path):
    uri = tmp_path / "two.mkv"
    with av.open(str(uri), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, side in zip(streams, (32, 64), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for number in range(8):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(picture(number, stream.height, stream.width), format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    notes = []
    make_plan(str(tmp_path / "out"), settings_of([uri]), streets.LABEL_SPACE, on_note=notes.append)
    assert notes == [
        f"1 video holds several video streams ({uri}); of each, the one that FFmpeg takes for the best is labelled."
    ]
    assert len(index_video(str(uri)).keys) == 8


def test_time_is_seconds_from_the_first_frame(tmp_path):
    index = index_video(write(tmp_path / "a.mp4", pts=range(5, 25)))
    assert index.times_s[10] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4", "a.avi", "a.flv"])
def test_a_file_that_was_cut_keeps_its_good_frames_and_says_so(tmp_path, name):
    """The header of an .mp4 stands at its beginning where it is to be streamed, else a cut one has none."""
    codec = {"a.webm": "libvpx", "a.avi": "mpeg4"}.get(name, "libx264")
    if not has(codec):
        pytest.skip("this PyAV cannot write it")
    first = {"movflags": "faststart"} if name == "a.mp4" else None
    uri = write(tmp_path / name, codec=codec, pts=range(80), container_options=first)
    whole = straight(uri)
    data = Path(uri).read_bytes()
    Path(uri).write_bytes(data[: len(data) * 55 // 100])
    index = index_video(uri)
    assert 5 < len(index.keys) < 70
    assert index.damage.startswith(f"{uri} ends at ")
    assert index.damage.endswith(" s that its header states; it was cut.")
    got = list(read_frames(uri, [key for i, key in enumerate(index.keys) if i not in index.lost]))
    assert len(index.keys) - 3 <= len(got) <= len(index.keys)
    assert all(np.array_equal(frame.image_hwc, whole[index.keys.index(frame.key)]) for frame in got)


def test_a_cut_file_that_has_lost_the_index_of_its_stamps_says_how_much_is_there(tmp_path):
    uri = write(tmp_path / "a.mxf", pts=range(100), fps=25, **B_FRAMES)
    data = Path(uri).read_bytes()
    Path(uri).write_bytes(data[: len(data) * 4 // 10])
    index = index_video(uri)
    count = len(index.keys)
    assert 20 < count < 50
    assert index.damage == f"{uri} ends at {count / 25:.1f} s of the 4.0 s that its header states; it was cut."


TOLD = ["a.mkv", "a.webm", "a.mp4", "a.mov", "a.avi", "a.flv", "a.wmv", "a.ts", "a.m2ts"]


@pytest.mark.parametrize("name", TOLD)
def test_a_cut_of_some_bytes_is_noticed_and_no_row_has_the_number_of_another_frame(tmp_path, name):
    """A frame behind one that is missing would have its number: frames are not shown in the order of the file."""
    options = {"a.webm": VP9, "a.avi": {"codec": "mpeg4", "bf": "2"}, "a.wmv": {"codec": "wmv2"}, "a.mkv": HEVC}
    options = {"pts": range(16), "container_options": {"movflags": "faststart"}, **options.get(name, B_FRAMES)}
    if not has(options.get("codec", "libx264")):
        pytest.skip("this PyAV cannot write it")
    uri = write(tmp_path / name, **options)
    whole, data = straight(uri), Path(uri).read_bytes()
    assert index_video(uri).damage is None
    for bytes_cut in (1, 20, 150, 400, len(data) // 6 | 1, len(data) // 3 | 1):  # no whole packets of a .ts
        Path(uri).write_bytes(data[:-bytes_cut])
        index = index_video(uri)
        assert re.search(r" ends [\d,]+ bytes? before the end of .*; it was cut\.$", index.damage or "")
        sound = [i for i in range(len(index.keys)) if i not in index.lost]
        got = read_frames(uri, [index.keys[i] for i in sound], by_index=index.pts is None)
        found = {index.keys.index(frame.key): frame.image_hwc for frame in got}
        assert len(found) >= len(index.keys) - 4
        assert [i for i, image in found.items() if not np.array_equal(image, whole[i])] == []


HIT = ["h264 with B-frames.mp4", "h264 with open groups.mp4", "h264.mkv", "hevc.mp4", "mpeg4.mp4", "vp9.mkv"]


def test_a_cut_video_without_a_header_has_a_row_for_each_frame(tmp_path, made):
    """Each packet of .vob states its length: a decoder takes a frame that lacks its last bytes alone for sound."""
    whole = made("h264 with B-frames.vob")
    data, frames, uri = Path(whole).read_bytes(), straight(whole), str(tmp_path / "cut.vob")
    with av.open(whole) as container:
        ends = [data.find(bytes(packet)[-12:]) + 12 for packet in container.demux(video=0) if packet.size]
    for at in [*range(ends[13] - 8, ends[13] + 1), *(int(part * len(data)) for part in (0.2, 0.35, 0.5, 0.65, 0.8))]:
        Path(uri).write_bytes(data[:at])
        with av.open(uri) as container:
            begun = sum(packet.size > 0 for packet in container.demux(video=0))
        index = index_video(uri)
        assert index.pts is None
        assert len(index.keys) in (begun - 1, begun)  # of the last packet there may be no picture at all
        assert (index.damage is None) == (at % 2048 == 0)  # between two packets nothing tells of a cut
        sound = [key for key in index.keys if key not in index.lost]
        got = list(read_frames(uri, sound, by_index=True))
        assert [frame.key for frame in got] == sound
        wrong = [frame.key for frame in got if not np.array_equal(frame.image_hwc, frames[frame.key])]
        assert (at, wrong, index.lost) == (at, [], index.lost)


@pytest.mark.parametrize("name", ["mpeg2.mpg", "mpeg2.mxf"])
def test_a_cut_in_a_packet_of_mpg_or_mxf_is_noticed_and_the_last_frames_are_error_rows(tmp_path, made, name):
    whole, uri = made(name), str(tmp_path / name)
    data, frames = Path(whole).read_bytes(), straight(whole)
    for at in range(len(data) * 4 // 10, len(data) * 8 // 10, len(data) // 30 | 1):
        Path(uri).write_bytes(data[:at])
        index = index_video(uri)
        end = "its last packet or its footer" if name.endswith("mxf") else "its last packet"
        assert re.search(rf" ends [\d,]+ bytes? before the end of {end}; it was cut\.$", index.damage)
        sound = [key for i, key in enumerate(index.keys) if i not in index.lost]
        got = list(read_frames(uri, sound, by_index=index.pts is None))
        assert got
        assert all(np.array_equal(frame.image_hwc, frames[index.keys.index(frame.key)]) for frame in got)


@pytest.mark.parametrize("options", [{"bf": "0", "x264-params": "tff=1"}, {"bf": "0"}])
def test_the_last_frame_of_a_cut_stream_without_a_container_is_an_error_row(tmp_path, options):
    """Several threads tell nothing of an error in the last packet, which may be the second field of a frame."""
    uri = write(tmp_path / "a.h264", fps=25, **options)
    Path(uri).write_bytes(Path(uri).read_bytes()[:-20])
    index = index_video(uri)
    assert (len(index.keys), index.lost) == (30, {29})


@pytest.mark.parametrize("name", HIT)
def test_damage_costs_frames_up_to_the_next_keyframe_and_no_more(tmp_path, made, name):
    """Of open groups to the third one: what stands behind the first is told to forget frames that were lost."""
    uri = str(tmp_path / name)
    data = bytearray(Path(made(name)).read_bytes())
    Path(uri).write_bytes(data)
    index, frames = index_video(uri), straight(uri)
    whole = dict(zip(index.keys, frames, strict=True))
    with av.open(uri) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
        place = next(i for i in range(9, len(packets)) if not packets[i].is_keyframe)
        hit, behind = packets[place], [packet for packet in packets[place:] if packet.is_keyframe]
        at = data.index(bytes(hit), hit.pos)  # in mkv a header comes before it
    data[at : at + hit.size] = b"\xff" * hit.size
    Path(uri).write_bytes(data)
    got = {frame.key: frame.image_hwc for frame in read_frames(uri, index.keys)}
    assert list(got) == sorted(got)
    assert hit.pts not in got
    spared = {packet.pts for packet in packets[:place]}
    spared |= {pts for pts in index.keys if pts >= behind[2 * ("open" in name)].pts}
    assert spared <= got.keys()
    for pts, image in got.items():
        assert np.array_equal(image, whole[pts])


HURT = ["h264 with B-frames.mp4", "vp9.webm", "mpeg2.mkv"]
HURT_TOO = ["h264.mkv", "hevc.mp4", "vp8.webm", "prores.mov", "mpeg4 with B-frames.mkv"]


@pytest.mark.parametrize("name", [*HURT, *(pytest.param(name, marks=pytest.mark.slow) for name in HURT_TOO)])
def test_damage_to_any_packet_leaves_each_frame_its_number(tmp_path, made, name):
    """Also where a decoder makes no frame of the packet, and among the first ones, which tell whether stamps are right."""
    data, uri = Path(made(name)).read_bytes(), str(tmp_path / name)
    index = index_video(made(name))
    with av.open(made(name)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for number, hit in enumerate(packets[:9]):
        at = data.index(bytes(hit), hit.pos)
        hurt = bytes(hit)[:8] + b"\xff" * (hit.size - 8) if number % 2 == 0 else bytes(hit.size)
        Path(uri).write_bytes(data[:at] + hurt + data[at + hit.size :])
        damaged = index_video(uri)
        assert damaged.keys == index.keys
        assert damaged.times_s == index.times_s


def test_packets_of_which_no_frame_is_made_are_damage_unless_sound_frames_follow():
    packets = [Packet(pts, pts, pts in (0, 4), False, None) for pts in range(8)]
    swallowed = [(0, True), (1, True), (3, False), (4, True), (6, False)]
    lost = [(pts, pts in (0, 1, 4)) for pts in range(8)]
    assert with_swallowed(swallowed, packets) == lost
    fields = [(0, True), (2, True), (4, True), (6, True)]
    assert with_swallowed(fields, packets) == fields


def test_packets_of_which_no_frame_is_made_are_second_fields_unless_an_error_was_met_before():
    packets = [Packet(pts, pts, True, False, None) for pts in range(6)]
    fields = [(0, True), (2, False), (4, True)]
    assert with_swallowed(fields, packets, {2}) == fields
    frames = [(0, True), (1, True), (4, True), (5, True)]
    assert with_swallowed(frames, packets, {2}) == sorted([*frames, (2, False), (3, False)])
    assert with_swallowed(frames, packets, set()) == frames


@pytest.mark.parametrize(
    ("codec", "begin", "lacks"),
    [
        ("mpeg4", b"\0\0\1\xb6", False),
        ("mpeg4", b"\0\0\1\xb0\1\0\0\1\xb5", False),  # parameters
        ("mpeg4", b"", True),
        ("mpeg2video", b"\0\0\1\0\1\2\3\4\0\0\1\1", False),
        ("mpeg2video", b"\0\0\1\xb3", False),
        ("mpeg2video", b"\0\0\1\0", True),  # of which no slice is left
        ("hevc", b"", False),
    ],
)
def test_a_packet_of_mpeg_without_a_picture_is_damaged_unless_it_holds_parameters(codec, begin, lacks):
    assert lacks_picture(codec, av.Packet(begin + b"\xff" * 50)) is lacks


def test_packets_of_zeros_of_which_a_decoder_says_nothing_have_rows(tmp_path):
    uri = write(tmp_path / "a.mp4", codec="mpeg4", bf="2")
    index, data = index_video(uri), bytearray(Path(uri).read_bytes())
    with av.open(uri) as container:
        hits = [packet for packet in container.demux(video=0) if packet.size][3:6]
    for hit in hits:
        data[hit.pos : hit.pos + hit.size] = bytes(hit.size)
    Path(uri).write_bytes(data)
    damaged = index_video(uri)
    assert (damaged.keys, damaged.times_s) == (index.keys, index.times_s)


@pytest.mark.slow
def test_lost_packets_of_a_transport_stream_never_give_other_pixels(tmp_path):
    """Its packets are counted, so that every loss is known. The same rows are lost however a run is cut and whenever."""
    uri, rng, given = tmp_path / "a.ts", random.Random(0), 0
    units = h264_units(60)
    data = transport_stream(units)
    uri.write_bytes(data)
    whole = dict(zip(index_video(str(uri)).keys, straight(str(uri)), strict=True))
    for _ in range(6):
        packets = [data[at : at + 188] for at in range(0, len(data), 188)]
        uri.write_bytes(b"".join(packet for i, packet in enumerate(packets) if i < 9 or rng.random() > 0.02))
        index = index_video(str(uri))
        keys = [key for i, key in enumerate(index.keys) if i not in index.lost]
        got = {frame.key: frame.image_hwc for frame in read_frames(str(uri), keys)}
        assert [key for key, image in got.items() if not np.array_equal(image, whole[key])] == []
        spans = [keys[at : at + 5] for at in range(0, len(keys), 5)]
        assert [frame.key for span in spans for frame in read_frames(str(uri), span)] == list(got)
        given += len(got)
    assert given > 60


@pytest.mark.parametrize(
    "name",
    [
        "h264 with B-frames.mp4",
        "mpeg4 with B-frames.avi",
        pytest.param("h264 with B-frames.vob", marks=pytest.mark.slow),
    ],
)
def test_flipped_bits_cost_the_same_rows_in_every_run(tmp_path, made, name):
    data, rng, uri = Path(made(name)).read_bytes(), random.Random(3), str(tmp_path / name)
    for _ in range(4):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[rng.randrange(len(data) // 3, len(data) - 1500)] ^= 1 << rng.randrange(8)
        Path(uri).write_bytes(damaged)
        runs = []
        for _ in range(3):
            index = index_video(uri)
            keys = [key for i, key in enumerate(index.keys) if i not in index.lost]
            got = read_frames(uri, keys, by_index=index.pts is None)
            runs.append((index, [(frame.key, frame.image_hwc.tobytes()) for frame in got]))
        assert runs[0] == runs[1] == runs[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv", "a.avi"])
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
            index = index_video(uri)
            found = [frame.key for frame in read_frames(uri, index.keys, by_index=index.pts is None)]
            assert found == sorted(set(found))
            assert set(found) <= set(index.keys)
            good += len(found)
        except DataError:
            continue  # the header was hit
    assert good > 100


@pytest.mark.parametrize(
    ("matrix", "turn"),
    {
        "none": ((1, 0, 0, 1), lambda image: image),
        "right": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        "left": ((0, -1, 1, 0), np.rot90),
        "over": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        "hflip": ((-1, 0, 0, 1), np.fliplr),
        "vflip": ((1, 0, 0, -1), np.flipud),
        "transpose": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        "anti-transpose": ((0, -1, -1, 0), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
    }.values(),
    ids=["none", "right", "left", "over", "hflip", "vflip", "transpose", "anti-transpose"],
)
def test_a_frame_is_upright_as_a_player_shows_it(tmp_path, matrix, turn):
    """A phone held upright writes sideways pixels and a matrix in the header (tkhd) that turns them; others mirror."""
    uri = write(tmp_path / "a.mp4")
    lying = straight(uri)[3]
    a, b, c, d = (0x10000 * value for value in matrix)
    data = bytearray(Path(uri).read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 2 * 4  # version and flags, 5 fields, reserved, layer to volume
    for k, value in enumerate((a, b, 0, c, d, 0)):
        data[at + 4 * k : at + 4 * k + 4] = value.to_bytes(4, "big", signed=True)
    Path(uri).write_bytes(data)
    assert np.array_equal(next(read_frames(uri, index_video(uri).keys[3:4])).image_hwc, turn(lying))


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


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="0"><BaseURL>other.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>'
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mp4", "ffconcat version 1.0\nfile other.mp4\n"),
        ("a.mp4", SDP),
        ("a.ts", HLS),
        ("a.m3u8", HLS),
        ("a.mpd", DASH),
        ("a%d.mp4", SDP),
        ("concat:other.mp4", SDP),
    ],
)
def test_a_file_that_names_other_sources_is_no_video_and_opens_none(tmp_path, name, text):
    write(tmp_path / "other.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        index_video(str(tmp_path / name))
    # FFmpeg knows some playlists by their suffix alone, and some not at all.
    why = "Invalid data found when processing input" if name in ("a.ts", "a.mpd") else "Invalid argument"
    assert str(error.value) == f"{tmp_path}/{name} is not a video that can be read: {why}."


def test_a_video_of_larger_frames_than_a_decoder_may_hold_is_refused(tmp_path, monkeypatch):
    wide = write(tmp_path / "a.mp4", pts=range(1), height=1024, width=1024)
    monkeypatch.setattr(decoding, "MAX_FRAME_PIXELS", 1_000_000)
    with pytest.raises(DataError) as error:
        index_video(wide)
    assert str(error.value) == f"{wide} is 1024×1024; at most 1 megapixels a frame are read."


def test_frames_that_are_larger_than_the_header_says_are_not_decoded(tmp_path, monkeypatch):
    parts = [write(tmp_path / "a.h264", pts=range(8)), write(tmp_path / "b.h264", pts=range(8), height=96, width=128)]
    (tmp_path / "c.h264").write_bytes(b"".join(Path(part).read_bytes() for part in parts))
    assert len(index_video(str(tmp_path / "c.h264")).times_s) == 16
    monkeypatch.setattr(decoding, "LIMIT", {"max_pixels": "4000"})
    assert len(index_video(str(tmp_path / "c.h264")).times_s) == 8


@pytest.mark.parametrize("fragments", [False, True])
def test_a_video_that_states_more_packets_than_it_has_bytes_is_refused_before_its_table_is_made(tmp_path, fragments):
    """A hundred million packets of one size need no byte each, and FFmpeg took 13 GiB for them."""
    options = {"movflags": "frag_keyframe+empty_moov"} if fragments else {}
    uri = write(tmp_path / "a.mp4", container_options=options)
    data = bytearray(Path(uri).read_bytes())
    many = (100_000_000).to_bytes(4, "big")
    if fragments:  # flags that say that all packets are alike
        at = data.index(b"trun") + 4
        data[at : at + 8] = b"\0\0\0\1" + many
    else:  # each of one byte
        at = data.index(b"stsz") + 8
        data[at : at + 8] = b"\0\0\0\1" + many
    Path(uri).write_bytes(data)
    with pytest.raises(DataError) as error:
        index_video(uri)
    size = f"{len(data):,}"
    assert str(error.value) == f"{uri} states more packets than its {size} bytes can hold; it is damaged or hostile."


def test_a_video_that_hangs_while_it_is_looked_into_is_a_row_and_its_neighbours_are_planned(tmp_path):
    write(tmp_path / "a.mp4", pts=range(3))
    with leased(write(tmp_path / "b.mp4", pts=range(3))) as hanging:
        rows = plan_rows(make_plan(str(tmp_path / "out"), settings_of([tmp_path]), streets.LABEL_SPACE, hang_s=1.0))
    assert [(row["frame_index"], row["error_code"]) for row in rows] == [
        (0, None), (1, None), (2, None), (None, "worker_timeout"),
    ]  # fmt: skip
    assert rows[3]["error"] == f"{hanging} made no progress in 1 s when it was looked into; look at the file."


def test_looking_into_videos_may_take_long_as_long_as_it_moves_on(tmp_path, monkeypatch):
    def slowly(place):
        for _ in range(20):
            time.sleep(0.1)
            moved()
        return index_video(place)

    monkeypatch.setattr(units, "_index", slowly)
    write(tmp_path / "a.mp4", pts=range(3))
    plan = make_plan(str(tmp_path / "out"), settings_of([tmp_path]), streets.LABEL_SPACE, hang_s=1.0)
    assert [row["error_code"] for row in plan_rows(plan)] == [None] * 3


def test_decoding_moves_the_clock_packet_by_packet(tmp_path):
    """A frame that is found from the beginning of a long video on takes long, and does not hang."""
    uri, clock = write(tmp_path / "a.mp4"), Clock()
    with clock("decode"):
        (_,) = read_frames(uri, [29], by_index=True)
    assert clock.steps > 30


LONG = {
    "h264.mp4": {**B_FRAMES},
    "h264.mov": {**B_FRAMES},
    "open groups.mp4": OPEN_GROUPS,
    "intra refresh.mp4": INTRA_REFRESH,
    "hevc.mp4": HEVC,
    "mpeg4.mp4": {"codec": "mpeg4", "bf": "2"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "pts": range(0, 60, 2)},
    "vp9.mp4": VP9,
    "h264.mkv": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_an_index_made_of_the_table_alone_is_that_of_all_packets(tmp_path, name, monkeypatch):
    """Of files that FFmpeg does not hold in memory after its first read."""
    options = {"height": 240, "width": 320, "pts": [*range(50), 55, 57, *range(59, 80)]} | LONG[name]
    if not has(options.get("codec", "libx264")):
        pytest.skip("this PyAV cannot write it")
    uri = write(tmp_path / name, **options)
    assert Path(uri).stat().st_size > 65_536
    spans = []
    hollow_out = Hollow.hollow_out
    monkeypatch.setattr(Hollow, "hollow_out", lambda self, *of: hollow_out(self, *of) or spans.append(self._begins))
    index = index_video(uri)
    assert any(spans) is (name not in ("vp9.mp4", "h264.mkv"))
    monkeypatch.setattr(Hollow, "hollow_out", lambda *of: None)
    assert index_video(uri) == index


def test_of_a_video_with_a_table_the_first_packets_are_read_and_no_others(tmp_path, monkeypatch):
    uri = write(tmp_path / "a.mp4", pts=range(100), height=240, width=320, **B_FRAMES)
    read = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

    whole = index_video(uri)
    size = Path(uri).stat().st_size
    monkeypatch.setattr(storage, "open_read", lambda uri: io.BufferedReader(Counted(uri), 512))
    assert index_video(uri) == whole
    assert sum(read) < size / 3, size


def test_a_video_on_s3_is_read_as_one_on_a_disk(tmp_path, s3):
    uri = write(tmp_path / "a.mp4")
    there = f"{s3}/{tmp_path.name}/a.mp4"
    storage.create(there, Path(uri).read_bytes())
    assert index_video(there) == index_video(uri)
    (frame,), (same,) = (list(read_frames(place, index_video(uri).keys[12:13])) for place in (there, uri))
    assert np.array_equal(frame.image_hwc, same.image_hwc)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a.mp4", "a.ts", *(pytest.param(n, marks=pytest.mark.long) for n in ("a.mkv", "a.mpg"))]
)
def test_a_place_that_cannot_be_read_any_more_is_no_damage(tmp_path, s3, name, monkeypatch):
    """Whichever request fails: all frames or a StorageError, never fewer frames. FFmpeg goes on after some errors."""
    local = write(tmp_path / name, codec="mpeg2video" if name == "a.mpg" else "libx264", **B_FRAMES)
    uri = f"{s3}/{tmp_path.name}/{name}"
    storage.create(uri, Path(local).read_bytes())
    index = index_video(local)
    by_index = index.pts is None
    monkeypatch.setattr(read_ahead, "LEAST", 512)
    monkeypatch.setattr(read_ahead, "MOST", 512)
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
        for read in (lambda: index_video(uri).keys, lambda: read_frames(uri, index.keys[9:], by_index=by_index)):
            try:
                outcomes.add(len(list(read())))
            except StorageError:
                outcomes.add("error")
    assert outcomes <= {len(index.keys), len(index.keys) - 9, "error"}
    assert "error" in outcomes


def test_every_pyav_is_given_the_arguments_that_it_has():
    assert metadata_options("18.1.0") == {"metadata_errors": "ignore"}
    assert metadata_options("19.0.2") == {}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("PNG", "a PNG"),
        ("animated PNG", "a PNG"),
        ("JPEG", "a JPEG"),
        ("GIF", "a GIF"),
        ("WEBP", "a WebP"),
        ("animated WEBP", "a WebP"),
        ("BMP", "a BMP"),
        ("TIFF", "a TIFF"),
        ("AVIF", "an AVIF"),
        ("JPEG2000", "a JPEG 2000"),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_a_picture_that_is_called_a_video_is_one_line(tmp_path, kind, says, suffix):
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    more = {"save_all": True, "append_images": frames[1:]} if "animated" in kind else {}
    frames[0].save(tmp_path / f"a.{suffix}", kind.split()[-1], **more)
    with pytest.raises(DataError) as error:
        index_video(f"{tmp_path}/a.{suffix}")
    assert str(error.value) == f"{tmp_path}/a.{suffix} is {says} picture and no video; give it a picture's suffix."


def test_a_joined_recording_that_was_cut_loses_what_a_decoder_holds_back_and_no_more(tmp_path):
    one = tmp_path / "a.ts"
    write(one, pts=range(60), **B_FRAMES)
    (tmp_path / "joined.ts").write_bytes(one.read_bytes() * 2)
    whole = len(index_video(str(tmp_path / "joined.ts")).lost)
    (tmp_path / "joined.ts").write_bytes((one.read_bytes() * 2)[:-60])
    index = index_video(str(tmp_path / "joined.ts"))
    assert index.damage.endswith("bytes before the end of its last packet; it was cut.")
    assert len(index.lost) <= whole + 17


def test_a_cut_recording_without_stamps_is_indexed(tmp_path):
    units = [unit._replace(pts=None, dts=None) for unit in h264_units()]
    (tmp_path / "a.ts").write_bytes(transport_stream(units)[:-60])
    assert len(index_video(str(tmp_path / "a.ts")).times_s) >= 27


@pytest.mark.parametrize("tail", [bytes(1000), b"\0", bytes(range(100, 200)) * 3])
def test_bytes_behind_a_transport_stream_are_no_cut(tail, tmp_path):
    write(tmp_path / "a.ts", **B_FRAMES)
    (tmp_path / "a.ts").write_bytes((tmp_path / "a.ts").read_bytes() + tail)
    index = index_video(str(tmp_path / "a.ts"))
    assert (index.damage, index.lost) == (None, frozenset())
