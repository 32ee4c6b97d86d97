// Drives the caching allocator of a CUDA build of torch by commands, and prints what it did.
//
// Commands on stdin, one a line: `m ID BYTES` allocates, `f ID` frees, `e` empties the cache. The answer on
// stdout is one JSON object in the form of torch.cuda.memory._snapshot(), with the allocator's own statistics.
#include <c10/cuda/CUDACachingAllocator.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <unordered_map>

namespace allocator = c10::cuda::CUDACachingAllocator;
using c10::CachingDeviceAllocator::RecordContext;
using c10::CachingDeviceAllocator::SegmentInfo;
using c10::CachingDeviceAllocator::TraceEntry;

namespace {

constexpr size_t kEntries = 1 << 22;

const char* name(TraceEntry::Action action) {
  static const char* names[] = {"alloc",        "free_requested", "free_completed", "segment_alloc", "segment_free",
                                "segment_map",  "segment_unmap",  "snapshot",       "oom"};
  return names[action];
}

void print(const SegmentInfo& segment) {
  std::printf("{\"device\":0,\"address\":%zu,\"total_size\":%zu,\"stream\":0,\"segment_type\":\"%s\","
              "\"segment_pool_id\":[0,0],\"is_expandable\":%s,\"blocks\":[",
              segment.address, segment.total_size, segment.is_large ? "large" : "small",
              segment.is_expandable ? "true" : "false");
  size_t address = segment.address;
  const char* comma = "";
  for (const auto& block : segment.blocks) {
    std::printf("%s{\"address\":%zu,\"size\":%zu,\"requested_size\":%zu,\"state\":\"%s\"}", comma, address,
                block.size, block.requested_size, block.allocated ? "active_allocated" : "inactive");
    address += block.size;
    comma = ",";
  }
  std::printf("]}");
}

void print(const TraceEntry& entry) {
  std::printf("{\"action\":\"%s\",\"%s\":%zu,\"size\":%zu,\"stream\":0}", name(entry.action_),
              entry.action_ == TraceEntry::OOM ? "device_free" : "addr", entry.addr_, entry.size_);
}

template <typename Items>
void print_all(const Items& items) {
  const char* comma = "";
  for (const auto& item : items) {
    std::printf("%s", comma);
    print(item);
    comma = ",";
  }
}

void print_state() {
  auto state = allocator::get()->snapshot({0, 0}, true);
  auto stats = allocator::get()->getDeviceStats(0);
  std::printf("{\"segments\":[");
  print_all(state.segments);
  auto& trace = state.device_traces.at(0);
  if (!trace.empty() && trace.back().action_ == TraceEntry::SNAPSHOT) trace.pop_back();  // of this very call
  std::printf("],\"device_traces\":[[");
  print_all(trace);
  std::printf("]],\"allocator_settings\":{\"PYTORCH_CUDA_ALLOC_CONF\":\"%s\"},",
              state.config_metadata.last_allocator_settings.c_str());
  std::printf("\"stats\":{\"allocated\":%ld,\"allocated_peak\":%ld,\"requested\":%ld,\"requested_peak\":%ld,"
              "\"reserved\":%ld,\"reserved_peak\":%ld,\"inactive_split\":%ld,\"inactive_split_peak\":%ld,"
              "\"inactive_split_blocks\":%ld,\"segments\":%ld,\"retries\":%ld},\"ooms\":%ld}\n",
              stats.allocated_bytes[0].current, stats.allocated_bytes[0].peak, stats.requested_bytes[0].current,
              stats.requested_bytes[0].peak, stats.reserved_bytes[0].current, stats.reserved_bytes[0].peak,
              stats.inactive_split_bytes[0].current, stats.inactive_split_bytes[0].peak,
              stats.inactive_split[0].current, stats.segment[0].current, stats.num_alloc_retries, stats.num_ooms);
}

void obey() {
  std::unordered_map<long, void*> live;
  std::string verb;
  while (std::cin >> verb) {
    long id = 0;
    size_t bytes = 0;
    if (verb == "e") {
      allocator::get()->emptyCache();
    } else if (verb == "m" && std::cin >> id >> bytes) {
      try {
        live[id] = allocator::get()->raw_alloc(bytes);
      } catch (const c10::OutOfMemoryError&) {  // counted by the allocator; its `f` is then passed over
      }
    } else if (verb == "f" && std::cin >> id && live.count(id)) {
      allocator::get()->raw_delete(live[id]);
      live.erase(id);
    }
  }
}

}  // namespace

int main() {
  try {
    allocator::get()->init(1);
    allocator::get()->recordHistory(true, nullptr, kEntries, RecordContext::NEVER, true, {});
    obey();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  print_state();
  std::fflush(stdout);
  std::_Exit(0);  // the allocator is never torn down, as in torch
}
