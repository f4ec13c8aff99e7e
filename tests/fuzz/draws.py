"""Inputs that the fuzzer draws: values of no sense, documents with a few places changed, damaged
bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

NUMBERS: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 64, 2**31, 2**63, 10**12, 10**30, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
]
TEXTS = [
    *("", " ", ".", "..", "~", "-", "--", "=", "a=b", "%s", "{}", "[]", "[[]]", "[1", "{a: b}"),
    *("null", "true", "no", "nan", ".inf", "1e400", "-1", "0", "1_000", "0x10", "1.5", "9" * 400),
    *("tp", "odysseus", "peer:nothing", "peer:", "tiny", "fp8", "auto", "a,b", "&a [*a]"),
    *("x" * 256, "x" * 100_000, "../outside", "/dev/null", "/proc/self/mem", "naïve", "💥", "a\tb"),
    *("!!python/object:os.system", "$HOME", "a\nb", "notes.txt", "rows.csv", "folder", "method.py"),
]
IN_FILES: list[Any] = [*NUMBERS, *TEXTS, None, True, False, [], {}, [1, 2], {"a": {"b": 1}}, DEEP]
"""Values in a file."""
IN_FILES += ["a\0b", "\ud800", [None], [[1.0, 2.0]], [{}], list(range(3000))]


def argument() -> st.SearchStrategy[str]:
    """Return a value on the command line."""
    numbers = st.sampled_from([text for n in NUMBERS if len(text := _text(n)) < 1000])
    lists = st.lists(st.sampled_from(TEXTS[:30]), max_size=3).map(lambda of: f"[{','.join(of)}]")
    free = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
    return st.one_of(st.sampled_from(TEXTS), numbers.map(_text), lists, free)


def _text(number: Any) -> str:
    return "9" * 400 if isinstance(number, int) and abs(number) > 10**300 else str(number)


def in_file() -> st.SearchStrategy[Any]:
    """Return a value in a file, which may be changed further."""
    known = st.sampled_from(IN_FILES).map(copy.deepcopy)
    return st.one_of(known, st.integers(), st.floats(), st.text(max_size=20))


@st.composite
def changed(draw: st.DrawFn, document: Any, most: int = 2) -> Any:
    """Return a document of dicts and lists with up to `most` places replaced, removed or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(document))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "remove", "add", "wrap", "scale"])):
            case "replace":
                holder[key] = draw(in_file())
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["x", "type", *map(str, holder)]))] = draw(in_file())
            case "wrap":
                holder[key] = [holder[key]]
            case "scale" if type(holder[key]) in (int, float):
                holder[key] *= draw(st.sampled_from([-1, 0, 3, 1000, 1e30]))
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every holder, a dict or a list, with each key or index."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes that are cut, overwritten, repeated or mixed with others."""
    begin = draw(st.integers(0, len(content)))
    end = draw(st.integers(begin, min(len(content), begin + 200)))
    match draw(st.sampled_from(["cut", "drop", "write", "repeat", "insert"])):
        case "cut":
            return content[:begin]
        case "drop":
            return content[:begin] + content[end:]
        case "write":
            return content[:begin] + draw(st.binary(max_size=20)) + content[end:]
        case "repeat":
            return content[:end] + content[begin:end] * draw(st.integers(1, 50)) + content[end:]
        case _:
            wild = st.sampled_from([b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\r", b"[" * 5000])
            return content[:begin] + draw(wild) + content[begin:]
