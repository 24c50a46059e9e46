/* SPDX-License-Identifier: MIT
 *
 * The AVX-512 kernel set. The target is chosen here, so that no build needs special flags. */
#include "../base.h"

#include "../../dispatch/cpu.h"
#include "../../dispatch/isa.h"

#if BNORM_HAVE_X86

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"))),            \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw")
#endif

/* Without optimization gcc's intrinsics with an immediate operand are macros, which convert masks. */
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#endif
#include "vec.h"
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#include "../kernels/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
/* MinGW's gcc says of vectors that functions return that AVX is off here: they are not called from
 * here. */
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

const struct bnorm_isa bnorm_isa_avx512 = BNORM_INFERENCE_TABLE("avx512");
const bnorm_training bnorm_training_avx512 = BNORM_TRAINING_TABLE;

#endif
