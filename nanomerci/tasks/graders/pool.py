"""A pool of worker processes that grade what a model wrote, and that can be killed.

A response is hostile input: a power tower keeps sympy busy for ever, a cross join fills the memory,
and no alarm inside the same process stops a C loop that holds the interpreter's lock. So every
response is graded in a worker process, the parent holds the watch, and what overruns its deadline
gets SIGKILL. Only that one response is lost.

Here: the pool, the parent's side.   Not here: the workers' side (worker.py); what is correct
(tasks/math.py, tasks/sql.py).

A job is (function, *arguments); the function is importable by name and returns a Grade. Workers are
forks, made in milliseconds, of a *fork server*: a fresh interpreter of one thread that has imported
the functions' modules and the libraries they ask for, warm, and does nothing else. So no CUDA
context and no torch threads come along, and a killed worker costs no second start. Protocol: down a
worker's socket a length and a pickled list of jobs; back up one JSON line per event.
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
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import NamedTuple

OUTCOMES = ("right", "wrong", "unparsable", "timeout", "unsafe", "error")
START_UP = 60.0  # seconds a worker may take to start: the fork server may be importing
CHUNK = 32  # jobs sent at once: a round trip costs about as much as grading ten easy responses
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
        self._workers, self._lock, self._server = [], threading.Lock(), None
        self._libraries = {}  # what the fork server imports before it forks, in order
        self._generation = 0  # how often the pool was closed

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Kill every worker; what other threads grade ends with CancelledError. Usable again."""
        self._generation += 1
        if server := self._server:
            server.process.kill()  # wakes the thread that listens to it
        with self._lock:
            self._clear()

    def _clear(self):
        for worker in self._workers:
            worker.socket.close()
        if self._server:
            self._server.kill()
        self._workers, self._server = [], None

    def grade(self, jobs):
        """[(function, *arguments), ...] -> [Grade, ...] in the same order."""
        return self._begin(list(jobs), self._generation)

    def start(self, jobs):
        """grade(jobs) in the background -> a Future whose result() is the grades, or raises what
        grade() raised.
        """
        thread = ThreadPoolExecutor(1)
        future = thread.submit(self._begin, list(jobs), self._generation)
        thread.shutdown(wait=False)  # it ends when that is done
        return future

    def _begin(self, jobs, generation):
        with self._lock:
            try:
                grades = self._grade(jobs, generation)
            except BaseException as error:  # Ctrl-C, say: nobody will read the replies to come
                self._clear()
                if self._generation == generation or not isinstance(error, Exception):
                    raise
            if self._generation != generation:  # close() may have killed the fork server, too
                raise CancelledError("the pool was closed while it graded")
            return grades

    def _grade(self, jobs, generation):
        if jobs and not self._server:
            self._server = _ForkServer(self.memory, self._libraries)
        for name in {job[0].__module__: None for job in jobs}:
            self._load(name)
        grades, todo = [None] * len(jobs), deque(range(len(jobs)))
        while self._generation == generation and (todo or any(w.chunk for w in self._workers)):
            self._hand_out(jobs, todo)
            for worker in self._wait():
                self._read(worker, grades, todo)
            for worker in self._workers[:]:
                if worker.left() < 0 and (worker.chunk or not worker.ready):
                    self._discard(worker, grades, todo, late=True)
        for worker in self._workers[self.size :]:
            self._drop(worker)
        return grades

    def _load(self, *name):
        """The fork server imports a module (and calls a function of it) for workers to come."""
        if name not in self._libraries:
            self._libraries[name] = None
            self._server.tell("load", *name)

    def _hand_out(self, jobs, todo):
        """Chunks to idle workers. A late one does not count: another goes on with the rest."""
        busy = [worker for worker in self._workers if worker.chunk]
        limit = self.size + sum(worker.left(0.5) < 0 for worker in busy)
        missing = min(limit, len(busy) + len(todo)) - len(self._workers)
        self._workers += [_Worker(self._server) for _ in range(missing)]
        idle = [worker for worker in self._workers if worker.ready and not worker.chunk]
        for worker in idle[: max(0, limit - len(busy))]:
            # smaller towards the end, so that all end together
            count = min(CHUNK, -(-len(todo) // (2 * self.size)))
            chunk = deque(todo.popleft() for _ in range(count))
            if chunk and not worker.send(chunk, [jobs[i] for i in chunk]):
                todo.extendleft(reversed(chunk))  # it died while idle: nothing of it was graded
                self._drop(worker)

    def _wait(self):
        """Workers with something to read, when the next deadline or half of it is over at last."""
        times = []
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.socket, selectors.EVENT_READ, worker)
                if worker.chunk or not worker.ready:
                    times += [worker.left(0.5), worker.left()]
            selector.register(self._server.socket, selectors.EVENT_READ)  # speaks when it ends
            until = min((t for t in times if t >= 0), default=0)
            found = [key.data for key, _ in selector.select(until)]
        if None in found:
            status = self._server.process.wait()
            raise RuntimeError(f"the fork server of the graders ended with exit status {status}")
        return found

    def _read(self, worker, grades, todo):
        messages = worker.receive()
        if messages is None:
            self._discard(worker, grades, todo)
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

    def _discard(self, worker, grades, todo, late=False):
        """Its one job in hand gets a grade, the rest of its chunk goes back to the front."""
        status = self._drop(worker)
        if not worker.ready:
            raise RuntimeError(
                f"a grading worker did not start in {START_UP:.0f} s; its exit status is {status}"
            )
        if worker.chunk:
            outcome = "timeout"
            if not late and status != OUT_OF_MEMORY:
                outcome = "error"
                self.last_error = f"a grading worker ended with exit status {status} during a job"
            grades[worker.chunk.popleft()] = Grade(0.0, outcome)
            todo.extendleft(reversed(worker.chunk))

    def _drop(self, worker):
        self._workers.remove(worker)
        return worker.kill()


class _ForkServer:
    """The parent's side of the fork server."""

    def __init__(self, memory, libraries):
        lifeline, self.lifeline = os.pipe()
        self.socket, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
        keep = "PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR"
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
        main = "from nanomerci.tasks.graders.worker import fork_server; fork_server()"
        words = map(str, (other.fileno(), lifeline, memory))
        self.process = subprocess.Popen(
            [sys.executable, "-BPc", main, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[other.fileno(), lifeline],
            env=environment | {"OMP_NUM_THREADS": "1"},
            process_group=0,  # of its own: Ctrl-C is for the parent
        )
        os.close(lifeline)
        other.close()
        for name in libraries:
            self.tell("load", *name)

    def tell(self, *command, files=()):
        handles = [file.fileno() for file in files]
        socket.send_fds(self.socket, [json.dumps(command).encode()], handles)

    def kill(self):
        """It and all its workers."""
        self.process.kill()
        os.close(self.lifeline)
        self.process.wait()
        self.socket.close()


class _Worker:
    """The parent's side of one worker."""

    def __init__(self, server):
        self.server, (self.socket, other) = server, socket.socketpair()
        # a number that is no other worker's while this one lives
        server.tell("fork", self.socket.fileno(), files=[other])
        other.close()
        self.ready, self.chunk, self._rest = False, deque(), b""
        self.watch(START_UP)

    def watch(self, limit):
        """Start the watch: from now on, `limit` seconds for what it is at."""
        self.since, self.limit = time.monotonic(), limit

    def left(self, share=1.0):
        """Seconds until this share of them is gone."""
        return self.since + share * self.limit - time.monotonic()

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
        self.server.tell("end", self.socket.fileno())
        self.socket.close()
        return int(self.server.socket.recv(64))
