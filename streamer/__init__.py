"""Streaming speech recognition. `from streamer import Recognizer` is the library's front door."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamer.recognizer import Recognizer, Result

__all__ = ["Recognizer", "Result", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Loads PyTorch only when the recognizer is asked for."""
    if name in ("Recognizer", "Result"):
        from streamer import recognizer

        return getattr(recognizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
