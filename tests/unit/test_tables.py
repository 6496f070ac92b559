"""Tables of other libraries come out as they went in."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest

from snakepit_trio.errors import InvalidParameter, InvalidPayload
from snakepit_trio.wire import codec, frames

THRESHOLDS = pytest.mark.parametrize("threshold", [0, 1 << 20])


def there_and_back(value: Any, threshold: int) -> Any:
    payload = codec.encode({"x": [value]}, buffer_threshold=threshold)
    assert bool(payload.buffers) == (threshold == 0)
    return codec.decode(payload)["x"][0]


@THRESHOLDS
@pytest.mark.parametrize("code", "bBhHiIlLqQfd")
def test_array_array(code: str, threshold: int) -> None:
    value = array.array(code, [1, 2, 3])
    found = there_and_back(value, threshold)
    assert found == value and found.typecode == code


@THRESHOLDS
def test_arrow(threshold: int) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": [1, 2, None], "b": ["x", "y", "z"], "c": [[1], [], None]})
    for value in (table, table.to_batches()[0], table.slice(1, 1), table.schema.empty_table()):
        assert there_and_back(value, threshold).equals(value)
    assert there_and_back(pa.array([1, None]), threshold).equals(pa.array([1, None]))


@THRESHOLDS
def test_pandas(threshold: int) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(
        {"a": [1, 2], "b": ["x", None], "t": pd.to_datetime(["2020-01-01", "2021-01-01"])}, index=[5, 7]
    )
    pd.testing.assert_frame_equal(there_and_back(frame, threshold), frame)
    for series in (frame["a"], frame["a"].rename(None), frame["a"].rename("")):
        found = there_and_back(series, threshold)
        pd.testing.assert_series_equal(found, series)
    with pytest.raises(InvalidParameter) as caught:
        codec.encode({"x": pd.DataFrame({"a": [1, object()]})})
    assert caught.value.details["path"] == 'params["x"]'


def test_pandas_keeps_the_freq_of_an_index_or_refuses() -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for freq in ("D", "3min", "B", "ME", "W-TUE", "QS-FEB", None):
        days = pd.date_range("2024-01-01", periods=4, freq=freq or "D", tz="Europe/Paris")
        days.freq = days.freq if freq else None
        frame = pd.DataFrame({"a": range(4)}, index=days)
        wide = pd.DataFrame([[1, 2, 3, 4]], columns=days.tz_localize(None))
        spans = pd.DataFrame({"a": range(4)}, index=pd.timedelta_range("1h", periods=4, freq="2h"))
        for value in (frame, wide, spans, frame[:0]):
            found = there_and_back(value, 0)
            pd.testing.assert_frame_equal(found, value)
            for axis in ("index", "columns"):
                before, after = getattr(value, axis), getattr(found, axis)
                assert getattr(after, "freq", None) == getattr(before, "freq", None)
        found = there_and_back(frame["a"], 0)
        pd.testing.assert_series_equal(found, frame["a"])
        assert found.index.freq == days.freq
    for freq in (pd.offsets.CustomBusinessDay(holidays=["2024-01-02"]), pd.DateOffset(months=2)):
        frame = pd.DataFrame({"a": range(4)}, index=pd.date_range("2024-01-01", periods=4, freq=freq))
        for value in (frame, frame["a"]):
            with pytest.raises(InvalidParameter, match="set the index's freq to None"):
                codec.encode({"x": value})


@THRESHOLDS
def test_polars(threshold: int) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    assert there_and_back(frame, threshold).equals(frame)
    assert there_and_back(frame["b"], threshold).equals(frame["b"])


class Tensor:
    """An array of another library."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


@THRESHOLDS
def test_dlpack(threshold: int) -> None:
    found = there_and_back(Tensor(np.arange(6.0).reshape(2, 3)), threshold)
    assert type(found) is np.ndarray and (found == np.arange(6.0).reshape(2, 3)).all()


@pytest.mark.parametrize("code", [34, 40])
@pytest.mark.parametrize("body", [[], [1], [0, b"x"], ["d", 3, b""], ["z", 4, b""], [9, b""], [0, 5]])
def test_garbage_is_refused(code: int, body: Any) -> None:
    import msgspec

    data = msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(body)))
    with pytest.raises(InvalidPayload):
        codec.decode(frames.Payload(frames.MSGPACK, data))
