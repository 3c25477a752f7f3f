"""A policy behind a socket: the same chunks, and no wrong ones when the other side fails."""

import contextlib
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from policy_doubles import Double
from workers import observation, start, wait_for, wait_until

pytest.importorskip("websockets", reason="websockets is not installed (pip install 'sqap-vla-ros[serve]')")

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve
from workers.served import Served

from sqap_vla_ros.contracts import Commitment, UnfitObservation, unreadable
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.events import LoadFailed, LoadProgress, PredictFailed, Ready, Result
from sqap_vla_ros.serving.frames import seal
from sqap_vla_ros.serving.remote import NoAnswer, RemoteError, RemotePolicy
from sqap_vla_ros.serving.supervisor import WorkerSupervisor
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerConfig


def test_the_chunk_is_the_servers_to_the_last_bit(remote):
    for seed in range(3):
        sent = observation(seed, 480, 640)
        remotely, here = remote.predict(sent, seed=seed), Double().predict(sent, seed=seed)
        assert remotely.stamp_ns == here.stamp_ns
        assert remotely.seed == seed
        for name in ("deltas", "normalized"):
            assert getattr(remotely, name).tobytes() == getattr(here, name).tobytes()
        assert remotely.selection.gripper_patch == here.selection.gripper_patch
        assert remotely.selection.indices.tobytes() == here.selection.indices.tobytes()
    assert remote.info == Double().info
    assert remote.round_trip.total_s > remote.round_trip.policy_s > 0.0


def test_a_failed_prediction_says_why_and_the_connection_stays(remote):
    with pytest.raises(RemoteError, match="action 3 of the chunk is not finite"):
        remote.predict(observation(instruction="nan"))
    with pytest.raises(UnfitObservation, match="at most 4096 are allowed"):
        remote.predict(observation(instruction="x" * 5000))
    remote.predict(observation())
    assert remote.reconnections == 0


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(served):
    remote = RemotePolicy(served.url, timeout_s=0.5)
    with pytest.raises(RemoteError, match=r"no answer within 0.5 s|cannot be reached in time"):
        remote.predict(observation(instruction="a second"))
    remote = RemotePolicy(served.url)
    other = observation(seed=5)
    chunk = remote.predict(other)
    assert chunk.normalized[0, 0] == float(other.image.sum(dtype=np.int64))
    remote.close()


def test_what_a_chunk_goes_on_from_reaches_the_policy(remote):
    actions = np.random.default_rng(1).normal(size=(6, 7))
    chunk = remote.predict(replace(observation(), commitment=Commitment(actions, 4, "guided")))
    assert chunk.deltas[:4].tobytes() == actions[:4].tobytes()
    assert chunk.deltas[4:].tobytes() == remote.predict(observation()).deltas[4:].tobytes()


def test_resets_reach_the_policy(remote):
    def resets() -> int:
        return int(remote.predict(observation(instruction="count resets")).normalized[0, 0])

    before = resets()
    assert resets() == before
    remote.reset()
    assert resets() == before + 1


