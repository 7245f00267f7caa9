"""A pool of worker processes that grade what a model wrote, and that can be killed.

A model's answer is hostile input: a power tower keeps sympy busy for ever, a cross join fills the
memory, and no alarm inside the same process stops a C loop that holds the interpreter's lock. So
every answer is graded in a worker process, the parent holds the watch, and what overruns its
deadline gets SIGKILL. Only that one answer is lost.

Here: the pool, the parent's side.   Not here: the workers' side (worker.py); what is right
(tasks/math.py, tasks/sql.py).

A job is (function, *arguments); the function is importable by name and returns a Grade. Workers are
forks, made in milliseconds, of a *zygote*: a fresh interpreter of one thread that has imported the
functions' modules and the libraries they ask for, warm, and does nothing else. So no CUDA context
and no torch threads come along, and a killed worker costs no second start. Protocol: down a
worker's socket a length and a pickled list of jobs; back up one JSON line an event.
"""

import json
import os
import pickle
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import NamedTuple

OUTCOMES = ("right", "wrong", "unparsable", "timeout", "unsafe", "error")
# seconds a worker may take to start (its zygote may be importing); not counted against an answer
START_UP = 60.0
CHUNK = 32  # jobs sent at once: a round trip costs about as much as grading ten easy answers
OUT_OF_MEMORY = 77  # exit status of a worker that ran into its memory limit


class Grade(NamedTuple):
    """outcome: right; wrong; unparsable (no answer found); timeout (overran time, memory or result
    size); unsafe (refused before it ran); error (the grader itself failed: Pool.last_error has the
    traceback).
    """

    reward: float
    outcome: str


