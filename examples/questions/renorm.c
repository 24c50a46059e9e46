/* SPDX-License-Identifier: MIT
 *
 * Batch renormalization: in small batches, a sample's result depends on its neighbours. r and d
 * take that back, as far as they are allowed to. */
#include "question.h"

enum { N = 4 };

/* What training mode makes of the first sample of a batch. */
static float first_of(const float *x, double r_max, double d_max, float *r, float *d) {
    static const bnorm_shape shape = {.n = N, .c = 1, .hw = 1};
    float y[N], running_mean = 5, running_var = 4;
    const bnorm_renorm renorm = {
        .r_min = 1 / r_max, .r_max = r_max, .d_max = d_max, .save_r = r, .save_d = d};
    train(&shape, x, y,
          &(bnorm_train){.eps = 1e-3,
                         .running = bnorm_running_keras(&running_mean, &running_var, 0.99),
                         .renorm = &renorm});
    return y[0];
}

int main(void) {
    puts("x = 7 in batches of four, where running mean and variance are 5 and 4:");
    puts("inference mode gives 1.000, and training mode");
    puts("");
    puts("                        batch    limits 1.5    limits 3");
    puts("batch     r       d      norm       and 0.5       and 5");
    for (int batch = 1; batch <= 5; batch++) {
        float x[N], r, d;
        fill(x, N, 5, 2);
        x[0] = 7;
        const float plain = first_of(x, 1, 0, &r, &d);
        const float some = first_of(x, 1.5, 0.5, &r, &d);
        const float most = first_of(x, 3, 5, &r, &d);
        printf("%5d %5.3f %7.3f   %7.3f       %7.3f     %7.3f\n", batch, (double)r, (double)d,
               (double)plain, (double)some, (double)most);
    }
    return 0;
}
