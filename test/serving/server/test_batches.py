"""Clients that wait together, through real sockets: each gets its own answer, whatever becomes of the others."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from workers import observation, wait_until

pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")

from websockets.sync.client import connect
from workers.served import Served
from workers.together import FAILS, UNTIL

from sqap_vla_ros.contracts import PolicyInfo
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.events import Declined, Lost, PredictRequest, Ready, Result
from sqap_vla_ros.serving.frames import NATIVE_PATH, join_request, unseal
from sqap_vla_ros.serving.remote import RemoteError, RemotePolicy
from sqap_vla_ros.serving.server.engine import Engine, PredictionError

TIMEOUT_S = 30.0
INFO = PolicyInfo("double", "0" * 64, "fp32", 0, 16, 0.1, 224, (16, 16), "double", "sqap")


class Crowd:
    """Clients of one server, which can be made to wait together."""

    def __init__(self, served, size, tmp_path):
        self.served = served
        self.policies = [RemotePolicy(served.url) for _ in range(size)]
        self._blocker = RemotePolicy(served.url)
        self._files = (tmp_path / f"go{number}" for number in range(100))
        self._pool = ThreadPoolExecutor(size + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for policy in (*self.policies, self._blocker):
            policy.close()
        self._pool.shutdown()

    @contextlib.contextmanager
    def waiting(self, count):
        """Keep the policy busy until `count` requests made inside the block are in line."""
        file = next(self._files)
        blocked = self._pool.submit(self._blocker.predict, observation(instruction=f"{UNTIL}{file}"))
        assert wait_until(lambda: self.served.engine.load == 1)
        try:
            yield
            assert wait_until(lambda: self.served.engine.load == 1 + count)
        finally:
            file.touch()
            blocked.result(TIMEOUT_S)

    def together(self, observations, seeds):
        """The chunks of predictions that waited together, or what was raised."""
        with self.waiting(len(observations)):
            answers = [
                self._pool.submit(_predict, policy, one, seed)
                for policy, one, seed in zip(self.policies, observations, seeds, strict=False)
            ]
        return [answer.result(TIMEOUT_S) for answer in answers]


def _predict(policy, one, seed):
    try:
        return policy.predict(one, seed=seed)
    except RemoteError as error:
        return error


@pytest.fixture(scope="module")
def served():
    with Served("workers.together:together") as served:
        yield served


def is_answer_to(chunk, one, seed):
    return list(chunk.normalized[0, :2]) == [int(one.image.astype(int).sum()), seed] and chunk.seed == seed


def test_clients_of_several_prompts_and_sizes_get_their_own_answers_in_any_order(served, tmp_path):
    draw = np.random.default_rng(0)
    prompts = ["pick the cube", "pick the ball", "place it", "pick the mug!"]  # three have one length
    sent = [observation(seed, 16 + 8 * seed, 40 - 4 * seed, instruction=text) for seed, text in enumerate(prompts)]
    with Crowd(served, 4, tmp_path) as crowd:
        rows = []
        for _ in range(3):
            order = draw.permutation(4)
            seeds = [int(seed) for seed in draw.integers(0, 100, 4)]
            chunks = crowd.together([sent[at] for at in order], seeds)
            assert all(
                is_answer_to(chunk, sent[at], seed) for chunk, at, seed in zip(chunks, order, seeds, strict=True)
            )
            rows.append(sorted(chunk.timings_ms["rows"] for chunk in chunks))
        assert rows[1:] == [[1.0, 3.0, 3.0, 3.0]] * 2


def test_one_bad_observation_among_good_ones_fails_alone(served, tmp_path):
    sent = [observation(seed, instruction="catch" if seed != 1 else FAILS) for seed in range(3)]
    with Crowd(served, 3, tmp_path) as crowd:
        for _ in range(2):
            chunks = crowd.together(sent, [5, 6, 7])
            assert "this observation is bad" in str(chunks[1])
            assert is_answer_to(chunks[0], sent[0], 5)
            assert is_answer_to(chunks[2], sent[2], 7)


def test_a_client_that_leaves_while_its_batch_is_predicted_disturbs_nobody(served, tmp_path):
    go = tmp_path / "batch goes"
    text = f"{UNTIL}{go}"
    request = PredictRequest(1, True, 8, 8, 0, "x" * len(text), None, None, 9)
    sent = [observation(seed, instruction=text) for seed in range(2)]
    with Crowd(served, 2, tmp_path) as crowd, connect(served.url + NATIVE_PATH, compression=None) as leaving:
        leaving.recv(TIMEOUT_S)
        pool = ThreadPoolExecutor(2)
        with crowd.waiting(3):
            answers = [pool.submit(_predict, *each) for each in zip(crowd.policies, sent, (1, 2), strict=True)]
            leaving.send(join_request(request, np.zeros((8, 8, 3), np.uint8)))
        assert served.engine.load == 3  # they run together until `go`
        leaving.close()
        go.touch()
        assert all(
            is_answer_to(answer.result(TIMEOUT_S), one, seed)
            for answer, one, seed in zip(answers, sent, (1, 2), strict=True)
        )
        pool.shutdown()
        assert wait_until(lambda: served.engine.load == 0)
        assert is_answer_to(crowd.policies[0].predict(sent[0], seed=3), sent[0], 3)


def test_requests_of_one_client_are_answered_in_order(served):
    image = np.zeros((8, 8, 3), np.uint8)

    def drive(_):
        with connect(served.url + NATIVE_PATH, compression=None) as client:
            client.recv(TIMEOUT_S)
            for number in range(1, 21):
                client.send(join_request(PredictRequest(number, False, 8, 8, number, "pick", None, None, 0), image))
            answers = [wire.decode(bytes(unseal(client.recv(TIMEOUT_S)))) for _ in range(20)]
        return [(answer.request, answer.chunk.stamp_ns) for answer in answers]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drive, range(4))) == [[(number, number) for number in range(1, 21)]] * 4


@pytest.mark.parametrize(
    ("factory", "options"),
    [("remembering", {}), ("rounding", {}), ("together", {"max_batch": 1})],
)
def test_policies_that_remember_or_round_are_predicted_alone_and_so_is_all_at_a_limit_of_one(
    factory, options, tmp_path
):
    sent = [observation(seed) for seed in range(3)]
    with Served(f"workers.together:{factory}", **options) as served, Crowd(served, 3, tmp_path) as crowd:
        for _ in range(2):
            chunks = crowd.together(sent, [1, 2, 3])
            assert all(is_answer_to(chunk, one, seed) for chunk, one, seed in zip(chunks, sent, (1, 2, 3), strict=True))
            assert [chunk.timings_ms["rows"] for chunk in chunks] == [1.0] * 3
            if factory == "remembering":
                assert [chunk.normalized[1, 0] for chunk in chunks] == [1.0] * 3  # forgot those of others


# The engine with a worker that only pretends


class Pretender:
    """A worker to which the test says what it answers."""

    def __init__(self):
        self.ready, self.offers, self.queue, self.requests = True, [], [Ready(INFO, 0.001)], 0
        self.busy = False

    def start(self):
        pass

    def events(self):
        events, self.queue = self.queue, []
        for event in events:
            self.busy = self.busy and not isinstance(event, Result)
        return events

    def offer(self, observations):
        self.busy = True
        numbers = [self.requests + 1 + at for at in range(len(observations))]
        self.requests = numbers[-1]
        self.offers.append([one.instruction for one, _ in observations])
        return numbers

    def reset(self):
        pass

    def kill(self, why):
        pass

    def discard(self):
        pass

    close = reset


@contextlib.asynccontextmanager
async def pretended(**options):
    """The engine, the workers it made, and the waiting answers to requests "a", "b" and "c"."""
    made = []

    def make(notify):
        made.append(Pretender())
        return made[-1]

    limits = {"prediction_timeout_s": 30.0, "load_timeout_s": 30.0, "patience_s": 30.0, **options}
    engine = Engine(make, **limits)
    running = asyncio.ensure_future(engine.run())
    answers = {
        name: asyncio.ensure_future(engine.predict(name, observation(instruction=name), seed=0, reset=False))
        for name in "abc"
    }
    try:
        yield engine, made, answers
    finally:
        for task in (running, *answers.values()):
            task.cancel()
        await asyncio.gather(running, *answers.values(), return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_log_has_one_readable_line_of_the_policy(caplog):
    async def run():
        async with pretended() as (_, made, _):
            await until(lambda: made and made[0].offers)

    with caplog.at_level("INFO"):
        asyncio.run(run())
    ready = Ready(replace(INFO, checkpoint="a\nb"), 0.0521).in_words()
    assert ready == "policy ready, 52 ms a prediction: a\\nb under recipe fp32, chunks of 16 actions, 0.1 s apart"
    (said,) = [record.getMessage() for record in caplog.records if "policy ready" in record.getMessage()]
    assert said == Ready(INFO, 0.001).in_words()
    assert "PolicyInfo" not in said


def test_what_is_declined_keeps_its_place_in_line():
    async def run():
        async with pretended() as (_, made, answers):
            await until(lambda: made and made[0].offers)
            made[0].queue += [Declined(3, ""), Declined(2, ""), Result(1, "of a", 0.1)]
            await until(lambda: len(made[0].offers) == 2)
            assert made[0].offers == [["a", "b", "c"], ["b", "c"]]
            assert (await answers["a"]).chunk == "of a"

    asyncio.run(run())


def test_a_policy_that_predicts_nothing_together_is_offered_nothing_together():
    async def run():
        async with pretended() as (_, made, _):
            await until(lambda: made and made[0].offers)
            made[0].queue += [Declined(2, "it rounds"), Declined(3, "it rounds"), Result(1, "of a", 0.1)]
            await until(lambda: len(made[0].offers) == 2)
            assert made[0].offers[1] == ["b"]

    asyncio.run(run())


def test_batches_are_as_small_as_the_time_out_demands():
    async def run():
        async with pretended(prediction_timeout_s=0.004) as (_, made, _):
            await until(lambda: made and made[0].offers)
            assert made[0].offers[0] == ["a", "b"]  # 2 ms for predictions of 1 ms

    asyncio.run(run())


def test_requests_that_lost_the_worker_together_are_tried_again_one_by_one(monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.serving.supervisor.FIRST_PAUSE_S", 0.0)

    async def run():
        async with pretended() as (engine, made, answers):
            await until(lambda: made and made[0].offers)
            answers["c"].cancel()
            made[0].queue.append(Lost("the policy worker was ended by SIGSEGV"))
            await until(lambda: len(made) == 2 and made[1].offers)
            assert made[1].offers == [["a"]]
            made[1].queue.append(Lost("the policy worker was ended by SIGSEGV"))
            with pytest.raises(PredictionError, match="SIGSEGV"):
                await answers["a"]
            await until(lambda: len(made) == 3 and made[2].offers)
            assert made[2].offers == [["b"]]
            made[2].queue.append(Result(1, "of b", 0.1))
            assert (await answers["b"]).chunk == "of b"
            assert engine.load == 0

    asyncio.run(run())
