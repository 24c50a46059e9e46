/* SPDX-License-Identifier: MIT */
#include "bnorm.h"

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
        return "A stride is so small that elements of one tensor share an address, or so large "
               "that it overflows.";
    case BNORM_BAD_OVERLAP:
        return "An output overlaps another buffer without being the same tensor, or in-place is "
               "not allowed there.";
    case BNORM_BAD_PARAMETER:
        return "A parameter is out of range: epsilon, a variance, a rate, a weight, a count, or a "
               "bound of the activation or of batch renormalization.";
    case BNORM_UNSUPPORTED:
        return "This combination is valid but not supported by this build of bnorm.";
    case BNORM_WORKSPACE_TOO_SMALL:
        return "The workspace is smaller than bnorm_workspace() says.";
    }
    return "This is not a status of bnorm.";
}
