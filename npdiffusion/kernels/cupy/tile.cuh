// Matrix products left * right' over `terms`, tile by tile in shared memory. A block of 128 threads computes ROWS
// lines of the left operand times COLUMNS lines of the right one, DEPTH terms at a time: while it multiplies those
// that lie in shared memory, the next ones are on their way from global memory into registers. Its 4 warps form a
// grid of WARPS_DOWN x WARPS_ACROSS, and each computes 32 x 32 results, 32 for each of its threads.
// With TF32 the products are the tensor cores', of operands rounded to 10 bits of mantissa; sums are float32.

#define ROWS (32 * WARPS_DOWN)
#define COLUMNS (32 * WARPS_ACROSS)
#define DEPTH 16
#define THREADS 128
#define RESIDENT (TF32 ? 4 : 2)  // blocks on a multiprocessor at a time: its registers shall do for so many

template <int N> struct alignas(N * sizeof(real) < 16 ? N * sizeof(real) : 16) Pack { real v[N]; };
typedef Pack<4> Four;

// Four terms of a line lie side by side in shared memory, Four number `four` of a line at place(line, four). The 8
// Fours of two lines fill all banks of the memory once; their order changes from pair to pair, so that 8 threads that
// read or write the same Four of neighbouring lines, or of every other line, use different banks.
__device__ int place(int line, int four) {
    const int i = 4 * line + four;
    return i ^ (i / 8 % 8);
}

struct Shared { Four left[2][4 * ROWS], right[2][4 * COLUMNS]; };

__device__ bool aligned(const void *p) { return (size_t)p % 16 == 0; }

// N numbers that lie side by side, all at once, or zeros.
template <int N> __device__ Pack<N> read(const real *from, bool inside) {
    return inside ? *(const Pack<N> *)from : Pack<N>();
}

// ---- who fetches what: a thread COUNT Fours of each DEPTH terms of an operand, number s is four() of line(s) -----

template <int LINES> struct AlongTerms {  // neighbouring threads take neighbouring terms
    static const int COUNT = LINES / 32;
    __device__ static int line(int s) { return threadIdx.x / 4 + 32 * s; }
    __device__ static int four() { return threadIdx.x % 4; }
};

template <int LINES> struct AlongLines {  // a thread takes COUNT neighbouring lines, neighbouring threads the next ones
    static const int COUNT = LINES / 32;
    __device__ static int line(int s) { return threadIdx.x % 32 * COUNT + s; }
    __device__ static int four() { return threadIdx.x / 32; }
};

// ---- operands: fetch(fours) gives the thread's Fours of the next DEPTH terms, zeros outside ----------------------

// A matrix whose terms lie side by side, its lines `pitch` apart.
template <int LINES> struct Rows : AlongTerms<LINES> {
    using AlongTerms<LINES>::COUNT, AlongTerms<LINES>::line, AlongTerms<LINES>::four;
    const real *from;
    int pitch, lines, terms;  // lines and terms from here to the end
    bool together;            // whether Fours can be read at once

    __device__ Rows(const real *matrix, int first, int lines, int pitch, int terms)
        : from(matrix + (long long)(first + line(0)) * pitch + 4 * four()), pitch(pitch),
          lines(lines - first - line(0)), terms(terms - 4 * four()),
          together(terms % 4 == 0 && pitch % 4 == 0 && aligned(matrix)) {}

    template <int N> __device__ void fetch_by(Four *out) const {
        for (int s = 0; s < COUNT; s++)
            for (int e = 0; e < 4; e += N) {
                const Pack<N> part = read<N>(from + 32ll * s * pitch + e, 32 * s < lines && e < terms);
                for (int n = 0; n < N; n++) out[s].v[e + n] = part.v[n];
            }
    }

    __device__ void fetch(Four *out) {
        if (together) fetch_by<4>(out);
        else fetch_by<1>(out);
        from += DEPTH;
        terms -= DEPTH;
    }
};

