#!/bin/sh
# SPDX-License-Identifier: MIT
#
# What bnorm promises to those who embed it, read off the header and the built libraries: a line for
# each check that fails, exit status 1 if any does. `make test` runs it from the top of the tree with
# STATIC_LIB, SHARED_LIB, CC, CXX, NM, OBJDUMP and SLEEF (1: they were built with it, 0: without) in
# the environment; by hand:
#
#   STATIC_LIB=build/libbnorm.a SHARED_LIB=build/libbnorm.so.0.1.0 SLEEF=1 tests/hygiene.sh
set -u
export LC_ALL=C

CC=${CC:-cc} CXX=${CXX:-c++} NM=${NM:-nm} OBJDUMP=${OBJDUMP:-objdump}
SLEEF=${SLEEF:-0}
: "${STATIC_LIB:?names the static library: run make test, or set it}"
: "${SHARED_LIB:?names the shared library: run make test, or set it}"
if [ ! -f include/bnorm.h ]; then
    echo "hygiene.sh: run it from the top of the bnorm tree." >&2
    exit 2
fi
for file in "$STATIC_LIB" "$SHARED_LIB"; do
    if [ ! -f "$file" ]; then
        echo "hygiene.sh: $file does not exist; build it with make." >&2
        exit 2
    fi
done
top=$PWD
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
trap 'exit 2' HUP INT TERM
passes=0
failures=0
libs=-lm
if [ "$SLEEF" = 1 ]; then libs='-lsleef -lm'; fi

pass() {
    passes=$((passes + 1))
}

# $1: what was checked; $2: what is wrong, maybe many lines.
fail() {
    printf 'FAIL  hygiene: %s\n' "$1"
    printf '%s\n' "$2" | head -n 20 | sed 's/^/      /'
    failures=$((failures + 1))
}

# Passes if nothing is wrong: $2 is empty.
expect_nothing() {
    if [ -z "$2" ]; then pass; else fail "$1" "$2"; fi
}

expect_equal() {
    if [ "$2" = "$3" ]; then
        pass
    else
        fail "$1" "got:      $2
expected: $3"
    fi
}

# ---------------------------------------------------------------------------------------------------
# The header alone. CC and CXX may hold flags, so they are not quoted.

warnings='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror'
echo '#include "bnorm.h"
#include "bnorm.h"
typedef bnorm_shape not_an_empty_file;' >"$scratch/header.c"
cp "$scratch/header.c" "$scratch/header.cc"
for std in c99 c11 c17; do
    # shellcheck disable=SC2086
    expect_nothing "bnorm.h compiles alone as $std" \
        "$($CC -std=$std $warnings -Wstrict-prototypes -Iinclude -fsyntax-only "$scratch/header.c" 2>&1)"
done
for std in c++11 c++17 c++20; do
    # shellcheck disable=SC2086
    expect_nothing "bnorm.h compiles alone as $std" \
        "$($CXX -std=$std $warnings -Iinclude -fsyntax-only "$scratch/header.cc" 2>&1)"
done
cat >"$scratch/link.cc" <<'END'
#include <vector>
#include "bnorm.h"

static void throws(void *, void (*task)(void *, size_t), void *arg, size_t) {
    task(arg, 0);
    throw 1;
}

int main() {
    std::vector<float> x(1 << 20);
    const bnorm_shape shape = {BNORM_NHWC, BNORM_F32, 16, 64, 1024, 0};
    bnorm_exec exec = {};
    exec.parallel = throws;
    try {
        bnorm_apply(&shape, {x.data(), 0, 0}, {x.data(), 0, 0}, nullptr, &exec);
    } catch (int) {
        return 0;
    }
    return 1;
}
END
# shellcheck disable=SC2086
expect_nothing "a C++ program links with the static library, and catches what its threads throw" \
    "$($CXX -std=c++11 -Iinclude "$scratch/link.cc" "$STATIC_LIB" $libs -o "$scratch/link" 2>&1 &&
        "$scratch/link" 2>&1 || echo "it fails")"

