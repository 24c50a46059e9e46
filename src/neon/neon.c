/* SPDX-License-Identifier: MIT
 *
 * The NEON kernel set: Advanced SIMD, which every AArch64 CPU has. */
#include "../base.h"

#include "../../dispatch/cpu.h"
#include "../../dispatch/isa.h"

#if BNORM_HAVE_NEON

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "vec.h"
#include "../kernels/kernels.h"

const struct bnorm_isa bnorm_isa_neon = BNORM_INFERENCE_TABLE("neon");
const bnorm_training bnorm_training_neon = BNORM_TRAINING_TABLE;

#endif
