"""Packs the package with the shared library that `make build` makes."""

import os
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildLibrary(build_py):
    """Builds the shared library first, with the Python that runs this file."""

    def run(self):
        jobs = f"-j{os.cpu_count() or 1}"
        subprocess.run(["make", jobs, "build", f"PYTHON={sys.executable}"], check=True)
        super().run()


class PlatformWheel(bdist_wheel):
    """The library depends on the platform and TensorFlow, but not on Python's version."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    def has_ext_modules(self):
        return True


setup(
    cmdclass={"build_py": BuildLibrary, "bdist_wheel": PlatformWheel},
    distclass=PlatformDistribution,
)
