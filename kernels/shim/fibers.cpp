// One fiber a CUDA thread, and a scheduler that favours some warps for a while, then others.

#include "shim.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shim {

unsigned block, thread;

namespace {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t SHARED_BYTES = 256 << 10;

#if defined(__x86_64__)

// Saves the registers that a call keeps and goes on with another stack.
extern "C" void shim_switch(void **from, void *to);
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");

struct Stack {
    void *top = nullptr;
    void prepare(char *memory, void (*entry)()) {
        void **words = reinterpret_cast<void **>(memory + STACK_BYTES);
        // The entry starts as if called: 8 bytes off a multiple of 16. Its caller is never returned to.
        words[-1] = nullptr;
        words[-2] = reinterpret_cast<void *>(entry);
        for (int saved = 3; saved <= 8; saved++) {
            words[-saved] = nullptr;
        }
        top = &words[-8];
    }
};

void switch_stacks(Stack &from, Stack &to) { shim_switch(&from.top, to.top); }

#else

struct Stack {
    ucontext_t context;
    void prepare(char *memory, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = memory;
        context.uc_stack.ss_size = STACK_BYTES;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
};

void switch_stacks(Stack &from, Stack &to) { swapcontext(&from.context, &to.context); }

#endif

struct Copy {
    uint4 *to;
    const uint4 *from;
    bool valid;
};

struct Fiber {
    Stack stack;
    std::unique_ptr<char[]> memory{new char[STACK_BYTES]};
    bool is_done = false;
    // Waits while *turn is still `seen`.
    const uint64_t *turn = nullptr;
    uint64_t seen = 0;
    const char *waits_at = "";
    // Groups of copies under way, the open one last.
    std::vector<std::vector<Copy>> groups{1};
};

struct Meeting {
    const char *what = "";
    unsigned num_arrived = 0;
    uint64_t turn = 0;
    const void *in[WARP];
    void *out[WARP];
};

std::vector<Fiber> fibers;
std::vector<Meeting> warps;
std::vector<uint64_t> favours;
Meeting barrier;
Stack scheduler;
unsigned num_threads;
const std::function<void()> *body;
std::mt19937_64 random_source(0x6d617868756c6c);

void wait(const char *what, const uint64_t &turn) {
    Fiber &fiber = fibers[thread];
    fiber.turn = &turn;
    fiber.seen = turn;
    fiber.waits_at = what;
    switch_stacks(fiber.stack, scheduler);
}

void entry() {
    (*body)();
    Fiber &fiber = fibers[thread];
    for (const std::vector<Copy> &group : fiber.groups) {
        if (!group.empty()) {
            die("a thread ended with copies under way");
        }
    }
    fiber.is_done = true;
    switch_stacks(fiber.stack, scheduler);
}

bool can_run(const Fiber &fiber) { return !fiber.is_done && (fiber.turn == nullptr || *fiber.turn != fiber.seen); }

// A thread of the warp in favour that can run, or num_threads.
unsigned choose() {
    if (random_source() % 256 == 0) {
        for (uint64_t &favour : favours) {
            favour = random_source();
        }
    }
    unsigned chosen = num_threads;
    uint64_t best = 0;
    const unsigned start = static_cast<unsigned>(random_source() % WARP);
    for (unsigned warp = 0; warp < favours.size(); warp++) {
        if (chosen != num_threads && favours[warp] <= best) {
            continue;
        }
        for (unsigned l = 0; l < WARP; l++) {
            const unsigned candidate = warp * WARP + (start + l) % WARP;
            if (candidate < num_threads && can_run(fibers[candidate])) {
                chosen = candidate;
                best = favours[warp];
                break;
            }
        }
    }
    return chosen;
}

// Shared memory ends where a page begins that nobody may touch.
char *shared_end() {
    static char *const end = [] {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        void *memory = mmap(nullptr, SHARED_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            die("no memory");
        }
        char *end = static_cast<char *>(memory) + SHARED_BYTES;
        mprotect(end, page, PROT_NONE);
        return end;
    }();
    return end;
}

} // namespace

void die(const char *what) {
    std::fprintf(stderr, "kernel shim: %s (block %u, thread %u)\n", what, block, thread);
    std::abort();
}

void sync_block() {
    if (++barrier.num_arrived == num_threads) {
        barrier.num_arrived = 0;
        barrier.turn++;
    } else {
        wait("a barrier", barrier.turn);
    }
}

bool any_thread(bool says) {
    // Two counts in turn: nobody is two barriers ahead.
    static unsigned counts[2];
    unsigned &count = counts[barrier.turn % 2];
    if (barrier.num_arrived == 0) {
        count = 0;
    }
    count += says ? 1 : 0;
    sync_block();
    return count != 0;
}

void *shared_memory(size_t size) {
    size = (size + 15) / 16 * 16;
    if (size > SHARED_BYTES) {
        die("too much shared memory");
    }
    return shared_end() - size;
}

void meet(const char *what, const void *in, void *out, Resolve resolve) {
    Meeting &warp = warps[thread / WARP];
    if (warp.num_arrived > 0 && warp.what != what && std::strcmp(warp.what, what) != 0) {
        std::fprintf(stderr, "kernel shim: %s met %s\n", what, warp.what);
        die("lanes of a warp at different instructions");
    }
    warp.what = what;
    warp.in[thread % WARP] = in;
    warp.out[thread % WARP] = out;
    if (++warp.num_arrived == WARP) {
        resolve(warp.in, warp.out);
        warp.num_arrived = 0;
        warp.turn++;
    } else {
        wait(what, warp.turn);
    }
}

void async_copy(uint4 *to, const uint4 *from, bool valid) {
    std::memset(static_cast<void *>(to), 0xff, sizeof *to);
    fibers[thread].groups.back().push_back({to, from, valid});
}

void async_commit() { fibers[thread].groups.emplace_back(); }

void async_wait(unsigned groups) {
    // The open group is not waited for.
    std::vector<std::vector<Copy>> &pending = fibers[thread].groups;
    while (pending.size() > groups + 1) {
        for (const Copy &copy : pending.front()) {
            *copy.to = copy.valid ? *copy.from : uint4{0, 0, 0, 0};
        }
        pending.erase(pending.begin());
    }
}

void run(unsigned num_blocks, unsigned threads, const std::function<void()> &thread_body) {
    if (threads % WARP != 0) {
        die("blocks of whole warps only");
    }
    num_threads = threads;
    body = &thread_body;
    while (fibers.size() < threads) {
        fibers.emplace_back();
    }
    favours.assign(threads / WARP, 0);
    for (block = 0; block < num_blocks; block++) {
        std::memset(shared_end() - SHARED_BYTES, 0xff, SHARED_BYTES);
        barrier = Meeting();
        warps.assign(threads / WARP, Meeting());
        for (unsigned t = 0; t < threads; t++) {
            Fiber &fiber = fibers[t];
            fiber.is_done = false;
            fiber.turn = nullptr;
            fiber.groups.assign(1, {});
            fiber.stack.prepare(fiber.memory.get(), entry);
        }
        for (;;) {
            const unsigned next = choose();
            if (next == num_threads) {
                break;
            }
            thread = next;
            switch_stacks(scheduler, fibers[next].stack);
        }
        for (unsigned t = 0; t < threads; t++) {
            if (!fibers[t].is_done) {
                thread = t;
                std::fprintf(stderr, "kernel shim: waits at %s\n", fibers[t].waits_at);
                die("a thread waits for others that do not come");
            }
        }
    }
}

float float_of_f16(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) {
        return ::float_of_bits(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return sign != 0 ? -magnitude : magnitude;
    }
    return ::float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

unsigned short f16_of_float(float value) {
    const unsigned bits = ::bits_of_float(value), sign = bits >> 16 & 0x8000u;
    const double magnitude = std::fabs(static_cast<double>(value));
    if (std::isnan(value)) {
        return static_cast<unsigned short>(sign | 0x7fffu);
    }
    // Units of the last place: 2^-24 below the smallest normal number. The default rounding is to even.
    const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
    const double units = std::nearbyint(std::ldexp(magnitude, 10 - exponent));
    if (exponent > 15 || (exponent == 15 && units >= 2048.0)) {
        return static_cast<unsigned short>(sign | 0x7c00u);
    }
    // A carry out of the fraction goes into the exponent, as it should.
    const unsigned whole = static_cast<unsigned>(units);
    const unsigned encoded = magnitude < 0x1p-14 ? whole : (static_cast<unsigned>(exponent + 14) << 10) + whole;
    return static_cast<unsigned short>(sign | encoded);
}

float truncated(double exact) {
    const float nearest = static_cast<float>(exact);
    const bool is_beyond = std::fabs(static_cast<double>(nearest)) > std::fabs(exact);
    return is_beyond ? std::nextafterf(nearest, 0.0f) : nearest;
}

} // namespace shim