// A matrix whose lines lie side by side, its terms `pitch` apart.
template <int LINES> struct Columns : AlongLines<LINES> {
    using AlongLines<LINES>::COUNT, AlongLines<LINES>::line, AlongLines<LINES>::four;
    const real *from;
    int pitch, lines, terms;
    bool together;

    __device__ Columns(const real *matrix, int first, int lines, int pitch, int terms)
        : from(matrix + 4ll * four() * pitch + first + line(0)), pitch(pitch), lines(lines - first - line(0)),
          terms(terms - 4 * four()), together(lines % 4 == 0 && pitch % 4 == 0 && aligned(matrix)) {}

    template <int N> __device__ void fetch_by(Four *out) const {
        for (int e = 0; e < 4; e++)
            for (int s = 0; s < COUNT; s += N) {
                const Pack<N> part = read<N>(from + (long long)e * pitch + s, e < terms && s < lines);
                for (int n = 0; n < N; n++) out[s + n].v[e] = part.v[n];
            }
    }

    __device__ void fetch(Four *out) {
        if (together) fetch_by<COUNT>(out);
        else fetch_by<1>(out);
        from += (long long)DEPTH * pitch;
        terms -= DEPTH;
    }
};

// Columns that also add up each line, for the gradient of a bias.
template <int LINES> struct SummedColumns : Columns<LINES> {
    using Columns<LINES>::Columns, Columns<LINES>::COUNT, Columns<LINES>::line, Columns<LINES>::four;
    real sums[COUNT] = {};

    __device__ void fetch(Four *out) {
        Columns<LINES>::fetch(out);
        for (int s = 0; s < COUNT; s++)
            for (int e = 0; e < 4; e++) sums[s] += out[s].v[e];
    }

    // The sum of line number threadIdx.x, a part of which is in each of the four warps.
    __device__ real sum(Shared &shared) const {
        real *parts = shared.left[0][0].v;
        __syncthreads();
        for (int s = 0; s < COUNT; s++) parts[four() * LINES + line(s)] = sums[s];
        __syncthreads();
        real sum = 0;
        for (int warp = 0; warp < 4 && threadIdx.x < LINES; warp++) sum += parts[warp * LINES + threadIdx.x];
        return sum;
    }
};

// The block's share of the terms of a sum, that of slice blockIdx.y: so many from `first` on.
struct Slice {
    long long first;
    int terms;

    __device__ Slice(long long all) {
        const long long steps = (all + DEPTH - 1) / DEPTH, end = steps * (blockIdx.y + 1) / gridDim.y * DEPTH;
        first = steps * blockIdx.y / gridDim.y * DEPTH;
        terms = (end < all ? end : all) - first;
    }
};

// ---- products ----------------------------------------------------------------------------------------------------

#if TF32
// x and half a unit of TF32's last place: the tensor cores cut off what lies behind its 10 bits of mantissa.
__device__ float to_tf32(float x) { return x + 0x1p-11f * __uint_as_float(__float_as_uint(x) & 0xff800000); }

#ifndef CUDA_ON_CPU
// Four matrices of 8 lines times 4 terms: lane r gives the address of the Four of line r % 8 of matrix r / 8, and gets
// element lane % 4 of line lane / 4 of matrix i in d[i].
__device__ void load_matrices(float *d, const Four *line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"((unsigned)__cvta_generic_to_shared(line)) : "memory");
}

