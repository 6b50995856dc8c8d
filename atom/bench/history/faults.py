"""What is wrong with a history file, in one line with the way out."""

from __future__ import annotations

from pathlib import Path

from atom.bench.history import schema


def explain(error: Exception, path: Path, write: bool) -> str:
    """One line: what is wrong with the file and the way out."""
    verb = "write" if write else "read"
    elsewhere = "or give another file with --history"
    if isinstance(error, schema.TooNew):
        return (
            f"the history {path} was written by a newer atom (version {error} of the "
            f"file, {len(schema.MIGRATIONS)} is known here): update atom {elsewhere}"
        )
    text = str(error)
    if path.is_dir():
        return f"the history {path} is a folder; give a file with --history"
    if isinstance(error, schema.NotOurs) or "not a database" in text:
        return f"{path} is not a run history; give another file with --history"
    if "malformed" in text or "corrupt" in text:
        return (
            f"the history {path} is damaged ({text}): move it away and save what can be "
            f"saved with sqlite3 FILE .recover, {elsewhere}"
        )
    if isinstance(error, OSError):
        text = error.strerror or text
    hints = {
        "full": "free some space",
        "locked": "another process has been writing for too long, try again",
        "readonly": "it cannot be written by this user",
        "unable to open": "the folder or the file cannot be used by this user",
    }
    hint = next((hint for key, hint in hints.items() if key in text), "")
    way = f"{hint}, {elsewhere}" if hint else elsewhere.removeprefix("or ")
    return f"cannot {verb} the history {path}: {text}; {way}"
