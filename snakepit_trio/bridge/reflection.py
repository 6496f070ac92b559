"""grpc.reflection.v1, and v1alpha, which many clients still use, from the compiled descriptors.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from snakepit_trio.wire.fields import read_fields
from snakepit_trio.wire.generated.grpc.reflection import v1, v1alpha

from .methods import Method
from .server_call import ServerCall

__all__ = ["Descriptors", "ReflectionService", "load_descriptors"]

_NOT_FOUND = 5
_UNIMPLEMENTED = 12
#: Services in the descriptors that a host does not serve.
_ELSEWHERE = frozenset({"snakepit.v1.WorkerService"})
_LONGEST = 64 * 1024


@attrs.frozen
class Descriptors:
    """Files of declarations, serialized as ``google.protobuf.FileDescriptorProto``.

    Attributes:
        files: The files by name.
        imports: The names of a file's imports, by the file's name.
        symbols: The file that declares each fully qualified name.
        services: The names of the services.
    """

    files: Mapping[str, bytes]
    imports: Mapping[str, tuple[str, ...]]
    symbols: Mapping[str, str]
    services: tuple[str, ...]

    def with_imports(self, name: str) -> list[bytes]:
        """Return a file and everything that it needs, itself first."""
        found: dict[str, bytes] = {}
        wanted = [name]
        while wanted:
            one = wanted.pop()
            if one not in found:
                found[one] = self.files[one]
                wanted.extend(self.imports[one])
        return list(found.values())


@functools.cache
def load_descriptors() -> Descriptors:
    """Load protoc's output for ``protos/``. The field numbers are those of google/protobuf/descriptor.proto."""
    data = importlib.resources.files("snakepit_trio.wire.generated").joinpath("descriptors.bin").read_bytes()
    files: dict[str, bytes] = {}
    imports: dict[str, tuple[str, ...]] = {}
    symbols: dict[str, str] = {}
    services: list[str] = []
    for file in _all(data, 1):
        (name,) = map(bytes.decode, _all(file, 1))
        package = next(map(bytes.decode, _all(file, 2)), "")
        files[name] = file
        imports[name] = tuple(map(bytes.decode, _all(file, 3)))
        for symbol in _symbols(file, package):
            symbols[symbol] = name
        services += (f"{package}.{_name(service)}" for service in _all(file, 6))
    return Descriptors(files, imports, symbols, tuple(services))


def _symbols(file: bytes, package: str) -> Iterator[str]:
    for message in _all(file, 4):
        yield from _message_symbols(message, package)
    for enum in _all(file, 5):
        yield f"{package}.{_name(enum)}"
    for service in _all(file, 6):
        own = f"{package}.{_name(service)}"
        yield own
        for method in _all(service, 2):
            yield f"{own}.{_name(method)}"


def _message_symbols(message: bytes, scope: str) -> Iterator[str]:
    own = f"{scope}.{_name(message)}"
    yield own
    for field in _all(message, 2):
        yield f"{own}.{_name(field)}"
    for nested in _all(message, 3):
        yield from _message_symbols(nested, own)
    for enum in _all(message, 4):
        yield f"{own}.{_name(enum)}"


def _name(data: bytes) -> str:
    return next(_all(data, 1)).decode()


def _all(data: bytes, number: int) -> Iterator[bytes]:
    tag = number << 3 | 2
    return (value for found, value in read_fields(data, 0, len(data)) if found == tag and isinstance(value, bytes))


class ReflectionService:
    """Answers from the descriptors."""

    def __init__(self) -> None:
        self._descriptors = load_descriptors()
        self.methods: dict[bytes, Method] = {
            f"/grpc.reflection.{name}.ServerReflection/ServerReflectionInfo".encode(): Method(
                functools.partial(self._info, module),
                module.ServerReflectionRequest,
                streams_in=True,
                streams_out=True,
                longest=_LONGEST,
            )
            for name, module in (("v1", v1), ("v1alpha", v1alpha))
        }

    async def _info(self, module: Any, call: ServerCall) -> None:
        while (request := await call.receive()) is not None:
            answer = self._answer(module, request)
            answer.valid_host, answer.original_request = request.host, request
            await call.send(answer)

    def _answer(self, module: Any, request: Any) -> Any:
        known = self._descriptors
        if request.list_services is not None:
            names = sorted(set(known.services) - _ELSEWHERE)
            services = module.ListServiceResponse(service=[module.ServiceResponse(name=name) for name in names])
            return module.ServerReflectionResponse(list_services_response=services)
        if request.file_by_filename is not None:
            name = request.file_by_filename if request.file_by_filename in known.files else None
        elif request.file_containing_symbol is not None:
            name = known.symbols.get(request.file_containing_symbol.lstrip("."))
        else:
            return _error(module, _UNIMPLEMENTED, "these files have no extensions")
        if name is None:
            return _error(module, _NOT_FOUND, "there is no such file or symbol")
        found = module.FileDescriptorResponse(file_descriptor_proto=known.with_imports(name))
        return module.ServerReflectionResponse(file_descriptor_response=found)


def _error(module: Any, code: int, message: str) -> Any:
    return module.ServerReflectionResponse(error_response=module.ErrorResponse(error_code=code, error_message=message))
