"""Write the golden events that are still missing: `python -m tests.golden.make v2`.

A golden file, once committed, is never written again: it stands for what lies in somebody's log. A changed schema gets
files in a new folder, and the old ones must still be read. A new life in `examples.py` may join the folder of a release
that is still being made; the lives that stand there already are left alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from eventq.events.envelope import encode
from tests.golden.examples import lives


def write(folder: Path) -> list[Path]:
    """One file for each event of each life that has none there: its subject and the exact bytes of its payload. Refuses
    where every life has its files."""
    present = {file.name.rsplit("-", 2)[0] for file in folder.glob("*.json")}
    missing = {life: events for life, events in lives().items() if life not in present}
    if not missing:
        raise FileExistsError(f"{folder} has every life; golden events are never overwritten: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for life, events in missing.items():
        for event in events:
            file = folder / f"{life}-{event.version:02d}-{event.type}.json"
            golden = {"subject": event.subject, "payload": encode(event).decode()}
            file.write_bytes(orjson.dumps(golden, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            written.append(file)
    return written


if __name__ == "__main__":
    for path in write(Path(__file__).parent / sys.argv[1]):
        print(path.name)