class Pool:
    """`workers` processes, started when first needed; `deadline` seconds of wall clock a job;
    `memory` bytes of address space a worker. Usable from any thread (calls queue up) and as a
    context manager.
    """

    def __init__(self, workers=2, deadline=5.0, memory=2 << 30):
        self.size, self.deadline, self.memory = max(1, int(workers)), float(deadline), int(memory)
        self.last_error = None  # text of the last traceback of a grader, for the log
        self._workers, self._lock, self._zygote = [], threading.Lock(), None
        self._libraries = {}  # what the zygote imports before it forks, in order
        self._era = 0  # how often the pool was closed

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Kill every worker; grading that other threads began ends with CancelledError. The pool
        may be used again.
        """
        self._era += 1
        if zygote := self._zygote:
            zygote.process.kill()  # wakes the thread that listens to it
        with self._lock:
            self._clear()

    def _clear(self):
        for worker in self._workers:
            worker.socket.close()
        if self._zygote:
            self._zygote.kill()
        self._workers, self._zygote = [], None

    def grade(self, jobs):
        """[(function, *arguments), ...] -> [Grade, ...] in the same order."""
        return self._begin(list(jobs), self._era)

    def start(self, jobs):
        """grade(jobs) in the background -> a Future whose result() is the grades, or raises what
        grade() raised.
        """
        future, jobs, era = Future(), list(jobs), self._era

        def work():
            try:
                future.set_result(self._begin(jobs, era))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return future

    def _begin(self, jobs, era):
        with self._lock:
            try:
                grades = self._grade(jobs, era)
                if self._era != era:
                    raise CancelledError("the pool was closed while it graded")
                return grades
            except (
                BaseException
            ) as error:  # Ctrl-C, say: nobody will read the replies of the jobs now running
                self._clear()
                if self._era != era and isinstance(
                    error, Exception
                ):  # the zygote ended because close() killed it
                    raise CancelledError("the pool was closed while it graded") from error
                raise

    def _grade(self, jobs, era):
        if jobs and not self._zygote:
            self._zygote = _Zygote(self.memory, self._libraries)
        for name in {job[0].__module__: None for job in jobs}:
            self._load(name)
        grades, todo = [None] * len(jobs), deque(range(len(jobs)))
        while self._era == era and (todo or any(worker.chunk for worker in self._workers)):
            self._hand_out(jobs, todo)
            for worker in self._wait():
                self._read(worker, grades, todo)
            for worker in self._workers[:]:
                if worker.used() > 1 and (worker.chunk or not worker.ready):
                    self._lose(worker, grades, todo, late=True)
        for worker in self._workers[self.size :]:
            self._drop(worker)
        return grades

    def _load(self, *name):
        """The zygote imports a module (and calls a function of it), so that the workers to come
        have it.
        """
        if name not in self._libraries:
            self._libraries[name] = None
            self._zygote.tell("load", *name)

    def _hand_out(self, jobs, todo):
        """Chunks to idle workers. One late with its answer does not count: another goes on with the
        rest.
        """
        busy = [worker for worker in self._workers if worker.chunk]
        limit = self.size + sum(worker.used() > 0.5 for worker in busy)
        missing = min(limit, len(busy) + len(todo)) - len(self._workers)
        self._workers += [_Worker(self._zygote) for _ in range(missing)]
        for worker in [worker for worker in self._workers if worker.ready and not worker.chunk][
            : max(0, limit - len(busy))
        ]:
            if todo:
                count = min(
                    CHUNK, -(-len(todo) // (2 * self.size))
                )  # smaller towards the end, so that all end together
                chunk = deque(todo.popleft() for _ in range(count))
                if not worker.send(
                    chunk, [jobs[i] for i in chunk]
                ):  # it died while idle: nothing of it was graded
                    todo.extendleft(reversed(chunk))
                    self._drop(worker)

    def _wait(self):
        """Workers with something to read, at the latest when the next deadline (or half of it) is
        over.
        """
        busy = [worker for worker in self._workers if worker.chunk or not worker.ready]
        times = [
            (mark - worker.used()) * worker.limit
            for worker in busy
            for mark in (0.5, 1.0)
            if worker.used() <= mark
        ]
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.socket, selectors.EVENT_READ, worker)
            selector.register(
                self._zygote.socket, selectors.EVENT_READ
            )  # it only speaks up when it ends
            found = [key.data for key, _ in selector.select(max(0, min(times, default=0)))]
        if None in found:
            raise RuntimeError(
                "the process that starts grading workers ended, with exit status "
                f"{self._zygote.process.wait()}"
            )
        return found

    def _read(self, worker, grades, todo):
        messages = worker.receive()
        if messages is None:
            self._lose(worker, grades, todo)
        for kind, *rest in messages or []:
            if kind == "ready":
                worker.ready = True
            elif kind == "load":  # it leaves; a new one, which has the library, will do its jobs
                for name in rest:
                    self._load(*name)
                todo.extendleft(reversed(worker.chunk))
                self._drop(worker)
            elif kind == "go":
                worker.watch(self.deadline)
            elif kind == "grade":
                reward, outcome, error = rest
                grades[worker.chunk.popleft()] = Grade(reward, outcome)
                self.last_error = error or self.last_error
                worker.watch(self.deadline)

    def _lose(self, worker, grades, todo, late=False):
        """Bury a worker, grade the one job it was at, put the rest of its chunk back in front."""
        status = self._drop(worker)
        if not worker.ready:
            raise RuntimeError(
                f"a grading worker did not start within {START_UP:.0f} s; its exit status is "
                f"{status}"
            )
        if worker.chunk:
            lost = "timeout" if late or status == OUT_OF_MEMORY else "error"
            if lost == "error":
                self.last_error = (
                    f"a grading worker ended with exit status {status} in the middle of a job"
                )
            grades[worker.chunk.popleft()] = Grade(0.0, lost)
            todo.extendleft(reversed(worker.chunk))

    def _drop(self, worker):
        self._workers.remove(worker)
        return worker.kill()


class _Zygote:
    """The parent's side of the zygote."""

    def __init__(self, memory, libraries):
        lifeline, self.lifeline = os.pipe()
        self.socket, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
        environment = {
            k: os.environ[k]
            for k in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
            if k in os.environ
        }
        environment |= {
            "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-BPc",
                "from nanomerci.tasks.graders.worker import zygote; zygote()",
                *map(str, (other.fileno(), lifeline, memory)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[other.fileno(), lifeline],
            env=environment,
            process_group=0,
        )  # a process group of its own: Ctrl-C is for the parent
        os.close(lifeline)
        other.close()
        for name in libraries:
            self.tell("load", *name)

    def tell(self, *command, files=()):
        socket.send_fds(
            self.socket, [json.dumps(command).encode()], [file.fileno() for file in files]
        )

    def kill(self):
        """It and all its workers."""
        self.process.kill()
        os.close(self.lifeline)
        self.process.wait()
        self.socket.close()


class _Worker:
    """The parent's side of one worker."""

    def __init__(self, zygote):
        self.zygote, (self.socket, other) = zygote, socket.socketpair()
        zygote.tell(
            "fork", self.socket.fileno(), files=[other]
        )  # a number that is no other worker's while this one lives
        other.close()
        self.ready, self.chunk, self._rest = False, deque(), b""
        self.watch(START_UP)

    def watch(self, limit):
        """Start the watch: from now on, `limit` seconds for what it is at."""
        self.since, self.limit = time.monotonic(), limit

    def used(self):
        """Share of that time which is gone."""
        return (time.monotonic() - self.since) / self.limit

    def send(self, chunk, jobs):
        """False if the worker is gone. chunk: the jobs' numbers."""
        data = pickle.dumps(jobs)
        try:
            self.socket.sendall(len(jobs).to_bytes(8) + len(data).to_bytes(8) + data)
        except ConnectionError:
            return False
        self.chunk = chunk
        self.watch(START_UP)  # until its "go": it may have to import the function
        return True

    def receive(self):
        """The messages that have arrived; None at the end of the stream."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:  # it ended before it had read everything
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

    def kill(self):
        """-> its exit status, which is its own if it had ended before."""
        self.zygote.tell("end", self.socket.fileno())
        self.socket.close()
        return int(self.zygote.socket.recv(64))
