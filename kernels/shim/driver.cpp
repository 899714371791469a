// As much of the CUDA driver as src/device/cuda calls, with the kernels of the shim: a libcuda.so for tests.
//
// Streams hold their commands back and run them when somebody asks, in an order drawn at random that respects events
// and nothing else. So a missing wait shows, as do staging memory that is filled again too early, a thread without a
// context, and a launch with the wrong arguments.
//
// SHIM_CAPABILITY  compute capability, 80 by default
// SHIM_DRIVER      version of the driver, 12040 by default
// SHIM_MEMORY      bytes of memory of each device, 2^30 by default
// SHIM_DEVICES     devices, 1 by default; each with a context and memory of its own, and what belongs to one ends the
//                  process with a message when it is used in the context of another
// SHIM_OMIT        name of a kernel whose launches do nothing, as one that computes something wrong
// SHIM_FAIL        name of a kernel whose launches fail, and with them the device
// SHIM_WGMMA_LIES  if set, the products that only sm_90a has are wrong

#include "shim.h"

#include <chrono>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace {

enum Status { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
              NO_BINARY = 209, INVALID_PTX = 218, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_FAILED = 719 };

unsigned setting(const char *name, unsigned otherwise) {
    const char *text = std::getenv(name);
    return text != nullptr ? static_cast<unsigned>(std::strtoul(text, nullptr, 10)) : otherwise;
}

const unsigned CAPABILITY = setting("SHIM_CAPABILITY", 80);
const size_t MEMORY = setting("SHIM_MEMORY", 1u << 30);

struct Device;

struct Entry {
    unsigned arch, num_threads, shared_bytes;
    shim::Bind bind;
    Device *device;
    bool is_omitted, is_failing;
    // Memory of the block that a launch may ask for.
    unsigned most_shared = 48 << 10;
};

std::multimap<std::string, Entry> &entries() {
    static std::multimap<std::string, Entry> all;
    return all;
}

typedef std::shared_ptr<bool> Flag;

// Runs once `after` is true, or at once without one.
struct Command {
    Flag after;
    std::function<void()> run;
};

struct Device {
    size_t used = 0;
};

struct Stream {
    Device *device;
    std::deque<Command> commands;
};

using Clock = std::chrono::steady_clock;

struct Event {
    Device *device;
    bool has_time;
    Flag recorded;
    // When it happened.
    std::shared_ptr<Clock::time_point> time;
};

struct Module {
    Device *device;
    std::string ptx;
    // What it was compiled for, as Registration has it.
    unsigned arch;
    std::map<std::string, std::unique_ptr<Entry>> functions;
};

struct Pages {
    Device *device;
    void *start;
    size_t size, asked;
};

struct HostPages {
    Device *device;
    size_t size;
};

std::recursive_mutex mutex;
std::vector<Stream *> streams;
std::map<unsigned long long, Pages> device_memory;
std::map<char *, HostPages> host_memory;
std::mt19937_64 random_source(0x64726976);
// A context is its device.
thread_local Device *context = nullptr;

std::vector<Device> &devices() {
    static std::vector<Device> all(setting("SHIM_DEVICES", 1));
    return all;
}

Device *device_at(int ordinal) {
    const bool exists = ordinal >= 0 && static_cast<size_t>(ordinal) < devices().size();
    return exists ? &devices()[static_cast<size_t>(ordinal)] : nullptr;
}

void check_context(const Device *device, const char *what) {
    if (device != context) {
        const std::string message = std::string(what) + " of one device in the context of another";
        shim::die(message.c_str());
    }
}

typedef std::lock_guard<std::recursive_mutex> Lock;

// Runs one command of some stream; false if none can run.
bool advance() {
    std::vector<Stream *> ready;
    for (Stream *stream : streams) {
        if (!stream->commands.empty() && (!stream->commands.front().after || *stream->commands.front().after)) {
            ready.push_back(stream);
        }
    }
    if (ready.empty()) {
        return false;
    }
    Stream *stream = ready[random_source() % ready.size()];
    Command command = std::move(stream->commands.front());
    stream->commands.pop_front();
    command.run();
    return true;
}

