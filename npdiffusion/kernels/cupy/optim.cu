// Optimisers: one launch changes many arrays. A table of pointers, passed by value, lists rows of ARRAYS arrays of one
// size (a weight, its gradient, ...), whose memory is walked from end to end: a block takes CHUNK elements of a row.

#define CHUNK 1024

template <int ARRAYS> struct Table {
    static const int ROWS = 3984 / (12 + 8 * ARRAYS);  // all parameters of a kernel may take 4096 bytes
    long long blocks;                                  // of launches before this one
    real *array[ROWS][ARRAYS];
    long long size[ROWS];
    int block[ROWS];  // the row's first one
};

// What the block works on: elements begin to end - 1 of a row.
struct Part {
    int row;
    long long begin, end;

    template <int ARRAYS> __device__ Part(const Table<ARRAYS> &t) : row(0) {
        for (int step = 128; step > 0; step /= 2)  // the last row whose first block is not behind this one
            if (row + step < Table<ARRAYS>::ROWS && t.block[row + step] <= blockIdx.x) row += step;
        begin = (long long)(blockIdx.x - t.block[row]) * CHUNK;
        end = begin + CHUNK < t.size[row] ? begin + CHUNK : t.size[row];
    }
};

#define ARRAY(number) t.array[part.row][number]
#define EACH(i) (long long i = part.begin + threadIdx.x; i < part.end; i += 256)

// v = momentum v + (g + weight_decay w), w -= lr v. Rows: w, v, g.
extern "C" __global__ void sgd(Table<3> t, const double *lr, double momentum, double weight_decay) {
    const Part part(t);
    real *w = ARRAY(0), *v = ARRAY(1), *g = ARRAY(2), rate = (real)*lr;
    for EACH(i) {
        const real velocity = (real)momentum * v[i] + (g[i] + (real)weight_decay * w[i]);
        v[i] = velocity;
        w[i] -= rate * velocity;
    }
}

struct Adam { double beta1, beta2, eps, weight_decay; long long decoupled; };

// m and v move towards g and g^2, w against their quotient (Kingma & Ba 2015, algorithm 1):
//     w -= lr / (1 - beta1^k) m / (sqrt(v) / sqrt(1 - beta2^k) + eps) at step k
// Decoupled weight decay shrinks w (Loshchilov & Hutter 2019), the other one adds to g. Rows: w, m, v, g, k.
extern "C" __global__ void adam(Table<5> t, const double *lr, Adam d) {
    __shared__ double step, unbias;
    const Part part(t);
    real *w = ARRAY(0), *m = ARRAY(1), *v = ARRAY(2), *g = ARRAY(3);
    if (threadIdx.x == 0) {  // for all: many GPUs are slow in double
        const double k = *(long long *)ARRAY(4);
        step = *lr / (1 - pow(d.beta1, k));
        unbias = 1 / sqrt(1 - pow(d.beta2, k));
    }
    __syncthreads();
    const real shrink = d.decoupled ? (real)(1 - *lr * d.weight_decay) : 1;
    const real decay = d.decoupled ? 0 : (real)d.weight_decay;
    for EACH(i) {
        const real slope = g[i] + decay * w[i];
        const real mean = (real)d.beta1 * m[i] + (real)(1 - d.beta1) * slope;
        const real square = (real)d.beta2 * v[i] + (real)(1 - d.beta2) * (slope * slope);
        m[i] = mean;
        v[i] = square;
        w[i] = shrink * w[i] - (real)step * mean / (sqrt(square) * (real)unbias + (real)d.eps);
    }
}

// k += 1. Rows: k.
extern "C" __global__ void count(Table<1> t) {
    const Part part(t);
    if (threadIdx.x == 0) ++*(long long *)ARRAY(0);
}

// s += (1 - d) (w - s), d = min(decay, (1 + k) / (10 + k)). Rows: s, w.
extern "C" __global__ void ema(Table<2> t, const long long *k, double decay) {
    const Part part(t);
    real *s = ARRAY(0), *w = ARRAY(1), rest = (real)(1 - fmin(decay, (1.0 + *k) / (10.0 + *k)));
    for EACH(i) s[i] += rest * (w[i] - s[i]);
}

// The sum over a block of 256 threads, given to its thread 0; always in the same order.
__device__ double sum_over_block(double value) {
    __shared__ double shared[256];
    shared[threadIdx.x] = value;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    return shared[0];
}

// parts[block]: the sum of squares of the block's elements. Rows: g.
extern "C" __global__ void squares(Table<1> t, double *parts) {
    const Part part(t);
    const real *g = ARRAY(0);
    double sum = 0;
    for EACH(i) sum += (double)g[i] * g[i];
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) parts[t.blocks + blockIdx.x] = sum;
}

// norm = the square root of the sum of all parts; factor = what limits it to max_norm. One block.
extern "C" __global__ void clip_factor(const double *parts, long long count, double max_norm, real *norm,
                                       double *factor) {
    double sum = 0;
    for (long long i = threadIdx.x; i < count; i += 256) sum += parts[i];
    const double root = sqrt(sum_over_block(sum));
    if (threadIdx.x == 0) {
        *norm = (real)root;
        *factor = root <= max_norm ? 1 : max_norm / (root + 1e-6);  // NaN makes it NaN
    }
}

// g *= factor. Rows: g.
extern "C" __global__ void scale(Table<1> t, const double *factor) {
    const Part part(t);
    real *g = ARRAY(0), limited = (real)*factor;
    if (limited != 1)
        for EACH(i) g[i] *= limited;
}
