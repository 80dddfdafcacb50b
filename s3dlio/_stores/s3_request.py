"""A call to S3 with its repetitions: until it is answered, has failed for good, or takes too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator
from contextlib import suppress
from typing import TYPE_CHECKING

from s3dlio import _errors
from s3dlio._logging import logger
from s3dlio._stores import s3_clock, s3_xml
from s3dlio._stores.network import pause
from s3dlio._stores.s3_errors import error_of_answer, is_damage, is_final, is_passing, translate
from s3dlio._stores.s3_http import Answer, Call, DeclinedError, Exchange

if TYPE_CHECKING:
    from s3dlio._stores.s3_client import Connection
    from s3dlio._tasks import Awaited

# A part that was damaged on the way is sent again from its block so often.
_MAX_DAMAGED = 3


class Request:
    """A call that is sent by `start`.  ``on_done`` is told the end from another thread, once: the answer or the error.

    Nothing reads or writes the caller's memory any more once it has ended, however it did."""

    def __init__(
        self, connection: Connection, call: Call, on_done: Callable[[Answer | Exception], None] | None = None
    ) -> None:
        self._connection = connection
        self._call = call
        self._on_done = on_done
        self._lock = threading.Lock()
        # Nothing uses the caller's memory any more.
        self.has_ended = False
        self._result: Answer | Exception | None = None
        self._began = time.monotonic()
        self._attempts = 0
        self._damaged = 0
        self._exchange: Exchange | None = None

    def start(self) -> None:
        """Sends it.  A caller that Ctrl-C may break off here has it already, to cancel it."""
        s3_clock.run_left_work()
        self._connection.add(self)
        self._start()

    def __await__(self) -> Generator[Awaited, None, Answer]:
        while not self.has_ended:  # who is broken off may be woken by what he waited for before
            yield self
        return self.result()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Has this called at its end, from another thread, or now if it has ended."""
        with self._lock:
            if not self.has_ended:
                self._on_done = lambda _: callback()
                return
        callback()

    def result(self) -> Answer:
        """What came of it, once it has ended."""
        result = self._result
        assert result is not None
        if isinstance(result, _errors.S3dlioError):
            # A copy: with its traceback the error would hold the frames of all who waited for it.
            raise _errors.copy_of(result)
        if isinstance(result, Exception):
            raise result
        return result

    def give_up(self) -> None:
        """Breaks the request off, and does not wait for its end."""
        call = self._call
        self._end(_errors.ClosedError(f"{call.what}: broken off", operation=call.operation, uri=call.uri))

    def look(self, now: float) -> None:
        """For the clock: what does not move, or does not end, is given up."""
        exchange = self._exchange
        settings = self._connection.settings
        if now - self._began > settings.operation_timeout:
            self._end(self._timed_out(f"not done after {settings.operation_timeout:g} s"))
        elif exchange is not None and now - exchange.moved_at > settings.stall_timeout:
            self._again(exchange, self._timed_out(f"nothing has come for {settings.stall_timeout:g} s"))

    def _start(self) -> None:
        with self._lock:
            if self._result is not None:
                return
            self._attempts += 1
        try:
            exchange = self._connection.exchange(self._call, self._exchanged)
            with self._lock:
                if self._result is not None:
                    return
                self._exchange = exchange
            exchange.begin()
        except Exception as error:  # it was never sent
            self._end(self._translated(error))

    def _exchanged(self, exchange: Exchange, outcome: Answer | Exception) -> None:
        if exchange is not self._exchange:
            return  # given up before
        try:
            self._take_in(exchange, outcome)
        except Exception as error:  # of ours; without an end the caller would wait for ever
            self._end(self._translated(error))

    def _take_in(self, exchange: Exchange, outcome: Answer | Exception) -> None:
        if isinstance(outcome, Answer):
            self._judge(exchange, outcome)
        elif isinstance(outcome, DeclinedError):
            self._end(outcome)
        elif isinstance(outcome, _errors.S3dlioError) or not is_final(outcome):
            self._again(exchange, self._translated(outcome))
        else:
            self._end(self._translated(outcome))

    def _judge(self, exchange: Exchange, answer: Answer) -> None:
        failure = s3_xml.error_of(answer.body)
        if answer.status in self._call.accept and failure is None:
            self._end(answer)
            return
        code, message = failure or ("", "")
        error = error_of_answer(answer, code, message, self._call)
        if is_damage(code):
            self._damaged += 1
        if is_passing(answer.status, code) or (is_damage(code) and self._damaged <= _MAX_DAMAGED):
            self._again(exchange, error)
        else:
            self._end(error)

    def _again(self, exchange: Exchange, error: _errors.S3dlioError) -> None:
        """Repeats the call after a while, unless it was repeated often enough."""
        exchange.take_away(lambda: self._repeat(exchange, error))

    def _repeat(self, exchange: Exchange, error: _errors.S3dlioError) -> None:
        settings = self._connection.settings
        with self._lock:
            if self._result is not None or exchange is not self._exchange:
                return
            self._exchange = None
        if self._attempts > settings.retries:
            if self._attempts > 1:
                error.args = (f"{error} (tried {self._attempts} times)",)
            self._end(error)
            return
        delay = pause(settings, self._attempts)
        if self._attempts == 1 and exchange.was_used and error.status is None:
            delay = 0.0  # the server may have closed it just when it was taken for this
        s3_clock.after(delay, self._start)
        with suppress(Exception):  # of the program's log, in a thread that all depend on
            logger.debug("%s; again in %.2f s", error, delay)

    def _end(self, result: Answer | Exception) -> None:
        with self._lock:
            if self._result is not None:
                return
            if isinstance(result, _errors.S3dlioError) and result.attempts is None:
                result.attempts = self._attempts
            self._result = result
            exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.take_away(lambda: self._ended(result))
        else:
            self._ended(result)

    def _ended(self, result: Answer | Exception) -> None:
        self._call.data = self._call.into = self._call.make_room = None
        self._connection.forget(self)
        with self._lock:
            self.has_ended = True  # only now, as whoever waits may take the memory away
            on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(result)

    def _timed_out(self, how: str) -> _errors.TimedOutError:
        call = self._call
        text = f"{call.what}: {self._host()}: {how}"
        return _errors.TimedOutError(text, operation=call.operation, uri=call.uri)

    def _translated(self, error: Exception) -> _errors.S3dlioError:
        return translate(error, self._call, self._host())

    def _host(self) -> str:
        return self._connection.place(self._call.bucket, self._call.key)[0]


def break_off(requests: Collection[Request]) -> None:
    """Breaks all off before it waits for one: those that go on would be in the way of the others.  Nothing uses their
    memory any more on return."""
    for request in requests:
        request.give_up()
    for request in requests:
        while not request.has_ended:
            time.sleep(0.001)


async def breaking_off(requests: Collection[Request], reason: BaseException) -> None:
    """The same for a coroutine that meets ``reason``, while others go on; unless nobody waits for it any more."""
    try:
        if not isinstance(reason, GeneratorExit):
            for request in requests:
                request.give_up()
            for request in requests:
                with suppress(Exception):
                    await request
    finally:
        break_off(requests)
