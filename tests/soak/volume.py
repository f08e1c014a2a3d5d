"""An adapter volume that is never left in peace: versions come, go, break and are copied half."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.adapters import write_version

NAMES, VERSIONS = 3, 3
ACTIONS = ("reload", "reload", "unload", "pin", "unpin")


class Volume:
    """live: what the server reads. Every version is kept whole in `stock`, beside it."""

    def __init__(self, folder: Path, base: Path, digest: str, chance: random.Random) -> None:
        self.live = folder / "live"
        self.done: Counter[str] = Counter()
        self._stock = folder / "stock"
        self._chance = chance
        self.live.mkdir(parents=True)
        self.versions: list[str] = []  # NAME@VERSION
        for number in range(NAMES * VERSIONS):
            name = f"soak-{number % NAMES}"
            version = write_version(base, self._stock / name, number, digest)
            self.versions.append(f"{name}@{version.name}")

    def publish_all(self) -> None:
        """As it is before the disturbance, and again after it."""
        for key in self.versions:
            self.publish(key)

    def disturb(
        self, ended: threading.Event, pause_seconds: float, operate: Callable[[str, str], None]
    ) -> None:
        """One thing after the other until `ended`. operate: does an action of the admin routes to a version."""
        deeds: list[Callable[[str], None]] = [self.publish] * 4
        deeds += [self.remove, self.corrupt, self.copy_half, self.point]
        while not ended.wait(self._chance.uniform(0.2, 2 * pause_seconds)):
            key = self._chance.choice(self.versions)
            if self._chance.random() < 0.2:
                action = self._chance.choice(ACTIONS)
                operate(key, action)
                self.done[action] += 1
                continue
            deed = self._chance.choice(deeds)
            deed(key)
            self.done[deed.__name__.replace("_", " ")] += 1

    def publish(self, key: str) -> None:
        """As the trainer does it: written under a hidden name, renamed, and then `latest` moves."""
        name, version = key.split("@")
        home = self.live / name
        home.mkdir(exist_ok=True)
        hidden = home / f".tmp-{version}"
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.copytree(self._stock / name / version, hidden)
        shutil.rmtree(home / version, ignore_errors=True)
        hidden.rename(home / version)
        self.point(key)

    def point(self, key: str) -> None:
        """`latest` of a name, at a version that may be there or not."""
        name, version = key.split("@")
        home = self.live / name
        home.mkdir(exist_ok=True)
        link = home / ".latest"
        link.unlink(missing_ok=True)
        link.symlink_to(version)
        os.replace(link, home / "latest")

    def remove(self, key: str) -> None:
        """File by file, so that the server may look in between."""
        name, version = key.split("@")
        shutil.rmtree(self.live / name / version, ignore_errors=True)

    def corrupt(self, key: str) -> None:
        """Bytes of the weights are overwritten where they lie, perhaps while they are served."""
        name, version = key.split("@")
        file = self.live / name / version / "adapter_model.safetensors"
        if file.exists():
            with file.open("r+b") as weights:
                weights.seek(self._chance.randrange(file.stat().st_size))
                weights.write(self._chance.randbytes(64))

    def copy_half(self, key: str) -> None:
        """Somebody copies by hand under the final name, and is cut off."""
        name, version = key.split("@")
        target = self.live / name / version
        if target.exists():
            return
        target.mkdir(parents=True)
        files = sorted((self._stock / name / version).iterdir())
        for file in files[: self._chance.randrange(len(files))]:
            data = file.read_bytes()
            (target / file.name).write_bytes(data[: self._chance.randint(0, len(data))])