template <class Condition> void advance_until(Condition condition) {
    while (!condition()) {
        if (!advance()) {
            shim::die("a stream waits for what nobody will do");
        }
    }
}

void finish() {
    while (advance()) {
    }
}

bool holds(unsigned long long address, size_t size) {
    auto after = device_memory.upper_bound(address);
    if (after == device_memory.begin()) {
        return false;
    }
    auto &[start, pages] = *--after;
    if (address + size > start + pages.asked) {
        return false;
    }
    check_context(pages.device, "memory");
    return true;
}

bool holds(const void *address, size_t size) {
    auto after = host_memory.upper_bound(static_cast<char *>(const_cast<void *>(address)));
    if (after == host_memory.begin()) {
        return false;
    }
    auto &[start, pages] = *--after;
    if (static_cast<const char *>(address) + size > start + pages.size) {
        return false;
    }
    check_context(pages.device, "pinned memory");
    return true;
}

} // namespace

shim::Registration::Registration(const char *name, unsigned arch, unsigned num_threads, unsigned shared_bytes,
                                 Bind bind) {
    entries().insert({name, Entry{arch, num_threads, shared_bytes, bind, nullptr, false, false}});
}

#define API(name) extern "C" __attribute__((visibility("default"))) int name
#define IN_CONTEXT                                                                                                     \
    Lock lock(mutex);                                                                                                  \
    if (context == nullptr) {                                                                                          \
        return INVALID_CONTEXT;                                                                                        \
    }

API(cuInit)(unsigned) { return OK; }

API(cuDriverGetVersion)(int *version) {
    *version = static_cast<int>(setting("SHIM_DRIVER", 12040));
    return OK;
}

API(cuGetErrorName)(int status, const char **name) {
    static std::map<int, std::string> names;
    Lock lock(mutex);
    *name = (names[status] = "status " + std::to_string(status)).c_str();
    return OK;
}

API(cuGetErrorString)(int status, const char **text) { return cuGetErrorName(status, text); }

API(cuDeviceGetCount)(int *count) {
    *count = static_cast<int>(devices().size());
    return OK;
}

API(cuDeviceGet)(int *device, int ordinal) {
    *device = ordinal;
    return device_at(ordinal) != nullptr ? OK : INVALID_DEVICE;
}

API(cuDeviceGetName)(char *name, int size, int) {
    std::snprintf(name, static_cast<size_t>(size), "kernel shim");
    return OK;
}

API(cuDeviceTotalMem_v2)(size_t *bytes, int) {
    *bytes = MEMORY;
    return OK;
}

API(cuDeviceGetAttribute)(int *value, int attribute, int) {
    switch (attribute) {
    case 1: *value = 1024; return OK;
    case 8: *value = 48 << 10; return OK;
    case 16: *value = 4; return OK;
    case 75: *value = static_cast<int>(CAPABILITY / 10); return OK;
    case 76: *value = static_cast<int>(CAPABILITY % 10); return OK;
    default: return INVALID_VALUE;
    }
}

API(cuDevicePrimaryCtxRetain)(void **out, int ordinal) {
    *out = device_at(ordinal);
    return *out != nullptr ? OK : INVALID_DEVICE;
}

API(cuDevicePrimaryCtxRelease_v2)(int) { return OK; }

API(cuCtxSetCurrent)(void *given) {
    context = static_cast<Device *>(given);
    return OK;
}

API(cuMemAlloc_v2)(unsigned long long *address, size_t size) {
    IN_CONTEXT
    if (size == 0) {
        return INVALID_VALUE;
    }
    if (context->used + size > MEMORY) {
        return OUT_OF_MEMORY;
    }
    // It ends, but for its alignment, where a page begins that nobody may touch.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), rounded = (size + 15) / 16 * 16;
    const size_t pages = (rounded + page - 1) / page * page + page;
    void *start = mmap(nullptr, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) {
        return OUT_OF_MEMORY;
    }
    std::memset(start, 0xff, pages);
    mprotect(static_cast<char *>(start) + pages - page, page, PROT_NONE);
    *address = reinterpret_cast<unsigned long long>(start) + pages - page - rounded;
    device_memory[*address] = Pages{context, start, pages, size};
    context->used += size;
    return OK;
}

