#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# platforms.sh [FILTER]
#
# Builds the library and bnorm-verify for every target below whose name the filter, a regular expression,
# matches, runs it where something here can, and prints a table: what was built, linked and run, and with which
# kernel sets. Exit status 1 where one of them fails. ZIG is the command of zig, by
# default that of the Python package ziglang; what is not installed is said to be so.
set -euo pipefail
cd "$(dirname "$0")/.."

zig=${ZIG:-python3 -m ziglang}
filter=${1:-.}
folder=$(mktemp -d)
# Wine's server writes into its folder for some seconds after the last program.
trap 'wineserver -k >/dev/null 2>&1 || true; rm -rf "$folder" || true' EXIT
export WINEPREFIX=$folder/wine WINEDEBUG=-all PATH=$PATH:/usr/lib/wine
failed=0 built=

# Name, how to compile and link, what runs the program ("" = nothing here does, "env" = this machine).
try() {
    local name=$1 compiler=$2 runner=$3 done='not linked' sets='' log=$folder/log
    [[ $name =~ $filter ]] || return 0
    # The compiler and the runner are words.
    # shellcheck disable=SC2086
    if ! $compiler --version >"$log" 2>&1; then
        done='not installed here'
    elif [ "$built" != "$compiler" ] && ! $compiler -std=c11 -O2 -Iinclude src/*.c src/*/*.c dispatch/*.c tools/verify.c -lm \
        -o "$folder/verify.exe" >"$log" 2>&1; then
        built='' failed=1
        tail -n 5 "$log" >&2
    elif built=$compiler && [ -z "$runner" ]; then
        done='built and linked'
    elif ! command -v "${runner%% *}" >"$log"; then
        done="built and linked; ${runner%% *} is not installed here"
    elif $runner "$folder/verify.exe" --quick >"$log" 2>&1; then
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
try '32-bit Arm, VFPv4' 'arm-linux-gnueabihf-gcc -static' 'qemu-arm -cpu cortex-a7'
try '32-bit Arm, NEON without fma' 'arm-linux-gnueabihf-gcc -static' 'qemu-arm -cpu cortex-a8'
try '32-bit Arm, no NEON' 'arm-linux-gnueabihf-gcc -static' 'qemu-arm -cpu cortex-a9'
try '32-bit Arm, musl' "$zig cc -target arm-linux-musleabihf -mcpu=cortex_a7 -static" 'qemu-arm -cpu cortex-a15'
try 'AArch64' 'aarch64-linux-gnu-gcc -static -mbranch-protection=standard' 'qemu-aarch64 -cpu cortex-a53'
try 'AArch64, musl' "$zig cc -target aarch64-linux-musl -static" qemu-aarch64
try 'x86-64, musl' "$zig cc -target x86_64-linux-musl -static" env
try 'x86-64, SandyBridge' 'gcc -static' 'qemu-x86_64 -cpu SandyBridge'
try 'Windows x86-64' 'x86_64-w64-mingw32-gcc -static' wine64
try 'Windows x86-64, clang' "$zig cc -target x86_64-windows-gnu" wine64
try 'Windows AArch64' "$zig cc -target aarch64-windows-gnu" ''
try 'macOS x86-64' "$zig cc -target x86_64-macos" ''
try 'macOS AArch64' "$zig cc -target aarch64-macos" ''
try 'WebAssembly' "$zig cc -target wasm32-wasi" ''
exit "$failed"
