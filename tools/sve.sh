#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Would vectors of SVE be faster than NEON's? One turn, of eight vectors, of the loops of inference (NHWC) and of
# statistics, with either, by llvm-mca: cycles per 16 bytes of x, data in L1. `make sve` runs it.
set -euo pipefail

mca=llvm-mca-19
command -v "$mca" >/dev/null || { echo "$mca is missing: run make deps-mca"; exit 1; }

# Each line for k = 0 to 7, with registers numbered from there.
eight_times() {
    local line k
    while read -r line; do
        for k in {0..7}; do
            sed "s/@K/$k/g; s/@B/$((16 * k))/g; s/@0/$k/g; s/@1/$((k + 8))/g; s/@2/$((k + 16))/g" <<<"$line"
        done
    done
    echo 'add x0, x0, x3; subs x4, x4, #1; b.ne 0' | tr ';' '\n'
}
inference_neon=$(eight_times <<'END'
ldr q@0, [x0, #@B]
ldr q@1, [x1, #@B]
ldr q@2, [x2, #@B]
fmla v@2.4s, v@0.4s, v@1.4s
fmaxnm v@2.4s, v31.4s, v@2.4s
str q@2, [x5, #@B]
END
)
inference_sve=$(eight_times <<'END'
ld1w {z@0.s}, p0/z, [x0, #@K, mul vl]
ld1w {z@1.s}, p0/z, [x1, #@K, mul vl]
ld1w {z@2.s}, p0/z, [x2, #@K, mul vl]
fmla z@2.s, p0/m, z@0.s, z@1.s
fmaxnm z@2.s, p0/m, z@2.s, z31.s
st1w {z@2.s}, p0, [x5, #@K, mul vl]
END
)
statistics_neon=$(eight_times <<'END'
ldr q@0, [x0, #@B]
fsub v@0.4s, v@0.4s, v31.4s
fadd v@1.4s, v@1.4s, v@0.4s
fmla v@2.4s, v@0.4s, v@0.4s
END
)
statistics_sve=$(eight_times <<'END'
ld1w {z@0.s}, p0/z, [x0, #@K, mul vl]
fsub z@0.s, z@0.s, z31.s
fadd z@1.s, z@1.s, z@0.s
fmla z@2.s, p0/m, z@0.s, z@0.s
END
)

# Of the loop $1 on the CPU $2 whose vectors have $3 bytes.
cycles() {
    "$mca" -mtriple=aarch64 -mcpu="$2" -mattr=+sve -iterations=100 <<<"$1" |
        awk -v per="$3" '/^Total Cycles:/ { printf "%.2f", $3 / 100 / 8 * 16 / per }'
}
echo '| core | inference, NEON | SVE | statistics, NEON | SVE |'
echo '|---|--:|--:|--:|--:|'
for core in 'neoverse-n2 16' 'neoverse-v2 16' 'neoverse-v1 32'; do
    read -r cpu bytes <<<"$core"
    echo "| $cpu | $(cycles "$inference_neon" "$cpu" 16) | $(cycles "$inference_sve" "$cpu" "$bytes") |" \
        "$(cycles "$statistics_neon" "$cpu" 16) | $(cycles "$statistics_sve" "$cpu" "$bytes") |"
done
