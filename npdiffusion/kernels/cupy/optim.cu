// Optimisers: one launch changes many arrays. A table of pointers, passed by value, lists rows of ARRAYS arrays of one
// size (a weight, its gradient, ...), whose memory is walked from end to end. Blocks along y take a row each, blocks
// along x share its elements. All parameters of a kernel may take 4096 bytes.

template <int ARRAYS> struct Table {
    static const int ROWS = 3992 / (8 * (ARRAYS + 1));
    long long first;  // number of the first row, where there are more than one table holds
    long long size[ROWS];
    real *array[ROWS][ARRAYS];
};

#define ARRAY(number) t.array[blockIdx.y][number]  // of the block's row
#define EACH(i) (long long i = blockIdx.x * 256ll + threadIdx.x; i < t.size[blockIdx.y]; i += gridDim.x * 256ll)

// v = momentum v + (g + weight_decay w), w -= lr v. Rows: w, v, g.
extern "C" __global__ void sgd(Table<3> t, const double *lr, double momentum, double weight_decay) {
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
    real *w = ARRAY(0), *m = ARRAY(1), *v = ARRAY(2), *g = ARRAY(3);
    if (blockIdx.x * 256ll >= t.size[blockIdx.y]) return;
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
    if (threadIdx.x == 0) ++*(long long *)ARRAY(0);
}

// s += (1 - d) (w - s), d = min(decay, (1 + k) / (10 + k)). Rows: s, w.
extern "C" __global__ void ema(Table<2> t, const long long *k, double decay) {
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

// parts[row][block]: the sum of squares of the block's share of the row. Rows: g.
extern "C" __global__ void squares(Table<1> t, double *parts) {
    const real *g = ARRAY(0);
    double sum = 0;
    for EACH(i) sum += (double)g[i] * g[i];
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) parts[(t.first + blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

// norm = the square root of the sum of all parts; factor = what limits it to max_norm. One block.
extern "C" __global__ void clip_factor(const double *parts, long long count, double max_norm, real *norm,
                                       double *factor) {
    double sum = 0;
    for (long long i = threadIdx.x; i < count; i += 256) sum += parts[i];
    const double root = sqrt(sum_over_block(sum));
    if (threadIdx.x == 0) {
        *norm = (real)root;
        *factor = root > max_norm ? max_norm / (root + 1e-6) : 1;
    }
}

// g *= factor. Rows: g.
extern "C" __global__ void scale(Table<1> t, const double *factor) {
    real *g = ARRAY(0), limited = (real)*factor;
    if (limited != 1)
        for EACH(i) g[i] *= limited;
}
