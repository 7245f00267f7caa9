"""The workers' side of grading: the fork server, and the worker that runs graders.

Here: start, limits, what a job's errors become.   Not here: who gets which job and when a worker is
killed (pool.py).
"""

import fcntl
import importlib
import json
import os
import pickle
import resource
import select
import signal
import socket
import sys
import traceback

from nanomerci.tasks.graders.pool import OUT_OF_MEMORY, OUTCOMES, Grade


def fork_server():
    """Its main: imports, forks and ends workers until the parent hangs up. Commands: load MODULE
    [FUNCTION], which is called then; fork NUMBER, with the new worker's socket; end NUMBER,
    answered by the exit status.
    """
    control, lifeline, memory = map(int, sys.argv[1:])
    _die_with_parent(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(1, 2)  # /dev/null: what a library prints must not be seen
    control, pids = socket.socket(fileno=control), {}
    while data := (message := socket.recv_fds(control, 1 << 12, 1))[0]:
        command, what, *more = json.loads(data)
        if command == "load":
            _loaded.add(what)
            try:
                module = importlib.import_module(what)
                for name in more:
                    getattr(module, name)()
            except Exception:  # the worker that needs it will say so
                pass
        elif command == "fork":
            connection = socket.socket(fileno=message[1][0])
            pids[what] = os.fork()
            if not pids[what]:
                control.close()
                return work(connection, memory)
            connection.close()
        elif command == "end":  # not reaped before: its number cannot be another process's by now
            os.kill(pid := pids.pop(what), signal.SIGKILL)
            control.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


_say = None  # in a worker: sends one message to the parent
_loaded = set()  # what the fork server has imported, or could not


def load(name, warm=None):
    """Import a large library off the clock: no response pays for it. A worker leaves over it; its
    successor has it from the fork server, where warm(), a function of a module, has then filled
    the library's caches with texts of ours.
    """
    if _say and name not in _loaded:
        _say("load", [name], *([[warm.__module__, warm.__name__]] if warm else []))
        os._exit(0)
    return importlib.import_module(name)


def work(connection, memory):
    """The worker's main: never returns before the parent hangs up."""
    global _say
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))  # nothing here writes a byte to any file
    jobs = connection.makefile("rb")

    def _say(*message):
        connection.sendall(json.dumps(message).encode() + b"\n")

    _say("ready")
    while header := jobs.read(16):
        count, data = int.from_bytes(header[:8]), jobs.read(int.from_bytes(header[8:]))
        try:
            chunk = pickle.loads(data)
        except Exception:  # a function that cannot be imported: every job of the chunk says so
            chunk = [(_fail, traceback.format_exc())] * count
        _say("go")
        for function, *arguments in chunk:
            _say("grade", *_run(function, arguments))


def _run(function, arguments):
    try:
        grade = function(*arguments)
        if not isinstance(grade, Grade) or grade.outcome not in OUTCOMES:
            expected = f"expected a Grade with an outcome of {OUTCOMES}"
            raise TypeError(f"{function.__qualname__} returned {grade!r:.80}, {expected}")
        return float(grade.reward), grade.outcome, None
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # what is left of the heap is not to be trusted: start anew
    except Exception:  # a bug in a grader: counted as "error" and shown, not a crash of the run
        return 0.0, "error", traceback.format_exc(limit=-8)


def _fail(text):
    raise ImportError(text)


def _die_with_parent(lifeline):
    """SIGIO, which ends a process, to the whole group when the parent's end of a pipe closes,
    however it died. (PR_SET_PDEATHSIG would also fire when only the *thread* ends that started us.)
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it hung up before we were listening
        os._exit(1)
