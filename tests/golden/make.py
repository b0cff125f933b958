"""Write the golden events of the present schemas: `python -m tests.golden.make v1`.

A golden file, once committed, is never written again: it stands for what lies in somebody's log. A changed schema gets
files in a new folder (`v2`), and the old ones must still be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from eventq.events.envelope import encode
from tests.golden.examples import lives


def write(folder: Path) -> list[Path]:
    """One file for each event: its subject and the exact bytes of its payload. Refuses where files exist."""
    if existing := sorted(folder.glob("*.json")):
        raise FileExistsError(f"{folder} holds {len(existing)} golden events; they are never overwritten: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for life, events in lives().items():
        for event in events:
            file = folder / f"{life}-{event.version:02d}-{event.type}.json"
            golden = {"subject": event.subject, "payload": encode(event).decode()}
            file.write_bytes(orjson.dumps(golden, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            written.append(file)
    return written


if __name__ == "__main__":
    for path in write(Path(__file__).parent / sys.argv[1]):
        print(path.name)