// d += a b on the tensor cores; all threads of a warp together (see Sums).
__device__ void mma_16x8x8(float *d, const float *a, const float *b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
#endif
#endif

// The 32 results of a thread, of the 32 x 32 of its warp: those of row(r) and column(c) of the block's tile,
// r < DOWN and c < ALONG.
struct Sums {
    real value[32];
    int down, across, lane;  // where the warp's results begin

    __device__ Sums() : value() {
        down = threadIdx.x / 32 / WARPS_ACROSS * 32;
        across = threadIdx.x / 32 % WARPS_ACROSS * 32;
        lane = threadIdx.x % 32;
    }

#if TF32
    // The tensor cores compute 16 x 8 results from 8 terms, d = a b + d, with the elements spread over the warp so
    // (PTX ISA, mma.m16n8k8 with .tf32), for group = lane / 4 and member = lane % 4:
    //     a[i]: row group + 8 (i % 2), term member + 4 (i / 2);   b[i]: term member + 4 i, column group;
    //     d[i]: row group + 8 (i / 2), column 2 member + i % 2.
    // So a is four matrices of 8 lines times 4 terms, and b of two such products side by side are four more.
    static const int DOWN = 4, ALONG = 8;
    __device__ int row(int r) const { return down + 8 * r + lane / 4; }
    __device__ int column(int c) const { return across + 8 * (c / 2) + 2 * (lane % 4) + c % 2; }
    __device__ real at(int r, int c) const { return value[16 * (r / 2) + 4 * (c / 2) + 2 * (r % 2) + c % 2]; }

    __device__ void add(const Four *left, const Four *right) {
        const int from_left = place(down + lane % 16, lane / 16);
        const int from_right = place(across + lane % 8 + lane / 16 * 8, lane / 8 % 2);
        for (int four = 0; four < 4; four += 2) {  // place(line + 16 i, four + 2) = (place(line, four) ^ 2) + 64 i
            float a[2][4], b[2][4];
            for (int i = 0; i < 2; i++) {
                load_matrices(a[i], left + (from_left ^ four) + 64 * i);
                load_matrices(b[i], right + (from_right ^ four) + 64 * i);
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) mma_16x8x8(value + 16 * i + 4 * j, a[i], b[j / 2] + 2 * (j % 2));
        }
    }
#else
    static const int DOWN = 8, ALONG = 4;
    __device__ int row(int r) const { return down + 4 * r + lane / 8; }
    __device__ int column(int c) const { return across + 8 * c + lane % 8; }
    __device__ real at(int r, int c) const { return value[4 * r + c]; }

    __device__ void add(const Four *left, const Four *right) {
        for (int four = 0; four < 4; four++) {
            Four b[4];
            for (int j = 0; j < 4; j++) b[j] = right[place(column(j), four)];
            for (int i = 0; i < 8; i++) {
                const Four a = left[place(row(i), four)];
                for (int j = 0; j < 4; j++)
                    for (int t = 0; t < 4; t++) value[4 * i + j] += a.v[t] * b[j].v[t];
            }
        }
    }
#endif
};

// The Fours that a thread has fetched, into shared memory.
template <class Operand> __device__ void keep(const Operand &operand, const Four *fetched, Four *shared) {
    for (int s = 0; s < Operand::COUNT; s++) {
        Four four = fetched[s];
#if TF32
        for (int e = 0; e < 4; e++) four.v[e] = to_tf32(four.v[e]);
#endif
        shared[place(operand.line(s), operand.four())] = four;
    }
}

// sums += left * right' over so many terms. One barrier is enough: who writes for the next step writes elsewhere, and
// who writes here again has passed the next step's barrier, as have then all that read here.
template <class Left, class Right>
__device__ void multiply(Left &left, Right &right, int terms, Shared &shared, Sums &sums) {
    Four next_left[Left::COUNT], next_right[Right::COUNT];
    left.fetch(next_left);
    right.fetch(next_right);
    for (int now = 0; terms > 0; terms -= DEPTH, now = 1 - now) {
        keep(left, next_left, shared.left[now]);
        keep(right, next_right, shared.right[now]);
        __syncthreads();
        if (terms > DEPTH) {
            left.fetch(next_left);
            right.fetch(next_right);
        }
        sums.add(shared.left[now], shared.right[now]);
    }
}

// A tile of a gradient, from (row0, column0) on, and the sums of the left operand's lines, each written by one block.
__device__ void store(const Sums &sums, const SummedColumns<ROWS> &left, Shared &shared, int row0, int column0,
                      int rows, int columns, real *product, real *of_lines) {
    for (int r = 0; r < Sums::DOWN; r++)
        for (int c = 0; c < Sums::ALONG; c++) {
            const int row = row0 + sums.row(r), column = column0 + sums.column(c);
            if (row < rows && column < columns) product[(long long)row * columns + column] = sums.at(r, c);
        }
    const real sum = left.sum(shared);
    const int row = row0 + threadIdx.x;
    if (column0 == 0 && threadIdx.x < ROWS && row < rows) of_lines[row] = sum;
}
