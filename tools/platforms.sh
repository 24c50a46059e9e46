#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# platforms.sh [FILTER]
#
# Builds the library and bnorm-verify for every target below whose name the filter, a regular expression,
# matches, runs it where something here can, and prints a table: what was built, linked and run, and with which
# kernel sets. Exit status 1 where one of them fails. PYTHON is a Python with the packages ziglang and wasmtime,
# which `make deps-platforms` brings; what is not installed is said to be so.
set -euo pipefail
cd "$(dirname "$0")/.."

top=$PWD
python=${PYTHON:-python3}
zig="$python -m ziglang"
filter=${1:-.}
folder=$(mktemp -d)
# Wine's server writes into its folder for some seconds after the last program.
trap 'wineserver -k >/dev/null 2>&1 || true; rm -rf "$folder" || true' EXIT
build=$folder/build
export WINEPREFIX=$folder/wine WINEDEBUG=-all PATH=$PATH:/usr/lib/wine LD_LIBRARY_PATH=$build
failed=0 built=
sources=("$top"/src/*.c "$top"/src/*/*.c "$top"/dispatch/*.c)
flags=(-std=c11 -O2 -I"$top/include")
version=$(sed -n 's/^.define BNORM_VERSION_[A-Z]* *//p' include/bnorm.h | paste -sd.)

# Four ways to make verify.exe in the current folder; the first argument is the compiler's words. They are called by
# their names in `try`. This one is the README's line.
# shellcheck disable=SC2086,SC2317
program() {
    $1 "${flags[@]}" "${sources[@]}" "$top/tools/verify.c" -lm -o verify.exe
}
# With the shared library that CMake makes for system $2.
# shellcheck disable=SC2086,SC2317
shared() {
    CC=$1 cmake -S "$top" -B . -DBNORM_SHARED=ON -DCMAKE_SYSTEM_NAME="$2" "${@:3}" &&
        cmake --build . -j "${JOBS:-1}" && $1 "${flags[@]}" "$top/tools/verify.c" -L. -lbnorm -o verify.exe
}
# With that for macOS, which names the library of each function that it takes. Away from a Mac CMake has to be told
# of @rpath, by which programs find it.
# shellcheck disable=SC2317
dylib() {
    shared "$1" Darwin -DCMAKE_INSTALL_NAME_TOOL=llvm-install-name-tool -DCMAKE_INSTALL_NAME_DIR=@rpath \
        -DCMAKE_BUILD_WITH_INSTALL_NAME_DIR=ON &&
        llvm-objdump --macho --private-headers "libbnorm.$version.dylib" >header &&
        grep -q " @rpath/libbnorm.${version%.*}.dylib " header && grep -q ' TWOLEVEL ' header
}
# With the NDK's flags. Android's libc is not here: musl, as target $2, lends its headers and is linked with.
# shellcheck disable=SC2086,SC2317
android() {
    local headers
    headers=$($python -c 'import ziglang; print(ziglang.__path__[0])')/lib/libc/include
    $1 "${flags[@]}" -g -fPIC -DANDROID -ffunction-sections -fdata-sections -funwind-tables -fstack-protector-strong \
        -isystem "$headers/${2/musleabi/musl}" -isystem "$headers/generic-musl" -c "${sources[@]}" "$top/tools/verify.c" &&
        $zig cc -target "$2" -static ./*.o -lm -o verify.exe
}

# Runs a program for WebAssembly.
# shellcheck disable=SC2317
wasmtime() {
    $python - "$@" <<'END'
import sys
import wasmtime

config, store = wasmtime.WasiConfig(), wasmtime.Store()
config.argv = sys.argv[1:]
config.inherit_stdout()
store.set_wasi(config)
linker = wasmtime.Linker(store.engine)
linker.define_wasi()
module = wasmtime.Module.from_file(store.engine, sys.argv[1])
try:
    linker.instantiate(store, module).exports(store)["_start"](store)
except wasmtime.ExitTrap as end:
    sys.exit(end.code)
END
}

# Name, compiler, what runs the program ("" = nothing here does, "env" = this machine), how it is made.
try() {
    local name=$1 compiler=$2 runner=$3 how=("${@:4}") done='not linked' sets='' log=$folder/log
    [[ $name =~ $filter ]] || return 0
    # The compiler and the runner are words.
    # shellcheck disable=SC2086
    if ! $compiler --version >"$log" 2>&1; then
        done='not installed here'
    elif [ "$built" != "${how[0]} $compiler" ] && rm -rf "$build" && mkdir "$build" &&
        ! (cd "$build" && "${how[0]}" "$compiler" "${how[@]:1}" >"$log" 2>&1); then
        built='' failed=1
        tail -n 5 "$log" >&2
    elif built="${how[0]} $compiler" && [ -z "$runner" ]; then
        done='built and linked'
    elif ! command -v "${runner%% *}" >"$log"; then
        done="built and linked; ${runner%% *} is not installed here"
    elif $runner "$build/verify.exe" --quick >"$log" 2>&1; then
        done="same bits, ${runner/#env/natively}"
        sets=$(tr -d '\r' <"$log" | sed -n 's/^Kernel sets: //p')
    else
        done='DIFFERENT'
        failed=1
        tail -n 5 "$log" >&2
    fi
    echo "| $name | \`${compiler/#$zig/zig}\` | $done | $sets |"
}

echo '| target | compiler | bnorm-verify | kernel sets |'
echo '|---|---|---|---|'
gcc='arm-linux-gnueabihf-gcc -static'
try '32-bit Arm, VFPv4' "$gcc" 'qemu-arm -cpu cortex-a7' program
try '32-bit Arm, NEON without fma' "$gcc" 'qemu-arm -cpu cortex-a8' program
try '32-bit Arm, no NEON' "$gcc" 'qemu-arm -cpu cortex-a9' program
try '32-bit Arm, musl' "$zig cc -target arm-linux-musleabihf -mcpu=cortex_a7" 'qemu-arm -cpu cortex-a15' program
try 'AArch64' 'aarch64-linux-gnu-gcc -static -mbranch-protection=standard' 'qemu-aarch64 -cpu cortex-a53' program
try 'AArch64, clang' 'clang --target=aarch64-linux-gnu -static' qemu-aarch64 program
try 'AArch64, musl' "$zig cc -target aarch64-linux-musl" qemu-aarch64 program
try 'Android AArch64' 'clang --target=aarch64-linux-android21' qemu-aarch64 android aarch64-linux-musl
try 'Android armeabi-v7a' 'clang --target=armv7a-linux-androideabi21 -mthumb' 'qemu-arm -cpu cortex-a15' \
    android arm-linux-musleabi
try 'x86-64, Nehalem' 'gcc -static' 'qemu-x86_64 -cpu Nehalem' program
try 'x86-64, Sandy Bridge' 'gcc -static' 'qemu-x86_64 -cpu SandyBridge' program
try 'x86-64, Zen 1' 'gcc -static' 'qemu-x86_64 -cpu EPYC' program
try 'x86-64, glibc 2.17' "$zig cc -target x86_64-linux-gnu.2.17" env program
try 'x86-64, musl' "$zig cc -target x86_64-linux-musl" env program
try 'x86-64, musl, shared library' musl-gcc env shared Linux
try 'Windows x86-64' 'x86_64-w64-mingw32-gcc -static' wine64 program
try 'Windows x86-64, DLL' x86_64-w64-mingw32-gcc wine64 shared Windows
try 'Windows x86-64, clang' "$zig cc -target x86_64-windows-gnu" wine64 program
try 'Windows AArch64' "$zig cc -target aarch64-windows-gnu" '' program
try 'macOS x86-64, dylib' "$zig cc -target x86_64-macos" '' dylib
try 'macOS AArch64, dylib' "$zig cc -target aarch64-macos" '' dylib
try 'WebAssembly' "$zig cc -target wasm32-wasi" wasmtime program
exit "$failed"
