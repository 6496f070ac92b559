"""Tables and arrays of other libraries as binary values: Arrow's IPC stream, and what speaks its or DLPack's protocol.

Nothing here is imported before a value of such a library turns up; on the receiving side the library must be installed,
or the payload does not decode. Formats:
https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc,
https://data-apis.org/array-api/latest/design_topics/data_interchange.html
"""

from __future__ import annotations

import io
import sys
from typing import Any

__all__ = ["from_stream", "is_array", "table_kind", "to_array", "to_stream"]

#: The number of each kind of table on the wire.
ARROW_TABLE, ARROW_BATCH, PANDAS_FRAME, PANDAS_SERIES, POLARS_FRAME, POLARS_SERIES, ARROW_ARRAY = range(7)

_CLASSES = (
    ("pyarrow", "Table", ARROW_TABLE),
    ("pyarrow", "RecordBatch", ARROW_BATCH),
    ("pandas", "DataFrame", PANDAS_FRAME),
    ("pandas", "Series", PANDAS_SERIES),
    ("polars", "DataFrame", POLARS_FRAME),
    ("polars", "Series", POLARS_SERIES),
)


def table_kind(value: Any) -> int | None:
    """Return the kind of a table; None for any other value."""
    for module_name, name, kind in _CLASSES:
        module = sys.modules.get(module_name)
        if module is not None and type(value) is getattr(module, name, None):
            return kind
    if "pyarrow" in sys.modules and (hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__")):
        return ARROW_ARRAY
    return None


def to_stream(value: Any, kind: int) -> memoryview:
    """Return the table as an Arrow IPC stream.

    Raises:
        Exception: Any exception of the library, for content without an Arrow type.
    """
    if kind in (POLARS_FRAME, POLARS_SERIES):
        frame = value if kind == POLARS_FRAME else value.to_frame()
        out = io.BytesIO()
        frame.write_ipc_stream(out)
        return out.getbuffer()
    import pyarrow as pa

    if kind == ARROW_TABLE:
        table = value
    elif kind == ARROW_BATCH:
        table = pa.Table.from_batches([value])
    elif kind == PANDAS_FRAME:
        table = _with_frequencies(pa.Table.from_pandas(value), value.index, value.columns)
    elif kind == PANDAS_SERIES:
        # A series may have no name, but a column must.
        table = pa.Table.from_pandas(value.to_frame("" if value.name is None else value.name))
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"snakepit.unnamed": b"%d" % (value.name is None)}
        )
        table = _with_frequencies(table, value.index)
    else:
        table = pa.table({"": pa.array(value) if hasattr(value, "__arrow_c_array__") else pa.chunked_array(value)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def from_stream(kind: int, data: memoryview) -> Any:
    """Return the table in a stream. Arrow's own tables view the stream's memory; pandas and polars copy.

    Raises:
        Exception: The stream is malformed, or the library is not installed.
    """
    if kind in (POLARS_FRAME, POLARS_SERIES):
        import polars

        frame = polars.read_ipc_stream(io.BytesIO(data))
        return frame if kind == POLARS_FRAME else frame.to_series()
    import pyarrow as pa

    buffer = pa.py_buffer(data)
    if buffer.address % 8:  # It arrived inside a message, and Arrow needs aligned columns.
        buffer = pa.py_buffer(bytes(data))
    with pa.ipc.open_stream(buffer) as reader:
        table = reader.read_all()
    if kind == ARROW_TABLE:
        return table
    if kind == ARROW_BATCH:
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
    if kind == ARROW_ARRAY:
        return table.column(0).combine_chunks()
    if kind == PANDAS_FRAME:
        frame = table.to_pandas()
        _set_frequencies(table, frame.index, frame.columns)
        return frame
    if kind == PANDAS_SERIES:
        series = table.to_pandas().iloc[:, 0]
        _set_frequencies(table, series.index)
        return series.rename(None) if table.schema.metadata.get(b"snakepit.unnamed") == b"1" else series
    raise ValueError(f"a table of the unknown kind {kind}")


def _with_frequencies(table: Any, *axes: Any) -> Any:
    """Return the table with the frequencies of its indexes, which Arrow does not keep.

    Raises:
        ValueError: A frequency has no text form, such as business days with holidays.
    """
    from pandas.tseries.frequencies import to_offset

    found = {}
    for number, axis in enumerate(axes):
        frequency = getattr(axis, "freq", None)
        # A PeriodIndex has its frequency in its dtype.
        if frequency is None or axis.dtype.kind not in "mM":
            continue
        text = frequency.freqstr
        try:
            same = to_offset(text) == frequency
        except ValueError:
            same = False
        if not same:
            raise ValueError(f"its index has the freq {frequency!r}, which has no text; set the index's freq to None")
        found[b"snakepit.freq.%d" % number] = text.encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **found}) if found else table


def _set_frequencies(table: Any, *axes: Any) -> None:
    for number, axis in enumerate(axes):
        text = (table.schema.metadata or {}).get(b"snakepit.freq.%d" % number)
        if text is not None:
            axis.freq = text.decode()


def is_array(value: Any) -> bool:
    """Return whether a value is another library's array in memory that numpy can access."""
    return "numpy" in sys.modules and hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")


def to_array(value: Any) -> Any:
    """Return the value as a numpy array.

    Raises:
        Exception: It is on another device, or has a type that numpy lacks.
    """
    import numpy

    return numpy.from_dlpack(value)
