/* SPDX-License-Identifier: MIT
 *
 * Elements of all types to floats and back, and masks of bits. Kernels that meet anything but
 * floats take it through memory of floats in the first-level cache: the loops that compute exist
 * once. What is widened is written in whole vectors, so the memory has room for one more. */

/* Elements that pass through such memory at a time. */
#define BNORM_STAGE 1024

BNORM_INLINE size_t size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

/* Element i of an array. */
BNORM_INLINE const void *element_at(const void *p, bnorm_dtype type, size_t i) {
    return (const char *)p + i * size_of(type);
}

/* n < 16 elements of 16 bits; a loop over them takes longer. */
BNORM_INLINE void copy_halves(uint16_t *to, const uint16_t *p, size_t n) {
    if (n & 8)
        memcpy(to, p, 16);
    if (n & 4)
        memcpy(to + (n & 8), p + (n & 8), 8);
    if (n & 2)
        memcpy(to + (n & 12), p + (n & 12), 4);
    if (n & 1)
        to[n & 14] = p[n & 14];
}

/* n lanes of 16 bits, as load_lanes and store_lanes. */
#define BNORM_HALF_LANES(type)                                                                     \
    BNORM_INLINE vec_f load_##type##_lanes(const uint16_t *p, size_t n) {                          \
        uint16_t all[VEC_F] = {0};                                                                 \
        if (n == VEC_F)                                                                            \
            return vec_load_##type(p);                                                             \
        copy_halves(all, p, n);                                                                    \
        return vec_load_##type(all);                                                               \
    }                                                                                              \
    BNORM_INLINE void store_##type##_lanes(uint16_t *p, vec_f v, size_t n) {                       \
        uint16_t all[VEC_F];                                                                       \
        if (n == VEC_F) {                                                                          \
            vec_store_##type(p, v);                                                                \
            return;                                                                                \
        }                                                                                          \
        vec_store_##type(all, v);                                                                  \
        copy_halves(p, all, n);                                                                    \
    }
BNORM_HALF_LANES(bf16)
BNORM_HALF_LANES(f16)

/* The limits of S8 and U8. */
BNORM_INLINE float least_of(bnorm_dtype type) {
    return type == BNORM_S8 ? -128 : 0;
}
BNORM_INLINE float most_of(bnorm_dtype type) {
    return type == BNORM_S8 ? 127 : 255;
}

/* VEC_F whole numbers within the limits. */
BNORM_INLINE vec_f quantized(bnorm_dtype type, vec_f v, vec_f scale, vec_f zero_point) {
    const vec_f steps = vec_div(v, scale), zero = vec_set1(0), least = vec_set1(least_of(type)),
                most = vec_set1(most_of(type));
    const vec_f q = vec_add(vec_round(vec_if_le(steps, steps, steps, zero)), zero_point);
    return vec_if_le(q, least, least, vec_if_le(most, q, most, q));
}

/* `rows` rows of n elements, `stride` apart, to rows of floats without gaps, and zeros up to the
 * end of a vector. Lines of the source are asked for `ahead` bytes before their use. */
static void widen_rows(float *to, const void *from, bnorm_dtype type, const bnorm_quant *quant,
                       size_t stride, size_t rows, size_t n, size_t ahead) {
    if (stride == n)
        n *= rows, rows = 1;
#define BNORM_WIDEN(element, none, expression)                                                     \
    for (const element *row = from; rows > 0; rows--, row += stride, to += n) {                    \
        const element *p = row;                                                                    \
        element rest[VEC_F];                                                                       \
        size_t i = 0;                                                                              \
        memset(rest, none, sizeof rest);                                                           \
        for (; i + VEC_F <= n; i += VEC_F, p += VEC_F) {                                           \
            vec_fetch((const float *)(const void *)((const char *)p + ahead));                     \
            vec_store(to + i, expression);                                                         \
        }                                                                                          \
        if (i < n) {                                                                               \
            for (size_t k = 0; k < n - i; k++)                                                     \
                rest[k] = p[k];                                                                    \
            p = rest;                                                                              \
            vec_store(to + i, expression);                                                         \
        }                                                                                          \
    }                                                                                              \
    break;
    switch (type) {
    case BNORM_F32:
        BNORM_WIDEN(float, 0, vec_load(p))
    case BNORM_BF16:
        BNORM_WIDEN(uint16_t, 0, vec_load_bf16(p))
    case BNORM_F16:
        BNORM_WIDEN(uint16_t, 0, vec_load_f16(p))
    case BNORM_S8: {
        const vec_f zero = vec_set1((float)quant->zero_point), scale = vec_set1(quant->scale);
        BNORM_WIDEN(uint8_t, quant->zero_point, vec_mul(vec_sub(vec_load_s8(p), zero), scale))
    }
    case BNORM_U8: {
        const vec_f zero = vec_set1((float)quant->zero_point), scale = vec_set1(quant->scale);
        BNORM_WIDEN(uint8_t, quant->zero_point, vec_mul(vec_sub(vec_load_u8(p), zero), scale))
    }
    }
#undef BNORM_WIDEN
}