# Every struct and enum of the header, "name size" per line, as a program prints them that is compiled
# with $1.
sizes() {
    {
        echo '#include <stdio.h>'
        echo '#include "bnorm.h"'
        echo 'int main(void) {'
        sed -n -e 's/^} \(bnorm_[a-z_]*\);.*/    printf("\1 %zu\\n", sizeof(\1));/p' \
            -e 's/^struct \(bnorm_[a-z_]*\) {/    printf("\1 %zu\\n", sizeof(\1));/p' include/bnorm.h
        echo '    return 0; }'
    } >"$scratch/sizes.c"
    # shellcheck disable=SC2086
    $CC $1 -Iinclude "$scratch/sizes.c" -o "$scratch/sizes" && "$scratch/sizes"
}
expect_equal "-fshort-enums changes no struct" "$(sizes -fshort-enums)" "$(sizes -fno-short-enums)"

first=$(sed -n '/^ \* Start here/,/^ \* Which/s/^ \*    //p' include/bnorm.h)
expect_nothing "the first program of bnorm.h stands in examples/hello.c" \
    "$(echo "${first:-Start here: no line found}" | while IFS= read -r line; do
        grep -qxF -e "    $line" examples/hello.c || echo "$line"
    done)"

expect_nothing "every source includes base.h first: IEEE arithmetic and the symbols' prefix" \
    "$(for source in src/*.c src/*/*.c dispatch/*.c; do
        grep -m 1 '^ *#include' "$source" | grep -q '"\([a-z./]*/\)*base.h"' || echo "$source"
    done)"

# ---------------------------------------------------------------------------------------------------
# Symbols

# All symbols of the archive's members, "name type" per line.
$NM -P "$STATIC_LIB" | awk 'NF >= 2 && $2 ~ /^[A-Za-z]$/ { print $1, $2 }' >"$scratch/symbols"
if [ ! -s "$scratch/symbols" ]; then
    fail "the static library has symbols" "$NM shows none in $STATIC_LIB"
fi
expect_nothing "global symbols of the static library start with bnorm_" \
    "$(awk '$2 ~ /^[A-TV-Z]$/ && $1 !~ /^bnorm_/' "$scratch/symbols")"

declared=$(tr '\n' ' ' <include/bnorm.h | grep -o 'BNORM_API [^;(]*(' |
    grep -o 'bnorm_[a-z0-9_]*(' | tr -d '(' | sort)
version=$(awk '$2 == "BNORM_VERSION_MAJOR" { major = $3 }
    $2 == "BNORM_VERSION_MINOR" { print major == 0 ? "0." $3 : major }' include/bnorm.h)
exported=$($NM -D -P --defined-only "$SHARED_LIB" | awk '$2 != "A" { print $1 }' | sort)
expect_equal "the shared library exports the functions of bnorm.h, of its version, and nothing else" \
    "$(echo "$exported" | tr '\n' ' ')" "$(echo "$declared" | sed "s/\$/@@BNORM_$version/" | tr '\n' ' ')"
echo "$declared" >"$scratch/declared"
expect_nothing "the list for BNORM_PREFIX in bnorm.h has its functions (<: missing) and nothing else (>)" \
    "$(sed -n 's/^#define \(bnorm_[a-z0-9_]*\) .*/\1/p' include/bnorm.h | sort |
        diff "$scratch/declared" - | grep '^[<>]')"
expect_nothing "the shared library's calls of its own functions stay in it" \
    "$($OBJDUMP -R "$SHARED_LIB" | grep ' bnorm_')"
# shellcheck disable=SC2086
expect_nothing "a plugin that embeds the static library exports nothing of it" \
    "$($CC -shared -Wl,--whole-archive "$STATIC_LIB" -Wl,--no-whole-archive $libs -o "$scratch/plugin.so" 2>&1
    $NM -D -P --defined-only "$scratch/plugin.so" 2>&1 | grep bnorm)"
