"""Server-side algorithms that choose, combine and distil, composed by wrapping.

`strategies.methods` holds the published methods that study files name, and lists them by
``strategies.methods.methods()``.
"""

from strategies.distilled import Distilled
from strategies.groups import Groups
from strategies.methods import Method, build_server, method
from strategies.mutual import GroupsDistilled
from strategies.slices import Slices
from strategies.student import StudentResult, distil_student

__all__ = [
    "Distilled",
    "Groups",
    "GroupsDistilled",
    "Method",
    "Slices",
    "StudentResult",
    "build_server",
    "distil_student",
    "method",
]
