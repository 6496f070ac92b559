"""Tables and arrays of other libraries as binary values: Arrow's IPC stream, and what speaks its or DLPack's protocol.

Nothing here is imported before a value of such a library turns up; on the receiving side the library must be installed,
or the payload does not decode. Formats: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc,
https://data-apis.org/array-api/latest/design_topics/data_interchange.html
"""

from __future__ import annotations

import io
import sys
from typing import Any

__all__ = ["from_stream", "is_array", "table_kind", "to_array", "to_stream"]

#: How each kind of table is called on the wire.
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
    """Which kind of table a value is; None when it is none."""
    for module_name, name, kind in _CLASSES:
        module = sys.modules.get(module_name)
        if module is not None and type(value) is getattr(module, name, None):
            return kind
    if "pyarrow" in sys.modules and (hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__")):
        return ARROW_ARRAY
    return None


def to_stream(value: Any, kind: int) -> memoryview:
    """The table as an Arrow IPC stream.

    Raises:
        Exception: Whatever the library raises for contents that Arrow has no type for.
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
        table = pa.Table.from_pandas(value)
    elif kind == PANDAS_SERIES:
        # A series may be without a name, a column may not.
        table = pa.Table.from_pandas(value.to_frame("" if value.name is None else value.name))
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"snakepit.unnamed": b"%d" % (value.name is None)}
        )
    else:
        table = pa.table({"": pa.array(value) if hasattr(value, "__arrow_c_array__") else pa.chunked_array(value)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def from_stream(kind: int, data: memoryview) -> Any:
    """The table that a stream holds. Arrow's own look at the stream's memory; pandas and polars copy.

    Raises:
        Exception: It holds none, or the library is not installed.
    """
    if kind in (POLARS_FRAME, POLARS_SERIES):
        import polars

        frame = polars.read_ipc_stream(io.BytesIO(data))
        return frame if kind == POLARS_FRAME else frame.to_series()
    import pyarrow as pa

    buffer = pa.py_buffer(data)
    if buffer.address % 8:  # It came inside a message; Arrow wants its columns aligned.
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
        return table.to_pandas()
    if kind == PANDAS_SERIES:
        series = table.to_pandas().iloc[:, 0]
        return series.rename(None) if table.schema.metadata.get(b"snakepit.unnamed") == b"1" else series
    raise ValueError(f"a table of the unknown kind {kind}")


def is_array(value: Any) -> bool:
    """Whether a value is an array of another library, in memory that numpy can see."""
    return "numpy" in sys.modules and hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")


def to_array(value: Any) -> Any:
    """The same as a numpy array.

    Raises:
        Exception: It is on another device, or of a type that numpy does not have.
    """
    import numpy

    return numpy.from_dlpack(value)
