/* The CUDA driver: the few functions of libcuda that torch asks for by name. This library is loaded under
 * libcuda's own name, so whoever opens "libcuda.so.1" gets it. */
#include "books.h"

#include <cuda.h>
#include <stdlib.h>
#include <string.h>

#define SUCCEEDS(name, ...) \
    CUresult name(__VA_ARGS__) { return CUDA_SUCCESS; }
#define IS_NOT_THERE(name) \
    CUresult name(void) { return CUDA_ERROR_NOT_SUPPORTED; }

/* Whoever starts the driver by hand would go on to its private tables (the compiler's cache does); the runtime,
 * which torch uses, does not come here. */
CUresult cuInit(unsigned flags) {
    (void)flags;
    return CUDA_ERROR_NO_DEVICE;
}
SUCCEEDS(cuCtxSetCurrent, CUcontext context)
SUCCEEDS(cuCtxPushCurrent, CUcontext context)
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
    (void)device;
    return *value = attribute(which), CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) { return *context = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext *context) { return *context = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    (void)device;
    return *context = (CUcontext)1, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    (void)device;
    return *flags = 0, *active = 1, CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    (void)error;
    return *text = "an error of the rehearsed driver", CUDA_SUCCESS;
}

/* ---- memory by hand: torch's expandable segments ---- */

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                       CUmemAllocationGranularity_flags option) {
    (void)prop, (void)option;
    return *granularity = GRANULARITY, CUDA_SUCCESS;
}
CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
    (void)alignment, (void)hint, (void)flags;
    *address = (CUdeviceptr)reserve_addresses(bytes);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *prop,
                     unsigned long long flags) {
    (void)prop, (void)flags;
    if (!take_physical(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t *held = malloc(sizeof *held);
    *held = bytes;
    return *handle = (CUmemGenericAllocationHandle)held, CUDA_SUCCESS;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    size_t *held = (size_t *)handle;
    return_physical(*held);
    free(held);
    return CUDA_SUCCESS;
}
SUCCEEDS(cuMemMap, CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
         unsigned long long flags)
SUCCEEDS(cuMemUnmap, CUdeviceptr address, size_t bytes)
SUCCEEDS(cuMemAddressFree, CUdeviceptr address, size_t bytes)
SUCCEEDS(cuMemSetAccess, CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count)
SUCCEEDS(cuMemsetD32Async, CUdeviceptr address, unsigned value, size_t count, CUstream stream)

/* ---- what no workload of ours uses: there, so that torch can look it up, and an error when called ---- */


/* ---- kernels that a library compiles at run time: the code is taken and never run ---- */

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *options, void **values, unsigned count,
                           CUlibraryOption *library_options, void **library_values, unsigned library_count) {
    (void)code, (void)options, (void)values, (void)count;
    (void)library_options, (void)library_values, (void)library_count;
    return *library = malloc(1), CUDA_SUCCESS;
}
CUresult cuLibraryUnload(CUlibrary library) { return free(library), CUDA_SUCCESS; }
CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    (void)name;
    return *kernel = (CUkernel)library, CUDA_SUCCESS;
}
SUCCEEDS(cuKernelSetAttribute, CUfunction_attribute which, int value, CUkernel kernel, CUdevice device)
CUresult cuGetErrorName(CUresult error, const char **name) {
    (void)error;
    return *name = "REHEARSED_ERROR", CUDA_SUCCESS;
}
