"""The devices that a policy can run on, checked before anything is loaded. Imports torch for a GPU only."""

from __future__ import annotations

import re

_NAME = re.compile(r"cpu|cuda(:[0-9]{1,4})?")


def name_problem(device: str) -> str:
    """Return why `device` names none that a policy can run on, "" where it does."""
    return "" if _NAME.fullmatch(device) else f"must be cpu, cuda or cuda:N, got {device[:40]!r}"


def device_problem(device: str) -> str:
    """Return why a policy cannot run on `device`, "" where it can."""
    if problem := name_problem(device):
        return problem
    if device == "cpu":
        return ""
    import torch

    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except RuntimeError as error:  # the driver does not fit the GPU or the build
        return f"PyTorch cannot use the CUDA driver here ({first_line(error)})"
    if int(device.partition(":")[2] or 0) < count:
        return ""
    return f"PyTorch sees {f'{count} CUDA device(s)' if count else 'no CUDA device'} here"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, the name of its class where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
