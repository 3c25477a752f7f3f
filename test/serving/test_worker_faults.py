"""A worker that misbehaves in every way we know: named, ended where it must be, and never an exception here."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from workers import children, gone, observation, start, wait_for, wait_until
from workers.faults import ANSWERS

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.serving import worker as worker_module
from sqap_vla_ros.serving.events import LoadFailed, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.supervisor import WorkerSupervisor
from sqap_vla_ros.serving.wire import MAX_INSTRUCTION
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerConfig

FAULTY = "workers.faults:faulty"
AT_ONCE_S = 0.2  # for a call that must not wait


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A file that exists once code from a worker's answer ran."""
    path = tmp_path_factory.mktemp("evil") / "ran"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQAP_EVIL_FILE", str(path))
        yield path


@pytest.fixture(scope="module")
def lasting(evil):
    """One worker for all faults that it survives."""
    worker = start(FAULTY, warmup=0)
    wait_for(worker, Ready)
    yield worker
    worker.close()


@pytest.fixture
def worker(evil):
    worker = start(FAULTY, warmup=0)
    wait_for(worker, Ready)
    yield worker
    os_pid = worker.pid
    if os_pid is not None:
        os.kill(os_pid, signal.SIGCONT)
    worker.close()


EXPECTED = {
    "nan": "action 3 of the chunk is not finite: component 1 is nan",
    "infinite": "action 0 of the chunk is not finite",
    "1e308": "action 0 of the chunk is absurd: component 0 is 1e+308, at most 100",
    "list": "chunk.deltas is list",
    "long double": "chunk.deltas is an array of",
    "a row short": r"are [15, 7], expected [16, 7]",
    "seed of 2**80": "chunk.seed is int 1208925819614629174706176",
    "another seed": "made with seed 8, it was asked for with 7",
    "stamp float": "chunk.stamp_ns is float",
    "stamp a second older": "has the stamp -876543211 ns, the image it was asked for has 123456789 ns",
    "stamp in the future": "has the stamp 2123456789 ns",
    "timings text": "chunk.timings_ms['total'] is str 'fast', expected a number",
    "no indices": "selection.indices is NoneType None",
    "indices outside": "indices must ascend from 0 to below 256",
    "a dict": "the policy returned dict",
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_a_malformed_answer_is_named_and_the_worker_goes_on(lasting, evil, fault):
    number = lasting.submit(observation(instruction=fault), seed=7)
    failed = wait_for(lasting, PredictFailed, Result)
    assert isinstance(failed, PredictFailed), failed
    assert failed.request == number
    assert EXPECTED.get(fault, "") in failed.text
    assert not evil.exists()
    assert not lasting.busy
    lasting.submit(observation())
    assert isinstance(wait_for(lasting, Result), Result)


def test_an_endless_recursion_is_an_error_like_others(lasting):
    lasting.submit(observation(instruction="recursion"))
    assert "RecursionError" in wait_for(lasting, PredictFailed).text


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("garbage", "sent what is no message (a packet that begins with the bytes 67 61 72"),
        ("header alone", "sent what is no message (the kind needs 1 bytes"),
        ("a pickle", "sent what is no message"),
        ("too long", "a packet of more than 65536 bytes"),
        ("closes the socket", "exited with status 1"),
        ("shuts the socket", "exited with status 0"),
        ("fork", "exited with status 9"),
        ("program", "exited with status 9"),
        ("flood", "sent more than 1024 messages at once"),
        ("another request", "answered request 1000000, which is not being computed"),
        ("exit 0", "exited with status 0"),
        ("SystemExit", "exited with status 3"),
        ("kill", "SIGKILL (out of memory?"),
        ("segmentation fault", "SIGSEGV"),
    ],
)
def test_a_worker_that_breaks_off_is_lost_with_the_reason(worker, evil, fault, text):
    group = worker.pid
    worker.submit(observation(instruction=fault))
    deadline = time.monotonic() + 20.0
    while not (events := worker.events()) and time.monotonic() < deadline:
        time.sleep(0.01 if fault != "flood" else 1.0)  # an executor that is busy finds the flood
    lost = next((event for event in events if isinstance(event, Lost)), None) or wait_for(worker, Lost)
    assert text in lost.text
    assert not evil.exists()
    assert not worker.ready
    assert not worker.busy
    assert worker.pid is None
    assert wait_until(lambda: group not in children()), "the process that ended was not collected"
    assert wait_until(lambda: not members(group)), "something it started still runs"
    assert worker.events() == []


