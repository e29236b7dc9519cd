// CUDA C on the CPU: include this, then a .cu file, and its kernels are C++ functions that `run` calls.
//
// The threads of a block are coroutines. Each runs until it reaches a barrier (of its warp: shuffles, mma; of the
// block: __syncthreads) or ends; when all have, the barrier opens. A warp runs as far as it can before the next one
// does, and they take turns forwards or backwards, by a random bit for each phase: whoever reads a value without a
// barrier after its writing, or writes without one after others' reading, gets it wrong sooner or later.
// Blocks run one after the other; shared memory is filled with NaN before each.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>
#include <setjmp.h>
#include <ucontext.h>

#define CUDA_ON_CPU
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#ifdef __ELF__  // all shared memory in one section, whose ends the linker knows
#define __shared__ static __attribute__((section("cuda_shared")))
extern "C" char __start_cuda_shared[] __attribute__((weak)), __stop_cuda_shared[] __attribute__((weak));
#else
#define __shared__ static
#endif

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

using std::exp; using std::log; using std::sqrt; using std::tanh; using std::fabs;
using std::fmax; using std::fmin; using std::isnan;

namespace cuda_on_cpu {

enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Thread {
    ucontext_t start;
    jmp_buf resume;
    uint3 index;
    bool started;
    State state;
    unsigned turn;          // warp operations so far: even and odd ones use different mailboxes
    uint32_t mail[2][16];   // what the lane tells its warp
};

static const size_t STACK = 1 << 17;
static std::vector<Thread> threads;
static Thread *self;
static jmp_buf scheduler;
static std::function<void()> kernel;
static unsigned random_state;

static bool random_bit() { return (random_state = random_state * 1664525u + 1013904223u) >> 31; }

static void wait(State state) {
    self->state = state;
    if (!_setjmp(self->resume)) _longjmp(scheduler, 1);
}

static void body() {
    kernel();
    self->state = DONE;
    _longjmp(scheduler, 1);
}

static void turn_of(Thread &thread) {  // runs the thread to its next barrier
    self = &thread;
    threadIdx = thread.index;
    if (_setjmp(scheduler)) return;
    if (thread.started) _longjmp(thread.resume, 1);
    thread.started = true;
    setcontext(&thread.start);
}

// Runs a warp until all of its threads wait at the block's barrier or have ended; false if some wait for others of the
// warp that will never come.
static bool run_warp(Thread *warp, int lanes) {
    for (;;) {
        const bool forwards = random_bit();
        int at_warp = 0;
        for (int k = 0; k < lanes; k++) {
            Thread &thread = warp[forwards ? k : lanes - 1 - k];
            if (thread.state == READY) turn_of(thread);
        }
        for (int k = 0; k < lanes; k++) at_warp += warp[k].state == AT_WARP;
        if (at_warp == 0) return true;
        if (at_warp < lanes) return false;
        for (int k = 0; k < lanes; k++) warp[k].state = READY;
    }
}

static bool run_block() {
#ifdef __ELF__
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
#endif
    unsigned i = 0;
    for (auto &t : threads) {
        t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
        t.started = false;
        t.state = READY;
        t.turn = 0;
        makecontext(&t.start, body, 0);
        i++;
    }
    const int n = threads.size(), warps = (n + 31) / 32;
    for (;;) {
        const bool forwards = random_bit();
        for (int k = 0; k < warps; k++) {
            const int first = 32 * (forwards ? k : warps - 1 - k);
            if (!run_warp(&threads[first], first + 32 < n ? 32 : n - first)) return false;
        }
        int waiting = 0;
        for (auto &t : threads) waiting += t.state == AT_BLOCK;
        if (waiting == 0) return true;
        if (waiting < n) return false;
        for (auto &t : threads) t.state = READY;
    }
}

// 0, or 1 if threads waited at a barrier that others never reached.
static int run(const int *grid, const int *block, std::function<void()> call) {
    static std::vector<char> stacks;
    kernel = call;
    random_state = 1;
    gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
    blockDim = {unsigned(block[0]), unsigned(block[1]), unsigned(block[2])};
    threads.resize(size_t(block[0]) * block[1] * block[2]);
    if (stacks.size() < threads.size() * STACK) stacks.resize(threads.size() * STACK);
    for (size_t i = 0; i < threads.size(); i++) {
        getcontext(&threads[i].start);
        threads[i].start.uc_stack.ss_sp = &stacks[i * STACK];
        threads[i].start.uc_stack.ss_size = STACK;
        threads[i].start.uc_link = nullptr;
    }
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                if (!run_block()) return 1;
            }
    return 0;
}