soname=$($OBJDUMP -p "$SHARED_LIB" | awk '$1 == "SONAME" { print $2 }')
expect_equal "the shared library's name carries the version, before 1.0 with the minor one" \
    "$soname" "libbnorm.so.$version"
case $($OBJDUMP -f "$SHARED_LIB") in
*x86-64*) marks='IBT, SHSTK' ;;
*aarch64*) marks='BTI, PAC' ;;
*) marks='' ;;
esac
expect_nothing "the shared library is marked for CPUs that check jumps and returns: $marks" \
    "$(readelf -n "$SHARED_LIB" | grep -q "feature: $marks" || [ -z "$marks" ] || readelf -n "$SHARED_LIB")"
expect_equal "the shared library's addresses are settled, and read-only, when it is loaded" \
    "$(readelf -lWd "$SHARED_LIB" | grep -oE 'GNU_RELRO|BIND_NOW' | sort -u | paste -sd ' ')" 'BIND_NOW GNU_RELRO'
needed=$($OBJDUMP -p "$SHARED_LIB" | awk '$1 == "NEEDED" { sub(/\.so.*/, "", $2); print $2 }')
needs='libc and libm'
if [ "$SLEEF" = 1 ]; then needs='libc, libm and libsleef'; fi
expect_nothing "the shared library needs $needs only" \
    "$(echo "$needed" | grep -vxE "libc|libm|ld-linux.*$(if [ "$SLEEF" = 1 ]; then echo '|libsleef'; fi)")"

expect_nothing "the shared library needs no glibc after 2.17" \
    "$($OBJDUMP -T "$SHARED_LIB" | grep -o 'GLIBC_2\.[0-9]*' | awk -F. '$2 > 17' | sort -u)"

# Memory, text, environment, CPU, and arithmetic that the compiler may leave to libm; no allocation,
# streams, threads or abort. __stack_chk_fail is the compiler's own. Of SLEEF: the functions whose bits
# are the same on every kernel set, and with their set in the name, so that nothing chooses another.
allowed='memcpy memset memmove memcmp strcmp secure_getenv getauxval sqrt _GLOBAL_OFFSET_TABLE_ __stack_chk_fail __stack_chk_guard'
# Where libc has none that ignores the environment of a program with more rights than its user.
getconf GNU_LIBC_VERSION >/dev/null 2>&1 || allowed="$allowed getenv"
sleef='^$'
if [ "$SLEEF" = 1 ]; then
    sleef='^Sleef_finz_[a-z0-9]+_u[0-9]+(purecfma|avx2|avx512f|advsimd|neonvfpv4)$'
    allowed="$allowed Sleef_finz_*"
    expect_nothing "the library calls SLEEF" \
        "$(grep -q '^Sleef_' "$scratch/symbols" || echo 'no symbol of it: -DBNORM_SLEEF=1 is missing')"
fi
expect_nothing "the library calls nothing but $allowed" "$(awk -v allowed="$allowed" -v sleef="$sleef" '
    BEGIN { split(allowed, names, " "); for (i in names) known[names[i]] = 1 }
    $2 == "U" { used[$1] = 1; next }
    { known[$1] = 1 }
    END { for (name in used) if (!(name in known) && name !~ sleef) print name }' "$scratch/symbols")"

# ---------------------------------------------------------------------------------------------------
# Sections: "member section size" per line

$OBJDUMP -h "$STATIC_LIB" | awk '
    /file format/ { member = $1; sub(/:$/, "", member) }
    $1 ~ /^[0-9]+$/ && $3 !~ /^0+$/ { print member, $2, $3 }' >"$scratch/sections"
if ! grep -q ' \.text' "$scratch/sections"; then
    fail "the static library has code" "$OBJDUMP shows no .text in $STATIC_LIB"
