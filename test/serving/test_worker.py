"""The worker process: what it answers, and what is left behind when either side dies."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from places import SUPPORT
from workers import TIMEOUT_S, gone, observation, start, wait_for, wait_until

from sqap_vla_ros.serving import worker_process
from sqap_vla_ros.serving.defaults import MOST_BATCH
from sqap_vla_ros.serving.events import Declined, LoadFailed, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.wire import MAX_INSTRUCTION
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerConfig, WorkerError

DOUBLES = "policy_doubles"


@pytest.fixture
def worker():
    worker = start(f"{DOUBLES}:straight")
    assert isinstance(wait_for(worker, Ready), Ready)
    yield worker
    worker.close()


def test_the_policy_sees_exactly_the_observation_that_was_submitted(worker):
    # The double answers with sums over the image; a larger image after a smaller one needs a larger shared memory.
    for seed, (height, width) in enumerate([(48, 64), (480, 640), (100, 10)]):
        sent = observation(seed, height, width)
        number = worker.submit(sent, seed=7)
        result = wait_for(worker, Result)
        assert result.request == number
        assert result.chunk.stamp_ns == 123_456_789
        assert result.chunk.seed == 7
        assert result.chunk.normalized[0, 0] == int(sent.image.astype(int).sum())
        assert result.policy_s > 0.0


def test_one_request_at_a_time():
    worker = start(f"{DOUBLES}:slow")
    try:
        wait_for(worker, Ready)
        worker.submit(observation())
        assert worker.busy
        with pytest.raises(WorkerError, match="one at a time"):
            worker.submit(observation())
    finally:
        worker.close(timeout_s=0.1)


def outcomes(worker) -> dict[int, type]:
    """What became of each request of an offer, in order."""
    events = []

    def answered() -> bool:
        events.extend(worker.events())
        return not worker.busy

    assert wait_until(answered)
    return {event.request: type(event) for event in events}


def test_the_longest_offer_fits_into_the_socket_and_what_is_not_predicted_is_declined(worker):
    os.kill(worker.pid, signal.SIGSTOP)  # it reads nothing meanwhile
    longest = observation(instruction="x" * MAX_INSTRUCTION)
    numbers = worker.offer([(longest, seed) for seed in range(MOST_BATCH)])
    os.kill(worker.pid, signal.SIGCONT)
    became = outcomes(worker)
    assert (became.pop(numbers[0]), set(became.values())) == (Result, {Declined})
    assert list(became) == numbers[1:]


def test_of_an_offer_only_what_cannot_be_sent_fails(worker):
    sent = [observation(instruction=text) for text in ("a", "x" * (MAX_INSTRUCTION + 1), "b")]
    numbers = worker.offer([(one, 0) for one in sent])
    assert outcomes(worker) == dict(zip(numbers, (Result, PredictFailed, Declined), strict=True))


def test_a_request_before_it_is_ready_is_refused():
    worker = start(f"{DOUBLES}:straight")
    try:
        with pytest.raises(WorkerError, match="not ready"):
            worker.submit(observation())
    finally:
        worker.close()


def test_an_exception_in_the_policy_is_reported_and_the_worker_lives_on():
    worker = start(f"{DOUBLES}:raises", warmup=0)
    try:
        wait_for(worker, Ready)
        for _ in range(2):
            worker.submit(observation())
            failed = wait_for(worker, PredictFailed)
            assert "ArithmeticError: the double always fails" in failed.text
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("factory", "config", "why"),
    [
        ("unloadable", {}, "no checkpoint here"),
        ("Free", {"continuation": "guided"}, "this policy continues no chunk"),
    ],
)
def test_a_policy_that_cannot_be_loaded_says_why(factory, config, why):
    worker = start(f"{DOUBLES}:{factory}", **config)
    try:
        assert wait_for(worker, LoadFailed).text == why
    finally:
        worker.close()


@pytest.mark.parametrize(("key", "asked", "notes"), [("", None, 0), ("bridge_orig", None, 1), ("mine", "mine", 0)])
def test_random_weights_pass_for_the_data_sets_of_robot_files_alone(key, asked, notes):
    said = []
    assert worker_process._dataset(WorkerConfig("micro", unnorm_key=key), said.append) == asked
    assert len(said) == notes


def test_a_worker_that_dies_is_reported_with_its_exit(worker):
    worker.submit(observation())
    wait_for(worker, Result)
    os.kill(worker.pid, signal.SIGKILL)
    assert "SIGKILL" in wait_for(worker, Lost).text
    assert not worker.ready
    assert not worker.busy
    with pytest.raises(WorkerError, match="not ready"):
        worker.submit(observation())


def test_a_worker_that_exits_in_the_middle_of_a_prediction_is_reported():
    worker = start(f"{DOUBLES}:crashes", warmup=0)
    try:
        wait_for(worker, Ready)
        worker.submit(observation())
        assert "status 17" in wait_for(worker, Lost).text
        assert not worker.busy
    finally:
        worker.close()


def test_notify_is_called_for_every_event():
    notified = threading.Semaphore(0)
    worker = PolicyWorker(WorkerConfig("double", factory=f"{DOUBLES}:straight"), notify=notified.release)
    worker.start()
    try:
        assert notified.acquire(timeout=TIMEOUT_S)
        wait_for(worker, Ready)
        worker.submit(observation())
        assert notified.acquire(timeout=TIMEOUT_S)
    finally:
        worker.close()


def test_closing_ends_the_process_even_while_it_computes():
    worker = start(f"{DOUBLES}:slow")
    wait_for(worker, Ready)
    worker.submit(observation())
    pid = worker.pid
    begin = time.monotonic()
    worker.close(timeout_s=5.0)
    assert gone(pid)
    assert time.monotonic() - begin < 5.0  # it noticed the closed socket; nobody had to kill it
    assert worker.events() == []  # an end that was asked for is no loss
    worker.close()


def test_ctrl_c_does_not_reach_the_worker(worker):
    assert os.getsid(worker.pid) != os.getsid(0)
    os.kill(worker.pid, signal.SIGINT)
    worker.submit(observation())
    assert isinstance(wait_for(worker, Result), Result)


def test_ctrl_c_leaves_a_wait_whole(worker):
    """It comes as an exception, and what happens meanwhile and afterwards is neither lost nor waited for in vain."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        for _ in range(5):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                worker.wait(TIMEOUT_S)
        worker.submit(observation())
        (result,) = worker.wait(TIMEOUT_S)
        assert isinstance(result, Result)
        assert worker.wait(0.01) == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_worker_whose_parent_is_gone_ends_without_a_word():
    code = (
        "import socket; from sqap_vla_ros.serving.worker_process import _send\n"
        "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "theirs.close(); _send(ours, b'an answer'); print('it goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("factory", ["straight", "slow"])
def test_no_orphan_when_the_parent_is_killed(factory):
    # The parent dies without a chance to clean up, with the worker idle or in the middle of a prediction.
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                import sys, time
                sys.path[:0] = [{str(SUPPORT)!r}]
                from workers import Ready, observation, start, wait_for
                worker = start("{DOUBLES}:{factory}")
                wait_for(worker, Ready)
                worker.submit(observation())
                print(worker.pid, flush=True)
                time.sleep(60)
            """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        pid = int(parent.stdout.readline())
        assert not gone(pid)
    finally:
        parent.kill()
        parent.wait()
    assert wait_until(lambda: gone(pid), timeout_s=10.0)


@pytest.mark.parametrize(("own", "capacities"), [(None, "128 128"), ("7", "128 7")])
def test_what_products_keep_is_bounded_unless_the_user_says_otherwise(monkeypatch, own, capacities):
    """Libraries keep 1,024 compiled products in each cache: hundreds of MB, once prompts of all lengths came."""
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    if own:
        monkeypatch.setenv("LRU_CACHE_CAPACITY", own)
    worker = start(f"{DOUBLES}:says_its_caches")
    try:
        assert wait_for(worker, LoadFailed).text == capacities
    finally:
        worker.close()


def test_the_parent_side_imports_neither_torch_nor_rclpy():
    code = "import sys, sqap_vla_ros.serving.worker; print([m for m in ('torch', 'rclpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