API(cuMemFree_v2)(unsigned long long address) {
    IN_CONTEXT
    auto found = device_memory.find(address);
    if (found == device_memory.end()) {
        return INVALID_VALUE;
    }
    check_context(found->second.device, "memory");
    // The real one waits for the device. Not here: whoever frees must have waited.
    munmap(found->second.start, found->second.size);
    context->used -= found->second.asked;
    device_memory.erase(found);
    return OK;
}

API(cuMemHostAlloc)(void **out, size_t size, unsigned) {
    IN_CONTEXT
    char *memory = static_cast<char *>(std::malloc(size));
    std::memset(memory, 0xff, size);
    host_memory[memory] = HostPages{context, size};
    *out = memory;
    return OK;
}

API(cuMemFreeHost)(void *memory) {
    IN_CONTEXT
    holds(memory, 1);
    finish();
    host_memory.erase(static_cast<char *>(memory));
    std::free(memory);
    return OK;
}

API(cuMemcpyHtoDAsync_v2)(unsigned long long to, const void *from, size_t size, Stream *stream) {
    IN_CONTEXT
    check_context(stream->device, "a stream");
    if (!holds(to, size) || !holds(from, size)) {
        return INVALID_VALUE;
    }
    stream->commands.push_back({nullptr, [=] { std::memcpy(reinterpret_cast<void *>(to), from, size); }});
    return OK;
}

API(cuMemcpyDtoHAsync_v2)(void *to, unsigned long long from, size_t size, Stream *stream) {
    IN_CONTEXT
    check_context(stream->device, "a stream");
    if (!holds(from, size) || !holds(to, size)) {
        return INVALID_VALUE;
    }
    stream->commands.push_back({nullptr, [=] { std::memcpy(to, reinterpret_cast<void *>(from), size); }});
    return OK;
}

API(cuStreamCreate)(Stream **out, unsigned) {
    IN_CONTEXT
    *out = new Stream{context, {}};
    streams.push_back(*out);
    return OK;
}

API(cuStreamSynchronize)(Stream *stream) {
    IN_CONTEXT
    check_context(stream->device, "a stream");
    advance_until([=] { return stream->commands.empty(); });
    return OK;
}

API(cuStreamDestroy_v2)(Stream *stream) {
    IN_CONTEXT
    check_context(stream->device, "a stream");
    advance_until([=] { return stream->commands.empty(); });
    std::erase(streams, stream);
    delete stream;
    return OK;
}

API(cuStreamWaitEvent)(Stream *stream, Event *event, unsigned) {
    IN_CONTEXT
    check_context(stream->device, "a stream");
    check_context(event->device, "an event");
    // What the event stands for now; later recordings change nothing.
    stream->commands.push_back({event->recorded, [] {}});
    return OK;
}

API(cuEventCreate)(Event **out, unsigned flags) {
    IN_CONTEXT
    const bool has_time = (flags & 2) == 0;
    *out = new Event{context, has_time, nullptr, nullptr};
    return OK;
}

API(cuEventRecord)(Event *event, Stream *stream) {
    IN_CONTEXT
    check_context(event->device, "an event");
    check_context(stream->device, "a stream");
    Flag flag = std::make_shared<bool>(false);
    const auto time = std::make_shared<Clock::time_point>();
    event->recorded = flag;
    event->time = time;
    stream->commands.push_back({nullptr, [flag, time] {
                                    *flag = true;
                                    *time = Clock::now();
                                }});
    return OK;
}

API(cuEventQuery)(Event *event) {
    IN_CONTEXT
    check_context(event->device, "an event");
    // Time passes.
    if (random_source() % 4 == 0) {
        advance();
    }
    return !event->recorded || *event->recorded ? OK : NOT_READY;
}

API(cuEventSynchronize)(Event *event) {
    IN_CONTEXT
    check_context(event->device, "an event");
    Flag flag = event->recorded;
    advance_until([=] { return !flag || *flag; });
    return OK;
}

