#!/bin/bash -eu
# SPDX-License-Identifier: MIT
#
# OSS-Fuzz sets CC, CFLAGS, LIB_FUZZING_ENGINE and OUT. Without SLEEF, of which it has no instrumented build.
flags="-std=c11 -ffp-contract=off -DBNORM_SLEEF=0 -Iinclude"
mkdir -p "$WORK/objects"
for source in src/*.c src/*/*.c dispatch/*.c fuzz/call.c fuzz/model.c fuzz/rest.c; do
    echo "$source"
done | xargs -P "$(nproc)" -I{} sh -c "$CC $CFLAGS $flags -c {} -o $WORK/objects/\$(echo {} | tr / _).o"
# shellcheck disable=SC2086
$CXX $CXXFLAGS "$WORK"/objects/*.o $LIB_FUZZING_ENGINE -lm -o "$OUT/bnorm-fuzz"
fuzz/run --seeds "$WORK/seeds"
(cd "$WORK/seeds" && zip -q "$OUT/bnorm-fuzz_seed_corpus.zip" ./*)
printf '[libfuzzer]\nmax_len = 400\n' >"$OUT/bnorm-fuzz.options"
