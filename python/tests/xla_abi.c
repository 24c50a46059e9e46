/* SPDX-License-Identifier: MIT
 *
 * Are the structs of xla.h those of XLA's own header? Compiles where they are. */
#include "../xla.h"

#include "xla/ffi/api/c_api.h"

#define SAME(mine, member, theirs, name)                                                           \
    _Static_assert(offsetof(mine, member) == offsetof(struct theirs, name) &&                      \
                       sizeof(((mine *)0)->member) == sizeof(((struct theirs *)0)->name),          \
                   #theirs "." #name " is not where xla.h has it")

SAME(xla_extension, type, XLA_FFI_Extension_Base, type);
SAME(xla_extension, next, XLA_FFI_Extension_Base, next);
SAME(xla_metadata, version, XLA_FFI_Metadata, api_version);
SAME(xla_version, major, XLA_FFI_Api_Version, major_version);
SAME(xla_version, minor, XLA_FFI_Api_Version, minor_version);
SAME(xla_metadata_extension, metadata, XLA_FFI_Metadata_Extension, metadata);
SAME(xla_buffer, dtype, XLA_FFI_Buffer, dtype);
SAME(xla_buffer, data, XLA_FFI_Buffer, data);
SAME(xla_buffer, rank, XLA_FFI_Buffer, rank);
SAME(xla_buffer, sizes, XLA_FFI_Buffer, dims);
SAME(xla_array, dtype, XLA_FFI_Array, dtype);
SAME(xla_array, size, XLA_FFI_Array, size);
SAME(xla_array, data, XLA_FFI_Array, data);
SAME(xla_error_create_args, message, XLA_FFI_Error_Create_Args, message);
SAME(xla_error_create_args, code, XLA_FFI_Error_Create_Args, errc);
SAME(xla_error_destroy_args, error, XLA_FFI_Error_Destroy_Args, error);
SAME(xla_schedule_args, context, XLA_FFI_ThreadPool_Schedule_Args, ctx);
SAME(xla_schedule_args, task, XLA_FFI_ThreadPool_Schedule_Args, task);
SAME(xla_schedule_args, data, XLA_FFI_ThreadPool_Schedule_Args, data);
SAME(xla_num_threads_args, context, XLA_FFI_ThreadPool_NumThreads_Args, ctx);
SAME(xla_num_threads_args, threads, XLA_FFI_ThreadPool_NumThreads_Args, num_threads);
SAME(xla_api, error_create, XLA_FFI_Api, XLA_FFI_Error_Create);
SAME(xla_api, error_destroy, XLA_FFI_Api, XLA_FFI_Error_Destroy);
SAME(xla_api, schedule, XLA_FFI_Api, XLA_FFI_ThreadPool_Schedule);
SAME(xla_api, num_threads, XLA_FFI_Api, XLA_FFI_ThreadPool_NumThreads);
SAME(xla_list, size, XLA_FFI_Args, size);
SAME(xla_list, items, XLA_FFI_Args, args);
SAME(xla_list, size, XLA_FFI_Rets, size);
SAME(xla_list, items, XLA_FFI_Rets, rets);
SAME(xla_attributes, size, XLA_FFI_Attrs, size);
SAME(xla_attributes, items, XLA_FFI_Attrs, attrs);
SAME(xla_frame, api, XLA_FFI_CallFrame, api);
SAME(xla_frame, context, XLA_FFI_CallFrame, ctx);
SAME(xla_frame, stage, XLA_FFI_CallFrame, stage);
SAME(xla_frame, arguments, XLA_FFI_CallFrame, args);
SAME(xla_frame, results, XLA_FFI_CallFrame, rets);
SAME(xla_frame, attributes, XLA_FFI_CallFrame, attrs);
_Static_assert(XLA_MAJOR == XLA_FFI_API_MAJOR && XLA_MINOR <= XLA_FFI_API_MINOR, "version");
_Static_assert((int)XLA_F16 == XLA_FFI_DataType_F16 && (int)XLA_F32 == XLA_FFI_DataType_F32 &&
                   (int)XLA_F64 == XLA_FFI_DataType_F64 && (int)XLA_BF16 == XLA_FFI_DataType_BF16,
               "types");
_Static_assert((int)XLA_METADATA == XLA_FFI_Extension_Metadata &&
                   (int)XLA_ARRAY == XLA_FFI_AttrType_ARRAY &&
                   (int)XLA_EXECUTE == XLA_FFI_ExecutionStage_EXECUTE &&
                   (int)XLA_INVALID_ARGUMENT == XLA_FFI_Error_Code_INVALID_ARGUMENT,
               "enumerators");
