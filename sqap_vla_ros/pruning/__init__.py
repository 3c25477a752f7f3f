"""Token pruning: selectors that choose visual tokens by attention, gripper patch and patch grid.

Torch is imported only when a selector is asked for, so the nodes' parent process can draw overlays without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqap_vla_ros.pruning.registry import SELECTORS, make_selector

__all__ = ["SELECTORS", "make_selector"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sqap_vla_ros.pruning import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
