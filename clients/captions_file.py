"""Files that are replaced whole, so that a reader never sees half of one; and the captions that OBS reads from one.

OBS Studio: a text source with "read from file" shows what the file holds.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from core.captions import wrap
from core.transcript import Event, Gap, Word

N_LINES = 2


def current_umask() -> int:
    """The permissions that new files are not to have; it can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def new_beside(target: Path) -> tuple[int, str]:
    """Handle and name of a new file beside `target`, with the permissions that `target` has or would have.

    Raises:
        OSError: none can be made; names the target.
    """
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~current_umask()
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.chmod(name, mode)
    except OSError as e:
        raise OSError(f"cannot write {target}: {e.strerror}") from e
    return handle, name


def replace_text(target: Path, text: str, is_durable: bool = False) -> None:
    """Puts `text` in place of the file, in one step; `is_durable` outlives a power cut, too.

    Raises:
        OSError: that cannot be, or something else than a file is there.
    """
    if target.exists() and not target.is_file():
        raise OSError(f"cannot write {target}: it is no file that could be replaced")
    handle, name = new_beside(target)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class CaptionsFile:
    """The last two lines of what is being said, at every moment.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, path: str) -> None:
        self._target = Path(os.path.realpath(path))
        self._past: tuple[Word, ...] = ()  # of finals, as far as they are still shown
        self._text = ""
        replace_text(self._target, "")

    def event(self, event: Event) -> None:
        if isinstance(event, Gap):
            return
        lines = wrap([*self._past, *event.words])[-N_LINES:]
        if event.is_final and event.words:
            self._past = event.words
        self._show("".join(line + "\n" for line in lines))

    def close(self) -> None:
        """Nothing is being said any more."""
        self._show("")

    def _show(self, text: str) -> None:
        if text != self._text:
            self._text = text
            replace_text(self._target, text)
