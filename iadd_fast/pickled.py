"""Pickles of strangers, read by an interpreter that knows data only.

``pickle.Unpickler`` is no match for a hostile file even where ``find_class`` admits nothing: place
2**31 of the memo makes it allocate and clear 34 GB, a tuple that holds itself twice, sixty times
over, keeps its hash busy for years, and a few bytes may announce terabytes. Here only numbers,
texts, bytes, lists, tuples, dictionaries and what the caller admits come about, each bounded by the
bytes that are there. ``pickletools`` of the standard library reads the instructions' arguments.
"""

from __future__ import annotations

import codecs
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, NoReturn, cast

#: Bytes of a line, which only texts and numbers of protocol 0 take.
_LONGEST_LINE = 2**28
#: Letters of a message, in which a file of any size may be quoted.
_LONGEST_REASON = 300
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_NUMBERS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
}  # fmt: skip
_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
#: Python 2's texts: bytes, here as there.
_OLD_TEXTS = {"BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class Forbidden(ValueError):
    """A pickle asks for a function or class that is not admitted.

    Attributes:
        name: of what it asks for, ``module.name``; a long one is cut.
    """

    def __init__(self, name: str) -> None:
        name = name if len(name) <= 80 else f"{name[:77]}..."
        super().__init__(f"it asks for {name}")
        self.name = name


@dataclass(frozen=True, eq=False)
class Named:
    """A function or class that a pickle names: called by it where ``call`` is given."""

    name: str
    call: Callable[..., Any] | None


class StandIn:
    """Takes the place of an object whose state a pickle sets."""

    def build(self, state: Any) -> None:
        """Take ``state``, whatever it is."""
        raise ValueError(f"it sets the state of a {type(self).__name__}")


def load(
    file: IO[bytes],
    size: int,
    admitted: Mapping[str, Callable[..., Any] | None],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of the pickle at the position of ``file``, which is left behind it.

    Args:
        size: bytes of the file; nothing longer is read or made.
        admitted: ``"module.name"`` -> what is called in its place; None: it may be named only.
        persistent: makes an object of a persistent id; None: there are none.

    Raises:
        Forbidden: it asks for something else.
        ValueError: it is damaged, uses an instruction that data does not need, or holds a key that
            is no text. The message is short, whatever the file holds.
    """
    try:
        return _Interpreter(_Bounded(file, size), size, admitted, persistent).run()
    except Forbidden:
        raise
    except ValueError as error:
        raise ValueError(str(error)[:_LONGEST_REASON]) from None
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {str(error)[:200]})") from None


class _Bounded:
    """Reads no further than the file goes, so that no claim is allocated."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def read(self, count: int) -> bytes:
        left = self._size - self._file.tell() if count > 64 else count
        return self._file.read(max(0, min(count, left)))

    def readline(self) -> bytes:
        return self._file.readline(_LONGEST_LINE)


class _Interpreter:
    def __init__(
        self,
        file: _Bounded,
        size: int,
        admitted: Mapping[str, Callable[..., Any] | None],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.file = file
        self.admitted = {"_codecs.encode": self.encode, **admitted}
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = size

    def run(self) -> Any:
        while True:
            code = self.file.read(1)
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise ValueError(
                    f"byte {code!r} is no instruction of a pickle" if code else "it ends"
                )
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name == "STRING":  # pickletools takes text for ASCII, which bytes are not
                self.stack.append(_quoted(self.file.readline()))
                continue
            argument: Any = None
            if opcode.arg is not None:
                argument = opcode.arg.reader(cast(IO[bytes], self.file))
            if name in _NUMBERS or name in _TEXTS or name in _BYTES:
                self.stack.append(argument)
            elif name in _OLD_TEXTS:
                self.stack.append(argument.encode("latin-1"))
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                self.keep(argument)
            elif name == "MEMOIZE":
                self.keep(len(self.memo))
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self.stack.append(self.memo[argument])
            elif name not in ("PROTO", "FRAME"):
                self.structure(name, argument)

    def structure(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = [self.pop() for _ in range(count)][::-1]
            stack.append(tuple(items))
        elif name == "TUPLE":
            stack.append(tuple(self.marked()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "LIST":
            stack.append(self.marked())
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("APPEND", "APPENDS"):
            items = [self.pop()] if name == "APPEND" else self.marked()
            _expect(self.top(), list).extend(items)
        elif name in ("SETITEM", "SETITEMS", "DICT"):
            items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.marked()
            if name == "DICT":
                stack.append({})
            _set_items(_expect(self.top(), dict), items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ", 1) if name == "GLOBAL" else [self.pop(), self.pop()][::-1]
            stack.append(self.named(".".join(_expect(part, str) for part in parts)))
        elif name == "REDUCE":
            arguments, function = _expect(self.pop(), tuple), _expect(self.pop(), Named)
            if function.call is None:
                raise Forbidden(function.name)
            stack.append(function.call(*arguments))
        elif name == "BUILD":
            state = self.pop()
            _expect(self.top(), StandIn).build(state)
        elif name == "BINPERSID" and self.persistent is not None:
            stack.append(self.persistent(self.pop()))
        else:
            _refuse(name)

    def named(self, name: str) -> Named:
        if name not in self.admitted:
            raise Forbidden(name)
        return Named(name, self.admitted[name])

    def keep(self, place: int) -> None:
        if place > 2 * len(self.memo) + 16:  # Picklers count.
            raise ValueError(f"it keeps a value at place {place:,} of {len(self.memo):,}")
        self.memo[place] = self.top()

    def encode(self, text: Any, encoding: Any) -> bytes:
        """``codecs.encode``, with which Python 3 writes bytes for Python 2."""
        if encoding not in ("latin1", b"latin1"):
            raise ValueError("it holds text in an encoding other than latin1")
        self.left -= len(_expect(text, str))
        if self.left < 0:  # One text of the file, made into bytes again and again.
            raise ValueError("it makes more bytes than it holds")
        return text.encode("latin-1")

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("it is damaged (an unexpected mark)")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """What lies on the last mark, which goes too."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("it is damaged (a mark is missing)")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items


def _set_items(into: dict[Any, Any], items: list[Any]) -> None:
    for key in items[::2]:
        # The hash of nested tuples can take years, and numbers can be made to have one hash.
        if not isinstance(key, str | bytes):
            raise ValueError(f"it holds a {type(key).__name__} as a key; takes text")
    into.update(zip(items[::2], items[1::2], strict=True))


def _expect(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it holds a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _quoted(line: bytes) -> bytes:
    text = line.strip()
    if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
        raise ValueError("it holds a text without quotes")
    return codecs.escape_decode(text[1:-1])[0]


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"it uses the instruction {name}, which data does not need")
