"""Reading and writing files so that a crash never leaves half of one.

Tensors go into safetensors files, everything else into JSON. Nothing here is ever a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch import contiguous_format as contiguous

from iadd_fast import arguments
from iadd_fast.reading import check_memory, parse_json, read_text, regular_file

#: The one key of a safetensors header that holds all of the project's metadata, as a JSON string.
METADATA_KEY = "iadd_fast"
#: In that JSON, the SHA-256 of everything else in the file; absent in files of early versions.
CHECKSUM_KEY = "sha256"


def write_atomically(
    path: str | Path, write: Callable[[Path], None], previous: Path | None = None
) -> None:
    """Make ``write`` produce the file ``path``, whole or not at all.

    ``write`` gets a temporary name in the same folder (hidden, suffix as in ``path``). What it
    wrote is synced to the disk, renamed to ``path``, and the folder is synced. Whatever goes wrong
    before the rename, the temporary file is removed, folders made for it too, and an existing
    ``path`` stays as it was. Missing parent folders are made. With ``previous`` (in the same
    folder) an existing ``path`` gets that name right before the rename: whenever the process dies,
    one of the two is there.

    Raises:
        IsADirectoryError: ``path`` is a folder.
        NotADirectoryError: a parent of ``path`` is a file.
        RuntimeError: ``write`` wrote nothing at the name it was given.
        Exception: whatever ``write`` raises.
    """
    path = arguments.path("path", path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; takes the name of a file")
    made = make_folders(path.parent)
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(6)}{path.suffix}")
    try:
        write(temporary)
        if not temporary.is_file():
            raise RuntimeError(f"{path}: the writer returned without writing {temporary.name}")
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        remove_empty(made)
        raise
    for folder in [path.parent, *(entry.parent for entry in made)]:
        _sync_folder(folder)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented, strictly valid JSON, atomically.

    Raises:
        ValueError: ``value`` holds something JSON has no form for, NaN and infinities included.
    """
    text = to_json(value, str(path), strict=True, indent=2) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def read_json(path: str | Path) -> Any:
    """The value in the JSON file ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: is not a JSON file ({error})") from None


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    previous: Path | None = None,
) -> None:
    """Write ``tensors`` and ``metadata`` as one safetensors file, atomically.

    The values, dtypes and shapes are kept exactly; devices, strides and gradients are not. The
    metadata is one JSON string under the header key ``"iadd_fast"``; tuples come back as lists, and
    NaN as NaN. A SHA-256 of both stands beside it, which :func:`load_tensors` checks. ``previous``
    is as :func:`write_atomically` takes it.

    Raises:
        ValueError: the metadata holds something JSON has no form for.
    """
    # Cloned one by one: safetensors refuses tensors that share memory or are not contiguous.
    plain = {
        name: tensor.detach().cpu().clone(memory_format=contiguous)
        for name, tensor in tensors.items()
    }
    text = to_json(dict(metadata), f"{path}: metadata")
    whole = {**json.loads(text), CHECKSUM_KEY: _checksum(plain, text)}
    # One key: the library writes several in no fixed order, and equal files shall be equal bytes.
    header = {METADATA_KEY: json.dumps(whole)}

    def write(temporary: Path) -> None:
        # Not the library's own writing to a file: that goes through a temporary of its own name,
        # which a kill would leave, and gives it to its owner alone.
        try:
            temporary.write_bytes(save(plain, header))
        except OSError as error:
            raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None

    write_atomically(path, write, previous)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors (on the CPU, in memory of their own) and the metadata of a file of this project.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged (a checksum that does not fit included), no safetensors file, or
            not one of this project's.
    """
    path = existing_file(path)
    check_memory(path, path.stat().st_size)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = header_metadata(path, file.metadata())
            # Cloned: the views are backed by the file, which somebody may truncate later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except SafetensorError as error:
        raise not_safetensors(path, error) from None
    written = metadata.pop(CHECKSUM_KEY, None)
    if written is not None and written != _checksum(tensors, json.dumps(metadata)):
        raise ValueError(f"{path}: is damaged (its content does not fit its checksum)")
    return tensors, metadata


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 (hex) of the dtypes, shapes and values of ``tensors``, in this order."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous()
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_writable(argument: str, folder: Path, needed: int = 0) -> None:
    """Make ``folder`` and raise unless files can be written there and ``needed`` bytes are free.

    Called before the work whose result goes there. A quota shows only when it is reached.

    Raises:
        NotADirectoryError: it, or a parent of it, is a file.
        OSError: it cannot be written to; the message names ``argument`` and the reason.
        ValueError: fewer bytes are free.
    """
    try:
        make_folders(folder)
        # Without a name, or with a new one: what a stranger's folder holds is not opened.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except NotADirectoryError:
        raise
    except OSError as error:
        raise type(error)(
            f"{argument}: {folder} cannot be written to ({error.strerror or error})"
        ) from None
    if free < needed:
        unit, name = (2**20, "MiB") if needed >= 2**20 else (2**10, "KiB")
        raise ValueError(
            f"{argument}: {folder} has {free / unit:,.0f} {name} free; what goes there takes "
            f"{needed / unit:,.0f} {name}"
        )


