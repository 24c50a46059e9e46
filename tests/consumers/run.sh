#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# run.sh FOLDER [WAY...]: projects that use bnorm, each built from what is committed, as others get it.
# Ways: those of the list below; without one all of them.
set -euo pipefail
cd "$(dirname "$0")/../.."

mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
consumers=$PWD/tests/consumers
tree=$out/tree
rm -rf "${out:?}"/*
export CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)}
# One set of strict flags for all, so that a compiler's cache is of use; in a build for debuggers, as that is quick.
export CFLAGS='-Wall -Wextra -Werror' CXXFLAGS='-Wall -Wextra -Werror'
if command -v ccache >/dev/null; then export CMAKE_C_COMPILER_LAUNCHER=ccache; fi

mkdir "$tree"
scripts/dist "$out/dist"
tar -xzf "$out"/dist/bnorm-*[0-9].tar.gz -C "$tree" --strip-components=1

# The same bytes from a clone elsewhere, and from this checkout before.
release() {
    git clone -q . "$out/clone"
    (cd "$out/clone" && umask 077 && scripts/dist "$out/again")
    diff -r "$out/dist" "$out/again"
    (cd "$out/dist" && sha256sum -c SHA256SUMS)
}

# With the line that its first comment has, then as C++ sees the header.
amalgamation() {
    tar -xzf "$out"/dist/bnorm-*.c.tar.gz -C "$out" --strip-components=1
    cd "$out"
    clang -Wall -Wextra -Werror -fsyntax-only bnorm.c
    cc -Wall -Wextra -Werror -c bnorm.c
    c++ -std=c++11 -Wall -Wextra -Werror -I. "$consumers/program.cc" bnorm.o -lm -o program
    ./program
}

# Builds the consumer's two programs and runs them; $1: the way, more: CMake's options.
consume() {
    cmake -S "$consumers/cmake" -B "$out/$1" -DWAY="$1" -DBNORM_SOURCE="$tree" -DCMAKE_BUILD_TYPE=Debug "${@:2}"
    cmake --build "$out/$1"
    ctest --test-dir "$out/$1" --output-on-failure
}
# A program that only infers has less than half of the code.
add_subdirectory() {
    consume add_subdirectory
    size "$out"/add_subdirectory/{hello,inference} | awk '{ code[NR] = $1; print } END { exit !(code[3] * 2 < code[2]) }'
}
FetchContent() { CC=clang CXX=clang++ consume FetchContent; }
find_package() {
    cmake -S "$tree" -B "$out/installing" -DBNORM_SHARED=ON -DCMAKE_BUILD_TYPE=Debug -DCMAKE_INSTALL_PREFIX="$out/installed"
    cmake --build "$out/installing" --target install
    consume find_package -DCMAKE_PREFIX_PATH="$out/installed"
}

# The consumer for other machines, by presets that include bnorm's, and run by their emulators; then bnorm's own
# preset for tests, of which bnorm-verify is enough here.
presets() {
    local preset
    export WINEPREFIX=$out/wine WINEDEBUG=-all
    for preset in aarch64 armhf mingw; do
        consume "$preset" --preset "$preset" -DWAY=add_subdirectory
    done
    cd "$tree"
    cmake --preset tests -DCMAKE_BUILD_TYPE=Debug
    cmake --build --preset tests --target bnorm-verify
    build/cmake-tests/bnorm-verify --quick
}

# Without vcpkg, which cannot be had here.
vcpkg() {
    cmake -DOUT="$out/vcpkg" -DBUILD_TYPE=Debug -P "$tree/tests/consumers/vcpkg.cmake"
    test -f "$out/vcpkg/packages/share/bnorm/bnormConfig.cmake"
    grep -q "\"version\": \"$(basename "$out"/dist/bnorm-*.spdx .spdx | cut -d- -f2)\"" packaging/vcpkg/bnorm/vcpkg.json
}

ways=("$@")
if [ $# -eq 0 ]; then ways=(release amalgamation add_subdirectory FetchContent find_package presets vcpkg); fi
passed=0
for way in "${ways[@]}"; do
    began=$SECONDS
    # Not in the condition itself, where a command that fails would not end it.
    (set -e && "$way") >"$out/log" 2>&1 &
    if ! wait $!; then
        tail -n 50 "$out/log"
        echo "$way does not work: above is the end of what it said"
        echo "$passed passed, 1 failed"
        exit 1
    fi
    passed=$((passed + 1))
    printf '%-18s works (%d s)\n' "$way" $((SECONDS - began))
done
echo "$passed passed, 0 failed"
