"""How an app trains many clients in one program, with its mods around each client as ever.

A client's call goes through mods (compression, privacy) before and after the training itself. In a
cohort each call runs in a thread of its own up to the training and stops there; once all have
come so far, one call of the app's program trains them all, and each thread goes on with its reply.
One thread runs at a time, in the order of the calls.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import update_wrapper
from typing import Any, Generic, TypeVar, final

import torch
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

logger = logging.getLogger(__name__)

TrainMany = Callable[[list[Message], list[Context]], list[Message]]
Train = Callable[[Message, Context], Message]
Result = TypeVar("Result")
_ATTRIBUTE = "train_many"


def offer_cohorts(app: ClientAppCallable, train_many: TrainMany) -> None:
    """Tell engines that an app trains cohorts; its training function is `one_of_a_cohort`.

    Parameters
    ----------
    app : callable
        The ClientApp.
    train_many : callable
        From messages and contexts, one of each client, as the app's own training function takes
        them, to their replies in the same order; raises where it cannot, and has then changed no
        context.
    """
    setattr(app, _ATTRIBUTE, train_many)


def cohorts_of(app: ClientAppCallable) -> TrainMany | None:
    """Find what an app offers, through wrappers that name the app `_inside` them."""
    inside: object = app
    while inside is not None:
        offered: TrainMany | None = getattr(inside, _ATTRIBUTE, None)
        if offered is not None:
            return offered
        inside = getattr(inside, "_inside", None)
    return None


def wants_cohorts(run_config: Mapping[str, object]) -> bool:
    """Say whether a run trains cohorts: ``training.path`` is "cohort" in its configuration.

    Every process must know, since what is trained together is rounded otherwise.
    """
    return run_config.get("training.path") == "cohort"


def cohort_size(num_messages: int) -> int:
    """Give how many neighbouring messages of a round are one cohort.

    A function of the round alone, so that the same clients are trained together whatever the
    number of workers: message `i` belongs to cohort ``i // cohort_size(num_messages)``.
    """
    if num_messages >= 64:
        return 32
    return 8 if num_messages >= 16 else max(1, (num_messages + 1) // 2)


@final
class one_of_a_cohort:  # noqa: N801 - it is used as a decorator
    """Make a training function wait for its cohort, if it is called in one.

    A class, so that whoever pickles the function by value names this module and takes no thread's
    seat along.
    """

    def __init__(self, train: Train) -> None:
        self._train = train
        update_wrapper(self, train)

    def __call__(self, message: Message, context: Context) -> Message:
        """Train one client, or let its cohort do it."""
        seat: _Seat[Any] | None = getattr(_HERE, "seat", None)
        if seat is None:
            return self._train(message, context)
        return seat.wait(self._train, message, context)


def call_together(
    calls: Sequence[Callable[[], Result]], train_many: TrainMany
) -> Iterator[tuple[Result, float]]:
    """Make calls of an app whose training goes through `one_of_a_cohort`, as one cohort.

    Where `train_many` raises, every client of the cohort trains by itself, so that only the one
    at fault fails.

    Yields
    ------
    result, seconds
        What a call returned, and how much longer (less long, if negative) it would have taken
        with its share of the training in place of the time for which it waited.
    """
    seats = [_Seat(call) for call in calls]
    try:
        for seat in seats:
            seat.run()
        waiting = [seat for seat in seats if seat.message is not None]
        share = _train(waiting, train_many) / max(1, len(waiting))
        for seat in seats:
            if seat in waiting:
                seat.run()
            yield seat.result(), (share if seat.reply is not None else 0.0) - seat.waited
    finally:
        for seat in seats:
            seat.leave()


def _train(waiting: Sequence[_Seat[Result]], train_many: TrainMany) -> float:
    if not waiting:
        return 0.0
    started = time.perf_counter()
    messages = [seat.message for seat in waiting if seat.message is not None]
    contexts = [seat.context for seat in waiting if seat.context is not None]
    try:
        replies = train_many(messages, contexts)
        if len(replies) != len(waiting):
            raise ValueError(f"train_many gave {len(replies)} replies for {len(waiting)} clients")
    except Exception:
        logger.info("a cohort of %d clients trains one by one", len(waiting), exc_info=True)
        return 0.0
    for seat, reply in zip(waiting, replies, strict=True):
        seat.reply = reply
    return time.perf_counter() - started


_HERE = threading.local()


class _LeftError(BaseException):
    """Ends a call whose result nobody waits for any more."""


@final
class _Seat(Generic[Result]):
    """One call of a cohort, in a thread that runs only while `run` waits for it."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._found: list[Result] = []
        self._error: BaseException | None = None
        self._turn, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._is_left = False
        self.message: Message | None = None
        self.context: Context | None = None
        self.reply: Message | None = None
        self.waited = 0.0

    def run(self) -> None:
        """Let the call go on until it waits for its cohort, or ends."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turn.release()
        self._stopped.acquire()

    def result(self) -> Result:
        """Give what the call returned, or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]

    def leave(self) -> None:
        """End the call, if it still waits."""
        if self._thread.is_alive():
            self._is_left = True
            self.run()
            self._thread.join()

    def wait(self, train: Train, message: Message, context: Context) -> Message:
        """Wait for the cohort, in the call's thread; without a reply from it train alone."""
        self.message, self.context = message, context
        began = time.perf_counter()
        self._stopped.release()
        self._turn.acquire()
        self.waited = time.perf_counter() - began
        if self._is_left:
            raise _LeftError
        return train(message, context) if self.reply is None else self.reply

    def _work(self) -> None:
        torch.set_num_threads(1)  # a new thread has as many as there are cores
        _HERE.seat = self
        try:
            self._found.append(self._call())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is taken
            self._error = error
        finally:
            self._stopped.release()
