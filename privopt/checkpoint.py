"""States as files: floor 5. Tensors in safetensors, the rest as JSON beside them, never pickle.

A state is a nested dict (or list) of Vectors, numpy arrays, strings, numbers, booleans and None,
as `Optimizer.get_state` gives it.
"""

from __future__ import annotations

import json
import os
import secrets
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from .backends import named_backend
from .layout import Layout
from .vector import Vector

__all__ = ["dump_state", "load_state", "read_state", "write_atomic", "write_state"]

_FORMAT = "privopt-state-1"
_KEY = "privopt"
_UNREADABLE = (
    safetensors.SafetensorError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    RecursionError,
)


def dump_state(state: Mapping[str, Any]) -> bytes:
    """Encode a state as safetensors bytes.

    Guarantees:
        - ``load_state(dump_state(s))`` has the same structure and bitwise the same numbers, with
          Vectors held by numpy (a step moves them to wherever the gradients are).
        - Equal states give equal bytes.

    Raises:
        TypeError: If something in the state cannot be encoded; the message says where.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    tree = _encode(state, "", tensors)
    header = json.dumps({"format": _FORMAT, "tree": tree}, sort_keys=True, allow_nan=True)
    encoded: bytes = safetensors.numpy.save(tensors, metadata={_KEY: header})
    return encoded


def _encode(value: Any, path: str, tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, Vector):
        blocks = value.layout.blocks
        for spec, array in zip(value.layout, value.to_numpy().coefs.values(), strict=True):
            tensors[f"{path}:{spec.name}"] = _storable(array, blocks[spec.block].dtype)
        return {"$vector": value.layout.to_json()}
    if isinstance(value, np.ndarray):
        tensors[path] = _storable(value, value.dtype.name)
        return {"$array": value.dtype.name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise TypeError(
                    f"Expected string keys without a leading '$' in a state, got {key!r} at {path!r}."
                )
        return {key: _encode(item, _below(path, key), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    raise TypeError(
        f"Expected Vectors, arrays, numbers, strings, lists or dicts in a state, got {type(value).__name__} "
        f"at {path!r}."
    )


def _below(path: str, key: str) -> str:
    # Quoted, so that no key can look like a path and share a tensor's name with another.
    return f"{path}/{urllib.parse.quote(key, safe='')}"


def _storable(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    # The state's own list of dtypes tells what safetensors for numpy has no name for.
    array = np.asarray(array, order="C")  # ascontiguousarray would make a 0-d array 1-d
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], axis=-1)
    if dtype == "bfloat16":
        # The upper half of the float32 that numpy holds it as.
        return np.asarray(np.asarray(array, np.float32).view(np.uint32) >> 16, np.uint16)
    return array


def load_state(data: bytes) -> dict[str, Any]:
    """Decode what `dump_state` wrote.

    Raises:
        ValueError: If the bytes are not such a state.
    """
    try:
        header = _metadata(data)
        found = json.loads(header[_KEY])
        tensors = safetensors.numpy.load(data)
        if found["format"] != _FORMAT:
            raise ValueError(f"format {found['format']!r}")
        state: dict[str, Any] = _decode(found["tree"], "", tensors)
        if not isinstance(state, dict):
            raise ValueError("no mapping at the top")  # noqa: TRY004 - bytes of the wrong kind, as above
    except _UNREADABLE as error:
        raise ValueError(
            f"Expected a state in the format {_FORMAT}, got bytes that are none ({error})."
        ) from error
    return state


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data) - 8:
        raise ValueError(f"header of {length} bytes in {len(data)}")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    if not isinstance(metadata, dict):
        raise ValueError("no metadata")  # noqa: TRY004 - bytes of the wrong kind are a wrong value
    return metadata


def _decode(tree: Any, path: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(tree, dict):
        if "$vector" in tree:
            return _vector(Layout.from_json(tree["$vector"]), path, tensors)
        if "$array" in tree:
            return _restored(tensors[path], tree["$array"])
        return {key: _decode(item, _below(path, key), tensors) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_decode(item, f"{path}/{i}", tensors) for i, item in enumerate(tree)]
    return tree


def _restored(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype.startswith("complex"):
        joined = np.empty(array.shape[:-1], dtype)
        joined.real, joined.imag = array[..., 0], array[..., 1]
        return joined
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return np.asarray(array.astype(np.uint32) << 16).view(np.float32)
    return array


def _vector(layout: Layout, path: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> Vector:
    # numpy holds bfloat16 as float32; the layout keeps the name, so that the way back is exact.
    backend = named_backend("numpy")
    buffers = []
    for i, block in enumerate(layout.blocks):
        arrays = [_restored(tensors[f"{path}:{s.name}"], block.dtype) for s in layout.in_block(i)]
        dtype = "float32" if block.dtype == "bfloat16" else block.dtype
        buffers.append(backend.pack(arrays, dtype, "cpu"))
        if any(a.shape != s.shape for a, s in zip(arrays, layout.in_block(i), strict=True)):
            raise ValueError(f"shapes at {path!r}")
    return Vector(
        layout.with_blocks([b.dtype for b in layout.blocks], ["cpu"] * len(layout.blocks)), buffers, backend
    )


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file whole or not at all, durably: to a neighbour, synced, then renamed.

    Guarantees:
        - After a crash at any instant the path holds the old bytes or the new ones.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_state(path: Path | str, state: Mapping[str, Any], *, mode: int = 0o644) -> None:
    """Write a state to a file, atomically."""
    write_atomic(Path(path), dump_state(state), mode=mode)


def read_state(path: Path | str) -> dict[str, Any]:
    """Read a state from a file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file holds something else; the message names it.
    """
    try:
        return load_state(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
