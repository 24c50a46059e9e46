/* SPDX-License-Identifier: MIT
 *
 * A program in C++ that uses bnorm as its README says, for every way to get at the library: trains
 * on two samples of one channel, the worked example of Keras' documentation. */
#include <bnorm.h>
#include <cmath>
#include <cstdio>
#include <vector>

int main() {
    const float x[] = {3, 4};
    float y[2];
    const bnorm_shape shape = {BNORM_NHWC, BNORM_F32, 2, 1, 1, 0};
    bnorm_train train = {};
    train.eps = 1e-3;
    std::vector<char> ws(bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape));
    const bnorm_status status = bnorm_forward_train(&shape, BNORM_IN(x), BNORM_OUT(y), &train,
                                                    ws.data(), ws.size(), nullptr);
    std::printf("bnorm %s, %s: %.9f %.9f: %s\n", bnorm_version(), bnorm_isa_name(nullptr), y[0],
                y[1], bnorm_strerror(status));
    return status != BNORM_OK || std::fabs(y[0] + 0.998005980f) > 1e-7f || y[1] != -y[0];
}
