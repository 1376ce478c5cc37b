"""What torch.compile needs beside torch."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def missing_for_compile() -> str:
    """What this machine lacks for torch.compile, in words; empty where nothing is missing."""
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return "a C++ compiler (g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers (python3-dev)"
    return ""
