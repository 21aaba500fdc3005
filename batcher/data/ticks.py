"""A time that Python's own types cannot hold: nanoseconds, or a year past 9999. Kept as Arrow's number and its type."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


class Ticks:
    """A time or duration as `count` of Arrow's type `unit`: Ticks(1, "timestamp[ns]")."""

    __slots__ = ("count", "unit")

    def __init__(self, count: int, unit: str) -> None:
        self.count, self.unit = count, unit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ticks) and (self.count, self.unit) == (other.count, other.unit)

    def __hash__(self) -> int:
        return hash((self.count, self.unit))

    def __repr__(self) -> str:
        return f"Ticks({self.count}, {self.unit!r})"

    def __str__(self) -> str:
        """As ISO 8601 where Arrow can write it so, else the number."""
        try:
            kind = _type_of(self.unit)
            text = str(pa.scalar(self.count, _integer(kind)).cast(kind).cast(pa.string()).as_py())
        except (pa.ArrowException, ValueError):
            return str(self.count)
        return str(self.count) if text.startswith("<") else text.replace(" ", "T", 1)


def needs_ticks(kind: pa.DataType) -> bool:
    """Whether values of this type count nanoseconds, itself or within."""
    if pa.types.is_dictionary(kind):
        return needs_ticks(kind.value_type)
    if _is_time(kind):
        return not pa.types.is_date(kind) and kind.unit == "ns"
    return any(needs_ticks(kind.field(number).type) for number in range(kind.num_fields))


def with_ticks(column: pa.Array) -> list[Any]:
    """The values of a column, its times as Ticks. Raises what Arrow raises where it has no numbers for them."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    return [_ticked(value, kind) for value in column.cast(_as_integers(kind)).to_pylist()]


def without_ticks(value: Any) -> Any:
    """The value with Arrow's numbers in the place of Ticks, as `pyarrow.array` takes them."""
    if isinstance(value, Ticks):
        return value.count
    if isinstance(value, dict):
        return {key: without_ticks(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_ticks(inner) for inner in value)
    return value


def _is_time(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind) or pa.types.is_duration(kind)
    )


def _integer(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()


def _type_of(unit: str) -> pa.DataType:
    if unit.startswith("timestamp[") and ", tz=" in unit:
        unit, zone = unit.removesuffix("]").split(", tz=")
        return pa.timestamp(unit.removeprefix("timestamp["), zone)
    return {"date64[ms]": pa.date64(), "date32[day]": pa.date32()}.get(unit) or pa.type_for_alias(unit)


def _as_integers(kind: pa.DataType) -> pa.DataType:
    """The type with integers in the place of times."""
    if _is_time(kind):
        return _integer(kind)
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(n).with_type(_as_integers(kind.field(n).type)) for n in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(_as_integers(kind.key_type), _as_integers(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_integers(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_integers(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_as_integers(kind.value_type)), kind.list_size)
    return kind


def _ticked(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if _is_time(kind):
        return Ticks(value, str(kind))
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return {field.name: _ticked(value[field.name], field.type) for field in fields}
    if pa.types.is_map(kind):
        return [(_ticked(key, kind.key_type), _ticked(item, kind.item_type)) for key, item in value]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_ticked(inner, kind.value_type) for inner in value]
    return value
