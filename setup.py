"""Where the packages stand. Everything else about the project is in pyproject.toml."""

from setuptools import find_packages, setup

# kernels/ lies beside iadd_fast/ because it imports nothing of the project.
kernels = [f"iadd_fast.kernels.{name}" for name in find_packages("kernels")]

setup(
    packages=[
        *find_packages(include=["iadd_fast", "iadd_fast.*"]),
        "iadd_fast.kernels",
        *kernels,
    ],
    package_dir={"iadd_fast.kernels": "kernels"},
)
