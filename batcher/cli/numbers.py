"""Numbers on the command line: exact ones, and only as people write them.

`with_plain_numbers` is called once for every command, so that no option can forget it.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import click

from alpasift.graders.interface.names import is_plain_number


class DecimalType(click.ParamType[Decimal]):
    """An exact number."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            found = Decimal(str(value) if is_plain_number(str(value).strip()) else "NaN")
        except InvalidOperation:
            found = Decimal("NaN")
        if not found.is_finite() or abs(found) > 100_000:
            self.fail(f"{value!r} is not a score or share", param, ctx)
        return found


NUMBER = DecimalType()


class _Plain:
    """A number as people write one. Python reads 1_0, inf and digits of other scripts as well, and a slip is unseen."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not is_plain_number(value.strip()):
            raise click.BadParameter(f"{value!r} is not a number", ctx, param)
        return super().convert(value, param, ctx)  # type: ignore[misc]


class _Int(_Plain, click.types.IntParamType):
    pass


class _Float(_Plain, click.types.FloatParamType):
    pass


class _IntRange(_Plain, click.IntRange):
    pass


class _FloatRange(_Plain, click.FloatRange):
    pass


_PLAIN: dict[type[Any], type[Any]] = {
    click.types.IntParamType: _Int,
    click.types.FloatParamType: _Float,
    click.IntRange: _IntRange,
    click.FloatRange: _FloatRange,
}


def with_plain_numbers(command: click.Command) -> click.Command:
    """The command, and those of a group, with options that take numbers only as people write them."""
    for param in command.params:
        if type(param.type) in _PLAIN:
            cls = _PLAIN[type(param.type)]
            kind: Any = object.__new__(cls)  # its limits as they are
            vars(kind).update(vars(param.type))
            param.type = kind
    for one in command.commands.values() if isinstance(command, click.Group) else ():
        with_plain_numbers(one)
    return command