fi
expect_nothing "no mutable initialised data" \
    "$(awk '$2 ~ /^\.(data|sdata|ldata|tdata)/ && $2 !~ /^\.data\.rel\.ro/' "$scratch/sections")"
# The kernel set that was chosen, a pointer in dispatch/isa.c, and on x86 what the CPU can do, a word in
# dispatch/cpu.c.
expect_nothing "no mutable state but a pointer in isa.o and a word in cpu.o" \
    "$(awk '$2 ~ /^\.(bss|sbss|lbss|tbss)/ { print $1, $2, $3 }' "$scratch/sections" |
        grep -vE '^(isa(\.c)?\.o \.bss[a-z0-9._]* 0*[48]|cpu(\.c)?\.o \.bss[a-z0-9._]* 0*8)$')"
expect_nothing "no common symbols" "$(awk '$2 == "C"' "$scratch/symbols")"
expect_nothing "no constructors or destructors" \
    "$(awk '$2 ~ /^\.(init|fini|ctors|dtors|preinit)/' "$scratch/sections")"
tables=$($OBJDUMP -t "$STATIC_LIB" | awk '
    $NF ~ /^bnorm_isa_[a-z0-9]+$/ && / O / {
        for (i = 1; i <= NF; i++) if ($i ~ /^\.(rodata|data|bss)/) print $NF, $i
    }')
expect_nothing "the kernel sets' tables are read-only" \
    "$(if [ -z "$tables" ]; then
        echo "no table bnorm_isa_* found"
    fi
    echo "$tables" | grep -v '^$' | grep -v ' \.rodata\| \.data\.rel\.ro')"

# ---------------------------------------------------------------------------------------------------
# Instructions: only the objects of the ISA folders may go beyond the baseline. The check itself is
# checked by looking for the vectors that those objects must have.

# "member mnemonic operands" per instruction.
disassemble() {
    $OBJDUMP -d --no-show-raw-insn "$1" | awk '
        /file format/ { member = $1; sub(/:$/, "", member) }
        /^ *[0-9a-f]+:\t/ { sub(/^ *[0-9a-f]+:\t/, ""); print member, $0 }'
}

