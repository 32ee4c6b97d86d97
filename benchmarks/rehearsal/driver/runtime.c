/* The CUDA runtime: what torch asks of libcudart. Anything that is not here goes to the real library, which
 * finds no driver and says so. */
#define _GNU_SOURCE
#include "books.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCEEDS(name, ...) \
    cudaError_t name(__VA_ARGS__) { return cudaSuccess; }
#define GIVES(out, value) \
    do { \
        if (out) *(out) = (value); \
        return cudaSuccess; \
    } while (0)

enum { VERSION = 13000 };

/* ---- the device ---- */

/* Limits by compute capability, KiB of shared memory: CUDA programming guide, "Technical Specifications per
 * Compute Capability". */
struct limits {
    int major, minor, threads_per_multiprocessor, blocks_per_multiprocessor, shared_kib, shared_block_kib, l2_mib;
};
static const struct limits LIMITS[] = {
    {7, 0, 2048, 32, 96, 96, 6},    {7, 5, 1024, 16, 64, 64, 4},    {8, 0, 2048, 32, 164, 163, 40},
    {8, 6, 1536, 16, 100, 99, 6},   {8, 9, 1536, 24, 100, 99, 72},  {9, 0, 2048, 32, 228, 227, 50},
    {10, 0, 2048, 32, 228, 227, 126}, {12, 0, 1536, 24, 100, 99, 96},
};

static const struct limits *limits(void) {
    for (size_t i = 0; i < sizeof LIMITS / sizeof *LIMITS; i++)
        if (LIMITS[i].major == card()->major && LIMITS[i].minor == card()->minor) return LIMITS + i;
    fprintf(stderr, "rehearsal: no limits known of compute capability %d.%d\n", card()->major, card()->minor);
    exit(2);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device) {
    const struct limits *of = limits();
    if (device != 0) return cudaErrorInvalidDevice;
    memset(prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "%s", card()->product);
    prop->major = card()->major;
    prop->minor = card()->minor;
    prop->multiProcessorCount = card()->multiprocessors;
    prop->totalGlobalMem = card()->total_bytes;
    prop->sharedMemPerBlock = 48 << 10;
    prop->sharedMemPerBlockOptin = (size_t)of->shared_block_kib << 10;
    prop->sharedMemPerMultiprocessor = (size_t)of->shared_kib << 10;
    prop->reservedSharedMemPerBlock = 1 << 10;
    prop->regsPerBlock = prop->regsPerMultiprocessor = 64 << 10;
    prop->warpSize = 32;
    prop->memPitch = 0x7fffffff;
    prop->maxThreadsPerBlock = 1024;
    prop->maxThreadsPerMultiProcessor = of->threads_per_multiprocessor;
    prop->maxBlocksPerMultiProcessor = of->blocks_per_multiprocessor;
    prop->maxThreadsDim[0] = prop->maxThreadsDim[1] = 1024;
    prop->maxThreadsDim[2] = 64;
    prop->maxGridSize[0] = 0x7fffffff;
    prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
    prop->totalConstMem = 64 << 10;
    prop->textureAlignment = prop->surfaceAlignment = 512;
    prop->l2CacheSize = of->l2_mib << 20;
    prop->concurrentKernels = prop->canMapHostMemory = prop->unifiedAddressing = prop->managedMemory = 1;
    prop->cooperativeLaunch = prop->memoryPoolsSupported = prop->streamPrioritiesSupported = 1;
    prop->asyncEngineCount = 3;
    prop->ECCEnabled = card()->major == 8 || card()->major == 9;
    prop->clusterLaunch = card()->major >= 9;
    return cudaSuccess;
}

