"""A policy for the worker that does to its process, and answers, what the observation's instruction names."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from policy_doubles import Double

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo
from sqap_vla_ros.serving.wire import HEADER

HUGE = 2**80


class RunsCode:
    """Would run code in whoever unpickles it."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ.get('SQAP_EVIL_FILE', '/dev/null')}",)


def deltas(edit: Callable[[np.ndarray], Any]) -> Callable[[ActionChunk], ActionChunk]:
    def answer(chunk: ActionChunk) -> ActionChunk:
        edited = np.array(chunk.deltas)
        out = edit(edited)
        return replace(chunk, deltas=edited if out is None else out)

    return answer


def fields(**values: Any) -> Callable[[ActionChunk], ActionChunk]:
    return lambda chunk: replace(chunk, **values)


def tokens(**values: Any) -> Callable[[ActionChunk], ActionChunk]:
    return lambda chunk: replace(chunk, selection=replace(chunk.selection, **values))


def put(where: Any, value: float) -> Callable[[ActionChunk], ActionChunk]:
    return deltas(lambda rows: rows.__setitem__(where, value))


ANSWERS: dict[str, Callable[[ActionChunk], Any]] = {
    "nan": put((3, 1), np.nan),
    "infinite": put((0, 0), np.inf),
    "minus infinite gripper": put((slice(None), 6), -np.inf),
    "1e308": put((slice(None), slice(0, 6)), 1e308),
    "1e30": put((slice(None), 0), 1e30),
    "huge gripper": put((slice(None), 6), -1e308),
    "long double": deltas(lambda rows: rows.astype(np.longdouble)),
    "complex": deltas(lambda rows: rows + 0j),
    "objects": deltas(lambda rows: rows.astype(object)),
    "integers": deltas(lambda rows: rows.astype(int)),
    "list": deltas(lambda rows: rows.tolist()),
    "no deltas": fields(deltas=None),
    "empty": fields(deltas=np.zeros((0, 7))),
    "a row short": deltas(lambda rows: rows[:15]),
    "flat": deltas(lambda rows: rows.ravel()),
    "a thousand rows": fields(deltas=np.zeros((1000, 7))),
    "no time step": fields(dt_s=0.0),
    "negative time step": fields(dt_s=-0.1),
    "time step of a nanosecond": fields(dt_s=1e-9),
    "nan time step": fields(dt_s=float("nan")),
    "time step None": fields(dt_s=None),
    "time step of a minute": fields(dt_s=60.0),
    "normalized None": fields(normalized=None),
    "normalized nan": fields(normalized=np.full((16, 7), np.nan)),
    "normalized text": fields(normalized="x"),
    "timings nan": fields(timings_ms={"total": float("nan")}),
    "timings text": fields(timings_ms={"total": "fast"}),
    "timings None": fields(timings_ms=None),
    "timings without end": fields(timings_ms={str(n): 1.0 for n in range(1000)}),
    "timings of code": fields(timings_ms={"total": RunsCode()}),
    "seed of 2**80": fields(seed=HUGE),
    "negative seed": fields(seed=-1),
    "another seed": fields(seed=8),
    "seed text": fields(seed="7"),
    "stamp float": lambda chunk: replace(chunk, stamp_ns=float(chunk.stamp_ns)),
    "stamp None": fields(stamp_ns=None),
    "stamp 2**63": fields(stamp_ns=2**63),
    "stamp a second older": lambda chunk: replace(chunk, stamp_ns=chunk.stamp_ns - 10**9),
    "stamp in the future": lambda chunk: replace(chunk, stamp_ns=chunk.stamp_ns + 2 * 10**9),
    "selection of code": fields(selection=RunsCode()),
    "no indices": tokens(indices=None),
    "indices outside": tokens(indices=np.arange(200, 354, dtype=np.int32)),
    "indices descending": tokens(indices=np.arange(154, dtype=np.int32)[::-1]),
    "unknown reason": tokens(reasons=np.full(154, 99, np.uint8)),
    "reasons missing": tokens(reasons=np.zeros(3, np.uint8)),
    "another grid": tokens(grid=(2, 2)),
    "gripper outside": tokens(gripper_patch=(16, 0)),
    "method without end": tokens(method="x" * 100_000),
    "a dict": lambda chunk: {"deltas": chunk.deltas},
}


def socket_fd() -> int:
    return int(sys.argv[2])


def fork_a_child_that_keeps_the_socket() -> None:
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    os._exit(9)


def start_a_program_and_exit() -> None:
    subprocess.Popen(["sleep", "600"])
    os._exit(9)


def flood() -> None:
    from sqap_vla_ros.serving import wire
    from sqap_vla_ros.serving.events import LoadProgress

    packet = wire.encode(LoadProgress("again"))
    while True:
        os.write(socket_fd(), packet)


def answer_another_request() -> None:
    from sqap_vla_ros.serving import wire
    from sqap_vla_ros.serving.events import PredictFailed

    os.write(socket_fd(), wire.encode(PredictFailed(1_000_000, "of nobody")))


def raise_exit() -> None:
    raise SystemExit(3)


def recurse() -> None:
    recurse()


FAULTS: dict[str, Callable[[], Any]] = {
    "garbage": lambda: os.write(socket_fd(), b"garbage!garbage!"),
    "header alone": lambda: os.write(socket_fd(), HEADER),
    "a pickle": lambda: os.write(socket_fd(), __import__("pickle").dumps(RunsCode())),
    "too long": lambda: os.write(socket_fd(), HEADER + b"\x01" + bytes(100_000)),
    "closes the socket": lambda: os.close(socket_fd()),
    "shuts the socket": lambda: (__import__("socket").socket(fileno=socket_fd()).shutdown(2), time.sleep(600)),
    "fork": fork_a_child_that_keeps_the_socket,
    "program": start_a_program_and_exit,
    "flood": flood,
    "another request": answer_another_request,
    "exit 0": lambda: os._exit(0),
    "SystemExit": raise_exit,
    "kill": lambda: os.kill(os.getpid(), 9),
    "segmentation fault": lambda: os.kill(os.getpid(), 11),
    "recursion": recurse,
    "a second": lambda: time.sleep(1.0),
    "hang": lambda: time.sleep(600),
    "stop": lambda: os.kill(os.getpid(), 19),
}


class Faulty(Double):
    resets = 0

    def reset(self) -> None:
        self.resets += 1

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        chunk = super().predict(observation, seed=seed)
        if observation.instruction in FAULTS:
            FAULTS[observation.instruction]()
        if observation.instruction == "count resets":
            chunk.normalized[0, 0] = self.resets
        return ANSWERS.get(observation.instruction, lambda chunk: chunk)(chunk)


def faulty() -> Faulty:
    return Faulty()


def never_loads() -> Faulty:
    time.sleep(600)
    raise AssertionError


class Another(Faulty):
    """A policy that can be told from `Faulty`."""

    @property
    def info(self) -> PolicyInfo:
        return replace(super().info, recipe="another")


def another() -> Another:
    return Another()


def wrong_description() -> Faulty:
    policy = Faulty()
    policy.__class__ = type("Wrong", (Faulty,), {"info": replace(policy.info, dt_s=float("nan"))})
    return policy
