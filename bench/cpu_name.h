/* SPDX-License-Identifier: MIT */
#ifndef BNORM_BENCH_CPU_NAME_H
#define BNORM_BENCH_CPU_NAME_H

/* "Intel(R) Xeon(R) ..." where the system says so. */
const char *bench_cpu_name(void);

#endif