def members(group: int) -> list[str]:
    """Processes of a group that run."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,pid="], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if int(line.split()[0]) == group and line.split()[1][0] != "Z"]


@pytest.mark.parametrize("fault", ["hang", "stop"])
def test_a_hung_worker_is_ended_named_and_replaced(fault):
    made: list[PolicyWorker] = []

    def make() -> PolicyWorker:
        made.append(PolicyWorker(WorkerConfig("double", factory=FAULTY, warmup=0), notify=lambda: None))
        return made[-1]

    supervisor = WorkerSupervisor(make, prediction_timeout_s=0.3, load_timeout_s=30.0)
    supervisor.start()
    try:
        assert wait_until(lambda: any(isinstance(event, Ready) for event in supervisor.poll(time.monotonic())))
        pid = supervisor.pid
        supervisor.submit(observation(instruction=fault), seed=0, now_s=time.monotonic())
        longest_s, events = 0.0, []
        while not any(isinstance(event, Lost) for event in events):
            begin = time.monotonic()
            events = supervisor.poll(begin)
            longest_s = max(longest_s, time.monotonic() - begin)
            time.sleep(0.01)
        assert (
            "a prediction took longer than 0.3 s: the policy does not answer; starting it again in 1 s"
            in supervisor.problem
        )
        assert wait_until(lambda: gone(pid))
        assert wait_until(lambda: any(isinstance(event, Ready) for event in supervisor.poll(time.monotonic())))
        assert supervisor.restarts == 1
        assert longest_s < AT_ONCE_S
    finally:
        supervisor.close()


def test_nothing_waits_for_a_stopped_worker_and_nothing_piles_up(worker):
    os.kill(worker.pid, signal.SIGSTOP)
    begin = time.monotonic()
    worker.submit(observation())
    for _ in range(100_000):
        worker.reset()
    assert worker.events() == []
    assert time.monotonic() - begin < AT_ONCE_S
    worker.kill("it stands still")
    assert "it stands still" in wait_for(worker, Lost).text


def test_an_instruction_of_a_megabyte_fails_by_name_and_blocks_nobody(worker):
    os.kill(worker.pid, signal.SIGSTOP)
    begin = time.monotonic()
    number = worker.submit(observation(instruction="x" * 1_000_000))
    (failed,) = worker.events()
    assert time.monotonic() - begin < AT_ONCE_S
    assert failed.request == number
    assert f"instruction has 1000000 bytes, at most {MAX_INSTRUCTION}" in failed.text
    os.kill(worker.pid, signal.SIGCONT)
    worker.submit(observation(instruction="x" * MAX_INSTRUCTION))
    wait_for(worker, Result)


def test_an_observation_that_cannot_be_sent_fails_by_name(worker, monkeypatch):
    worker.submit(observation(instruction="half a character: \ud800"))
    assert "no Unicode" in wait_for(worker, PredictFailed).text
    wide = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (1, 20_000, 3))
    worker.submit(Observation(wide, 0, "pick"))
    assert "request.width is int 20000" in wait_for(worker, PredictFailed).text
    monkeypatch.setattr(worker._images, "write", lambda image: exec("raise OSError(28, 'No space left on device')"))
    worker.submit(observation())
    assert "No space left" in wait_for(worker, PredictFailed).text


def test_resets_are_done_once_before_the_next_request_that_can_be_sent(worker):
    def resets() -> int:
        worker.submit(observation(instruction="count resets"))
        return int(wait_for(worker, Result).chunk.normalized[0, 0])

    before = resets()
    for _ in range(3):
        worker.reset()
    worker.submit(observation(instruction="x" * 5_000))
    wait_for(worker, PredictFailed)
    assert resets() == before + 1
    assert resets() == before + 1


def test_a_worker_cannot_shrink_the_shared_image(worker):
    """Or the parent's next write would end the parent by SIGBUS."""
    worker.submit(observation())
    wait_for(worker, Result)
    for descriptor in (worker._images._fd, worker._images.reader_fd):
        with pytest.raises(OSError, match=r"not permitted|Invalid argument"):
            os.ftruncate(descriptor, 1)


def test_a_policy_that_describes_itself_wrongly_is_lost():
    worker = start("workers.faults:wrong_description", warmup=0)
    try:
        assert "time step must lie between 0.001 and 10 s, got nan" in wait_for(worker, Lost).text
    finally:
        worker.close()


def test_a_worker_that_cannot_be_started_is_lost_and_no_exception(monkeypatch):
    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    before = descriptors()
    for name in ("ImageWriter", "ChildProcess"):
        with monkeypatch.context() as patch:
            patch.setattr(worker_module, name, refuse)
            worker = start(FAULTY)
            assert "cannot be started: [Errno 24] Too many open files" in wait_for(worker, Lost).text
            worker.discard()
    assert descriptors() == before


def test_a_policy_that_cannot_be_loaded_is_not_lost_as_well():
    worker = start("policy_doubles:unloadable")
    assert isinstance(wait_for(worker, LoadFailed, Lost), LoadFailed)
    assert wait_until(lambda: worker.pid is None)
    assert worker.events() == []
    worker.close()


def test_fifty_restarts_leave_no_descriptor_no_thread_and_no_zombie(monkeypatch):
    supervisor = WorkerSupervisor(
        lambda: PolicyWorker(WorkerConfig("double", factory=FAULTY, warmup=0), notify=lambda: None),
        prediction_timeout_s=30.0,
        load_timeout_s=30.0,
    )
    # The processes are as real as ever, but end before they have loaded anything: fifty take seconds.
    monkeypatch.setattr("sqap_vla_ros.serving.child_process._BOOTSTRAP", "import os; os._exit(3)  # {module}")
    before, ours = descriptors(), children()
    supervisor.start()

    def loses(now_s: float) -> bool:
        return any(isinstance(event, Lost) for event in supervisor.poll(now_s))

    lost = False
    for round_ in range(50):
        assert lost or wait_until(lambda now_s=31.0 * round_: loses(now_s))
        lost = loses(31.0 * (round_ + 1))  # the new process may have ended already
    supervisor.close()
    assert supervisor.restarts == 50
    assert wait_until(lambda: children() <= ours)
    assert wait_until(lambda: descriptors() <= before), (descriptors(), before)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
