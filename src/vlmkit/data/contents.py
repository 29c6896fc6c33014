"""What a file holds, as a hash that is remembered."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import xxhash

from vlmkit.data.columns import write_aside

_MEMO_SECONDS = 2.0


def content_hash(path: Path, cache_dir: Path) -> str:
    """Hash of a file's bytes, remembered for as long as size, times and inode stay the same."""
    memo = cache_dir / "manifests.json"
    try:
        known: dict[str, Any] = json.loads(memo.read_bytes())
    except (OSError, ValueError):
        known = {}
    place, stat = str(path.resolve()), path.stat()
    identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    told = known.get(place)
    if isinstance(told, dict) and told.get("identity") == identity and isinstance(told.get("hash"), str):
        return told["hash"]
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    found = digest.hexdigest()
    if time.time() - max(stat.st_mtime, stat.st_ctime) > _MEMO_SECONDS:  # a file just written may change within a tick
        write_aside(memo, json.dumps(known | {place: {"identity": identity, "hash": found}}).encode())
    return found
