// The wrappers of shared/portable.cuh on a CPU: every CUDA thread is a fiber, a block at a time.
//
// It is out to find mistakes, so it is as unkind as a device may be: shared memory starts as NaN, asynchronous copies
// destroy their target at once and land only when they are waited for, warps run ahead of and behind each other at
// random, lanes that meet at different instructions and barriers that not all threads reach end the process with a
// message, and the tensor cores round towards zero.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#ifndef SHIM_ARCH
#define SHIM_ARCH 800
#endif
#define ARCH SHIM_ARCH
// 900 stands for sm_90a.
#define HAS_WGMMA (SHIM_ARCH == 900)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

namespace shim {

constexpr unsigned WARP = 32;

// The thread that runs.
extern unsigned block, thread;

[[noreturn]] void die(const char *what);
void sync_block();
bool any_thread(bool says);
void *shared_memory(size_t size);

// All lanes of the warp meet at `what`; the last to come runs `resolve` with what each brought and wants.
typedef void (*Resolve)(const void *const in[WARP], void *const out[WARP]);
void meet(const char *what, const void *in, void *out, Resolve resolve);

void async_copy(uint4 *to, const uint4 *from, bool valid);
void async_commit();
void async_wait(unsigned groups);

// Where in shared memory.
unsigned shared_address(const void *at);
// The tensor cores of sm_90a see shared memory as it was when those who wrote it last executed this.
void fence_async_proxy();

// What a warp adds up asynchronously: 16 rows of 32 bytes in registers by 64 columns in shared memory.
enum class Product { F16, BF16, I8 };
void wgmma(Product product, void *c, const unsigned a[4], unsigned long long b, bool is_sum);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned groups, const void *c);

// Runs a kernel over a grid of blocks.
void run(unsigned num_blocks, unsigned num_threads, const std::function<void()> &thread);

// A launch with its arguments bound, as the driver gets them.
typedef std::function<void()> (*Bind)(void **params);

template <auto function, class... Args, size_t... I>
std::function<void()> bind(void (*)(Args...), void **params, std::index_sequence<I...>) {
    std::tuple<Args...> arguments{*static_cast<Args *>(params[I])...};
    return [arguments] { std::apply(function, arguments); };
}

template <auto function> std::function<void()> bind(void **params) {
    return []<class... Args>(void (*pointer)(Args...), void **params) {
        return bind<function>(pointer, params, std::index_sequence_for<Args...>());
    }(function, params);
}

struct Registration {
    Registration(const char *name, unsigned arch, unsigned num_threads, unsigned shared_bytes, Bind bind);
};

float float_of_f16(unsigned short bits);
unsigned short f16_of_float(float value);
float truncated(double exact);

template <class T> struct Shuffle { T value; unsigned from; };

template <class T> T shuffled(T value, unsigned from) {
    Shuffle<T> in = {value, from % WARP};
    T out;
    meet("a shuffle", &in, &out, [](const void *const in[WARP], void *const out[WARP]) {
        for (unsigned lane = 0; lane < WARP; lane++) {
            unsigned from = static_cast<const Shuffle<T> *>(in[lane])->from;
            *static_cast<T *>(out[lane]) = static_cast<const Shuffle<T> *>(in[from])->value;
        }
    });
    return out;
}

// Fragments of a lane: 16 x 32 bytes of a, 32 bytes x 8 columns of b.
template <class Sum> struct Fragments { Sum *c; const unsigned *a, *b; };