def refuse_link(folder: Path) -> Path:
    """``folder``, a name of the package's own in a folder that a stranger may have made.

    Raises:
        ValueError: it is a link, through which files elsewhere would be written or removed.
    """
    if folder.is_symlink():
        raise ValueError(
            f"{folder}: is a link to {folder.resolve()}; takes a folder of its own there, or none"
        )
    return folder


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed :func:`write_atomically` calls for ``path``.

    Only where nobody else writes ``path``.
    """
    stem, suffix = re.escape(path.stem[:100]), re.escape(path.suffix)
    name = re.compile(rf"\.{stem}\.[0-9a-f]{{12}}{suffix}")
    if path.parent.is_dir():
        for entry in path.parent.iterdir():
            if name.fullmatch(entry.name):
                entry.unlink(missing_ok=True)


def check_schema(path: str | Path, metadata: Mapping[str, Any], kind: str, schema: int) -> None:
    """Raise ``ValueError`` unless ``metadata`` is of a ``kind`` and schema version this code reads.

    Every file of the project carries ``{"kind": ..., "schema": ...}``.
    """
    found = metadata.get("kind")
    if found != kind:
        what = f"holds {found!r}" if isinstance(found, str) else "does not say what it holds"
        raise ValueError(f"{path}: {what}; expected {kind!r}")
    version = metadata.get("schema")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        known = "1" if schema == 1 else f"1 to {schema}"
        raise ValueError(f"{path}: got schema version {version!r}; expected {known}")
    if version > schema:
        raise ValueError(
            f"{path}: was written by a newer iadd_fast (schema version {version}; this one reads "
            f"up to {schema}); please upgrade iadd_fast to read it"
        )


def existing_file(path: str | Path) -> Path:
    """``path`` as a ``Path``; ``FileNotFoundError`` or ``IsADirectoryError`` if it is no file."""
    return regular_file(path)


def header_metadata(path: Path, header: Mapping[str, str] | None) -> dict[str, Any]:
    """The project's metadata out of a safetensors header; ``ValueError`` when there is none."""
    text = (header or {}).get(METADATA_KEY)
    try:
        metadata = parse_json(text) if text is not None else None
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError(
            f"{path}: is a safetensors file, but not one of iadd_fast's "
            f"(no JSON under the metadata key {METADATA_KEY!r})"
        )
    return metadata


def not_safetensors(path: Path, error: SafetensorError) -> ValueError:
    """The error for a file that safetensors cannot open."""
    return ValueError(f"{path}: is not a safetensors file, or is damaged ({error})")


def to_json(value: Any, what: str, *, strict: bool = False, indent: int | None = None) -> str:
    """``value`` as JSON; ``ValueError`` naming ``what`` where it has no such form.

    Strict JSON has no NaN and no infinities; Python's own, which reads them back, does.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=not strict)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: cannot be written as JSON: {error}") from None


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    names = sorted(tensors)
    content = digest(tensors[name] for name in names)
    return hashlib.sha256(json.dumps([names, content, metadata]).encode()).hexdigest()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` with its parents; returns those that were missing, deepest first."""
    missing = []
    for candidate in [folder, *folder.parents]:
        if candidate.exists():
            if not candidate.is_dir():
                raise NotADirectoryError(f"{candidate}: is a file; takes a folder")
            break
        missing.append(candidate)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove ``folders``, deepest first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # Somebody else has put a file there.
            return


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder to sync it.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
