// A stand-in for the CUDA runtime (libcudart.so.13): one device whose memory is counted and never touched.
//
// torch's caching allocator asks the runtime for memory and for little else, so with this in its place the
// allocator of a CUDA build of torch runs on a machine without GPU. From the environment:
//   STAND_IN_TOTAL     memory of the device in bytes
//   STAND_IN_CAPACITY  how much of it is given before the allocator is refused (default: all)
//   STAND_IN_SCATTER   0: each address above the one before; else the seed of addresses at random
#include <cuda.h>
#include <driver_types.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <string>

namespace {

constexpr uint64_t kFirst = uint64_t(1) << 40;
constexpr size_t kStep = 2 << 20;

size_t number(const char* name, size_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

const size_t total = number("STAND_IN_TOTAL", size_t(1) << 40);
const size_t capacity = number("STAND_IN_CAPACITY", total);
const bool scattered = number("STAND_IN_SCATTER", 0) != 0;
uint64_t random_state = number("STAND_IN_SCATTER", 0);
uint64_t next_address = kFirst;
size_t used = 0;
std::map<uint64_t, size_t> ranges;   // address -> bytes, of segments and reservations
std::map<uint64_t, size_t> handles;  // of mapped memory
uint64_t next_handle = 1;
cudaError_t last_error = cudaSuccess;

bool take(size_t bytes) {
  if (used + bytes > capacity) return false;
  used += bytes;
  return true;
}

bool is_free(uint64_t address, size_t bytes) {
  auto after = ranges.lower_bound(address);
  if (after != ranges.end() && address + bytes > after->first) return false;
  if (after == ranges.begin()) return true;
  auto before = std::prev(after);
  return before->first + before->second <= address;
}

uint64_t place(size_t bytes) {
  bytes = (bytes + kStep - 1) / kStep * kStep;
  uint64_t address = next_address;
  if (!scattered) next_address += bytes;
  while (scattered) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    address = kFirst + (random_state >> 20) % (1 << 18) * kStep;
    if (is_free(address, bytes)) break;
  }
  ranges[address] = bytes;
  return address;
}

CUresult reserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  *address = place(bytes);
  return CUDA_SUCCESS;
}

CUresult unreserve(CUdeviceptr address, size_t) {
  ranges.erase(address);
  return CUDA_SUCCESS;
}

CUresult create(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*,
                unsigned long long) {
  if (!take(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = next_handle++;
  handles[*handle] = bytes;
  return CUDA_SUCCESS;
}

CUresult release(CUmemGenericAllocationHandle handle) {
  used -= handles[handle];
  handles.erase(handle);
  return CUDA_SUCCESS;
}

CUresult attribute(int* value, CUdevice_attribute, CUdevice) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult succeed() { return CUDA_SUCCESS; }

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (!take(bytes)) return last_error = cudaErrorMemoryAllocation;
  *pointer = reinterpret_cast<void*>(place(bytes));
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  auto range = ranges.find(reinterpret_cast<uint64_t>(pointer));
  if (range != ranges.end()) {
    used -= range->second;
    ranges.erase(range);
  }
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned int, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  static const std::map<std::string, void*> table{
      {"cuMemAddressReserve", (void*)reserve}, {"cuMemAddressFree", (void*)unreserve},
      {"cuMemCreate", (void*)create},          {"cuMemRelease", (void*)release},
      {"cuDeviceGetAttribute", (void*)attribute}};
  auto found = table.find(name);
  *function = found == table.end() ? (void*)succeed : found->second;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  properties->totalGlobalMem = total;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  *free = capacity - used;
  *all = total;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "refused"; }
const char* cudaGetErrorString(cudaError_t) { return "refused by the stand-in"; }

// What libc10_cuda.so links to and the allocator does not call.
#define NOT_CALLED(name)                            \
  int name() {                                      \
    std::fprintf(stderr, "%s was called\n", #name); \
    std::abort();                                   \
  }
NOT_CALLED(cudaDeviceCanAccessPeer)
NOT_CALLED(cudaDeviceEnablePeerAccess)
NOT_CALLED(cudaDeviceGetDefaultMemPool)
NOT_CALLED(cudaEventCreateWithFlags)
NOT_CALLED(cudaEventDestroy)
NOT_CALLED(cudaEventElapsedTime)
NOT_CALLED(cudaEventQuery)
NOT_CALLED(cudaEventRecord)
NOT_CALLED(cudaEventSynchronize)
NOT_CALLED(cudaFreeAsync)
NOT_CALLED(cudaGraphNodeGetDependencies)
NOT_CALLED(cudaIpcCloseMemHandle)
NOT_CALLED(cudaIpcGetMemHandle)
NOT_CALLED(cudaIpcOpenMemHandle)
NOT_CALLED(cudaMallocAsync)
NOT_CALLED(cudaMemPoolGetAttribute)
NOT_CALLED(cudaMemPoolSetAccess)
NOT_CALLED(cudaMemPoolSetAttribute)
NOT_CALLED(cudaMemPoolTrimTo)
NOT_CALLED(cudaMemcpy)
NOT_CALLED(cudaMemcpyAsync)
NOT_CALLED(cudaMemcpyPeerAsync)
NOT_CALLED(cudaStreamCreateWithPriority)
NOT_CALLED(cudaStreamGetCaptureInfo)
NOT_CALLED(cudaStreamQuery)
NOT_CALLED(cudaStreamWaitEvent)

}  // extern "C"
