/* cuDNN: the real library, told about the card instead of finding it. Since 9.8 it plans graphs without a device
 * ("deviceless ahead-of-time compilation"), from the card's properties as JSON; so its choice of engine and the
 * workspace that the engine asks for are its own. Only handles and the execution of plans are pretended. */
#define _GNU_SOURCE
#include "books.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* of cudnn_graph_v9.h */
enum { DESCRIPTOR_OF_DEVICE = 38 };
enum { TYPE_HANDLE = 0, TYPE_DESCRIPTOR = 15, TYPE_CHAR = 24 };
enum {
    HEURISTIC_GRAPH = 200,
    HEURISTIC_DEVICE = 204,
    PLAN_HANDLE = 400,
    PLAN_DEVICE = 407,
    GRAPH_HANDLE = 800,
    ENGINE_GRAPH = 1300,
    ENGINE_DEVICE = 1307,
    DEVICE_JSON = 2702,
};

typedef void *descriptor;
typedef int set_attribute(descriptor, int name, int type, int64_t count, const void *values);

/* ---- the real library ---- */

static void *real(const char *name) {
    static void *library;
    if (!library) library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
    void *function = library ? dlsym(library, name) : NULL;
    if (!function) {
        fprintf(stderr, "rehearsal: cuDNN has no %s\n", name);
        exit(2);
    }
    return function;
}

/* ---- the card, as cuDNN writes it down ---- */

static descriptor the_device;

static void describe_device(void) {
    struct cudaDeviceProp prop;
    char json[1024];
    cudaGetDeviceProperties(&prop, 0);
    int length = snprintf(
        json, sizeof json,
        "{\"cudaDeviceId\":0,\"deviceVer\":%d,\"driverVer\":13000,\"totalGlobalMem\":%zu,"
        "\"maxGridSize\":[%d,%d,%d],\"maxBlockSize\":[%d,%d,%d],\"regsPerBlock\":%d,\"multiProcessorCount\":%d,"
        "\"warpSize\":%d,\"maxSharedMemoryPerBlock\":%zu,\"maxSharedMemoryPerBlockOptin\":%zu,"
        "\"reservedSharedMemoryPerBlock\":%zu,\"maxRegistersPerSM\":%d,\"maxCtasPerSM\":%d,"
        "\"maxThreadsPerBlock\":%d,\"maxThreadsPerSM\":%d,\"pciDeviceId\":0,\"isTccDriver\":0,"
        "\"supportCoopLaunch\":1,\"smClockRateKHz\":1500000,\"memClockRateKHz\":2000000,\"l2CacheSize\":%d,"
        "\"deviceName\":\"%s\"}",
        100 * prop.major + 10 * prop.minor, prop.totalGlobalMem, prop.maxGridSize[0], prop.maxGridSize[1],
        prop.maxGridSize[2], prop.maxThreadsDim[0], prop.maxThreadsDim[1], prop.maxThreadsDim[2], prop.regsPerBlock,
        prop.multiProcessorCount, prop.warpSize, prop.sharedMemPerBlock, prop.sharedMemPerBlockOptin,
        prop.reservedSharedMemPerBlock, prop.regsPerMultiprocessor, prop.maxBlocksPerMultiProcessor,
        prop.maxThreadsPerBlock, prop.maxThreadsPerMultiProcessor, prop.l2CacheSize, prop.name);
    int (*create)(int, descriptor *) = real("cudnnBackendCreateDescriptor");
    int (*finalize)(descriptor) = real("cudnnBackendFinalize");
    set_attribute *set = real("cudnnBackendSetAttribute");
    if (create(DESCRIPTOR_OF_DEVICE, &the_device) || set(the_device, DEVICE_JSON, TYPE_CHAR, length, json) ||
        finalize(the_device)) {
        fprintf(stderr, "rehearsal: cuDNN does not take this card: %s\n", json);
        exit(2);
    }
}

static int tell_device(descriptor of, int name) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, describe_device);
    set_attribute *set = real("cudnnBackendSetAttribute");
    return set(of, name, TYPE_DESCRIPTOR, 1, &the_device);
}

/* Where torch gives its handle, cuDNN gets the card's description; so do the engines, which find it in the handle. */
int cudnnBackendSetAttribute(descriptor of, int name, int type, int64_t count, const void *values) {
    if (type == TYPE_HANDLE) return name == PLAN_HANDLE ? tell_device(of, PLAN_DEVICE) : 0;
    set_attribute *set = real("cudnnBackendSetAttribute");
    int status = set(of, name, type, count, values);
    if (!status && name == HEURISTIC_GRAPH) status = tell_device(of, HEURISTIC_DEVICE);
    if (!status && name == ENGINE_GRAPH) status = tell_device(of, ENGINE_DEVICE);
    return status;
}

/* ---- what a device would do ---- */

int cudnnCreate(void **handle) { return *handle = calloc(1, 8), 0; }
int cudnnDestroy(void *handle) { return free(handle), 0; }
int cudnnSetStream(void *handle, void *stream) {
    (void)handle, (void)stream;
    return 0;
}
int cudnnGetStream(void *handle, void **stream) {
    (void)handle;
    return *stream = NULL, 0;
}
int cudnnBackendExecute(void *handle, descriptor plan, descriptor variables) {
    (void)handle, (void)plan, (void)variables;
    return 0;
}
