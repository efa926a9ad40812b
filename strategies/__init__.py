"""Server-side algorithms that choose, combine and distil, composed by wrapping.

`strategies.methods` holds the published methods that study files name, and lists them by
``strategies.methods.methods()``.
"""

from strategies.adaptive import adaptive_uplink
from strategies.distilled import Distilled
from strategies.groups import Groups
from strategies.mask_averaged import MaskAveraged
from strategies.methods import Method, build_server, method
from strategies.mutual import GroupsDistilled
from strategies.pruned import Pruned
from strategies.slices import Slices
from strategies.student import StudentResult, distil_student

__all__ = [
    "Distilled",
    "Groups",
    "GroupsDistilled",
    "MaskAveraged",
    "Method",
    "Pruned",
    "Slices",
    "StudentResult",
    "adaptive_uplink",
    "build_server",
    "distil_student",
    "method",
]
