# SPDX-License-Identifier: MIT
#
# Builds and runs a C++ program with the package.
import os

from conan import ConanFile
from conan.tools.build import can_run
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout


class BnormTest(ConanFile):
    settings = "os", "arch", "compiler", "build_type"

    def requirements(self):
        self.requires(self.tested_reference_str)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        CMakeDeps(self).generate()
        toolchain = CMakeToolchain(self)
        toolchain.user_presets_path = False  # which would lie in this folder
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        program = os.path.join(self.recipe_folder, "..", "..", "..", "tests", "consumers", "program.cc")
        cmake.configure(variables={"PROGRAM": os.path.normpath(program)})
        cmake.build()

    def test(self):
        if can_run(self):
            self.run(os.path.join(self.cpp.build.bindir, "program"), env="conanrun")
