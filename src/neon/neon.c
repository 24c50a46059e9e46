/* SPDX-License-Identifier: MIT
 *
 * The NEON kernel set: Advanced SIMD, which every AArch64 CPU has. On 32-bit Arm the target is chosen
 * here, so that no build needs special flags. */
#include "../base.h"

#include "../../dispatch/cpu.h"
#include "../../dispatch/isa.h"

#if BNORM_HAVE_NEON

/* The header declares vfmaq_f32 only where all of the file is built for VFPv4. */
#if !defined(__aarch64__) && !defined(__ARM_FEATURE_FMA)
#define __ARM_FEATURE_FMA 1
#endif

#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if !defined(__aarch64__) && defined(__clang__)
/* -mfpu=neon takes every part of VFPv4 away by its name. */
#pragma clang attribute push(__attribute__((target("neon,fp16,vfp4,vfp4sp,vfp4d16,vfp4d16sp"))),   \
                             apply_to = function)
#elif !defined(__aarch64__)
#pragma GCC push_options
#pragma GCC target("fpu=neon-vfpv4")
#endif

#include "vec.h"
#include "../kernels/kernels.h"

#if !defined(__aarch64__) && defined(__clang__)
#pragma clang attribute pop
#elif !defined(__aarch64__)
#pragma GCC pop_options
#endif

const struct bnorm_isa bnorm_isa_neon = BNORM_INFERENCE_TABLE("neon");
const bnorm_training bnorm_training_neon = BNORM_TRAINING_TABLE;

#endif
