"""A pass-through proxy in front of any OpenAI-compatible endpoint that keeps what was asked and answered.

Two processes: the proxy relays bytes and knows nothing of text (`proxy`, `peer`, `heads`, `tap`); the recorder parses,
redacts and writes (`recorder`, `exchange`, `streams`, `redact`, `journal`). Whatever happens to the second one, a full
disk, a slow pattern, a kill, the first one goes on.
"""

from limbeck.capture.settings import CaptureSettings

__all__ = ["CaptureSettings"]
