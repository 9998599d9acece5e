"""The pickles of CIFAR-10: protocol 2 with Python 2 strings, which Python 3's own pickler cannot write.

A Python 2 string is read back as bytes under `encoding="bytes"` and as text under `encoding="latin1"`; readers of the
official files use either. Opcodes: the standard library's pickletools."""

from __future__ import annotations

import struct

import numpy as np

Content = bytes | int | list["Content"] | dict[bytes, "Content"] | np.ndarray


def dumps(content: Content) -> bytes:
    """The pickle of bytes, small integers, lists, dictionaries and uint8 matrices, nested at will."""
    return b"\x80\x02" + _value(content) + b"."


def _value(content: Content) -> bytes:
    if isinstance(content, bytes):
        return b"T" + struct.pack("<i", len(content)) + content
    if isinstance(content, int):
        return b"J" + struct.pack("<i", content)
    if isinstance(content, list):
        return b"](" + b"".join(map(_value, content)) + b"e"
    if isinstance(content, dict):
        return b"}(" + b"".join(_value(key) + _value(value) for key, value in content.items()) + b"u"
    return _matrix(content)


def _matrix(data: np.ndarray) -> bytes:
    # numpy.core, not numpy._core: the name that the official files carry and that every numpy still reads.
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    uint8 = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + _value(-1) + _value(-1) + b"K\x00tb"
    shape = b"(" + b"".join(_value(size) for size in data.shape) + b"t"
    return empty + b"(K\x01" + shape + uint8 + b"\x89" + _value(data.tobytes()) + b"tb"
