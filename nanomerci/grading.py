"""A pool of worker processes that grade what a model wrote, and that can be killed.

A model's answer is hostile input: a power tower keeps sympy busy for ever, a cross join fills the memory, and no alarm inside
the same process stops a C loop that holds the interpreter's lock. So every answer is graded in a worker process, the parent
holds the watch, and what overruns its deadline gets SIGKILL. Only that one answer is lost.

Here: the pool, its protocol, its limits.   Not here: what is right (tasks/math.py, tasks/sql.py).

A job is (function, *arguments); the function is importable by name and returns a Grade. Workers are fresh interpreters, not
forks: no CUDA context and no torch threads come along, and they import only what the function's module imports.
Protocol: down the worker's stdin a length and a pickled list of jobs; back up its stdout one JSON line an event.
"""
import fcntl
import importlib
import json
import os
import pickle
import resource
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import NamedTuple

OUTCOMES = ("right", "wrong", "unparsable", "timeout", "unsafe", "error")
START_UP = 60.0      # seconds a worker may take to start or to import a library; not counted against an answer
CHUNK = 32           # jobs sent at once: a round trip costs about as much as grading ten easy answers
OUT_OF_MEMORY = 77   # exit status of a worker that ran into its memory limit


class Grade(NamedTuple):
    """outcome: right; wrong; unparsable (no answer found); timeout (overran time, memory or result size); unsafe (refused
    before it ran); error (the grader itself failed: Pool.last_error has the traceback)."""
    reward: float
    outcome: str


class Pool:
    """`workers` processes, started when first needed; `deadline` seconds of wall clock a job; `memory` bytes of address space
    a worker. Usable from any thread (calls queue up) and as a context manager."""

    def __init__(self, workers=2, deadline=5.0, memory=2 << 30):
        self.size, self.deadline, self.memory = max(1, int(workers)), float(deadline), int(memory)
        self.last_error = None                   # text of the last traceback of a grader, for the log
        self._workers, self._lock, self._libraries, self._spare = [], threading.Lock(), {}, 0
        self._era = 0                            # how often it was closed

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Kill every worker; grading that other threads began ends with CancelledError. The pool may be used again."""
        self._era += 1
        for worker in self._workers[:]:          # wakes the thread that listens to them
            worker.process.kill()
        with self._lock:
            self._clear()

    def _clear(self):
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def grade(self, jobs):
        """[(function, *arguments), ...] -> [Grade, ...] in the same order."""
        return self._begin(list(jobs), self._era)

    def start(self, jobs):
        """grade(jobs) in the background -> a Future whose result() is the grades, or raises what grade() raised."""
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
            except BaseException as error:       # Ctrl-C, say: nobody will read the replies of the jobs now running
                self._clear()
                if self._era != era and isinstance(error, RuntimeError):         # it was killed while it started
                    raise CancelledError("the pool was closed while it graded") from error
                raise

    def _grade(self, jobs, era):
        grades, todo = [None] * len(jobs), deque(range(len(jobs)))
        while self._era == era and (todo or any(worker.chunk for worker in self._workers)):
            self._hand_out(jobs, todo)
            for worker in self._wait():
                self._read(worker, grades, todo)
            for worker in self._workers[:]:
                if worker.used() > 1 and (worker.chunk or not worker.ready):
                    self._lose(worker, Grade(0.0, "timeout"), grades, todo)
        for worker in self._workers[self.size + self._spare:]:
            self._drop(worker)
        return grades

    def _hand_out(self, jobs, todo):
        """Chunks to idle workers. One late with its answer does not count, so that another goes on with the rest; and once
        there was a kill, one worker more is kept ready, so that the next kill costs no start."""
        late = sum(bool(worker.chunk) and worker.used() > 0.5 for worker in self._workers)
        missing = min(self.size + late, len(todo)) + self._spare - len(self._workers)
        self._workers += [_Worker(self.memory, self._libraries) for _ in range(missing if todo else 0)]
        free = self.size + late - sum(bool(worker.chunk) for worker in self._workers)
        for worker in [worker for worker in self._workers if worker.ready and not worker.chunk][:max(0, free)]:
            if todo:
                count = min(CHUNK, -(-len(todo) // (2 * self.size)))      # smaller towards the end, so that all end together
                chunk = deque(todo.popleft() for _ in range(count))
                if not worker.send(chunk, [jobs[i] for i in chunk]):      # it died while idle: nothing of it was graded
                    todo.extendleft(reversed(chunk))
                    self._drop(worker)

    def _wait(self):
        """Workers with something to read, at the latest when the next deadline (or half of it) is over."""
        busy = [worker for worker in self._workers if worker.chunk or not worker.ready]
        times = [(mark - worker.used()) * worker.limit for worker in busy for mark in (0.5, 1.0) if worker.used() <= mark]
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            return [key.data for key, _ in selector.select(max(0, min(times, default=0)))]

    def _read(self, worker, grades, todo):
        messages = worker.receive()
        if messages is None:
            if not worker.ready:
                raise RuntimeError(f"a grading worker ended while starting, with exit status {worker.process.wait()}")
            status = worker.process.wait()
            if status == OUT_OF_MEMORY:
                return self._lose(worker, Grade(0.0, "timeout"), grades, todo)
            if worker.chunk:
                self.last_error = f"a grading worker ended with exit status {status} in the middle of a job"
            return self._lose(worker, Grade(0.0, "error"), grades, todo)
        for kind, *rest in messages:
            if kind == "ready":
                worker.ready = True
            elif kind == "load":                 # remember it: replacements load it before they report ready
                self._libraries[rest[0]] = None
                worker.watch(START_UP)
            elif kind == "go":
                worker.watch(self.deadline)
            elif kind == "grade":
                reward, outcome, error = rest
                grades[worker.chunk.popleft()] = Grade(reward, outcome)
                self.last_error = error or self.last_error
                worker.watch(self.deadline)

    def _lose(self, worker, grade, grades, todo):
        """Kill a worker, grade the one job it was at, put the rest of its chunk back in front."""
        if not worker.ready:
            raise RuntimeError(f"a grading worker did not start within {START_UP:.0f} s")
        if worker.chunk:
            grades[worker.chunk.popleft()] = grade
            todo.extendleft(reversed(worker.chunk))
            self._spare = 1
        self._drop(worker)

    def _drop(self, worker):
        worker.kill()
        self._workers.remove(worker)


class _Worker:
    """The parent's side of one worker."""

    def __init__(self, memory, libraries):
        lifeline, self.lifeline = os.pipe()
        environment = {k: os.environ[k] for k in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR") if k in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-BPc", "from nanomerci.grading import work; work()", str(lifeline), str(memory), *libraries],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[lifeline], env=environment, bufsize=0,
            process_group=0)                     # a process group of its own: Ctrl-C is for the parent
        os.close(lifeline)
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
            for part in (len(jobs).to_bytes(8) + len(data).to_bytes(8), data):
                while part:
                    part = part[self.process.stdin.write(part):]
        except BrokenPipeError:
            return False
        self.chunk = chunk
        self.watch(START_UP)                     # until its "go": it may have to import the function
        return True

    def receive(self):
        """The messages that have arrived; None at the end of the stream."""
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        os.close(self.lifeline)


