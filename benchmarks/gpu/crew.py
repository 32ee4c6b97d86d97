"""Workers side by side on one GPU: a cell begins when its predicted memory fits beside those that run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread

from benchmarks.gpu.clock import Clock
from mem_gpt_cli.bench.worker import Worker

LEAST_S = 5.0
"""Nothing is begun with less time than this."""


Rest = Callable[[float], None]
"""What is left to do of a job once its memory is free again; called with the seconds that are left."""


@dataclass(frozen=True)
class Job:
    """One cell for a worker.

    ``need_bytes`` is the memory that it is expected to take. ``run`` is called with the worker, the seconds
    that are left and how many other jobs run beside it; it answers with the rest of the job, or with ``None``
    where the end of the time cut it off.
    """

    name: str
    need_bytes: int
    run: Callable[[Worker, float, int], Rest | None]


class Crew:
    """Runs jobs, the largest first, several at once as long as their needs add up to no more than the room.

    A job larger than the room runs when nothing else does. A job that raises ends the crew's work: the error
    is raised to the caller once the others are over.

    Args:
        size: how many workers.
        room_bytes: memory for all jobs together; ``None`` for no limit.
        clock: and ``share``, the part of its time in which jobs may run.
    """

    def __init__(self, size: int, room_bytes: int | None, clock: Clock, share: float = 1.0) -> None:
        self._size = size
        self._room = room_bytes
        self._clock = clock
        self._share = share
        self._changed = Condition()
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._left: list[str] = []
        self._error: BaseException | None = None

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Run them; returns the names of those that the time did not suffice for."""
        self._waiting = sorted(jobs, key=lambda job: -job.need_bytes)
        threads = [Thread(target=self._work, name=f"crew-{number}") for number in range(self._size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return self._left + [job.name for job in self._waiting]

    def _work(self) -> None:
        worker = Worker()
        try:
            while (taken := self._take()) is not None:
                job, others = taken
                try:
                    rest = job.run(worker, self._clock.left(self._share), others)
                finally:
                    self._release(job)
                if rest is None:
                    self._left.append(job.name)
                else:
                    rest(self._clock.left(self._share))
        except BaseException as error:
            self._error = error
        finally:
            worker.close()

    def _take(self) -> tuple[Job, int] | None:
        """The largest job that fits now, and how many run beside it; ``None`` when there is nothing to do."""
        with self._changed:
            while self._waiting and self._error is None and self._clock.left(self._share) > LEAST_S:
                job = next(filter(self._fits, self._waiting), None)
                if job is not None:
                    self._waiting.remove(job)
                    self._running.append(job)
                    return job, len(self._running) - 1
                self._changed.wait(1.0)
            return None

    def _fits(self, job: Job) -> bool:
        if self._room is None or not self._running:
            return True
        return sum(other.need_bytes for other in (*self._running, job)) <= self._room

    def _release(self, job: Job) -> None:
        with self._changed:
            self._running.remove(job)
            self._changed.notify_all()


def unwatched(*_: object) -> None:
    """For ``Worker.run``: nobody follows the phases of a cell."""
