"""Where the packages stand, and how the kernels are built. The rest is in pyproject.toml.

The kernels need torch's headers, so they are built where torch can be imported (``pip install
--no-build-isolation .``); elsewhere the wheel is pure Python and Triton or PyTorch serve every
operator. C++ is built wherever a C++20 compiler is; CUDA where nvcc is and torch has CUDA.

    FORCE_CUDA=1          build the CUDA kernels although torch has no CUDA or no GPU is there
    TORCH_CUDA_ARCH_LIST  their architectures (default: those of the GPUs here, else 8.0;9.0;10.0)
    MAX_JOBS              compilers run at once
    SANITIZE=1            the C++ kernels with AddressSanitizer and UBSan (bench/sanitize.sh)

What was built, and why something was not, is printed in one line and kept for ``iadd-fast doctor``.
"""

from __future__ import annotations

import json
import os
import shutil
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

REPORT = Path("iadd_fast", "native", "build.json")
# The oldest torch whose stable ABI the libraries use: 2.10.
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# No errno and no trap from a square root or a division: loops over them become vectors.
CXX_FLAGS = [
    *("-std=c++20", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"),
    *("-Wall", "-Wno-psabi", TARGET),
]
# The C++ compiler's own; `alignment` and `bounds` are in `undefined`, the conversion is not. `vptr`
# would ask about torch's types.
SANITIZERS = [
    *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr"),
    *("-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
]
if os.environ.get("SANITIZE") == "1":
    # Python's own flags may hold -fwrapv, under which no overflow is one.
    CXX_FLAGS += ["-O1", "-g1", "-fno-wrapv", *SANITIZERS]
NVCC_FLAGS = ["-std=c++20", "-O3", "-DUSE_CUDA", TARGET]

reasons: dict[str, str] = {}


def cuda_home() -> str | None:
    """The folder of the CUDA toolkit, or None without nvcc.

    torch looks for it too, but only where it has CUDA itself.
    """
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    for home in [*candidates, "/usr/local/cuda"]:
        if home and Path(home, "bin", "nvcc").exists() and glob(f"{home}/include/cuda_runtime.h"):
            return home
    return None


def cuda_missing() -> str | None:
    """Why no CUDA kernels are built here, or None."""
    import torch

    if cuda_home() is None:
        return "no nvcc was found (PATH, CUDA_HOME or /usr/local/cuda)"
    if torch.version.cuda is None and os.environ.get("FORCE_CUDA") != "1":
        return "torch was built without CUDA (FORCE_CUDA=1 builds them all the same)"
    return None


def cuda_extension() -> Extension:
    """The CUDA library; linked to the static CUDA runtime alone, so that any torch can load it."""
    import torch
    from torch.utils import cpp_extension

    home = str(cuda_home())
    cpp_extension.CUDA_HOME = home
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0")
    return cpp_extension.CppExtension(
        "iadd_fast.native.cuda",
        sorted(glob("csrc/cuda/*.cu")),
        include_dirs=[str(Path("csrc/include").resolve()), str(Path(home, "include"))],
        depends=sorted([*glob("csrc/include/*.h"), *glob("csrc/cuda/*.cuh")]),
        library_dirs=[str(Path(home, "lib64"))],
        libraries=["cudart_static", "dl", "rt", "pthread"],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
        optional=True,
    )


def extensions() -> list[Extension]:
    """What can be built here; ``reasons`` says why the rest cannot."""
    try:
        from torch.utils.cpp_extension import CppExtension
    except ImportError:
        reasons["cpu"] = reasons["cuda"] = (
            "torch could not be imported when the package was built "
            "(pip install --no-build-isolation . builds the kernels)"
        )
        return []
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        reasons["cpu"] = f"no C++ compiler: {compiler} was not found (CXX names another)"
        reasons["cuda"] = "it needs the C++ compiler too"
        return []
    cpu = CppExtension(
        "iadd_fast.native.cpu",
        ["csrc/schemas.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
        depends=sorted([*glob("csrc/include/*.h"), *glob("csrc/cpu/*.h")]),
        include_dirs=[str(Path("csrc/include").resolve())],
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=SANITIZERS if os.environ.get("SANITIZE") == "1" else [],
        py_limited_api=True,
        optional=True,
    )
    missing = cuda_missing()
    if missing is not None:
        reasons["cuda"] = missing
        return [cpu]
    return [cpu, cuda_extension()]


def build_commands(found: list[Extension]) -> dict[str, Any]:
    """setuptools commands that build what they can and report it."""

    class BuildPython(build_py):  # type: ignore[misc]
        """Without extensions no ``build_ext`` runs, and the report is written here."""

        def run(self) -> None:
            super().run()
            if not found:
                write_report(Path() if self.editable_mode else Path(self.build_lib))

    if not found:
        return {"build_py": BuildPython}

    from torch.utils.cpp_extension import BuildExtension

    class BuildKernels(BuildExtension):
        """Builds each library by itself: one that fails leaves its reason and not the build."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                for extension in found:
                    reasons.setdefault(extension.name.rpartition(".")[2], summary(error))
            write_report(Path(self.build_lib) if not self.inplace else Path())

        def build_extension(self, ext: Extension) -> None:
            try:
                super().build_extension(ext)
            except Exception as error:
                reasons[ext.name.rpartition(".")[2]] = summary(error)

    return {"build_py": BuildPython, "build_ext": BuildKernels}


def summary(error: Exception) -> str:
    """An error in one line; the compiler's own words went to the build's output."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the build failed: {lines[0][:200]}"


def write_report(root: Path) -> None:
    """One line for whoever builds, and the reasons beside the libraries for ``doctor``."""
    built = [name for name in ("cpu", "cuda") if name not in reasons]
    left = [f"{name} not: {reason}" for name, reason in sorted(reasons.items())]
    print("iadd_fast kernels:", "; ".join([f"built {' and '.join(built) or 'none'}", *left]))
    target = root / REPORT
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(reasons, indent=1) + "\n")


# kernels/ lies beside iadd_fast/ because it imports nothing of the project.
kernels = [f"iadd_fast.kernels.{name}" for name in find_packages("kernels")]
found = extensions()

setup(
    packages=[
        *find_packages(include=["iadd_fast", "iadd_fast.*"]),
        "iadd_fast.kernels",
        *kernels,
    ],
    package_dir={"iadd_fast.kernels": "kernels"},
    ext_modules=found,
    cmdclass=build_commands(found),
    # The libraries hold no Python symbol: one build serves every Python.
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if found else {},
)