// Emulates m16n8k16 and m16n8k32: Element is 2 or 1 bytes.
template <class Sum, class Element, class Wide, class Decode, class Round>
void multiply(const char *what, Sum c[4], const unsigned a[4], const unsigned b[2], Decode, Round) {
    Fragments<Sum> mine = {c, a, b};
    meet(what, &mine, nullptr, [](const void *const in[WARP], void *const[WARP]) {
        auto lane = [&](unsigned index) { return static_cast<const Fragments<Sum> *>(in[index]); };
        auto element = [](const unsigned *word, unsigned byte) {
            Element value;
            std::memcpy(&value, reinterpret_cast<const unsigned char *>(word) + byte % 4, sizeof value);
            return static_cast<Wide>(Decode()(value));
        };
        Sum products[16][8];
        for (unsigned i = 0; i < 16; i++) {
            for (unsigned j = 0; j < 8; j++) {
                Wide sum = static_cast<Wide>(lane(i % 8 * 4 + j / 2)->c[i / 8 * 2 + j % 2]);
                for (unsigned byte = 0; byte < 32; byte += sizeof(Element)) {
                    const unsigned *left = &lane(i % 8 * 4 + byte % 16 / 4)->a[i / 8 + byte / 16 * 2];
                    const unsigned *right = &lane(j * 4 + byte % 16 / 4)->b[byte / 16];
                    sum += element(left, byte) * element(right, byte);
                }
                products[i][j] = Round()(sum);
            }
        }
        for (unsigned i = 0; i < 16; i++) {
            for (unsigned j = 0; j < 8; j++) {
                lane(i % 8 * 4 + j / 2)->c[i / 8 * 2 + j % 2] = products[i][j];
            }
        }
    });
}

} // namespace shim

#define DEVICE static inline
#define NOINLINE static inline
#define DEVICE_MEMBER inline
#define KERNEL(threads) static void
#define REGISTER_EXPANDED(name, num_threads, shared_bytes)                                                            \
    static shim::Registration register_##name(#name, ARCH, num_threads, shared_bytes, &shim::bind<&name>);
#define REGISTER_KERNEL(name, num_threads) REGISTER_EXPANDED(name, num_threads, 0)
#define REGISTER_LARGE_KERNEL(name, num_threads, shared_bytes) REGISTER_EXPANDED(name, num_threads, shared_bytes)
#define DYNAMIC_SHARED_MEMORY(name, bytes) uint4 *const name = static_cast<uint4 *>(shim::shared_memory(bytes))
#define SHARED_MEMORY(type, name) type &name = *static_cast<type *>(shim::shared_memory(sizeof(type)))

DEVICE unsigned block_idx() { return shim::block; }
DEVICE unsigned thread_idx() { return shim::thread; }
DEVICE void sync_block() { shim::sync_block(); }
DEVICE void sync_warp() {
    shim::meet("sync_warp", nullptr, nullptr, [](const void *const[shim::WARP], void *const[shim::WARP]) {});
}

DEVICE float shuffle_xor(float value, unsigned mask) { return shim::shuffled(value, shim::thread ^ mask); }
DEVICE unsigned shuffle_xor(unsigned value, unsigned mask) { return shim::shuffled(value, shim::thread ^ mask); }
DEVICE float shuffle(float value, unsigned lane) { return shim::shuffled(value, lane); }
DEVICE unsigned shuffle(unsigned value, unsigned lane) { return shim::shuffled(value, lane); }
DEVICE bool any_lane(bool says) {
    bool out;
    shim::meet("any_lane", &says, &out, [](const void *const in[shim::WARP], void *const out[shim::WARP]) {
        bool any = false;
        for (unsigned lane = 0; lane < shim::WARP; lane++) {
            any = any || *static_cast<const bool *>(in[lane]);
        }
        for (unsigned lane = 0; lane < shim::WARP; lane++) {
            *static_cast<bool *>(out[lane]) = any;
        }
    });
    return out;
}

DEVICE unsigned ballot(bool says) {
    unsigned out;
    shim::meet("ballot", &says, &out, [](const void *const in[shim::WARP], void *const out[shim::WARP]) {
        unsigned bits = 0;
        for (unsigned lane = 0; lane < shim::WARP; lane++) {
            bits |= *static_cast<const bool *>(in[lane]) ? 1u << lane : 0;
        }
        for (unsigned lane = 0; lane < shim::WARP; lane++) {
            *static_cast<unsigned *>(out[lane]) = bits;
        }
    });
    return out;
}

DEVICE bool any_thread(bool says) { return shim::any_thread(says); }

DEVICE unsigned atomic_add(unsigned *at, unsigned value) {
    const unsigned before = *at;
    *at += value;
    return before;
}

DEVICE unsigned num_bits(unsigned bits) { return static_cast<unsigned>(std::popcount(bits)); }