API(cuEventElapsedTime)(float *milliseconds, Event *start, Event *end) {
    IN_CONTEXT
    check_context(start->device, "an event");
    check_context(end->device, "an event");
    if (!start->has_time || !end->has_time || !start->recorded || !end->recorded) {
        return INVALID_VALUE;
    }
    if (!*start->recorded || !*end->recorded) {
        return NOT_READY;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
    return OK;
}

API(cuEventDestroy_v2)(Event *event) {
    IN_CONTEXT
    check_context(event->device, "an event");
    delete event;
    return OK;
}

API(cuModuleLoadData)(Module **out, const char *image) {
    IN_CONTEXT
    // Machine code is refused, as by a driver older than the assembler: the kernels of the text are those that run here.
    if (std::strncmp(image, ".version", 8) != 0) {
        return NO_BINARY;
    }
    const char *target = std::strstr(image, ".target sm_");
    char *rest = nullptr;
    const unsigned arch = target == nullptr ? 0 : static_cast<unsigned>(std::strtoul(target + 11, &rest, 10));
    // What ends with "a" runs there and nowhere else.
    if (arch == 0 || (*rest == 'a' ? arch != CAPABILITY : arch > CAPABILITY)) {
        return INVALID_PTX;
    }
    *out = new Module{context, image, 10 * arch, {}};
    return OK;
}

API(cuModuleUnload)(Module *module) {
    IN_CONTEXT
    check_context(module->device, "a module");
    delete module;
    return OK;
}

API(cuModuleGetFunction)(Entry **out, Module *module, const char *name) {
    IN_CONTEXT
    check_context(module->device, "a module");
    const std::string header = std::string(".visible .entry ") + name + "(";
    if (module->ptx.find(header) == std::string::npos) {
        return NOT_FOUND;
    }
    auto [begin, end] = entries().equal_range(name);
    auto entry = std::find_if(begin, end, [=](const auto &entry) { return entry.second.arch == module->arch; });
    if (entry == end) {
        return NOT_FOUND;
    }
    *out = (module->functions[name] = std::make_unique<Entry>(entry->second)).get();
    (*out)->device = context;
    const auto is_named = [name](const char *variable) {
        const char *value = std::getenv(variable);
        return value != nullptr && std::strcmp(name, value) == 0;
    };
    (*out)->is_omitted = is_named("SHIM_OMIT");
    (*out)->is_failing = is_named("SHIM_FAIL");
    return OK;
}

API(cuFuncSetAttribute)(Entry *entry, int attribute, int value) {
    IN_CONTEXT
    check_context(entry->device, "a kernel");
    // The largest dynamic shared memory; a multiprocessor of some architectures has no more than this.
    if (attribute != 8 || value < 0 || value > 99 << 10) {
        return INVALID_VALUE;
    }
    entry->most_shared = static_cast<unsigned>(value);
    return OK;
}

// The kernels are compiled for at least three blocks a multiprocessor.
API(cuOccupancyMaxActiveBlocksPerMultiprocessor)(int *blocks, Entry *entry, int, size_t) {
    IN_CONTEXT
    check_context(entry->device, "a kernel");
    *blocks = 3;
    return OK;
}

API(cuLaunchKernel)(Entry *entry, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                    unsigned threads_z, unsigned shared, Stream *stream, void **params, void **extra) {
    IN_CONTEXT
    check_context(entry->device, "a kernel");
    check_context(stream->device, "a stream");
    if (blocks == 0 || y != 1 || z != 1 || threads != entry->num_threads || threads_y != 1 || threads_z != 1 ||
        shared != entry->shared_bytes || shared > entry->most_shared || extra != nullptr) {
        return INVALID_VALUE;
    }
    if (entry->is_failing) {
        return LAUNCH_FAILED;
    }
    if (entry->is_omitted) {
        return OK;
    }
    std::function<void()> thread = entry->bind(params);
    stream->commands.push_back({nullptr, [=] { shim::run(blocks, threads, thread); }});
    return OK;
}
