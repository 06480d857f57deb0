"""How kernels are launched: settings as data, checked and tuned, or chosen by a heuristic.

``sweep`` tries settings; ``tritonsyn.workbench.timers`` has what judges them.
"""

from ..launch.config import LaunchConfig, config_for, override_config
from .calls import Shape
from .search import Row, Trial, best, install, sweep

__all__ = [
    "LaunchConfig",
    "Row",
    "Shape",
    "Trial",
    "best",
    "config_for",
    "install",
    "override_config",
    "sweep",
]