// All lanes of the warp tell their words; returns the warp's lanes, whose mail[turn] holds what they told.
static Thread *exchange(const void *words, size_t bytes, unsigned &turn) {
    Thread *mine = self;
    turn = mine->turn++ % 2;
    memcpy(mine->mail[turn], words, bytes);
    wait(AT_WARP);
    return &threads[0] + (mine - &threads[0]) / 32 * 32;
}

static unsigned lane() { return (self - &threads[0]) % 32; }

}  // namespace cuda_on_cpu

static inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::AT_BLOCK); }

static inline void __syncwarp(unsigned = 0xffffffffu) { cuda_on_cpu::wait(cuda_on_cpu::AT_WARP); }

template <class T> static T __shfl_xor_sync(unsigned, T value, int mask) {
    unsigned turn, from = cuda_on_cpu::lane() ^ mask;
    memcpy(&value, cuda_on_cpu::exchange(&value, sizeof value, turn)[from].mail[turn], sizeof value);
    return value;
}

template <class T> static T __shfl_down_sync(unsigned, T value, unsigned delta) {
    unsigned turn, from = cuda_on_cpu::lane() + delta;
    cuda_on_cpu::Thread *warp = cuda_on_cpu::exchange(&value, sizeof value, turn);
    if (from < 32) memcpy(&value, warp[from].mail[turn], sizeof value);
    return value;
}

static inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16, of 32-bit elements: lane r's address is that of line r % 8 of matrix r / 8;
// each lane gets element lane % 4 of line lane / 4 of the four matrices. Addresses must be aligned.
template <class Line> static void load_matrices(float *d, const Line *line) {
    if ((uintptr_t)line % 16) abort();
    unsigned turn, lane = cuda_on_cpu::lane();
    cuda_on_cpu::Thread *warp = cuda_on_cpu::exchange(&line, sizeof line, turn);
    for (int i = 0; i < 4; i++) {
        memcpy(&line, warp[8 * i + lane / 4].mail[turn], sizeof line);
        memcpy(d + i, (const char *)line + 4 * (lane % 4), 4);
    }
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32, d = a b + d. Which lane holds which element of
// a (16 x 8), b (8 x 8) and d (16 x 8) is written out here from the PTX ISA, "Matrix Fragments for mma.m16n8k8":
// with group = lane / 4 and member = lane % 4,
//     a[i]: row = group + 8 (i % 2),   column = member + 4 (i / 2)
//     b[i]: row = member + 4 i,        column = group
//     d[i]: row = group + 8 (i / 2),   column = 2 member + i % 2
static inline void mma_16x8x8(float *d, const float *a, const float *b) {
    const float words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    unsigned turn;
    cuda_on_cpu::Thread *warp = cuda_on_cpu::exchange(words, sizeof words, turn);
    float A[16][8], B[8][8];
    for (int lane = 0; lane < 32; lane++) {
        const uint32_t *mail = warp[lane].mail[turn];
        for (int i = 0; i < 6; i++) {
            uint32_t bits = mail[i] & 0xffffe000u;  // the unit ignores the low 13 bits
            float value;
            memcpy(&value, &bits, 4);
            if (i < 4) A[lane / 4 + 8 * (i % 2)][lane % 4 + 4 * (i / 2)] = value;
            else B[lane % 4 + 4 * (i - 4)][lane / 4] = value;
        }
    }
    unsigned lane = cuda_on_cpu::lane();
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 8; k++) d[i] += A[lane / 4 + 8 * (i / 2)][k] * B[k][2 * (lane % 4) + i % 2];
}
