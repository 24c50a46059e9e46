/* SPDX-License-Identifier: MIT
 *
 * The AVX2 kernel set. The target is chosen here, so that no build needs special flags. */
#include "../base.h"

#include "../../dispatch/cpu.h"
#include "../../dispatch/isa.h"

#if BNORM_HAVE_X86

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,prfchw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prfchw")
#endif

#include "vec.h"
#include "../kernels/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
/* MinGW's gcc says of vectors that functions return that AVX is off here: they are not called from
 * here. */
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

const struct bnorm_isa bnorm_isa_avx2 = BNORM_INFERENCE_TABLE("avx2");
const bnorm_training bnorm_training_avx2 = BNORM_TRAINING_TABLE;

#endif