_say = None      # in a worker: sends one message to the parent


def load(name):
    """Import a large library off the clock: the answer that happens to need it first must not pay for it."""
    if name not in sys.modules and _say:
        _say("load", name)
        importlib.import_module(name)
        _say("go")
    return importlib.import_module(name)


def work():
    """The worker's main: never returns before the parent hangs up."""
    global _say
    lifeline, memory, *libraries = sys.argv[1:]
    _die_with_parent(int(lifeline))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for limit, value in ((resource.RLIMIT_AS, int(memory)), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))                         # FSIZE 0: nothing here writes a byte to any file
    for name in libraries:
        importlib.import_module(name)
    jobs, replies, null = sys.stdin.buffer, os.dup(1), os.open(os.devnull, os.O_RDWR)
    _say = lambda *message: os.write(replies, json.dumps(message).encode() + b"\n")
    for stream in (1, 2):                        # a library that prints must not talk into the protocol
        os.dup2(null, stream)
    _say("ready")
    while header := jobs.read(16):
        count, data = int.from_bytes(header[:8]), jobs.read(int.from_bytes(header[8:]))
        try:
            chunk = pickle.loads(data)
        except Exception:                        # a function that cannot be imported: every job of the chunk says so
            chunk = [(_fail, traceback.format_exc())] * count
        _say("go")
        for function, *arguments in chunk:
            _say("grade", *_run(function, arguments))


def _run(function, arguments):
    try:
        grade = function(*arguments)
        if not isinstance(grade, Grade) or grade.outcome not in OUTCOMES:
            raise TypeError(f"{function.__qualname__} returned {grade!r:.80}, wanted a Grade with an outcome of {OUTCOMES}")
        return float(grade.reward), grade.outcome, None
    except MemoryError:
        os._exit(OUT_OF_MEMORY)                  # what is left of the heap is not to be trusted: start anew
    except Exception:                            # a bug in a grader: counted as "error" and shown, not a crash of the run
        return 0.0, "error", traceback.format_exc(limit=-8)


def _fail(text):
    raise ImportError(text)


def _die_with_parent(lifeline):
    """SIGIO, whose default is to end the process, when the parent's end of a pipe closes, however the parent died.

    (PR_SET_PDEATHSIG would also fire when the *thread* that started the worker ends, and workers may be started from any.)
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it hung up before we were listening
        os._exit(1)
