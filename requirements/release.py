"""The files of a release: sdist, wheel, bill of materials and checksums (``make release``).

It runs in an environment of its own (``tools.txt``), where torch is not importable: the wheel is
pure Python and fits every platform; the sdist holds what builds the kernels.
``SOURCE_DATE_EPOCH`` is the date that the archives carry.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parent.parent


def build(out: Path) -> list[Path]:
    """The sdist, and the wheel built from that sdist, in ``out``; the same bytes every time."""
    if importlib.util.find_spec("torch") is not None:
        sys.exit("torch is importable here: the wheel would hold kernels of this machine")
    with tempfile.TemporaryDirectory() as source:
        copy_tracked(Path(source))
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
        subprocess.run([*command, source], check=True)
    files = sorted(out.glob("iadd_fast-*"))
    for path in files:
        if path.name.endswith(".tar.gz"):
            repack(path)
    return files


def copy_tracked(into: Path) -> None:
    """What git tracks, as it stands in the tree: no leftovers, no modes of this checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not path.is_file():  # the end of the list, or deleted and not yet committed
            continue
        copy = into / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copy.chmod(0o755 if os.access(path, os.X_OK) else 0o644)


def repack(sdist: Path) -> None:
    """Date and owner of every member, which setuptools takes from the disk, made the same."""
    date = int(os.environ["SOURCE_DATE_EPOCH"])
    with tarfile.open(sdist) as old:
        members = [(member, old.extractfile(member)) for member in old.getmembers()]
        packed = io.BytesIO()
        with (
            gzip.GzipFile("", "wb", mtime=date, fileobj=packed) as compressed,
            tarfile.open(mode="w", fileobj=compressed, format=tarfile.PAX_FORMAT) as new,
        ):
            for member, content in sorted(members, key=lambda pair: pair[0].name):
                member.mtime, member.pax_headers = date, {}
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                new.addfile(member, content)
    sdist.write_bytes(packed.getvalue())


def bill_of_materials(runtime: Path, wheel: Path) -> dict[str, Any]:
    """CycloneDX 1.6 of ``wheel`` and of what is installed in ``runtime``, its dependencies.

    cyclonedx-py takes versions, licences and who needs whom from the installed metadata; the
    SHA-256 of each installed file comes from pip's reports in ``runtime`` (``pip-*.json``).
    """
    environment = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment"]
    options = ["--sv", "1.6", "--of", "JSON", "--output-reproducible", "--mc-type", "library"]
    options += ["--pyproject", str(ROOT / "pyproject.toml"), str(runtime / "bin" / "python")]
    written = subprocess.run([*environment, *options], check=True, stdout=subprocess.PIPE).stdout
    bill: dict[str, Any] = json.loads(written)

    reports = [json.loads(path.read_text()) for path in sorted(runtime.glob("pip-*.json"))]
    installed = {
        (entry["metadata"]["name"], entry["metadata"]["version"]): entry["download_info"]
        for report in reports
        for entry in report["install"]
    }
    for component in bill["components"]:
        download = installed[component["name"], component["version"]]
        component["hashes"] = hashes(download["archive_info"]["hashes"]["sha256"])
    root = bill["metadata"]["component"]
    root["hashes"] = hashes(sha256(wheel))
    root["purl"] = f"pkg:pypi/{root['name'].replace('_', '-')}@{root['version']}"
    machine = reports[0]["environment"]
    bill["metadata"]["properties"].append(
        {
            "name": "iadd_fast:hashes",
            "value": "of the files installed on "
            f"{machine['platform_system']} {machine['platform_machine']} with "
            f"{machine['implementation_name']} {machine['python_version']}",
        }
    )
    return bill


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(digest: str) -> list[dict[str, str]]:
    """As CycloneDX writes a SHA-256."""
    return [{"alg": "SHA-256", "content": digest}]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and say what they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", type=Path, required=True, help="environment to take stock of")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    files = build(options.out)
    (wheel,) = (path for path in files if path.suffix == ".whl")
    bill = bill_of_materials(options.runtime, wheel)
    text = json.dumps(bill, indent=1, ensure_ascii=False) + "\n"
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        sys.exit(f"the bill of materials is not CycloneDX 1.6: {problem}")
    target = options.out / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
    target.write_text(text)
    sums = options.out / "SHA256SUMS"
    sums.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in [*files, target]))
    print(f"{target.name}: {len(bill['components'])} dependencies")
    print(sums.read_text(), end="")


if __name__ == "__main__":
    main()