BNORM_INLINE void widen(float *to, const void *from, bnorm_dtype type, const bnorm_quant *quant,
                        size_t n, size_t ahead) {
    widen_rows(to, from, type, quant, n, 1, n, ahead);
}

/* n floats to elements, rounded; every NaN is stored as the one of bnorm. */
static void narrow(void *to, bnorm_dtype type, const bnorm_quant *quant, const float *from,
                   size_t n, size_t ahead) {
#define BNORM_NARROW(element, store, expression)                                                   \
    {                                                                                              \
        element *p = to, rest[VEC_F];                                                              \
        size_t i = 0;                                                                              \
        for (; i + VEC_F <= n; i += VEC_F, p += VEC_F) {                                           \
            const vec_f v = vec_load(from + i);                                                    \
            vec_fetch_out((const float *)(const void *)((const char *)p + ahead));                 \
            store(p, expression);                                                                  \
        }                                                                                          \
        if (i < n) {                                                                               \
            const vec_f v = vec_load(from + i);                                                    \
            store(rest, expression);                                                               \
            for (size_t k = 0; k < n - i; k++)                                                     \
                p[k] = rest[k];                                                                    \
        }                                                                                          \
        break;                                                                                     \
    }
    switch (type) {
    case BNORM_F32:
        BNORM_NARROW(float, vec_store, vec_canonical(v))
    case BNORM_BF16:
        BNORM_NARROW(uint16_t, vec_store_bf16, vec_canonical(v))
    case BNORM_F16:
        BNORM_NARROW(uint16_t, vec_store_f16, vec_canonical(v))
    case BNORM_S8:
    case BNORM_U8: {
        const vec_f zero = vec_set1((float)quant->zero_point), scale = vec_set1(quant->scale);
        BNORM_NARROW(uint8_t, vec_store_8, quantized(type, v, scale, zero))
    }
    }
#undef BNORM_NARROW
}

/* n <= VEC_F elements; not for S8 and U8. */
BNORM_INLINE vec_f widened_lanes(const void *p, bnorm_dtype type, size_t n) {
    if (type == BNORM_F32)
        return load_lanes(p, n);
    return type == BNORM_BF16 ? load_bf16_lanes(p, n) : load_f16_lanes(p, n);
}

/* ---------------------------------------------------------------------------------------------- */
/* Bits. Those of one call lie next to each other, or in runs; bytes that they fill are read and
 * written as such, others may be shared with another thread. */

/* Bits [at, at + n) as the lowest of the result, n <= 16. */
BNORM_INLINE unsigned bit_window(const unsigned char *bits, size_t at, size_t n) {
    const size_t first = at / 8, last = (at + n - 1) / 8;
    unsigned window = bits[first];
    if (last > first)
        window |= (unsigned)bits[first + 1] << 8;
    if (last > first + 1)
        window |= (unsigned)bits[first + 2] << 16;
    return window >> at % 8;
}

/* 1 where a bit is set, else 0. */
static void widen_bits(float *to, const unsigned char *bits, size_t at, size_t n) {
    for (size_t i = 0; i < n; i += VEC_F)
        vec_store(to + i, vec_from_bits(bit_window(bits, at + i, lesser(VEC_F, n - i))));
}

/* The bits of a byte that `own` says. */
BNORM_INLINE void store_some_bits(unsigned char *byte, unsigned bits, unsigned own) {
    __atomic_fetch_and(byte, (unsigned char)(bits | ~own), __ATOMIC_RELAXED);
    __atomic_fetch_or(byte, (unsigned char)(bits & own), __ATOMIC_RELAXED);
}

/* Bits [at, at + n): whether act has the derivative of its upper branch at v. */
static void store_bits(unsigned char *bits, size_t at, const bnorm_act *act, const float *v,
                       size_t n) {
    const int clamp = act->kind == BNORM_ACT_CLAMP;
    const vec_f zero = vec_set1(0), low = vec_set1(act->a), high = vec_set1(act->b);
    unsigned char *byte = bits + at / 8;
    unsigned others = (1u << at % 8) - 1; /* bits of *byte that are not of this call */
    uint64_t waiting = 0;
    size_t count = at % 8;
    for (size_t i = 0; i < n; i += VEC_F) {
        const size_t lanes = lesser(VEC_F, n - i);
        const vec_f lane = load_lanes(v + i, lanes);
        unsigned word =
            clamp ? vec_bits_gt(lane, low) & vec_bits_gt(high, lane) : vec_bits_gt(lane, zero);
        word &= (1u << lanes) - 1;
        waiting |= (uint64_t)word << count;
        for (count += lanes; count >= 8; count -= 8, waiting >>= 8, byte++) {
            if (others)
                store_some_bits(byte, (unsigned)waiting & 255, 255 & ~others);
            else
                *byte = (unsigned char)waiting;
            others = 0;
        }
    }
    if (count)
        store_some_bits(byte, (unsigned)waiting, ((1u << count) - 1) & ~others);
}
