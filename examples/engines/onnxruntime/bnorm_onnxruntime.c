/* SPDX-License-Identifier: MIT
 *
 * ONNX's BatchNormalization (opset 14 and 15) as an operator of the domain "bnorm" for ONNX Runtime
 * 1.18 or newer: inference and training mode, with ReLU fused where the attribute "relu" is 1. x is
 * a tensor of float, bfloat16 or half precision, parameters and statistics are floats. */
#include <bnorm.h>
#include <onnxruntime_c_api.h>

/* All that is called is there since 1.18, whatever the header's version is. */
enum { API_VERSION = 18, MAX_DIMS = 64 };
static const OrtApi *api;

#define TRY(call)                                                                                  \
    do {                                                                                           \
        OrtStatus *status_ = (call);                                                               \
        if (status_)                                                                               \
            return status_;                                                                        \
    } while (0)

struct op {
    OrtCustomOp base; /* what ONNX Runtime knows of it */
    bnorm_dtype dtype;
    ONNXTensorElementDataType type;
};

/* A node of a graph. Sessions may run it several times at once, so it does not change. */
struct kernel {
    bnorm_dtype dtype;
    float epsilon, momentum;
    int64_t training_mode, relu;
    OrtAllocator *allocator;
};

struct tensor {
    void *data;
    int64_t dims[MAX_DIMS];
    size_t ndim, count;
};

static OrtStatus *error(bnorm_status status) {
    return status == BNORM_OK ? NULL
                              : api->CreateStatus(ORT_INVALID_ARGUMENT, bnorm_strerror(status));
}

static OrtStatus *input(OrtKernelContext *context, size_t index, struct tensor *tensor) {
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *info = NULL;
    TRY(api->KernelContext_GetInput(context, index, &value));
    TRY(api->GetTensorTypeAndShape(value, &info));
    OrtStatus *status = api->GetDimensionsCount(info, &tensor->ndim);
    if (!status && tensor->ndim > MAX_DIMS)
        status = api->CreateStatus(ORT_INVALID_ARGUMENT, "x has more than 64 axes: reshape it");
    if (!status)
        status = api->GetDimensions(info, tensor->dims, tensor->ndim);
    if (!status)
        status = api->GetTensorShapeElementCount(info, &tensor->count);
    api->ReleaseTensorTypeAndShapeInfo(info);
    TRY(status);
    return api->GetTensorMutableData((OrtValue *)value, &tensor->data);
}

/* *data becomes NULL where the node lacks this output. */
static OrtStatus *output(OrtKernelContext *context, size_t index, const struct tensor *like,
                         void **data) {
    size_t count;
    OrtValue *value = NULL;
    *data = NULL;
    TRY(api->KernelContext_GetOutputCount(context, &count));
    if (index < count)
        TRY(api->KernelContext_GetOutput(context, index, like->dims, like->ndim, &value));
    return value ? api->GetTensorMutableData(value, data) : NULL;
}

/* The threads of the session. How many there are its API does not tell. */
struct pool {
    OrtKernelContext *context;
    OrtStatus *status;
};

static void on_onnxruntime(void *arg, void (*task)(void *, size_t), void *task_arg, size_t count) {
    struct pool *pool = arg;
    OrtStatus *status = api->KernelContext_ParallelFor(pool->context, task, count, 0, task_arg);
    if (status && pool->status)
        api->ReleaseStatus(status);
    else if (status)
        pool->status = status;
}

static OrtStatus *compute(void *arg, OrtKernelContext *context) {
    const struct kernel *kernel = arg;
    enum { X, SCALE, B, MEAN, VAR, INPUTS };
    struct tensor in[INPUTS];
    for (size_t i = 0; i < INPUTS; i++)
        TRY(input(context, i, &in[i]));
    const struct tensor *x = &in[X];
    bnorm_shape shape = {.layout = BNORM_NCHW, .dtype = kernel->dtype, .n = 1, .c = 1, .hw = 1};
    for (size_t i = 0; i < x->ndim; i++)
        *(i == 0 ? &shape.n : i == 1 ? &shape.c : &shape.hw) *= (size_t)x->dims[i];
    for (size_t i = SCALE; i < INPUTS; i++)
        if (in[i].count != shape.c)
            return api->CreateStatus(ORT_INVALID_ARGUMENT,
                                     "scale, B, input_mean and input_var need as many values as x "
                                     "has channels, its second axis");
    const float *gamma = in[SCALE].data, *beta = in[B].data;
    float *mean = in[MEAN].data, *var = in[VAR].data;

    void *y, *running_mean, *running_var, *scratch = NULL;
    TRY(output(context, 0, x, &y));
    TRY(output(context, 1, &in[MEAN], &running_mean));
    TRY(output(context, 2, &in[VAR], &running_var));
    const size_t size = kernel->training_mode ? bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape)
                                              : shape.c * sizeof(float);
    if (size > 0)
        TRY(api->AllocatorAlloc(kernel->allocator, size, &scratch));

    struct pool pool = {.context = context};
    const bnorm_exec exec = {.parallel = on_onnxruntime, .pool = &pool};
    const bnorm_act act = {.kind = kernel->relu ? BNORM_ACT_RELU : BNORM_ACT_IDENTITY};
    const double eps = (double)kernel->epsilon;
    bnorm_status status;
    if (kernel->training_mode) {
        bnorm_train train = {.gamma = gamma, .beta = beta, .eps = eps, .act = act};
        train.running = bnorm_running_onnx(running_mean ? mean : NULL, running_var ? var : NULL,
                                           (double)kernel->momentum);
        train.running.new_mean = running_mean;
        train.running.new_var = running_var;
        status = bnorm_forward_train(&shape, BNORM_IN(x->data), BNORM_OUT(y), &train, scratch, size,
                                     &exec);
    } else {
        float *scale = scratch;
        status = bnorm_fold(shape.c, gamma, NULL, NULL, var, eps, scale, NULL);
        const bnorm_affine affine = {.center = mean, .scale = scale, .shift = beta, .act = act};
        if (status == BNORM_OK)
            status = bnorm_apply(&shape, BNORM_IN(x->data), BNORM_OUT(y), &affine, &exec);
    }
    if (scratch)
        TRY(api->AllocatorFree(kernel->allocator, scratch));
    return pool.status ? pool.status : error(status);
}

