"""Reads an engine's stream in a thread, at the pace of the card that is simulated. Knows nothing about widgets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..runtime.engine import Engine
from ..vocabulary import MobileError, Step


class Writer:
    """One thread that writes one text at a time.

    Args:
        engine: an open engine.
        show: called in the thread with each `Step`, as it is there.
        ended: called in the thread when a text is over, with the sentence of what went wrong or None.
        pace: on a simulated clock a token takes `pace` times its simulated seconds, or what it takes here where that is
            longer; 0 is as fast as possible. May be changed at any time. A measured clock is never waited for.

    Attributes:
        error: what went wrong with the last text, as a sentence; None while nothing has.
    """

    def __init__(
        self,
        engine: Engine,
        show: Callable[[Step], None],
        ended: Callable[[str | None], None] = lambda error: None,
        *,
        pace: float = 1.0,
    ):
        self.engine, self.show, self.ended, self.pace = engine, show, ended, pace
        self.error: str | None = None
        self._stop, self._over = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def writing(self) -> bool:
        """Whether a text is under way."""
        return self._thread is not None and not self._over.is_set()

    def start(self, prompt, **generation_kwargs) -> None:
        """Begins a text; the arguments are those of `Engine.stream`. What is wrong with them is told by `ended`.

        Raises:
            MobileError: this writer has a text under way.
        """
        if self.writing:
            raise MobileError("this writer has a text under way: stop it, or wait for its end.")
        self.wait()  # the thread of the text before may still be telling that it is over
        self._stop.clear()
        self._over.clear()
        self.error = None
        work = (prompt, generation_kwargs)
        self._thread = threading.Thread(target=self._write, args=work, daemon=True, name="mobile_nb writer")
        self._thread.start()

    def stop(self) -> None:
        """Ends the text after the token at hand, and returns when the thread is gone."""
        self._stop.set()
        self.wait()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of the text; whether it is over."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)
        return not self.writing

    def _write(self, prompt, generation_kwargs) -> None:
        stream = None
        try:
            began = time.perf_counter()
            stream = self.engine.stream(prompt, **generation_kwargs)
            for step in stream:
                self._wait_for(step, began)
                began = time.perf_counter()
                self.show(step)
                if self._stop.is_set():
                    break
        except BaseException as problem:  # nobody would see it in a thread
            self.error = sentence(problem)
        finally:
            if stream is not None:
                stream.close()  # the engine is free before anybody hears of it
            self._over.set()
            self.ended(self.error)

    def _wait_for(self, step: Step, began: float) -> None:
        """Waits until the simulated card would be as far, or until the text is to end."""
        due = 0.0 if self.engine.measured else self.pace * step.seconds
        self._stop.wait(max(0.0, began + due - time.perf_counter()))


def sentence(problem: BaseException) -> str:
    """What an exception says, for people: our own sentences as they are, others with the exception's name."""
    said = " ".join(str(problem).split())
    if isinstance(problem, MobileError | ValueError | TypeError) and said:
        return said
    return f"{type(problem).__name__}: {said}" if said else type(problem).__name__


__all__ = ["Writer", "sentence"]