int attribute(int which) {
    struct cudaDeviceProp prop;
    cudaGetDeviceProperties(&prop, 0);
    switch (which) {
        case cudaDevAttrMaxThreadsPerBlock: return prop.maxThreadsPerBlock;
        case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: return prop.maxThreadsDim[0];
        case cudaDevAttrMaxBlockDimZ: return prop.maxThreadsDim[2];
        case cudaDevAttrMaxGridDimX: return prop.maxGridSize[0];
        case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return prop.maxGridSize[1];
        case cudaDevAttrMaxSharedMemoryPerBlock: return prop.sharedMemPerBlock;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: return prop.sharedMemPerBlockOptin;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return prop.sharedMemPerMultiprocessor;
        case cudaDevAttrReservedSharedMemoryPerBlock: return prop.reservedSharedMemPerBlock;
        case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: return prop.regsPerBlock;
        case cudaDevAttrWarpSize: return prop.warpSize;
        case cudaDevAttrMultiProcessorCount: return prop.multiProcessorCount;
        case cudaDevAttrMaxThreadsPerMultiProcessor: return prop.maxThreadsPerMultiProcessor;
        case cudaDevAttrMaxBlocksPerMultiprocessor: return prop.maxBlocksPerMultiProcessor;
        case cudaDevAttrComputeCapabilityMajor: return prop.major;
        case cudaDevAttrComputeCapabilityMinor: return prop.minor;
        case cudaDevAttrL2CacheSize: return prop.l2CacheSize;
        case cudaDevAttrTotalConstantMemory: return prop.totalConstMem;
        case cudaDevAttrClockRate: return 1500000;
        case cudaDevAttrConcurrentKernels: case cudaDevAttrUnifiedAddressing: case cudaDevAttrManagedMemory:
        case cudaDevAttrCooperativeLaunch: case cudaDevAttrMemoryPoolsSupported: case cudaDevAttrCanMapHostMemory:
            return 1;
        default:
            if (getenv("REHEARSED_TELL_ATTRIBUTES")) fprintf(stderr, "rehearsal: attribute %d is 0\n", which);
            return 0;
    }
}

cudaError_t cudaGetDeviceCount(int *count) { GIVES(count, 1); }
cudaError_t cudaGetDevice(int *device) { GIVES(device, 0); }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { GIVES(version, VERSION); }
cudaError_t cudaRuntimeGetVersion(int *version) { GIVES(version, VERSION); }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
    (void)device;
    GIVES(value, attribute(which));
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    (void)device, (void)peer;
    GIVES(can, 0);
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    (void)device;
    snprintf(id, length, "0000:00:00.0");
    return cudaSuccess;
}
SUCCEEDS(cudaDeviceSynchronize, void)
SUCCEEDS(cudaGetLastError, void)
SUCCEEDS(cudaPeekAtLastError, void)

/* The driver's functions lie in this same library; one that is missing is told as such. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *status) {
    (void)version, (void)flags;
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **address, size_t bytes) {
    *address = take_device(bytes);
    return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *address) {
    return !address || return_device(address) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t stream) {
    (void)stream;
    return cudaMalloc(address, bytes);
}
cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) {
    (void)stream;
    return cudaFree(address);
}
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = free_bytes();
    *total = card()->total_bytes;
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    *address = take_host(bytes);
    return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *address) {
    return_host(address);
    return cudaSuccess;
}
SUCCEEDS(cudaHostRegister, void *address, size_t bytes, unsigned flags)
SUCCEEDS(cudaHostUnregister, void *address)

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = is_device(address)   ? cudaMemoryTypeDevice
                       : is_pinned(address) ? cudaMemoryTypeHost
                                            : cudaMemoryTypeUnregistered;
    attributes->device = 0;
    if (attributes->type == cudaMemoryTypeDevice) attributes->devicePointer = (void *)address;
    if (attributes->type == cudaMemoryTypeHost) attributes->hostPointer = attributes->devicePointer = (void *)address;
    return cudaSuccess;
}

/* What comes from the device is nothing that was computed; what goes there is dropped. */
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    (void)kind;
    if (is_device(to)) return cudaSuccess;
    if (is_device(from))
        read_back(to, bytes);
    else
        memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    (void)stream;
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    if (!is_device(to)) memset(to, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    (void)stream;
    return cudaMemset(to, value, bytes);
}
SUCCEEDS(cudaMemcpyToSymbol, const void *symbol, const void *from, size_t bytes, size_t offset,
         enum cudaMemcpyKind kind)
cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    (void)symbol;
    *address = reserve_addresses(GRANULARITY);
    return cudaSuccess;
}

/* ---- kernels ---- */

static __thread struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    configuration.grid = grid;
    configuration.block = block;
    configuration.shared = shared;
    configuration.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared = configuration.shared;
    *(cudaStream_t *)stream = configuration.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { GIVES(kernel, (cudaKernel_t)function); }
SUCCEEDS(__cudaLaunchKernel, cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared,
         cudaStream_t stream)
SUCCEEDS(cudaLaunchKernel, const void *function, dim3 grid, dim3 block, void **args, size_t shared,
         cudaStream_t stream)
SUCCEEDS(cudaLaunchKernelExC, const cudaLaunchConfig_t *config, const void *function, void **args)
SUCCEEDS(cudaLaunchCooperativeKernel, const void *function, dim3 grid, dim3 block, void **args, size_t shared,
         cudaStream_t stream)
SUCCEEDS(cudaFuncSetAttribute, const void *function, enum cudaFuncAttribute which, int value)

/* The architecture whose code the card would run, of those that torch's wheels hold. cub asks for it by an empty
 * kernel and refuses one that it was not compiled for. */
static int compiled_for(void) {
    static const int compiled[] = {120, 100, 90, 86, 80, 75, 70, 60, 50};
    int own = 10 * card()->major + card()->minor;
    size_t i = 0;
    while (compiled[i] > own && i + 1 < sizeof compiled / sizeof *compiled) i++;
    return compiled[i];
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    (void)function;
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->maxDynamicSharedSizeBytes = 48 << 10;
    attributes->ptxVersion = attributes->binaryVersion = compiled_for();
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int block_size,
                                                                   size_t shared, unsigned flags) {
    (void)function, (void)shared, (void)flags;
    int most = limits()->blocks_per_multiprocessor, fit = limits()->threads_per_multiprocessor / (block_size ? block_size : 1);
    GIVES(blocks, fit < most ? fit : most);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int block_size,
                                                          size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size, shared, 0);
}

/* ---- streams and events: everything is done at once ---- */

static void *fresh_handle(void) { return malloc(16); }

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    GIVES(greatest, -5);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { GIVES(stream, fresh_handle()); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    (void)flags, (void)priority;
    GIVES(stream, fresh_handle());
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    (void)stream;
    GIVES(priority, 0);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    (void)stream;
    GIVES(status, cudaStreamCaptureStatusNone);
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *count) {
    (void)stream, (void)graph, (void)dependencies, (void)edges;
    if (id) *id = 0;
    if (count) *count = 0;
    GIVES(status, cudaStreamCaptureStatusNone);
}
SUCCEEDS(cudaThreadExchangeStreamCaptureMode, enum cudaStreamCaptureMode *mode)
SUCCEEDS(cudaStreamDestroy, cudaStream_t stream)
SUCCEEDS(cudaStreamQuery, cudaStream_t stream)
SUCCEEDS(cudaStreamSynchronize, cudaStream_t stream)
SUCCEEDS(cudaStreamWaitEvent, cudaStream_t stream, cudaEvent_t event, unsigned flags)

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    (void)stream;
    function(data);
    return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data, unsigned flags) {
    (void)flags;
    function(stream, cudaSuccess, data);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { GIVES(event, fresh_handle()); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    (void)flags;
    GIVES(event, fresh_handle());
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}
SUCCEEDS(cudaEventQuery, cudaEvent_t event)
SUCCEEDS(cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
SUCCEEDS(cudaEventRecordWithFlags, cudaEvent_t event, cudaStream_t stream, unsigned flags)
SUCCEEDS(cudaEventSynchronize, cudaEvent_t event)
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    (void)start, (void)end;
    GIVES(milliseconds, 0);
}
