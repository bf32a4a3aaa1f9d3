"""Ctrl-C where a state is between two places."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Let an interrupt from the keyboard wait until the block is done: a step has taken the old state's place by then.

    Outside of the main thread, which alone is interrupted, it does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda *args: came.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])
