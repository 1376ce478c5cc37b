"""One line of the preflight: what was looked at, where, what was seen, and the cure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Line:
    """What one check found.

    Parameters
    ----------
    status : ok, warn (it will run, worse than it could) or fail (it will not run, or not rightly)
    check : what was looked at
    where : name of the node or file
    seen : what was seen, with its unit
    cure : what to do about it; empty where all is well
    """

    status: Status
    check: str
    where: str
    seen: str
    cure: str = ""

    def __str__(self) -> str:
        cure = f". {self.cure}" if self.cure else ""
        return f"{self.status:4}  {self.check:10}  {self.where}: {self.seen}{cure}"


def guarded(check: str, where: str, look: Callable[[], Line], cure: str) -> Line:
    """Look; whatever is raised becomes a failed line.

    Parameters
    ----------
    check, where : as in Line
    look : the check
    cure : what to do if it raises
    """
    try:
        return look()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Line("fail", check, where, text, cure)
