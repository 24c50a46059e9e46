/* SPDX-License-Identifier: MIT
 *
 * Of XLA's foreign function interface, what xla.c needs: structs as they are in
 * xla/ffi/api/c_api.h, which comes with JAX, since version 0.1 of the interface (JAX 0.5). */
#if !defined(BNORM_PYTHON_XLA_H)
#define BNORM_PYTHON_XLA_H

#include <stddef.h>
#include <stdint.h>

enum { XLA_MAJOR = 0, XLA_MINOR = 1 };
enum { XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_BF16 = 16 };
enum { XLA_METADATA = 1, XLA_ARRAY = 1, XLA_EXECUTE = 3, XLA_INVALID_ARGUMENT = 3 };

typedef struct xla_error xla_error;
typedef struct xla_context xla_context;

typedef struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct xla_version {
    size_t struct_size;
    xla_extension *extension;
    int major, minor;
} xla_version;

typedef struct xla_metadata {
    size_t struct_size;
    xla_version version;
    uint32_t traits;
} xla_metadata;

typedef struct xla_metadata_extension {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct xla_buffer {
    size_t struct_size;
    xla_extension *extension;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *sizes;
} xla_buffer;

/* An attribute that is one. */
typedef struct xla_array {
    int dtype;
    size_t size;
    void *data;
} xla_array;

typedef struct xla_error_create_args {
    size_t struct_size;
    xla_extension *extension;
    const char *message;
    int code;
} xla_error_create_args;

typedef struct xla_error_destroy_args {
    size_t struct_size;
    xla_extension *extension;
    xla_error *error;
} xla_error_destroy_args;

typedef struct xla_schedule_args {
    size_t struct_size;
    xla_extension *extension;
    xla_context *context;
    void (*task)(void *data);
    void *data;
} xla_schedule_args;

typedef struct xla_num_threads_args {
    size_t struct_size;
    xla_extension *extension;
    xla_context *context;
    int64_t *threads;
} xla_num_threads_args;

typedef struct xla_api {
    size_t struct_size;
    xla_extension *extension;
    xla_version version;
    const void *internal;
    xla_error *(*error_create)(xla_error_create_args *args);
    void (*error_get_message)(void);
    void (*error_destroy)(xla_error_destroy_args *args);
    void (*others[8])(void);
    xla_error *(*schedule)(xla_schedule_args *args);
    xla_error *(*num_threads)(xla_num_threads_args *args);
} xla_api;

/* Of arguments and of results. */
typedef struct xla_list {
    size_t struct_size;
    xla_extension *extension;
    int64_t size;
    int *types;
    void **items;
} xla_list;

typedef struct xla_attributes {
    size_t struct_size;
    xla_extension *extension;
    int64_t size;
    int *types;
    void *names;
    void **items;
} xla_attributes;

typedef struct xla_frame {
    size_t struct_size;
    xla_extension *extension;
    const xla_api *api;
    xla_context *context;
    int stage;
    xla_list arguments, results;
    xla_attributes attributes;
} xla_frame;

#endif
