"""Small videos of a moving pattern, written by PyAV, for tests."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

KINDS = {  # by file name: the codec and its options
    "h264.mp4": ("libx264", {"bf": "3", "g": "10"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}


def pattern(frames: int = 30, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 (frames, height, width, 3): coloured squares that move to the right by two pixels a frame."""
    squares = np.random.default_rng(0).integers(0, 256, (-(-height // 12), -(-width // 16), 3), dtype=np.uint8)
    first = squares.repeat(12, 0).repeat(16, 1)[:height, :width]
    return np.array([np.roll(first, 2 * place, 1) for place in range(frames)]).reshape(frames, height, width, 3)


def write(
    path: Path,
    frames: np.ndarray | None = None,
    rate: int = 12,
    turned: int | None = None,
    times: Sequence[int] | None = None,
    codec: str | None = None,
    **options: str,
) -> Path:
    """turned: degrees by which players are told to turn the picture counter-clockwise. times: of the frames, in ms.
    codec: without it, that of `KINDS` for the file's name."""
    frames = pattern() if frames is None else frames
    if codec is None:
        codec, options = KINDS.get(path.name, KINDS["h264.mp4"])
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = int(options.get("g", stream.codec_context.gop_size))
        if turned is not None:
            stream.set_display_rotation(turned)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        container.start_encoding()
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path: Path) -> np.ndarray:
    """What PyAV gives without any care: (frames, height, width, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def rewritten(path: Path, target: Path, **options: str) -> Path:
    """The same packets in another file."""
    with av.open(str(path)) as source, av.open(str(target), "w", options=options) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return target


def damaged(path: Path, target: Path, packet: int) -> Path:
    """The same file with the bytes of one packet turned over, its head apart."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        begin, size = [(p.pos, p.size) for p in container.demux(video=0) if p.size][packet]
    data[begin + 8 : begin + size] = bytes(255 - byte for byte in data[begin + 8 : begin + size])
    target.write_bytes(data)
    return target


def sound(path: Path) -> Path:
    """A tenth of a second of silence and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_sound(path: Path) -> Path:
    """The moving pattern and silence, their packets by turns."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=12, options={"bf": "3", "g": "10"})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("aac", rate=8000, layout="mono")
        for pixels in pattern():
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 667), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux(audio.encode(silence))
        for stream in (video, audio):
            container.mux(stream.encode())
    return path
