/* SPDX-License-Identifier: MIT */
#include "base.h"

#define STRING(x)                    #x
#define VERSION(major, minor, patch) STRING(major) "." STRING(minor) "." STRING(patch)

const char *bnorm_version(void) {
    return VERSION(BNORM_VERSION_MAJOR, BNORM_VERSION_MINOR, BNORM_VERSION_PATCH);
}

const char *bnorm_strerror(bnorm_status status) {
    switch (status) {
    case BNORM_OK:
        return "The call succeeded.";
    case BNORM_NULL_POINTER:
        return "A required pointer is NULL.";
    case BNORM_BAD_ENUM:
        return "A layout, data type, activation, variance kind, weight layout, operation or order "
               "of groups does not exist.";
    case BNORM_BAD_SHAPE:
        return "The shape has no channels, its size overflows, groups do not divide channels or "
               "samples, or pieces of a batch do not fit together.";
    case BNORM_BAD_STRIDE:
        return "A stride is so small that elements of one tensor share an address, so large that "
               "it overflows, or belongs to axes that two strides cannot express.";
    case BNORM_BAD_OVERLAP:
        return "An output overlaps another buffer without being the same tensor, or in-place is "
               "not allowed there.";
    case BNORM_BAD_PARAMETER:
        return "Options exclude each other, or a count or a channel axis is out of range.";
    case BNORM_UNSUPPORTED:
        return "This combination is valid but not supported by this build of bnorm.";
    case BNORM_WORKSPACE_TOO_SMALL:
        return "The workspace is smaller than bnorm_workspace() says.";
    case BNORM_BAD_EPSILON:
        return "Epsilon is negative or not finite.";
    case BNORM_BAD_VARIANCE:
        return "The variance of a channel is negative by more than epsilon or, where that is "
               "asked, "
               "its statistics are not finite: bnorm_check_statistics() tells which channel.";
    case BNORM_BAD_RATE:
        return "The rate of the running statistics is not finite.";
    case BNORM_BAD_ACTIVATION:
        return "A bound or slope of the activation is out of range.";
    case BNORM_BAD_QUANTIZATION:
        return "The scale of a quantized tensor is not positive and finite, or its zero point is "
               "no "
               "value of its type.";
    case BNORM_BAD_WEIGHTS:
        return "A weight is negative or not finite.";
    case BNORM_BAD_RENORM:
        return "The limits of batch renormalization are out of range or not in order.";
    }
    return "This is not a status of bnorm.";
}
