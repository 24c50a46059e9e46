/* SPDX-License-Identifier: MIT */
#include "cpu_name.h"

#include <stdio.h>
#include <string.h>

const char *bench_cpu_name(void) {
    static char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    const char *name = NULL;
    while (file && !name && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "model name", 10) == 0 && strstr(line, ": "))
            name = strstr(line, ": ") + 2;
    }
    if (file)
        fclose(file);
    return name ? name : "unknown CPU";
}
