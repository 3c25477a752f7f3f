"""The protected ring of a published selection, computed anew from the pixel."""

import numpy as np

from sqap_vla_ros.contracts import Reason
from sqap_vla_ros.nodes import messages

RADIUS = 2  # of the protected ring, in patches (the recipe's)


def check_ring(message, pixel, width, height):
    """The gripper's patch is that of `pixel`, and every token around it is kept (Eq. 3 and 4)."""
    np.testing.assert_allclose([message.gripper_u, message.gripper_v], pixel, atol=0.05)
    selection = messages.selection_from_message(message)
    rows, cols = selection.grid
    row, col = (
        int((n + 0.5) / size * patches)
        for n, size, patches in zip(pixel[::-1], (height, width), (rows, cols), strict=True)
    )
    assert selection.gripper_patch == (row, col)
    ring = {
        r * cols + c
        for r in range(max(0, row - RADIUS), min(rows, row + RADIUS + 1))
        for c in range(max(0, col - RADIUS), min(cols, col + RADIUS + 1))
    }
    assert ring <= set(selection.indices.tolist())
    assert {Reason(int(reason)) for reason in selection.reasons} == {Reason.ATTENTION, Reason.RING, Reason.SPATIAL}
    assert len(selection.indices) == round(0.6 * rows * cols)
