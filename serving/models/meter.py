"""What one render of a chat template may still take, in time and in memory.

The meter asks before anything is allocated: is this one value too large, and has the whole render taken too much? It
charges what is made and never gives back what is dropped, so what is alive at any time is less. Containers are weighed
with all that is in them when they are made: a list of lists that are all one list can be larger than memory once it is
printed or compared, and nothing stops Python in the middle of that.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from time import monotonic
from typing import Any

import jinja2

MAX_VALUE = 16 * 2**20  # characters of one string; of a list or dict, its weight
MAX_RENDER = 16 * MAX_VALUE  # characters made in one render, all together
MAX_WIDTH = 999  # of anything padded or indented
MAX_BITS = 2**16  # of an integer
ELEMENT = 32  # weight of an element, and of what is neither text nor a container: about its bytes

TOO_MUCH = "it makes too much text"


class BoundReached(jinja2.TemplateRuntimeError):
    """A template would take more time or memory than it may."""


class Meter:
    """What one render has left of its `seconds` and of `MAX_RENDER`. Every method raises `BoundReached`."""

    __slots__ = ("_deadline", "_left")

    def __init__(self, seconds: float) -> None:
        self._deadline = monotonic() + seconds
        self._left = MAX_RENDER

    # These are called by compiled templates.

    def tick(self, size: int = 0) -> None:
        """Before every turn of a loop and every call; `size` is how much constant text the turn can gather."""
        self._left -= size
        if self._left < 0:
            raise BoundReached(TOO_MUCH)
        if monotonic() > self._deadline:
            raise BoundReached("it takes too long")

    def passing(self, value: Any) -> Any:
        """What took its time outside of a turn: a loop's condition, which also those items have that get no turn."""
        self.tick()
        return value

    def text(self, value: Any) -> str:
        """What is printed for a value, where it is gathered and not yet given out."""
        text = value if type(value) is str else str(value)
        self._left -= len(text)
        if self._left < 0:
            raise BoundReached(TOO_MUCH)
        return text

    def add(self, first: Any, *others: Any) -> Any:
        """`first + …`, from left to right."""
        result = first
        for other in others:
            if isinstance(result, str) and isinstance(other, str):
                self.expect(len(result) + len(other))
            result = self.made(result + other)
        return result

    def concat(self, *values: Any) -> str:
        """`a ~ b ~ …`"""
        texts, size = [], 0
        for value in values:
            texts.append(str(value))
            size += len(texts[-1])
            self.expect(size)
        self.charge(size)
        return "".join(texts)

    def mul(self, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > MAX_BITS:
                raise BoundReached("it computes too large a number")
        elif isinstance(left, int | str | list | tuple) and isinstance(right, int | str | list | tuple):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int) and times > 0:
                self.expect(times * self.weight(value))
        return self.made(left * right)

    def pow(self, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
            bits = left.bit_length() * abs(right)
            if bits > MAX_BITS:
                raise BoundReached("it computes too large a number")
        return left**right

    def mod(self, left: Any, right: Any) -> Any:
        return self.formatted(left, right) if isinstance(left, str) else left % right

    def cut(self, value: Any, *bounds: Any) -> Any:
        """`value[a:b:c]`"""
        return self.made(value[slice(*bounds)], weigh=False)

    def made(self, value: Any, *, weigh: bool = True) -> Any:
        """Charge for `value`, which is new. Without `weigh` a container is charged for its elements' places only."""
        if isinstance(value, str):
            if len(value) > MAX_VALUE:
                raise BoundReached(TOO_MUCH)
            self.charge(len(value))
        elif isinstance(value, list | tuple | dict):
            self.charge(self.weight(value) if weigh else ELEMENT * len(value))
        return value

    # These are called by filters and methods.

    def expect(self, size: int) -> None:
        """Something of at most this many characters is about to be made."""
        if size > MAX_VALUE or size > self._left:
            raise BoundReached(TOO_MUCH)

    def charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise BoundReached(TOO_MUCH)

    def weight(self, value: Any) -> int:
        """About the characters that `value` prints, never less; containers with all that is in them."""
        if isinstance(value, str):
            return len(value)
        total, seen, stack = 0, 0, [value]
        while stack:
            one = stack.pop()
            if isinstance(one, str):
                total += len(one)
            elif isinstance(one, int):
                total += one.bit_length() // 3  # digits
            elif isinstance(one, Mapping):
                stack.extend(one.keys())
                stack.extend(one.values())
            elif isinstance(one, list | tuple | KeysView | ValuesView | ItemsView):
                stack.extend(one)
            total += ELEMENT
            seen += 1
            if total > MAX_VALUE:
                raise BoundReached("it makes too large a list")
            if seen % 1024 == 0:
                self.tick()
        return total

    def formatted(self, form: str, values: Any) -> str:
        """`form % values`"""
        wide = r"%[-#0 +\d.]*\*|%[-#0 +]*\d{4}|%[-#0 +]*\d*\.\d{4}" + (r"|\d{4}" if "%(" in form else "")
        if re.search(wide, form):
            raise BoundReached("it pads too far")
        fields = form.count("%")
        weight = self.weight(values)
        self.expect(len(form) + fields * MAX_WIDTH + weight * (fields if isinstance(values, Mapping) else 1))
        made: str = self.made(form % values)
        return made

    def ticking(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.tick()
            yield value