DEVICE float fma32(float a, float b, float c) { return std::fmaf(a, b, c); }
DEVICE float sqrt32(float x) { return std::sqrt(x); }
DEVICE float max32(float a, float b) { return std::fmax(a, b); }
DEVICE float min32(float a, float b) { return std::fmin(a, b); }
DEVICE float abs32(float a) { return std::fabs(a); }
// Off by a unit in the last place or two, as the device's are.
DEVICE float reciprocal32(float x) { return std::nextafterf(1.0f / x, 0.0f); }
DEVICE float reciprocal_sqrt32(float x) { return std::nextafterf(1.0f / std::sqrt(x), 0.0f); }
DEVICE unsigned num_low_zeros(unsigned bits) { return static_cast<unsigned>(std::countr_zero(bits)); }
DEVICE unsigned num_high_zeros(unsigned bits) { return static_cast<unsigned>(std::countl_zero(bits)); }
DEVICE float float_of_bits(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
DEVICE unsigned bits_of_float(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
DEVICE float float_of_f16(unsigned short bits) { return shim::float_of_f16(bits); }

DEVICE unsigned short f16_of_float(float value) { return shim::f16_of_float(value); }

DEVICE void async_copy(uint4 *to, const uint4 *from, bool valid) {
    if (ARCH >= 800) {
        shim::async_copy(to, from, valid);
    } else {
        *to = valid ? *from : uint4{0, 0, 0, 0};
    }
}
DEVICE void async_commit() { shim::async_commit(); }
template <int groups> DEVICE void async_wait() { shim::async_wait(groups); }

DEVICE void load_matrices(unsigned out[4], const uint4 *row) {
    shim::meet("load_matrices", row, out, [](const void *const in[shim::WARP], void *const out[shim::WARP]) {
        for (unsigned lane = 0; lane < shim::WARP; lane++) {
            for (unsigned m = 0; m < 4; m++) {
                const unsigned *words = static_cast<const unsigned *>(in[8 * m + lane / 4]);
                static_cast<unsigned *>(out[lane])[m] = words[lane % 4];
            }
        }
    });
}

namespace shim {

struct OfF16 {
    float operator()(unsigned short bits) const { return shim::float_of_f16(bits); }
};
struct OfBf16 {
    float operator()(unsigned short bits) const { return ::float_of_bits(static_cast<unsigned>(bits) << 16); }
};
struct OfI8 {
    int operator()(signed char value) const { return value; }
};
struct Truncate {
    float operator()(double exact) const { return truncated(exact); }
};
struct Same {
    int operator()(int value) const { return value; }
};

} // namespace shim

DEVICE void mma_f16(float c[4], const unsigned a[4], const unsigned b[2]) {
    shim::multiply<float, unsigned short, double>("mma_f16", c, a, b, shim::OfF16(), shim::Truncate());
}
DEVICE void mma_bf16(float c[4], const unsigned a[4], const unsigned b[2]) {
    shim::multiply<float, unsigned short, double>("mma_bf16", c, a, b, shim::OfBf16(), shim::Truncate());
}
DEVICE void mma_i8(int c[4], const unsigned a[4], const unsigned b[2]) {
    shim::multiply<int, signed char, int>("mma_i8", c, a, b, shim::OfI8(), shim::Same());
}

DEVICE unsigned shared_address(const void *at) { return shim::shared_address(at); }

#if HAS_WGMMA

DEVICE void fence_async_proxy() { shim::fence_async_proxy(); }
DEVICE void wgmma_fence() { shim::wgmma_fence(); }
DEVICE void wgmma_commit() { shim::wgmma_commit(); }
template <int groups, class Sum> DEVICE void wgmma_wait(Sum (&c)[32]) { shim::wgmma_wait(groups, c); }
DEVICE void wgmma_f16(float c[32], const unsigned a[4], unsigned long long b, bool is_sum) {
    shim::wgmma(shim::Product::F16, c, a, b, is_sum);
}
DEVICE void wgmma_bf16(float c[32], const unsigned a[4], unsigned long long b, bool is_sum) {
    shim::wgmma(shim::Product::BF16, c, a, b, is_sum);
}
DEVICE void wgmma_i8(int c[32], const unsigned a[4], unsigned long long b, bool is_sum) {
    shim::wgmma(shim::Product::I8, c, a, b, is_sum);
}

#endif