/* An attribute that a node lacks has its default. */
static void attribute_float(const OrtKernelInfo *info, const char *name, float *value) {
    OrtStatus *status = api->KernelInfoGetAttribute_float(info, name, value);
    if (status)
        api->ReleaseStatus(status);
}

static void attribute_int(const OrtKernelInfo *info, const char *name, int64_t *value) {
    OrtStatus *status = api->KernelInfoGetAttribute_int64(info, name, value);
    if (status)
        api->ReleaseStatus(status);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *session_api,
                         const OrtKernelInfo *info, void **out) {
    (void)session_api;
    struct kernel *kernel = malloc(sizeof *kernel);
    if (!kernel)
        return api->CreateStatus(ORT_FAIL, "bnorm: out of memory");
    *kernel = (struct kernel){
        .dtype = ((const struct op *)op)->dtype, .epsilon = 1e-5f, .momentum = 0.9f};
    attribute_float(info, "epsilon", &kernel->epsilon);
    attribute_float(info, "momentum", &kernel->momentum);
    attribute_int(info, "training_mode", &kernel->training_mode);
    attribute_int(info, "relu", &kernel->relu);
    OrtStatus *status = api->KernelInfoGetAllocator(info, OrtMemTypeDefault, &kernel->allocator);
    if (status)
        free(kernel);
    else
        *out = kernel;
    return status;
}

static void destroy(void *arg) {
    struct kernel *kernel = arg;
    api->ReleaseAllocator(kernel->allocator);
    free(kernel);
}

/* y has the shape of x. Whether the node has the other outputs cannot be found out here. */
static OrtStatus *infer_shape(const OrtCustomOp *op, OrtShapeInferContext *context) {
    (void)op;
    OrtTensorTypeAndShapeInfo *info = NULL;
    TRY(api->ShapeInferContext_GetInputTypeShape(context, 0, &info));
    return api->ShapeInferContext_SetOutputTypeShape(context, 0, info);
}

/* y may be written over x. */
static size_t may_be_in_place(int **input_index, int **output_index) {
    static int first = 0;
    *input_index = *output_index = &first;
    return 1;
}

static void release_may_be_in_place(int *input_index, int *output_index) {
    (void)input_index, (void)output_index;
}

static const char *name(const OrtCustomOp *op) {
    (void)op;
    return "BatchNormalization";
}

static const char *provider(const OrtCustomOp *op) {
    (void)op;
    return NULL; /* the CPU's */
}

static ONNXTensorElementDataType type(const OrtCustomOp *op, size_t index) {
    return index == 0 ? ((const struct op *)op)->type : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

static size_t input_count(const OrtCustomOp *op) {
    (void)op;
    return 5;
}

static size_t output_count(const OrtCustomOp *op) {
    (void)op;
    return 3;
}

static OrtCustomOpInputOutputCharacteristic input_kind(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return INPUT_OUTPUT_REQUIRED;
}

static OrtCustomOpInputOutputCharacteristic output_kind(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
}

static OrtMemType memory_type(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return OrtMemTypeDefault;
}

#define OP(bnorm_type, onnx_type)                                                                  \
    {                                                                                              \
        .dtype = (bnorm_type), .type = (onnx_type), .base = {                                      \
            .version = API_VERSION,                                                                \
            .CreateKernelV2 = create,                                                              \
            .KernelComputeV2 = compute,                                                            \
            .KernelDestroy = destroy,                                                              \
            .GetName = name,                                                                       \
            .GetExecutionProviderType = provider,                                                  \
            .GetInputType = type,                                                                  \
            .GetInputTypeCount = input_count,                                                      \
            .GetInputCharacteristic = input_kind,                                                  \
            .GetInputMemoryType = memory_type,                                                     \
            .GetOutputType = type,                                                                 \
            .GetOutputTypeCount = output_count,                                                    \
            .GetOutputCharacteristic = output_kind,                                                \
            .InferOutputShapeFn = infer_shape,                                                     \
            .GetMayInplace = may_be_in_place,                                                      \
            .ReleaseMayInplace = release_may_be_in_place,                                          \
        }                                                                                          \
    }

static const struct op ops[] = {
    OP(BNORM_F32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
    OP(BNORM_BF16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16),
    OP(BNORM_F16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
};

/* What ONNX Runtime looks for in a library of operators. The domain is never released, as sessions
 * use it to their end. */
ORT_EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    api = base->GetApi(API_VERSION);
    if (!api) /* without it no status can be made either */
        abort();
    OrtCustomOpDomain *domain = NULL;
    TRY(api->CreateCustomOpDomain("bnorm", &domain));
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        TRY(api->CustomOpDomain_Add(domain, &ops[i].base));
    return api->AddCustomOpDomain(options, domain);
}
