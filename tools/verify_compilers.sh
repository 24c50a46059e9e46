#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Does it matter who compiles bnorm, how, and for which CPU? Builds the library and bnorm-verify with
# each compiler and set of flags below, runs it, natively or under qemu, and prints one line for
# each. Exit status 1 if any computes other bits than verify_hashes.inc has, or doesn't build; and if
# flags that bnorm refuses are not refused by every source.
# What isn't installed is skipped and said so; SLEEF is part of it where the compiler can link with it,
# unless SLEEF=0 is in the environment. From the top of the tree:
#
#   tools/verify_compilers.sh            everything, some minutes
#   tools/verify_compilers.sh --quick    small shapes only
#   tools/verify_compilers.sh '' clang   lines that match a regular expression
#
# JOBS is the number of compilations at a time (2).
set -u
export LC_ALL=C
unset BNORM_ISA

if [ ! -f include/bnorm.h ]; then
    echo "verify_compilers.sh: run it from the top of the bnorm tree." >&2
    exit 2
fi
case ${1-} in
'' | --quick) ;;
*)
    echo "usage: tools/verify_compilers.sh [--quick | ''] [pattern]" >&2
    exit 2
    ;;
esac
how=${1-} pattern=${2-}
top=$PWD jobs=${JOBS:-2}
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
trap 'exit 2' HUP INT TERM
passed=0 failures=0 skips=0
TIMEFORMAT=%U

# Compiler, flags, run with, kernel sets, SLEEF, result, seconds.
row() {
    printf '%-22s %-52s %-27s %-20s %-6s %-12s %s\n' "$@"
}

skip() {
    row "$1" "$2" "$3" - - "SKIPPED: $4" ''
    skips=$((skips + 1))
}

fail() {
    row "$1" "$2" "$3" "$4" "$sleef" "$5" ''
    tail -n 8 "$6" | sed 's/^/    /'
    failures=$((failures + 1))
}

# Whether the program that is read can be built with library or option $1 by all other arguments.
links() {
    local last=$1
    shift
    cat >"$scratch/probe.c"
    "$@" "$scratch/probe.c" "$last" -o "$scratch/probe" 2>"$scratch/log"
}

