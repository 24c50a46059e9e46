/* SPDX-License-Identifier: MIT
 *
 * What the passes of backward share: g = dy*act'(v). The kind of activation is a constant of an
 * inlined body. */

/* v where -3 < v < 3, else 0; a NaN stays. So no result that hard swish does not take overflows. */
BNORM_INLINE vec_f within_three(vec_f v) {
    return vec_zero_if_le(vec_minus_abs(v), vec_set1(-3), v);
}

/* dy times the derivative at v. */
BNORM_INLINE vec_f gradient(bnorm_act_kind kind, vec_f v, vec_f dy, vec_f a, vec_f b) {
    const vec_f zero = vec_set1(0), three = vec_set1(3);
    switch (kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return vec_zero_unless_gt(v, zero, dy);
    case BNORM_ACT_CLAMP:
        return vec_zero_unless_gt(v, a, vec_zero_unless_gt(b, v, dy));
    case BNORM_ACT_LEAKY_RELU:
        return vec_if_gt(v, zero, dy, vec_mul(dy, vec_if_gt(v, zero, vec_set1(1), a)));
    case BNORM_ACT_HARD_SWISH: {
        const vec_f slope = vec_fma(within_three(v), vec_set1(1.0f / 3), vec_set1(0.5f));
        const vec_f between = vec_mul(dy, slope);
        return vec_zero_if_le(v, vec_set1(-3), vec_if_le(three, v, dy, between));
    }
    default: /* in smooth.h */
        break;
    }
    return dy;
}

BNORM_INLINE int reads_argument(enum bnorm_pre pre) {
    return pre == BNORM_PRE_RESIDUAL || pre == BNORM_PRE_Y;
}

/* Whether v is computed from x. */
BNORM_INLINE int reads_x(enum bnorm_pre pre) {
    return pre == BNORM_PRE_X || pre == BNORM_PRE_RESIDUAL;
}

BNORM_INLINE size_t whole_vectors(size_t n) {
    return (n + VEC_F - 1) / VEC_F * VEC_F;
}

/* The activations that are a few operations; the others are in smooth.h. */
#define BNORM_PLAIN_KINDS(X)                                                                       \
    X(BNORM_ACT_IDENTITY)                                                                          \
    X(BNORM_ACT_RELU)                                                                              \
    X(BNORM_ACT_CLAMP)                                                                             \
    X(BNORM_ACT_LEAKY_RELU)                                                                        \
    X(BNORM_ACT_HARD_SWISH)

/* dy times the derivative at v, of an activation that is no constant. */
BNORM_INLINE vec_f gradient_of(const bnorm_act *act, vec_f v, vec_f dy) {
    const vec_f a = vec_set1(act->a), b = vec_set1(act->b);
#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        return gradient(kind, v, dy, a, b);
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default: {
        float values[2][VEC_F];
        vec_store(values[0], v);
        vec_store(values[1], dy);
        smooth_gradients(act->kind, act->a, values[0], values[1], VEC_F);
        return vec_load(values[1]);
    }
    }
#undef BNORM_CASE
}
