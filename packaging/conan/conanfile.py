# SPDX-License-Identifier: MIT
#
# bnorm from this checkout, as a package of Conan 2:  conan create packaging/conan
import os
import re

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load


class Bnorm(ConanFile):
    name = "bnorm"
    license = "MIT"
    description = "Batch normalization on CPUs, the same bits on every instruction set"
    topics = ("batch-normalization", "neural-networks", "simd")
    package_type = "library"
    languages = "C"
    settings = "os", "arch", "compiler", "build_type"
    # sleef: that of the system, for the activations that need exp
    options = {"shared": [True, False], "sleef": [True, False]}
    default_options = {"shared": False, "sleef": False}

    @property
    def _top(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self):
        header = load(self, os.path.join(self._top, "include", "bnorm.h"))
        self.version = ".".join(re.findall(r"#define BNORM_VERSION_[A-Z]+ +(\d+)", header))

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "include/*", "src/*", "dispatch/*"):
            copy(self, pattern, self._top, self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["BNORM_SHARED"] = bool(self.options.shared)
        toolchain.cache_variables["BNORM_SLEEF"] = bool(self.options.sleef)
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        CMake(self).install()

    def package_info(self):
        self.cpp_info.libs = ["bnorm"]
        if not self.options.shared:
            self.cpp_info.system_libs = ["sleef"] * bool(self.options.sleef) + ["m"] * (self.settings.os != "Windows")
