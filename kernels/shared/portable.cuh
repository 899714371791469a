// What the kernels ask of the machine: a wrapper for each instruction, so that a host compiler can run the same
// sources (shim/shim.h has the same names). Kernels call these and no intrinsics.
#pragma once

#ifdef MAXHULL_SHIM

#include "shim.h"

#else

#define ARCH __CUDA_ARCH__
#define DEVICE __device__ __forceinline__
// For what is long and called from several places.
#define NOINLINE static __device__ __noinline__
#define DEVICE_MEMBER __device__ __forceinline__
// Three blocks a multiprocessor leave 168 registers a thread of 128; without the number some targets spill for more.
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 3
#endif
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, MIN_BLOCKS)
#define REGISTER_KERNEL(name, num_threads)
// With memory of the block that the host gives.
#define REGISTER_LARGE_KERNEL(name, num_threads, shared_bytes)
#define DYNAMIC_SHARED_MEMORY(name, bytes) extern __shared__ uint4 name[]
// Whether this is for Hopper and nothing else.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif
// Memory of the block, undefined at first.
#define SHARED_MEMORY(type, name) __shared__ type name

DEVICE unsigned block_idx() { return blockIdx.x; }
DEVICE unsigned thread_idx() { return threadIdx.x; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }

DEVICE float shuffle_xor(float value, unsigned mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE unsigned shuffle_xor(unsigned value, unsigned mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle(float value, unsigned lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE unsigned shuffle(unsigned value, unsigned lane) { return __shfl_sync(0xffffffffu, value, lane); }
// Whether any lane of the warp says so.
DEVICE bool any_lane(bool says) { return __any_sync(0xffffffffu, says); }

// Which lanes of the warp say so: a bit each.
DEVICE unsigned ballot(bool says) { return __ballot_sync(0xffffffffu, says); }

// Whether any thread of the block says so; a barrier.
DEVICE bool any_thread(bool says) { return __syncthreads_or(says); }

// For shared memory and the device's; what it held before.
DEVICE unsigned atomic_add(unsigned *at, unsigned value) { return atomicAdd(at, value); }

DEVICE unsigned num_bits(unsigned bits) { return __popc(bits); }

DEVICE float fma32(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float sqrt32(float x) { return __fsqrt_rn(x); }
DEVICE float max32(float a, float b) { return fmaxf(a, b); }
DEVICE float min32(float a, float b) { return fminf(a, b); }
DEVICE float abs32(float a) { return fabsf(a); }
// 1 / x and 1 / sqrt(x) to 2 units in the last place, for numbers far from the ends of the range.
DEVICE float reciprocal32(float x) {
    float value;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}
DEVICE float reciprocal_sqrt32(float x) {
    float value;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}
// Zeros below the lowest bit that is set; 32 for none.
DEVICE unsigned num_low_zeros(unsigned bits) { return bits == 0 ? 32 : __ffs(bits) - 1; }
// Zeros above the highest bit that is set; 32 for none.
DEVICE unsigned num_high_zeros(unsigned bits) { return __clz(bits); }
DEVICE float float_of_bits(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned bits_of_float(float value) { return __float_as_uint(value); }

DEVICE float float_of_f16(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// To the nearest, ties to even.
DEVICE unsigned short f16_of_float(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

DEVICE unsigned shared_address(const void *at) { return static_cast<unsigned>(__cvta_generic_to_shared(at)); }

// Begins to copy 16 bytes into shared memory, zeros unless valid; the source must be an address of the buffer either
// way, and what is beside them in its 128 bytes is soon wanted too. They are there for this thread after async_wait, and
// for others after a barrier.
DEVICE void async_copy(uint4 *to, const uint4 *from, bool valid) {
#if ARCH >= 800
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    *to = valid ? *from : make_uint4(0, 0, 0, 0);
#endif
}

// Closes a group of copies.
DEVICE void async_commit() {
#if ARCH >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `groups` of the groups closed by this thread are under way.
template <int groups> DEVICE void async_wait() {
#if ARCH >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

// Four 8 x 8 matrices of 2-byte elements: lane 8 m + r names row r of matrix m, 16 bytes in shared memory; lane l
// receives in `out[m]` the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
DEVICE void load_matrices(unsigned out[4], const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c += a b for a of 16 x 32 bytes and b of 32 bytes x 8 columns, in the fragments of PTX's m16n8k16 and m16n8k32:
// lane l has of c the rows l / 4 and l / 4 + 8, columns 2 (l % 4) and 2 (l % 4) + 1.
DEVICE void mma_f16(float c[4], const unsigned a[4], const unsigned b[2]) {
#if ARCH >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int half = 0; half < 2; half++) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}

#if ARCH >= 800
DEVICE void mma_bf16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

DEVICE void mma_i8(int c[4], const unsigned a[4], const unsigned b[2]) {
#if ARCH >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int part = 0; part < 4; part++) {
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+r"(c[2 * (part % 2)]), "+r"(c[2 * (part % 2) + 1])
            : "r"(a[part]), "r"(b[part / 2]));
    }
#endif
}

#if HAS_WGMMA

// Hopper's asynchronous products. PTX ISA: "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions", there
// "Register Fragments", "Shared Memory Matrix Layout", "Matrix Descriptor Format"; "Proxies" for the fence. Four warps,
// of which the first has a number divisible by 4, execute all of these together.

// What lies in shared memory is visible to the tensor cores if the thread that wrote it executes this, and a barrier
// follows.
DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Between what was done with registers and the first product that has to do with them.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes a group of products.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

#define SUMS_OF_64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define OPERANDS_OF_64(type, c) \
    type(c[0]), type(c[1]), type(c[2]), type(c[3]), \
    type(c[4]), type(c[5]), type(c[6]), type(c[7]), \
    type(c[8]), type(c[9]), type(c[10]), type(c[11]), \
    type(c[12]), type(c[13]), type(c[14]), type(c[15]), \
    type(c[16]), type(c[17]), type(c[18]), type(c[19]), \
    type(c[20]), type(c[21]), type(c[22]), type(c[23]), \
    type(c[24]), type(c[25]), type(c[26]), type(c[27]), \
    type(c[28]), type(c[29]), type(c[30]), type(c[31])
// c = a b, or c += a b, for a of 64 rows of 32 bytes and b of 32 bytes x 64 columns in shared memory, which a matrix
// descriptor names. Warp w of the four gives 16 rows of a as for mma_f16, and receives of c those rows: c[4 g ..] are the
// 8 columns from 8 g on. Undefined until it is waited for.
#define DEFINE_WGMMA(name, Sum, letter, instruction, rest) \
    DEVICE void name(Sum c[32], const unsigned a[4], unsigned long long b, bool is_sum) { \
        asm volatile("{\n.reg .pred is_sum;\nsetp.ne.b32 is_sum, %37, 0;\n" instruction " " SUMS_OF_64 \
                     ", {%32, %33, %34, %35}, %36, is_sum" rest ";\n}" \
                     : OPERANDS_OF_64(letter, c) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(is_sum)) \
                     : "memory"); \
    }
DEFINE_WGMMA(wgmma_f16, float, "+f", "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16", ", 1, 1, 0")
DEFINE_WGMMA(wgmma_bf16, float, "+f", "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16", ", 1, 1, 0")
DEFINE_WGMMA(wgmma_i8, int, "+r", "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8", "")

// Waits until at most `groups` groups are under way. The sums of the others are there, `c` among them.
template <int groups> DEVICE void wgmma_wait(float (&c)[32]) {
    asm volatile("wgmma.wait_group.sync.aligned %32;" : OPERANDS_OF_64("+f", c) : "n"(groups) : "memory");
}
template <int groups> DEVICE void wgmma_wait(int (&c)[32]) {
    asm volatile("wgmma.wait_group.sync.aligned %32;" : OPERANDS_OF_64("+r", c) : "n"(groups) : "memory");
}

#endif

#endif
