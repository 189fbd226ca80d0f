"""How fast one connection may send. What comes faster is read later: held back, never dropped."""

from __future__ import annotations


class Bucket:
    """A leaky bucket: `rate` units a second run out of it, and `burst` fit in. Sans clock."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.level = 0.0
        self.at_s: float | None = None  # of the last `add`

    def add(self, amount: float, now: float) -> float:
        """Pours in; the seconds to wait until it no longer overflows."""
        passed = 0.0 if self.at_s is None else now - self.at_s
        self.at_s = now
        self.level = max(0.0, self.level - passed * self.rate) + amount
        return max(0.0, (self.level - self.burst) / self.rate)


class Pace:
    """The limits of one connection.

    Args:
        speed: seconds of audio a second.
        messages_per_s: of any kind.
    """

    def __init__(self, speed: float, messages_per_s: float, burst_s: float = 10.0) -> None:
        self.audio = Bucket(speed, burst_s * speed)
        self.messages = Bucket(messages_per_s, burst_s * messages_per_s)

    def add(self, audio_s: float, now: float) -> float:
        """A message with so many seconds of audio has come; the seconds to wait before the next is read."""
        return max(self.audio.add(audio_s, now), self.messages.add(1.0, now))
