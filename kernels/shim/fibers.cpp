// One fiber a CUDA thread, and a scheduler that favours some warps for a while, then others.

#include "shim.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
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
    // What landed since the last fence_async_proxy.
    std::vector<Copy> landed;
};

// Rows and columns of sums that a warp has of a product, by their bits.
typedef std::array<std::array<unsigned, 64>, 16> Matrix;

// What each lane brings to a product, and names of its registers.
struct Asked {
    Product product;
    unsigned *c;
    const unsigned *a;
    unsigned long long b;
    bool is_sum;
};

struct Operation {
    Asked lanes[WARP];
    // As they were when it was asked for.
    unsigned words[WARP][4];
    unsigned char columns[64][32];
    Matrix sums;
    // Whether it goes on with the sums of the one before it.
    bool is_chained;
};

// The products of a warp.
struct Products {
    // Groups under way, the open one last.
    std::vector<std::vector<Operation>> groups{1};
    // Sums of those that have ended while others go on with them.
    std::map<unsigned *, Matrix> sums;
    bool is_fenced = false;
    unsigned num_asked = 0;
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
std::vector<Products> products;
// What each group of four warps has asked for, in order.
std::vector<std::vector<unsigned long long>> asked;
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
    for (const std::vector<Operation> &group : products[thread / WARP].groups) {
        if (!group.empty()) {
            die("a thread ended with products under way");
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

// Shared memory as the tensor cores of sm_90a see it.
char tensor_view[SHARED_BYTES];

bool is_shared(const void *at) {
    const char *byte = static_cast<const char *>(at);
    return byte >= shared_end() - SHARED_BYTES && byte < shared_end();
}

// Where the chunk of 16 bytes lies that an address is in.
char *in_tensor_view(const void *at) { return tensor_view + shared_address(at); }

// The matrix of a descriptor: 64 rows of 32 bytes. Field for field as "Matrix Descriptor Format" has them.
void read_matrix(unsigned long long descriptor, unsigned char rows[64][32]) {
    const unsigned start = static_cast<unsigned>(descriptor & 0x3fff) << 4;
    const unsigned stride = static_cast<unsigned>(descriptor >> 32 & 0x3fff) << 4;
    const unsigned base = descriptor >> 49 & 7, swizzle = static_cast<unsigned>(descriptor >> 62);
    const unsigned long long fields = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
    if ((descriptor & ~fields) != 0) {
        die("a matrix descriptor with bits that mean nothing");
    }
    if (swizzle != 1 || base != 0) {
        die("a matrix in shared memory without the swizzle of 128 bytes, or with a base offset");
    }
    // Eight rows of 128 bytes repeat the pattern: where it begins has to be a multiple of 1024.
    if ((start & 0x380) != 0) {
        die("a matrix in shared memory that starts amid a pattern of the swizzle");
    }
    for (unsigned row = 0; row < 64; row++) {
        for (unsigned byte = 0; byte < 32; byte++) {
            const unsigned straight = start + row / 8 * stride + row % 8 * 128 + byte;
            const unsigned at = straight ^ (straight >> 7 & 7) << 4;
            if (at >= SHARED_BYTES) {
                die("a matrix that leaves shared memory");
            }
            rows[row][byte] = static_cast<unsigned char>(tensor_view[at]);
        }
    }
}

double number(Product product, const unsigned char *bytes) {
    unsigned short half;
    std::memcpy(&half, bytes, product == Product::I8 ? 1 : 2);
    switch (product) {
    case Product::F16: return float_of_f16(half);
    case Product::BF16: return ::float_of_bits(static_cast<unsigned>(half) << 16);
    default: return static_cast<signed char>(half);
    }
}

// Adds the product to the sums. What changed under it makes them garbage.
void add_product(const Operation &operation, Matrix &sums) {
    static const bool lies = std::getenv("SHIM_WGMMA_LIES") != nullptr;
    const Product product = operation.lanes[0].product;
    const unsigned size = product == Product::I8 ? 1 : 2;
    unsigned char columns[64][32];
    read_matrix(operation.lanes[0].b, columns);
    bool is_garbage = std::memcmp(columns, operation.columns, sizeof columns) != 0;
    for (unsigned lane = 0; lane < WARP; lane++) {
        is_garbage |= std::memcmp(operation.lanes[lane].a, operation.words[lane], 16) != 0;
    }
    double left[16][32], right[64][32];
    for (unsigned byte = 0; byte < 32; byte += size) {
        for (unsigned i = 0; i < 16; i++) {
            const unsigned *words = operation.words[i % 8 * 4 + byte % 16 / 4];
            const unsigned *word = &words[i / 8 + byte / 16 * 2];
            left[i][byte / size] = number(product, reinterpret_cast<const unsigned char *>(word) + byte % 4);
        }
        for (unsigned j = 0; j < 64; j++) {
            right[j][byte / size] = number(product, &columns[j][byte]);
        }
    }
    for (unsigned i = 0; i < 16; i++) {
        for (unsigned j = 0; j < 64; j++) {
            const bool is_i8 = product == Product::I8;
            double sum = is_i8 ? static_cast<int>(sums[i][j]) : ::float_of_bits(sums[i][j]);
            for (unsigned k = 0; k < 32 / size; k++) {
                sum += left[i][k] * right[j][k];
            }
            sum += lies && i == 5 && j == 3 ? 1.0 : 0.0;
            const unsigned bits = is_i8 ? static_cast<unsigned>(static_cast<int>(sum)) : ::bits_of_float(truncated(sum));
            sums[i][j] = is_garbage ? 0xffffffffu : bits;
        }
    }
}

// Which sums a lane has.
template <class Each> void each_sum(unsigned lane, Each each) {
    for (unsigned place = 0; place < 32; place++) {
        each(lane / 4 + place % 4 / 2 * 8, place / 4 * 8 + lane % 4 * 2 + place % 2, place);
    }
}

bool is_under_way(const Products &of_warp, const void *c, unsigned lane) {
    for (const std::vector<Operation> &group : of_warp.groups) {
        for (const Operation &operation : group) {
            if (operation.lanes[lane].c == c) {
                return true;
            }
        }
    }
    return false;
}

// All lanes have brought their part of a product.
void ask(const void *const in[WARP], void *const[WARP]) {
    const unsigned warp = thread / WARP;
    Products &of_warp = products[warp];
    Operation operation;
    for (unsigned lane = 0; lane < WARP; lane++) {
        operation.lanes[lane] = *static_cast<const Asked *>(in[lane]);
        std::memcpy(operation.words[lane], operation.lanes[lane].a, 16);
    }
    const Asked &first = operation.lanes[0];
    for (const Asked &other : operation.lanes) {
        if (other.b != first.b || other.is_sum != first.is_sum) {
            die("lanes with different descriptors");
        }
    }
    std::vector<unsigned long long> &before = asked[warp / 4];
    const unsigned long long what = first.b << 1 | (first.is_sum ? 1 : 0);
    if (of_warp.num_asked == before.size()) {
        before.push_back(what);
    } else if (before[of_warp.num_asked] != what) {
        die("warps of a group with different products");
    }
    of_warp.num_asked++;
    if (!of_warp.is_fenced) {
        die("a product without a fence after registers were used");
    }
    operation.is_chained = first.is_sum && is_under_way(of_warp, first.c, 0);
    operation.sums = Matrix{};
    for (unsigned lane = 0; lane < WARP; lane++) {
        unsigned *c = operation.lanes[lane].c;
        each_sum(lane, [&](unsigned i, unsigned j, unsigned place) {
            operation.sums[i][j] = first.is_sum ? c[place] : 0;
            // Undefined until it is waited for.
            c[place] = 0xffffffffu;
        });
    }
    read_matrix(first.b, operation.columns);
    of_warp.groups.back().push_back(operation);
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

unsigned shared_address(const void *at) {
    if (!is_shared(at)) {
        die("not an address in shared memory");
    }
    return static_cast<unsigned>(static_cast<const char *>(at) - (shared_end() - SHARED_BYTES));
}

void async_copy(uint4 *to, const uint4 *from, bool valid) {
    std::memset(static_cast<void *>(to), 0xff, sizeof *to);
    std::memset(in_tensor_view(to), 0xff, sizeof *to);
    fibers[thread].groups.back().push_back({to, from, valid});
}

void async_commit() { fibers[thread].groups.emplace_back(); }

void async_wait(unsigned groups) {
    // The open group is not waited for.
    std::vector<std::vector<Copy>> &pending = fibers[thread].groups;
    while (pending.size() > groups + 1) {
        for (const Copy &copy : pending.front()) {
            *copy.to = copy.valid ? *copy.from : uint4{0, 0, 0, 0};
            fibers[thread].landed.push_back(copy);
        }
        pending.erase(pending.begin());
    }
}

void fence_async_proxy() {
    for (const Copy &copy : fibers[thread].landed) {
        std::memcpy(in_tensor_view(copy.to), copy.to, sizeof *copy.to);
    }
    fibers[thread].landed.clear();
}

void wgmma(Product product, void *c, const unsigned a[4], unsigned long long b, bool is_sum) {
    const Asked mine = {product, static_cast<unsigned *>(c), a, b, is_sum};
    meet("wgmma", &mine, nullptr, ask);
}

void wgmma_fence() {
    meet("wgmma_fence", nullptr, nullptr,
         [](const void *const[WARP], void *const[WARP]) { products[thread / WARP].is_fenced = true; });
}

void wgmma_commit() {
    meet("wgmma_commit", nullptr, nullptr,
         [](const void *const[WARP], void *const[WARP]) { products[thread / WARP].groups.emplace_back(); });
}

void wgmma_wait(unsigned groups, const void *c) {
    const unsigned count = groups;
    meet("wgmma_wait", &count, nullptr, [](const void *const in[WARP], void *const[WARP]) {
        Products &of_warp = products[thread / WARP];
        std::vector<std::vector<Operation>> &pending = of_warp.groups;
        // The open group is not waited for.
        while (pending.size() > *static_cast<const unsigned *>(in[0]) + 1) {
            const std::vector<Operation> group = std::move(pending.front());
            pending.erase(pending.begin());
            for (const Operation &operation : group) {
                Matrix &sums = of_warp.sums[operation.lanes[0].c];
                if (!operation.is_chained) {
                    sums = operation.sums;
                }
                add_product(operation, sums);
            }
            for (const Operation &operation : group) {
                unsigned *key = operation.lanes[0].c;
                auto found = of_warp.sums.find(key);
                if (found == of_warp.sums.end() || is_under_way(of_warp, key, 0)) {
                    continue;
                }
                for (unsigned lane = 0; lane < WARP; lane++) {
                    each_sum(lane, [&](unsigned i, unsigned j, unsigned place) {
                        operation.lanes[lane].c[place] = found->second[i][j];
                    });
                }
                of_warp.sums.erase(found);
            }
        }
        of_warp.is_fenced = false;
    });
    if (is_under_way(products[thread / WARP], c, thread % WARP)) {
        die("sums that are still under way");
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
        std::memset(tensor_view, 0xff, SHARED_BYTES);
        warps.assign(threads / WARP, Meeting());
        products.assign(threads / WARP, Products());
        asked.assign((threads / WARP + 3) / 4, {});
        for (unsigned t = 0; t < threads; t++) {
            Fiber &fiber = fibers[t];
            fiber.is_done = false;
            fiber.turn = nullptr;
            fiber.groups.assign(1, {});
            fiber.landed.clear();
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
            if (products[t / WARP].num_asked != asked[t / WARP / 4].size()) {
                thread = t;
                die("a warp that did not take part in a product");
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