# Builds ./verify.exe, as Windows wants it, of the current folder with all arguments but the first,
# which are flags of the library's sources alone. SLEEF may be a shared library only.
build() {
    local libs=(-static -lm) library
    read -ra library <<<"$1"
    shift
    sleef=no
    if [ "${SLEEF-}" != 0 ] && links -lsleef "$@" <<'END'; then
float Sleef_finz_expf1_u10purecfma(float x);
int main(void) { return Sleef_finz_expf1_u10purecfma(0) != 1; }
END
        sleef=yes libs=(-lsleef -lm)
        set -- "$@" -DBNORM_SLEEF=1
    fi
    find "$top/src" "$top/dispatch" -name '*.c' -print0 |
        xargs -0 -n 1 -P "$jobs" "$@" ${library[@]+"${library[@]}"} -I"$top/include" -c &&
        "$@" -I"$top/include" -c "$top/tools/verify.c" &&
        "$@" ./*.o -o verify.exe "${libs[@]}"
}

# Builds with compiler $1, flags $2 and the library's own $3 unless that was done last; fills $built, $sleef, $log.
folder='' built=0 sleef=-
prepare() {
    local wanted="$scratch/${1##*/} ${2//\//_} ${3//\//_}"
    log=$scratch/log
    [ "$folder" = "$wanted" ] && return
    folder=$wanted
    mkdir -p "$folder"
    cd "$folder" || exit 2
    # The flags are words.
    # shellcheck disable=SC2086
    if build "$3" $1 $2 >"$log" 2>&1; then built=1; else built=0; fi
    rm -f ./*.o
    cd "$top" || exit 2
}

# Whether the line of compiler $1, flags $2 and $3, where it runs, is wanted.
wanted() {
    [ -z "$pattern" ] || echo "$1 $2 $3" | grep -qE -- "$pattern"
}

# $1 compiler; $2 flags; $3 what runs the program, "" here; $4 a set that must have run, "" any; $5
# flags that the library's sources have and the program has not.
verify() {
    local compiler=$1 flags=$2${5:+ $5} runner=$3 required=$4 sets result seconds
    local where=${runner:-here}
    wanted "$compiler" "$flags" "$where" || return
    for tool in "$compiler" "${runner%% *}"; do
        if [ -n "$tool" ] && ! command -v "$tool" >"$scratch/found"; then
            skip "$compiler" "$flags" "$where" "no $tool"
            return
        fi
    done
    # shellcheck disable=SC2086
    if ! links -static $compiler $2 <<<'int main(void) { return 0; }'; then
        skip "$compiler" "$flags" "$where" "it can't link an empty program: $(head -n 1 "$scratch/log")"
        return
    fi

    prepare "$compiler" "$2" "${5-}"
    if [ "$built" = 0 ]; then
        fail "$compiler" "$flags" "$where" - 'NOT BUILT' "$log"
        return
    fi
    # shellcheck disable=SC2086
    seconds=$({ time $runner "$folder/verify.exe" $how >"$scratch/out" 2>"$scratch/err"; } 2>&1)
    result=$(tail -n 1 "$scratch/out")
    sets=$(tr -d '\r' <"$scratch/out" | sed -n 's/^Kernel sets: //p')
    case $result in
    'same bits as everywhere: '*) ;;
    *)
        cat "$scratch/err" >>"$scratch/out"
        fail "$compiler" "$flags" "$where" "$sets" DIFFERENT "$scratch/out"
        return
        ;;
    esac
    if ! echo " $sets " | grep -q " $required"; then
        fail "$compiler" "$flags" "$where" "$sets" "$required DID NOT RUN" "$scratch/out"
        return
    fi
    row "$compiler" "$flags" "$where" "$sets" "$sleef" same "$seconds"
    passed=$((passed + 1))
}

# Every source has to refuse compiler $1 with flags $2 in bnorm's own words, which hold $3.
refuse() {
    local source
    wanted "$1" "$2" 'not at all' || return
    if ! command -v "$1" >"$scratch/found"; then
        skip "$1" "$2" 'not at all' "no $1"
        return
    fi
    sleef=-
    while read -r source; do
        # shellcheck disable=SC2086
        if $1 $2 -I"$top/include" -c "$source" -o "$scratch/refused.o" >"$scratch/log" 2>&1 ||
            ! grep -q "${3-bnorm needs}" "$scratch/log"; then
            echo "$source" >>"$scratch/log"
            fail "$1" "$2" 'not at all' - 'NOT REFUSED' "$scratch/log"
            return
        fi
    done < <(find src dispatch -name '*.c')
    row "$1" "$2" 'not at all' - - refused ''
    passed=$((passed + 1))
}

row compiler flags 'run with' 'kernel sets' SLEEF result 'user s'

# The last two let the compiler contract a*b + c, with all the instructions that this CPU has.
for compiler in gcc clang; do
    for flags in '-std=c11 -O0' '-std=c11 -O2' '-std=c11 -O3' '-std=c11 -O3 -march=native' \
        '-std=c11 -O2 -flto' '-std=gnu11 -O2 -ffp-contract=fast' \
        '-std=gnu11 -O3 -march=native -ffp-contract=fast'; do
        verify $compiler "$flags" '' ''
    done
done
# src/fma.h's own arithmetic, contracted.
verify gcc '-std=gnu11 -O3 -march=native -ffp-contract=fast -DBNORM_OWN_FMA' '' ''
verify clang '-std=gnu11 -O3 -march=native -ffp-contract=fast -DBNORM_OWN_FMA' '' ''
verify musl-gcc '-std=c11 -O2' '' ''

# -ffast-math and its parts, which an engine may have for all of its files: gcc's are switched off in
# the sources, clang's are refused. The program has to be spared them, as it checks and compares.
verify gcc '-std=c11 -O2' '' '' -Ofast
for flags in -ffast-math -funsafe-math-optimizations \
    '-fassociative-math -fno-signed-zeros -fno-trapping-math' -freciprocal-math -ffinite-math-only \
    -fno-signed-zeros -fno-trapping-math -fno-math-errno '-frounding-math -fsignaling-nans'; do
    verify gcc '-std=c11 -O1' '' '' "$flags"
done
for flags in '-Ofast -fno-fast-math' -fno-honor-infinities -fno-trapping-math \
    -fno-math-errno; do
    verify clang '-std=c11 -O1' '' '' "$flags"
done
for flags in -Ofast -ffast-math -ffp-model=fast -funsafe-math-optimizations \
    '-fassociative-math -fno-signed-zeros -fno-trapping-math' -freciprocal-math -fapprox-func \
    -ffinite-math-only -fno-honor-nans -fno-signed-zeros '-m32 -march=i686'; do
    refuse clang "-std=c11 -O1 $flags"
done
# In the clothes of Visual Studio's own compiler.
refuse gcc '-std=c11 -U__GNUC__ -D_MSC_VER=1940' 'compile them with clang-cl'
for flags in -fsingle-precision-constant '-m32 -march=i686 -mfpmath=387'; do
    refuse gcc "-std=c11 -O1 $flags"
done

# Other CPUs; on all but x86 fma belongs to the baseline, so that there is something to contract to.
for arch in aarch64 riscv64 s390x; do
    case $arch in aarch64) set=neon ;; *) set=scalar ;; esac
    for flags in '-std=c11 -O2' '-std=gnu11 -O3 -ffp-contract=fast'; do
        verify $arch-linux-gnu-gcc "$flags" qemu-$arch $set
    done
done
# clang knows more of NEON's intrinsics than gcc, and folds them.
verify clang '--target=aarch64-linux-gnu -std=c11 -O2' qemu-aarch64 neon
# Windows, whose C library has an fma that rounds more than once. Debian's wine64 is not in PATH.
PATH=$PATH:/usr/lib/wine
export WINEPREFIX="$scratch/wine" WINEDEBUG=-all
verify x86_64-w64-mingw32-gcc '-std=c11 -O2' wine64 scalar
verify gcc '-std=c11 -O2' 'qemu-x86_64 -cpu Nehalem' scalar
verify gcc '-std=c11 -O2' 'qemu-x86_64 -cpu Haswell' avx2

echo
if [ "$skips" -ne 0 ]; then
    echo "$skips combinations were SKIPPED, see above; \`make deps-lint deps-cross\` installs most tools."
fi
if [ "$failures" -ne 0 ]; then
    echo "NOT the same bits: $failures combinations differ or don't build, $passed are the same."
    exit 1
fi
if [ "$passed" -eq 0 ]; then
    echo "Nothing was run."
    exit 1
fi
echo "same bits: $passed combinations"
