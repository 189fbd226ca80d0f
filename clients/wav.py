"""The header of a WAV file that arrives through a pipe, so that its samples can be used as they come.

Source: "Multimedia Programming Interface and Data Specifications 1.0" (Microsoft, IBM 1991) and its extensible
format. Left out, and read by libsndfile once the pipe has ended: 8, 24 and 32 bit integers, compressed forms, RF64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

ENCODING_OF = {(1, 16): "pcm_s16le", (3, 32): "pcm_f32le", (6, 8): "alaw", (7, 8): "mulaw"}  # (format tag, bits)
EXTENSIBLE = 0xFFFE
UNKNOWN_BYTES = 0x7FFF_0000  # a writer that cannot seek claims about 2 or 4 GiB; arecord rounds down to whole frames
HEADER_BYTES = 1 << 20  # more before the samples than this is no header


@dataclass(frozen=True, slots=True)
class WavFormat:
    sample_rate: int  # Hz
    channels: int
    encoding: str  # of `core.audio.ENCODINGS`
    n_bytes: int | None  # of samples; None where the header does not tell


class HeaderReader:
    """Reads a header and remembers its bytes, for whoever has to read them again."""

    def __init__(self, head: bytes, read: Callable[[int], bytes]) -> None:
        self.head = head  # all that was read; at first what the caller had read to recognise the form
        self._read = read
        self._at = 0

    def take(self, n: int) -> bytes:
        """The next `n` bytes.

        Raises:
            EOFError: the pipe ends before, or the header is longer than any header.
        """
        missing = self._at + n - len(self.head)
        if self._at + n > HEADER_BYTES:
            raise EOFError
        if missing > 0:
            self.head += self._read(missing)
        taken = self.head[self._at : self._at + n]
        if len(taken) < n:
            raise EOFError
        self._at += n
        return taken

    def wav_format(self) -> WavFormat | None:
        """Reads up to the first sample; None where this is no WAV file, or one of the forms left out."""
        sample_rate, channels, encoding = 0, 0, None
        try:
            if self.take(4) != b"RIFF" or self.take(8)[4:] != b"WAVE":
                return None
            while True:
                name, size = struct.unpack("<4sI", self.take(8))
                if name == b"data":
                    break
                body = self.take(size + size % 2)
                if name == b"fmt " and size >= 16:
                    tag, channels, sample_rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
                    if tag == EXTENSIBLE and size >= 26:
                        (tag,) = struct.unpack_from("<H", body, 24)
                    encoding = ENCODING_OF.get((tag, bits))
        except EOFError:
            return None
        if encoding is None or channels < 1:
            return None
        return WavFormat(sample_rate, channels, encoding, None if size == 0 or size >= UNKNOWN_BYTES else size)


def mp3_frame_bytes(head: bytes) -> int:
    """Length of the MPEG layer III frame that begins with these 4 bytes; 0 where none does.

    Raw samples may begin with the same bits (-1025 is `ff fb`): ask for the next frame too.
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    is_mpeg1 = version == 3
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320) if is_mpeg1 else (
        0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160,
    )  # fmt: skip
    sample_rate = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    return (144 if is_mpeg1 else 72) * kbits[bitrate] * 1000 // sample_rate + (head[2] >> 1 & 1)