def test_clients_side_by_side_get_their_own_answers(served):
    wrong = []

    def drive(index: int) -> None:
        remote = RemotePolicy(served.url, timeout_s=30.0)
        for number in range(10):
            sent = observation(100 * index + number, 20 + index, 30)
            if remote.predict(sent).normalized[0, 0] != float(sent.image.sum(dtype=np.int64)):
                wrong.append((index, number))
        remote.close()

    threads = [threading.Thread(target=drive, args=(index,)) for index in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert wrong == []


def test_what_the_policy_keeps_of_one_client_is_forgotten_before_anothers_turn(served):
    clients = [RemotePolicy(served.url) for _ in range(2)]
    counted = observation(instruction="count resets")
    resets = [int(clients[turn % 2].predict(counted).normalized[0, 0]) for turn in range(6)]
    assert np.diff(resets).tolist() == [1] * 5
    for client in clients:
        client.close()


def test_it_connects_again_when_the_server_comes_back():
    with Served() as served:
        remote, port = RemotePolicy(served.url), served.port
        remote.predict(observation())
    with pytest.raises(RemoteError, match="cannot be reached in time"):
        RemotePolicy(f"ws://127.0.0.1:{port}", load_timeout_s=0.5)
    with Served(port=port):
        remote.predict(observation())
        assert remote.reconnections == 1
        remote.close()


def test_another_policy_at_the_same_address_is_refused():
    with Served() as served:
        remote, port = RemotePolicy(served.url), served.port
    with Served("workers.faults:another", port=port), pytest.raises(RemoteError) as refused:
        remote.predict(observation())
    assert "serves another policy now (" in str(refused.value)
    assert "PolicyInfo" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("worker_dies", [True, False])
def test_the_node_takes_no_other_policy_whatever_was_restarted(worker_dies):
    """The server is replaced by one with another policy; the node's worker lives on, or is started again as well."""
    with Served() as served:
        config = WorkerConfig(served.url, warmup=0)
        supervisor = WorkerSupervisor(
            lambda: PolicyWorker(config, lambda: None), prediction_timeout_s=10.0, load_timeout_s=30.0
        )
        supervisor.start()
        assert wait_until(lambda: supervisor.poll(time.monotonic()) and supervisor.idle)
        port, told = served.port, supervisor.info
    try:
        with Served("workers.faults:another", port=port):
            if worker_dies:
                os.kill(supervisor.pid, signal.SIGKILL)
                events = []
                wait_until(
                    lambda: events.extend(supervisor.poll(time.monotonic())) or "another" in (supervisor.problem or "")
                )
                assert "another policy answers now" in supervisor.problem
                assert not any(isinstance(event, Ready) for event in events)
            else:
                supervisor.submit(observation(), seed=0, now_s=time.monotonic())
                events = []
                assert wait_until(lambda: events.extend(supervisor.poll(time.monotonic())) or events)
                assert isinstance(events[0], (PredictFailed, LoadProgress))
                wait_until(lambda: events.extend(supervisor.poll(time.monotonic())) or supervisor.idle)
                assert "serves another policy now" in events[-1].text
            assert supervisor.info == told
    finally:
        supervisor.close()


def test_a_token_comes_from_the_environment(monkeypatch):
    with Served(token="secret") as served:
        with pytest.raises(RemoteError, match=r"refuses: HTTP 401 .*a token is needed: set SQAP_VLA_TOKEN to the same"):
            RemotePolicy(served.url)
        monkeypatch.setenv("SQAP_VLA_TOKEN", "other")
        with pytest.raises(RemoteError, match="the token given is not this server's: set SQAP_VLA_TOKEN to the same"):
            RemotePolicy(served.url)
        monkeypatch.setenv("SQAP_VLA_TOKEN", "secret\n")  # as read from a file
        RemotePolicy(served.url).close()
        monkeypatch.setenv("SQAP_VLA_TOKEN", "\u0434\u0430")
        with pytest.raises(ValueError, match="SQAP_VLA_TOKEN holds no token: set visible ASCII characters"):
            RemotePolicy(served.url)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="begins with ws://"):
        RemotePolicy("http://127.0.0.1")


def test_the_nodes_worker_takes_an_address_for_a_checkpoint(served):
    worker = start("", warmup=1, checkpoint=served.url)
    try:
        assert wait_for(worker, Ready).info == Double().info
        sent = observation(3)
        worker.submit(sent)
        assert wait_for(worker, Result).chunk.normalized[0, 0] == float(sent.image.sum(dtype=np.int64))
    finally:
        worker.close()


def test_a_lost_worker_of_the_server_is_an_error_and_the_next_prediction_waits_for_the_new_one(remote):
    with pytest.raises(RemoteError, match="exited with status 0"):
        remote.predict(observation(instruction="exit 0"))
    remote.predict(observation())


def test_predictions_are_waited_for_no_longer_than_allowed():
    with Served("workers.faults:never_loads") as served:
        begin = time.monotonic()
        with pytest.raises(RemoteError, match="its policy is still being loaded"):
            RemotePolicy(served.url, load_timeout_s=0.5)
        assert time.monotonic() - begin < 5.0


def test_waiting_for_a_server_is_said_once(caplog):
    """Once for each reason: the same one again and again would drown everything else."""
    with pytest.raises(RemoteError, match="cannot be reached in time"):
        RemotePolicy("ws://127.0.0.1:9", load_timeout_s=0.5)
    (said,) = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert "for the server at ws://127.0.0.1:9/native: " in said


def test_nobody_there_is_waited_for_less_long_than_a_server_that_loads():
    begin = time.monotonic()
    with pytest.raises(RemoteError, match=r"ws://127\.0\.0\.1:9/native cannot be reached in time: Connection refused"):
        RemotePolicy("ws://127.0.0.1:9", reach_timeout_s=0.3, load_timeout_s=60.0)
    with Served("workers.faults:never_loads") as served, pytest.raises(RemoteError, match="still being loaded"):
        RemotePolicy(served.url, reach_timeout_s=0.5, load_timeout_s=1.5)
    assert time.monotonic() - begin < 30.0


