"""Simulated time, and tasks that share it: one runs at a time, and the same seed always lets the same one run."""

import heapq
import random
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace

from greenlet import GreenletExit, getcurrent, greenlet

_START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


class StuckError(AssertionError):
    """Nobody has anything to do any more, or there is no end to it."""


class Task:
    """A thread of a simulated process."""

    def __init__(self, world, name, act):
        self.name = name
        self.is_dead = False
        self.is_over = False
        self.frozen_until = 0.0
        self.turn = 0
        self.waiting_for_end = []
        self.greenlet = greenlet(lambda: self._run(act), parent=world.hub)
        world.tasks[self.greenlet] = self

    def _run(self, act):
        try:
            act()
        except GreenletExit:
            pass
        finally:
            self.is_over = True


class World:
    """A clock, and whose turn it is.

    Attributes:
        random: the only source of chance.
        now: seconds since the start.
    """

    def __init__(self, seed, *, end=1e9):
        self.random = random.Random(seed)
        self.now = 0.0
        self.hub = getcurrent()
        self.tasks = {}
        self.log = []
        self._end = end
        self._turns = []
        self._numbers = count(1)

    def say(self, line):
        self.log.append(f"{self.now:10.2f} {line}")

    def start(self, name, act, *, after=0.0):
        task = Task(self, name, act)
        self.wake(task, after)
        return task

    def wake(self, task, after=0.0):
        """Let a task go on, at some time; what was said before of when is forgotten."""
        task.turn = next(self._numbers)
        heapq.heappush(self._turns, (self.now + after, task.turn, task))

    def sleep(self, seconds):
        """Let others go on; as well until somebody wakes this task."""
        task = self.current()
        self.wake(task, seconds)
        self.hub.switch()
        if task.is_dead:
            raise GreenletExit

    def current(self):
        """The task that asks; one that is dead can do nothing more, not even tidy up."""
        task = self.tasks[getcurrent()]
        if task.is_dead:
            raise GreenletExit
        return task

    def kill(self, task):
        if task.is_dead or task.is_over:
            return
        task.is_dead = True
        if task.greenlet is getcurrent():
            raise GreenletExit
        if not task.greenlet:
            task.is_over = True
            return
        task.greenlet.parent = getcurrent()  # where it goes on when that one has ended
        task.greenlet.throw(GreenletExit)

    def run(self, is_over):
        """Until that is true, or nothing is left to do."""
        while not is_over():
            if not self._turns:
                raise StuckError("everybody waits for ever")
            when, turn, task = heapq.heappop(self._turns)
            if task.turn != turn or task.is_dead or task.is_over:
                continue
            if when < task.frozen_until:
                self.wake(task, task.frozen_until - self.now)
                continue
            self.now = max(self.now, when)
            if self.now > self._end:
                raise StuckError(f"no end after {self.now:.0f} s")
            task.greenlet.switch()

    # What stands in for the standard library's modules

    @property
    def time(self):
        return SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep, time=lambda: _START + self.now)

    @property
    def threading(self):
        return SimpleNamespace(Thread=lambda target, **_: Thread(self, target), Event=lambda: Event(self))

    @property
    def secrets(self):
        return SimpleNamespace(token_hex=lambda size: self.random.randbytes(size).hex())


class Event:
    """`threading.Event`."""

    def __init__(self, world):
        self._world = world
        self._is_set = False
        self._waiting = []

    def is_set(self):
        return self._is_set

    def set(self):
        self._is_set = True
        for task in self._waiting:
            self._world.wake(task)
        self._waiting.clear()

    def wait(self, timeout):
        if not self._is_set:
            self._waiting.append(self._world.current())
            self._world.sleep(timeout)
        return self._is_set


class Thread:
    """`threading.Thread` that dies with the process that has started it."""

    def __init__(self, world, act):
        self._world = world
        self._act = act
        self.task = None

    def start(self):
        owner = self._world.current()
        self.task = self._world.start(f"{owner.name}'s thread", self._act)
        getattr(owner, "threads", []).append(self.task)

    def join(self):
        while not (self.task.is_over or self.task.is_dead):
            self._world.sleep(0.1)
