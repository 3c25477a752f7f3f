"""Names of task families and scene variations, as they stand in parameters, options, files and reports.

This module imports nothing but the standard library, so that command lines and launch files can offer the names as
choices at once. `tasks.py` gives the families their words and detectors, `layout.py` the variations their ranges.
"""

import enum

CONTROL_DT_S = 0.2  # 5 Hz: an action of the policy


class _Name(str, enum.Enum):
    """A text with a fixed set of values; `str()` of a member is the text."""

    def __str__(self) -> str:
        return self.value


class TaskFamily(_Name):
    """A kind of task on the tabletop."""

    PICK = "pick"
    MOVE_NEAR = "move_near"
    OPEN_DRAWER = "open_drawer"
    CLOSE_DRAWER = "close_drawer"
    PLACE_IN_DRAWER = "place_in_drawer"
    PLACE_IN_BOWL = "place_in_bowl"


class VariationName(_Name):
    """A range of looks that episodes are drawn from."""

    VISUAL_MATCHING = "visual_matching"
    VARIANT_AGGREGATION = "variant_aggregation"
    RANDOMISED = "randomised"


# The variations that policies are evaluated on; the third one is for training alone.
SUITES = (VariationName.VISUAL_MATCHING, VariationName.VARIANT_AGGREGATION)
