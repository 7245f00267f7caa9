"""The pool: order, deadlines, kills that lose one answer, limits, errors that show, no orphans."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from nanomerci.tasks import math, sql
from nanomerci.tasks.graders.pool import Grade, Pool
from nanomerci.tasks.graders.sqlite import Script
from nanomerci.tasks.graders.worker import load

DEADLINE = 1.0


# ---- jobs; the workers import them from here


def echo(number):
    return Grade(float(number), "right")


def nap(seconds):
    time.sleep(seconds)
    return Grade(seconds, "right")


def spin():
    while True:
        pass


def one_opcode():  # holds the interpreter's lock: no signal handler and no thread could stop it
    return Grade(float(9**9**9 % 7), "right")


def hoard():
    return Grade(float(len("a" * (8 << 30))), "right")


def crash():
    ctypes.string_at(0)


def leave():
    sys.exit(3)


def bug():
    raise KeyError("a bug in a grader")


def not_a_grade():
    return 1.0


def chatter():
    print("to stdout")
    os.write(1, b'["grade", 1.0, "right", null]\n')
    return Grade(0.5, "wrong")


def write_a_file(path):
    with open(path, "w") as file:
        file.write("x")
    return Grade(1.0, "right")


def whoami():
    return Grade(float(os.getpid()), "right")


def modules():
    import nanomerci.tasks.math
    import nanomerci.tasks.sql  # noqa: F401

    return Grade(
        float("torch" in sys.modules)
        + 2 * ("datasets" in sys.modules)
        + 4 * ("mpmath" in sys.modules),
        "right",
    )


def needs(library):
    load(library)
    return Grade(1.0, "right")


def threads_of_fork_server():
    return Grade(float(len(os.listdir(f"/proc/{os.getppid()}/task"))), "right")


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=2, deadline=DEADLINE, memory=1 << 30) as pool:
        yield pool


def echoes(start, stop):
    return [(echo, i) for i in range(start, stop)]


def test_grades_come_back_in_order(pool):
    assert [grade.reward for grade in pool.grade(echoes(0, 1000))] == list(range(1000))
    assert pool.grade([]) == []


def test_importing_and_making_a_pool_starts_nothing():
    with Pool(workers=2) as idle:
        assert idle._workers == [] and idle._server is None


@pytest.mark.parametrize(
    "job, outcome",
    [
        (spin, "timeout"),
        (one_opcode, "timeout"),
        (hoard, "timeout"),
        (crash, "error"),
        (leave, "error"),
        (bug, "error"),
        (not_a_grade, "error"),
    ],
)
def test_only_the_bad_answer_is_lost(pool, job, outcome):
    grades = pool.grade([*echoes(0, 50), (job,), *echoes(50, 100)])
    assert grades.pop(50) == Grade(0.0, outcome)
    assert [grade.reward for grade in grades] == list(range(100))


def test_a_whole_chunk_of_bad_answers(pool):
    grades = pool.grade([(crash,), (echo, 1), (hoard,), (echo, 2), (leave,)] * 8)
    assert [grade.outcome for grade in grades] == [
        "error",
        "right",
        "timeout",
        "right",
        "error",
    ] * 8


def test_deadline_is_kept(pool):
    pool.grade([(echo, 0)] * 4)
    for job in (spin, one_opcode):
        start = time.monotonic()
        assert pool.grade([(job,)]) == [Grade(0.0, "timeout")]
        assert (
            DEADLINE <= time.monotonic() - start < 1.2 * DEADLINE + 0.2
        )  # 0.2 s: the start of a replacement


def test_deadline_is_of_one_answer_not_of_a_chunk(pool):
    grades = pool.grade([(nap, 0.15)] * 20)  # 1.5 s a worker
    assert {grade.outcome for grade in grades} == {"right"}


def test_errors_are_shown(pool):
    pool.last_error = None
    pool.grade([(bug,)])
    assert "a bug in a grader" in pool.last_error and "test_grading.py" in pool.last_error
    pool.grade([(crash,)])
    assert "exit status -11" in pool.last_error
    pool.grade([(not_a_grade,)])
    assert "expected a Grade" in pool.last_error


def test_a_job_that_cannot_be_imported_is_an_error_and_the_rest_is_graded(pool):
    import types

    module = types.ModuleType("only_here")
    exec("def job(): pass", module.__dict__)
    sys.modules["only_here"] = module
    try:
        grades = pool.grade([(module.job,)] * 3)
    finally:
        del sys.modules["only_here"]
    assert grades == [Grade(0.0, "error")] * 3 and "only_here" in pool.last_error
    assert pool.grade([(echo, 1)])[0].reward == 1


def test_what_a_job_prints_does_not_reach_the_protocol(pool):
    assert pool.grade([(chatter,)] * 5) == [Grade(0.5, "wrong")] * 5


def test_a_job_cannot_write_files(pool, tmp_path):
    pool.grade([(write_a_file, str(tmp_path / "x"))])
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size == 0


def test_workers_do_not_import_torch_datasets_or_mpmath(pool):
    pool.close()
    assert pool.grade([(modules,)]) == [Grade(0.0, "right")], pool.last_error


def test_a_library_is_imported_once_and_whoever_replaces_a_worker_has_it(pool, monkeypatch):
    pool.close()
    pool.grade([(echo, 1)])
    told = []
    tell = pool._server.tell
    monkeypatch.setattr(
        pool._server,
        "tell",
        lambda *command, files=(): (told.append(command), tell(*command, files=files)),
    )
    query = (
        sql.grade,
        Script("CREATE TABLE t (a)"),
        "SELECT a FROM t",
        "```sql\nSELECT a FROM t\n```",
    )
    assert {
        grade.outcome
        for grade in pool.grade([(math.grade, "\\sqrt{8}", "\\boxed{2\\sqrt2}"), query])
    } == {"right"}
    assert (
        pool.grade([(spin,), (modules,), (crash,), (modules,)])[1::2] == [Grade(4.0, "right")] * 2
    )  # mpmath
    loads = [command[1:] for command in told if command[0] == "load"]
    assert loads.count(("mpmath",)) == loads.count(("sqlglot",)) == 1
    assert (
        pool.grade([(threads_of_fork_server,)])[0].reward == 1
    )  # to fork a process of many threads is not safe


def test_a_library_that_is_not_there_is_an_error_of_the_answers_that_need_it(pool):
    for _ in range(2):
        assert [
            grade.outcome
            for grade in pool.grade([(echo, 1), (needs, "no_such_library"), (echo, 2)])
        ] == ["right", "error", "right"]
        assert "No module named 'no_such_library'" in pool.last_error


def test_from_several_threads(pool):
    results = {}

    def work(i):
        results[i] = [grade.reward for grade in pool.grade(echoes(100 * i, 100 * i + 100))]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: list(range(100 * i, 100 * i + 100)) for i in range(4)}


def test_workers_outlive_the_thread_that_started_them():
    with Pool(workers=1) as own:
        thread = threading.Thread(target=own.grade, args=([(echo, 1)],))
        thread.start()
        thread.join()
        pid = own.grade([(whoami,)])[0].reward
        time.sleep(0.1)  # were a signal on its way
        assert own.grade([(whoami,)])[0].reward == pid


def test_interrupt_leaves_a_usable_pool():
    with Pool(workers=1, deadline=30.0) as own:
        own.grade([(echo, 0)])
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            own.grade([(nap, 20.0)])
        assert own._workers == []
        assert [grade.reward for grade in own.grade(echoes(0, 10))] == list(range(10))


def test_in_the_background(pool):
    futures = [pool.start(echoes(100 * i, 100 * i + 100)) for i in range(3)]
    assert [grade.reward for future in futures for grade in future.result()] == list(range(300))
    slow = pool.start([(nap, 0.3)])
    assert not slow.done() and slow.result() == [Grade(0.3, "right")]


def test_what_grading_raises_comes_through_the_future(pool):
    with pytest.raises(AttributeError, match="pickle"):
        pool.start([(lambda: None,)]).result()
    assert pool.grade([(echo, 1)])[0].reward == 1


def test_closing_ends_what_runs_and_what_waits_in_the_background():
    with Pool(workers=1, deadline=600.0) as own:
        own.grade([(echo, 0)])
        futures = [own.start([(spin,)]), own.start([(spin,)])]
        time.sleep(0.3)  # the first is at it, the second queues
        own.close()
        for future in futures:
            with pytest.raises(CancelledError, match="closed while it graded"):
                future.result(20)
        assert own._workers == []
        assert [grade.reward for grade in own.grade(echoes(0, 10))] == list(range(10))


def test_interrupt_while_it_waits_for_the_background():
    with pytest.raises(KeyboardInterrupt), Pool(workers=1, deadline=600.0) as own:
        future = own.start([(spin,)])
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        future.result()
    with pytest.raises(CancelledError):
        future.result(20)
    assert own._workers == []


PARENT = """
import os, sys, threading
sys.path.insert(0, {tests!r})
import test_grading as t
pool = t.Pool(workers=2, deadline=600)
pool.grade([(t.whoami,)] * 64)
print(pool._server.process.pid, flush=True)
pool.grade([(t.spin,), (t.one_opcode,)] if {busy} else [])
sys.stdin.read()
"""


def alive(group):
    """Process ids of that group's members that are not dead yet."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just gone
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            pids += [int(path.parent.name)] * (int(of) == group and state != "Z")
    return pids


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("busy", [True, False])
def test_no_orphans(how, busy):
    """However the parent dies, also while the workers are stuck in C, nothing is left."""
    code = PARENT.format(tests=str(Path(__file__).parent), busy=busy)
    root = str(Path(__file__).parent.parent)
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, **pipes) as parent:
        try:
            group = int(parent.stdout.readline())
            begun = time.monotonic() + 10
            while len(alive(group)) < 3 and time.monotonic() < begun:  # the server forks them
                time.sleep(0.01)
            assert len(alive(group)) == 3  # the fork server and two workers
            time.sleep(0.5)  # let the jobs begin, or the parent come to rest
            parent.send_signal(how)
            parent.wait(10)
        finally:
            parent.kill()
    end = time.monotonic() + 10
    while alive(group) and time.monotonic() < end:
        time.sleep(0.01)
    left = alive(group)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
