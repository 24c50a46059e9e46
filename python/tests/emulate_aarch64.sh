#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# emulate_aarch64.sh FOLDER WHEEL: the tests of the package for AArch64, by Debian's Python and PyPI's NumPy for
# that CPU under qemu, which are unpacked in FOLDER and installed nowhere. Needs make deps-cross.
set -euo pipefail

tests=$(cd "$(dirname "$0")" && pwd)
wheel=$(realpath "$2")
mkdir -p "$1/debs" "$1/root" "$1/site"
cd "$1"
version=$(apt-cache depends python3-minimal:arm64 | sed -n 's/.*Depends: python\(3\.[0-9]*\)-minimal.*/\1/p')
if [ ! -e "root/usr/bin/python$version" ]; then
    packages=("python$version-minimal" "libpython$version-minimal" "libpython$version-stdlib")
    packages+=(libc6 libgcc-s1 libstdc++6 libffi8 libexpat1 zlib1g libbz2-1.0 liblzma5 libcrypt1 libssl3)
    (cd debs && apt-get download -qq "${packages[@]/%/:arm64}")
    for deb in debs/*.deb; do dpkg -x "$deb" root; done
fi
rm -rf site/bnorm*
[ -d venv ] || python3 -m venv venv
venv/bin/pip install -q --target site --no-deps --upgrade --only-binary=:all: --python-version "$version" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
    numpy "$wheel"
# qemu can't fork a process that has threads.
export BNORM_TEST_NO_FORK=1
qemu-aarch64 -L root -E PYTHONPATH=site -E PYTHONHOME="$PWD/root/usr" -E OPENBLAS_NUM_THREADS=1 \
    "root/usr/bin/python$version" "$tests/test_numpy.py"