@pytest.mark.parametrize("address", ["ws://", "ws://:8000", "ws://a:99999", "ws://a:0", "ws://a b:1", "ws://[::1"])
def test_what_is_no_address_is_not_waited_for(address):
    with pytest.raises(ValueError, match="no address of a server"):
        RemotePolicy(address)


@pytest.mark.parametrize("path", ["/vla-eval", "/native/", "/act", "/policies/openpi"])
def test_an_address_with_the_path_of_a_protocol_is_refused(path):
    with pytest.raises(ValueError, match=rf"give the address without {path.rstrip('/')}, as in ws://HOST:PORT"):
        RemotePolicy("ws://127.0.0.1:9" + path)


def test_a_server_without_tls_is_told_at_once(served):
    begin = time.monotonic()
    with pytest.raises(NoAnswer, match="cannot be spoken to: it does not speak TLS: use ws://, or put a proxy"):
        RemotePolicy(served.url.replace("ws://", "wss://"))
    assert time.monotonic() - begin < 5.0


@pytest.mark.parametrize("seed", [-1, 1.5, 2**63])
def test_a_seed_that_is_none_is_refused_as_here(remote, seed):
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 9223372036854775807, got "):
        remote.predict(observation(), seed=seed)
    assert remote.reconnections == 0


@pytest.mark.parametrize("instruction", ["", "\u200b"])
def test_an_instruction_that_says_nothing_is_refused_as_here(remote, instruction):
    with pytest.raises(UnfitObservation, match=f"{unreadable(instruction)[:40]}"):
        remote.predict(observation(instruction=instruction))


def test_a_worker_names_a_type_of_numbers_that_no_policy_has():
    worker = start("", warmup=0, checkpoint="micro", dtype="int8")
    try:
        assert wait_for(worker, LoadFailed).text.startswith("dtype must be float32, bfloat16, float16 or None")
    finally:
        worker.close()


LARGE = replace(observation(), image=np.zeros((3072, 4096, 3), np.uint8))
TOO_LARGE = (
    "the observation cannot be sent: an image of 4096 x 3072 pixels makes a frame of 36.0 MiB, a server takes at most "
    "32 MiB: send an image of at most 11 million pixels"
)


def test_an_image_that_no_server_takes_is_not_sent(remote):
    with pytest.raises(UnfitObservation) as refused:
        remote.predict(LARGE)
    assert str(refused.value) == TOO_LARGE
    remote.predict(observation())
    assert remote.reconnections == 0


def test_the_nodes_worker_says_the_same_of_it(served):
    worker = start("", warmup=0, checkpoint=served.url)
    try:
        wait_for(worker, Ready)
        worker.submit(LARGE)
        assert wait_for(worker, Result, PredictFailed).text == TOO_LARGE
    finally:
        worker.close()


def test_a_server_that_takes_less_is_not_asked_again_and_again():
    with Served(max_frame=100_000) as served:
        remote = RemotePolicy(served.url)
        with pytest.raises(
            RemoteError, match=r"/native closed the connection: a frame of 0\.1 MiB is longer than it takes"
        ):
            remote.predict(observation(0, 200, 200))
        assert remote.reconnections == 0
        remote.predict(observation())
        remote.close()


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize(
    ("code", "reason", "lasts"),
    [
        (1008, "not for you", True),
        (1011, "not for you", True),
        (1011, "keepalive ping timeout", False),
        (1007, "", False),
        (1012, "", False),
    ],
)
def test_a_connection_that_is_closed_is_opened_again_unless_the_reason_lasts(code, reason, lasts, loaded):
    asked = []

    def close(connection):
        asked.append(connection)
        if loaded:
            connection.send(seal(wire.encode(Ready(Double().info, 0.0))))
            with contextlib.suppress(ConnectionClosed):
                connection.recv()
        connection.close(code, reason)

    server = serve(close, "127.0.0.1", 0, compression=None)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    address = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    wait_s = 20.0 if lasts else 1.0
    said = rf"closed the connection: code {code} \({reason}\)" if lasts else "no answer within|cannot be reached"
    try:
        with pytest.raises(RemoteError, match=said):
            RemotePolicy(address, timeout_s=wait_s, load_timeout_s=wait_s).predict(observation())
    finally:
        server.shutdown()
        serving.join(30.0)
    assert (len(asked) == 1) == lasts