if $OBJDUMP -f "$STATIC_LIB" | grep -q 'elf64-x86-64'; then
    disassemble "$STATIC_LIB" >"$scratch/code"
    # The archive's members that come from ISA folders, as a pattern.
    isa_members=$(for source in src/*/*.c; do
        case $source in
        src/scalar/* | src/kernels/*) ;;
        *) basename "$source" .c ;;
        esac
    done | paste -sd '|')
    # VEX and EVEX: v..., ymm, zmm, masks, BMI. SSE3 to SSE4.2: by name, there is no mark.
    expect_nothing "no instruction beyond SSE2 outside $isa_members (built with -march?)" \
        "$(awk -v isa="^($isa_members)(\\\\.c)?\\\\.o\$" '
        BEGIN {
            bmi = "^(andn|bextr|blsi|blsmsk|blsr|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|popcnt)[lq]?$"
            sse3 = "^(addsubp|haddp|hsubp|lddqu|movddup|movs[hl]dup|fisttp)"
            ssse3 = "^(pabs|palignr|phadd|phsub|pmaddubsw|pmulhrsw|pshufb|psign)"
            sse4 = "^(blend|dpp|extractps|insertps|movntdqa|mpsadbw|packusdw|pblend|pcmpeqq|pcmpgtq|" \
                "pcmp[ei]str|pextr[bdq]|phminpos|pinsr[bdq]|pmaxs[bd]|pmaxu[dw]|pmins[bd]|pminu[dw]|" \
                "pmov[sz]x|pmuldq|pmulld|ptest|round[ps][sd]|crc32)"
        }
        $1 ~ isa { next }
        $2 ~ /^v/ || /%[yz]mm|%k[0-7]/ || $2 ~ bmi || $2 ~ sse3 || $2 ~ ssse3 || $2 ~ sse4' "$scratch/code")"
    expect_nothing "avx2 stays within AVX2 and FMA" \
        "$(awk '$1 ~ /^avx2(\.c)?\.o$/ && /%zmm|%k[0-7]|%[xy]mm(1[6-9]|2[0-9]|3[01])/' "$scratch/code")"
    for pair in avx2:ymm avx512:zmm; do
        isa=${pair%:*} register=${pair#*:}
        if grep -q "^$isa\(\.c\)*\.o vfmadd.*%$register" "$scratch/code"; then
            pass
        else
            fail "$isa has fused multiply-adds on $register" "none found in the object of src/$isa"
        fi
    done
else
    echo "hygiene: SKIPPED: instructions beyond the baseline (looked at on x86-64 only)"
fi

# ---------------------------------------------------------------------------------------------------
# Without the Makefile, with a prefix, as for an engine whose host has bnorm too; at -Os, for what is
# looked at below

mkdir "$scratch/build"
cp -r include src dispatch "$scratch/build"
cp "$STATIC_LIB" "$scratch/libbnorm.a"
cd "$scratch/build" || exit 2
line="$CC -std=c11 -Os -fPIC -DBNORM_SLEEF=$SLEEF -DBNORM_PREFIX=acme_ -c -Iinclude"
# shellcheck disable=SC2086
expect_nothing "$line src/*.c src/*/*.c dispatch/*.c" \
    "$(printf '%s\n' src/*.c src/*/*.c dispatch/*.c | xargs -n 1 -P "$(nproc || echo 2)" $line 2>&1)"
expect_equal "every source has an object of its own name" \
    "$(find . -name '*.o' | wc -l)" "$(find src dispatch -name '*.c' | wc -l)"
expect_nothing "with BNORM_PREFIX=acme_ every symbol has it (else: a line in bnorm.h or src/base.h)" \
    "$($NM -P --defined-only ./*.o | awk '$2 ~ /^[A-TV-Z]$/ && $1 !~ /^acme_bnorm_/')"
cat >hosts.c <<'END'
#include <string.h>
#include "bnorm.h"

#if defined(BNORM_PREFIX)
const char *set_of_engine(void) {
    return bnorm_isa_name(bnorm_isa_find("scalar"));
}
#else
const char *set_of_engine(void);

int main(void) {
    float x = 3;
    const bnorm_shape shape = {BNORM_NHWC, BNORM_F32, 1, 1, 1, 0};
    const bnorm_in in = {&x, 0, 0};
    const bnorm_out out = {&x, 0, 0};
    return strcmp(set_of_engine(), "scalar") || bnorm_apply(&shape, in, out, 0, 0);
}
#endif
END
$CC -Iinclude -DBNORM_PREFIX=acme_ -c hosts.c -o engine.o
# shellcheck disable=SC2086
expect_nothing "a program links with two copies of bnorm" \
    "$($CC -Iinclude hosts.c ./*.o ../libbnorm.a $libs -o hosts 2>&1 && ./hosts || echo 'it fails')"
rm engine.o

# A plugin that embeds bnorm, in a host that exports all of its symbols with another behaviour.
cat >plugin.c <<'END'
#include "bnorm.h"

int use_bnorm(void) {
    float x[] = {3, 4}, dy[] = {1, 1}, dgamma, dbeta, mean, invstd, workspace[256];
    const bnorm_shape shape = {BNORM_NHWC, BNORM_F32, 2, 1, 1, 0};
    const bnorm_in in = {x, 0, 0}, dy_in = {dy, 0, 0};
    const bnorm_out out = {x, 0, 0}, dx = {dy, 0, 0};
    const bnorm_train train = {.save_mean = &mean, .save_invstd = &invstd};
    const bnorm_grad grad = {
        .save_mean = &mean, .save_invstd = &invstd, .dgamma = &dgamma, .dbeta = &dbeta};
    return bnorm_apply(&shape, in, out, 0, 0) || !bnorm_isa_find("scalar") ||
           bnorm_forward_train(&shape, in, out, &train, workspace, sizeof workspace, 0) ||
           bnorm_backward(&shape, in, dy_in, dx, &grad, workspace, sizeof workspace, 0);
}
END
cat >host.c <<'END'
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv) {
    void *plugin = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) : 0;
    int (*use)(void) = 0;
    if (plugin)
        *(void **)&use = dlsym(plugin, "use_bnorm");
    else
        puts(dlerror());
    return !use || use();
}
END
{
    echo '#include <stdlib.h>'
    $NM -P --defined-only ./*.o | awk '$2 ~ /^[A-TV-Z]$/ { print "void " $1 "(void) { abort(); }" }'
} >taken.c
# shellcheck disable=SC2086
expect_nothing "a plugin that embeds bnorm calls its own functions, not its host's of the same names" \
    "$({
        $CC -Iinclude -DBNORM_PREFIX=acme_ -shared -fPIC plugin.c ./*.o $libs -o plugin.so &&
            $CC -rdynamic host.c taken.c -ldl -o host && ./host ./plugin.so
    } 2>&1 || echo "the program ended with exit status $?")"
expect_nothing "a plugin that embeds bnorm exports nothing of it, and lets nobody take its place" \
    "$($NM -D -P --defined-only plugin.so | grep bnorm_ | grep -v use_bnorm; $OBJDUMP -R plugin.so | grep bnorm_)"
rm -f plugin.o host.o taken.o

# gcc puts in vzeroupper by itself at -O2 and above only; without it the caller's SSE code, and
# libm's, is slowed down for the rest of the process. One for each kernel, whatever the flags.
kernels=$(sed -n '/define BNORM_INFERENCE_KERNELS/,/define BNORM_KERNELS/p' dispatch/isa.h | grep -c '^ *X(')
for isa in avx2 avx512; do
    disassemble $isa.o >"$scratch/code"
    [ -s "$scratch/code" ] || continue # another architecture
    count=$(grep -c ' vzeroupper' "$scratch/code")
    if [ "$count" -ge "$kernels" ]; then
        pass
    else
        fail "$isa leaves no dirty upper halves of registers at -Os" \
            "$count vzeroupper for $kernels kernels: call _mm256_zeroupper() before each returns"
    fi
done

# ---------------------------------------------------------------------------------------------------
# $BNORM_ISA, with those objects: it is read once per process, so each value needs its own

cat >isas.c <<'END'
#include <stdio.h>
#include "bnorm.h"

/* With an argument: all usable sets, best first. Without: the best. */
int main(int argc, char **argv) {
    (void)argv;
    for (size_t i = 0; argc > 1 && bnorm_isa_at(i); i++)
        puts(bnorm_isa_name(bnorm_isa_at(i)));
    if (argc == 1)
        puts(bnorm_isa_name(NULL));
    return 0;
}
END
# shellcheck disable=SC2086
expect_nothing "a program links with those objects" \
    "$($CC -Iinclude -DBNORM_PREFIX=acme_ isas.c ./*.o $libs -o isas 2>&1)"
unset BNORM_ISA
sets=$(./isas all)
fastest=$(echo "$sets" | head -n 1)
expect_equal "without BNORM_ISA the fastest set runs" "$(./isas)" "${fastest:-a set}"
for set in $sets; do
    expect_equal "BNORM_ISA=$set is followed" "$(BNORM_ISA=$set ./isas)" "$set"
done
for set in '' nonsense AVX2 'scalar ' scalarx; do
    expect_equal "BNORM_ISA='$set' is ignored" "$(BNORM_ISA=$set ./isas)" "$fastest"
done
cd "$top" || exit 2

[ ! -t 1 ] || printf '\033[K' # over what make is compiling
echo "hygiene: $passes checks passed, $failures failed"
[ "$failures" -eq 0 ]
