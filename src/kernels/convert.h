/* SPDX-License-Identifier: MIT
 *
 * Elements of all types to floats and back, and masks of bits. Rows that are widened to memory are
 * written in whole vectors, so the memory has room for one more. */

BNORM_INLINE size_t size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

/* Element i of an array. */
BNORM_INLINE const void *element_at(const void *p, bnorm_dtype type, size_t i) {
    return (const char *)p + i * size_of(type);
}

/* n < VEC_F elements of 16 bits; a loop over them takes longer. */
BNORM_INLINE void copy_halves(uint16_t *to, const uint16_t *p, size_t n) {
    if (VEC_F > 8 && n & 8)
        memcpy(to, p, 16);
    if (VEC_F > 4 && n & 4)
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

/* A quantization as kernels use it. */
struct quant {
    float scale, zero_point;
    float inverse; /* 1/scale, or 0 where quotients must be divided for */
    float limit;   /* what is beyond it lies beyond all of a type's values */
};

BNORM_INLINE void begin_quant(struct quant *to, const bnorm_quant *from) {
    const float scale = from->scale;
    const int usual = scale > 0x1p-90f && scale < 0x1p90f;
    to->scale = scale;
    to->zero_point = (float)from->zero_point;
    to->inverse = usual ? 1 / scale : 0;
    to->limit = scale < 0x1p117f ? 1024 * scale : FLT_MAX;
}

/* v/scale, rounded once, but that NaN gives 0 and what is beyond the limit is not exact. The
 * quotient by the rounded inverse, corrected by its remainder, is the rounded quotient: P. Markstein,
 * "Computation of elementary functions on the IBM RISC System/6000 processor" (1990), theorem 8.5 of
 * J.-M. Muller et al., "Handbook of floating-point arithmetic". */
BNORM_INLINE vec_f quotient(vec_f v, const struct quant *quant) {
    const vec_f limit = vec_set1(quant->limit), inverse = vec_set1(quant->inverse);
    v = vec_zero_nan(v);
    v = vec_min(vec_max(v, vec_negate(limit)), limit);
    if (BNORM_UNLIKELY(quant->inverse == 0))
        return vec_div(v, vec_set1(quant->scale));
    const vec_f q = vec_mul(v, inverse), remainder = vec_fma(q, vec_set1(-quant->scale), v);
    return vec_fma(remainder, inverse, q);
}

/* n <= VEC_F elements; not for S8 and U8. */
BNORM_INLINE vec_f widened_lanes(const void *p, bnorm_dtype type, size_t n) {
    if (type == BNORM_F32)
        return load_lanes(p, n);
    return type == BNORM_BF16 ? load_bf16_lanes(p, n) : load_f16_lanes(p, n);
}

/* `rows` rows of n elements, `stride` apart, to rows of floats without gaps, and zeros up to the end
 * of a vector; not for S8 and U8. */
static void widen_rows(float *to, const void *from, bnorm_dtype type, size_t stride, size_t rows,
                       size_t n) {
    if (stride == n)
        n *= rows, rows = 1;
#define BNORM_WIDEN(element, load)                                                                 \
    for (const element *row = from; rows > 0; rows--, row += stride, to += n) {                    \
        size_t i = 0;                                                                              \
        for (; i + VEC_F <= n; i += VEC_F)                                                         \
            vec_store(to + i, load(row + i));                                                      \
        if (i < n)                                                                                 \
            vec_store(to + i, widened_lanes(row + i, type, n - i));                                \
    }
    if (type == BNORM_F32) {
        BNORM_WIDEN(float, vec_load)
    } else if (type == BNORM_BF16) {
        BNORM_WIDEN(uint16_t, vec_load_bf16)
    } else {
        BNORM_WIDEN(uint16_t, vec_load_f16)
    }
#undef BNORM_WIDEN
}

/* ---------------------------------------------------------------------------------------------- */
/* Bits. Those of one call lie next to each other, or in runs; bytes that they fill are read and
 * written as such, others may be shared with another thread. */

/* Bits [at, at + n) as the lowest of the result, n <= VEC_F, and any others above them. */
BNORM_INLINE unsigned bit_window(const unsigned char *bits, size_t at, size_t n) {
    const size_t first = at / 8, last = (at + n - 1) / 8;
    unsigned window = bits[first];
    if (VEC_F > 8)
        window |= (unsigned)bits[lesser(first + 1, last)] << 8;
    return (window | (unsigned)bits[last] << (VEC_F > 8 ? 16 : 8)) >> at % 8;
}

/* 32 bits from bit `at` on, and others behind them. */
BNORM_INLINE uint64_t row_window(const unsigned char *bits, size_t at) {
    uint32_t four;
    memcpy(&four, bits + at / 8, sizeof four);
    return (four | (uint64_t)bits[(at + 31) / 8] << 32) >> at % 8;
}

/* The bits of a byte that `own` says. */
BNORM_INLINE void store_some_bits(unsigned char *byte, unsigned bits, unsigned own) {
    __atomic_fetch_and(byte, (unsigned char)(bits | ~own), __ATOMIC_RELAXED);
    __atomic_fetch_or(byte, (unsigned char)(bits & own), __ATOMIC_RELAXED);
}

/* n bits from bit `at` on, n a multiple of 8 up to 64, or at most 8. */
BNORM_INLINE uint64_t read_bits(const unsigned char *bits, size_t at, size_t n) {
    const size_t shift = at % 8;
    uint64_t word = 0;
    if (n <= 8)
        return bit_window(bits, at, n);
    memcpy(&word, bits + at / 8, n / 8);
    word >>= shift;
    if (shift)
        word |= (uint64_t)bits[at / 8 + n / 8] << (n - shift);
    return word;
}

/* Writes bits one behind the other. */
struct bit_writer {
    unsigned char *bits;
    size_t at;        /* of the next bit */
    uint64_t waiting; /* those of the byte that is not full */
    unsigned others;  /* bits of that byte that are not of this call */
};

BNORM_INLINE void begin_bits(struct bit_writer *w, unsigned char *bits, size_t at) {
    w->bits = bits;
    w->at = at;
    w->waiting = 0;
    w->others = (1u << at % 8) - 1;
}

BNORM_INLINE void end_bits(struct bit_writer *w) {
    const unsigned mine = ((1u << w->at % 8) - 1) & ~w->others;
    if (mine)
        store_some_bits(w->bits + w->at / 8, (unsigned)w->waiting, mine);
}

/* The next bit is number `at`. */
BNORM_INLINE void seek_bits(struct bit_writer *w, size_t at) {
    if (w->at == at)
        return;
    end_bits(w);
    begin_bits(w, w->bits, at);
}

/* The n lowest bits of a word, n at most 64. */
BNORM_INLINE void put_bits(struct bit_writer *w, uint64_t word, size_t n) {
    if (w->at % 8 == 0 && n % 8 == 0) {
        memcpy(w->bits + w->at / 8, &word, n / 8);
        w->at += n;
        return;
    }
    for (; n > 0; n -= lesser(n, 32), word >>= 32) {
        const size_t k = lesser(n, 32), held = w->at % 8;
        unsigned char *byte = w->bits + w->at / 8;
        uint64_t bits = w->waiting | (word & ((UINT64_C(1) << k) - 1)) << held;
        size_t count = held + k;
        for (; count >= 8; count -= 8, bits >>= 8, byte++) {
            if (w->others)
                store_some_bits(byte, (unsigned)bits & 255, 255 & ~w->others);
            else
                *byte = (unsigned char)bits;
            w->others = 0;
        }
        w->waiting = bits;
        w->at += k;
    }
}
