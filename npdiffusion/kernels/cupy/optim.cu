// The optimiser's step, the moving average of weights and the gradient's norm, over flat arrays: a thread for each
// element. What changes from step to step may be given as an array on the device, so that a captured graph of
// launches can be replayed; NULL takes the numbers of the launch.

struct Adam { double lr, correction1, correction2, beta1, beta2, eps, weight_decay; long long decoupled; };

// m and v move towards g and g^2, w against their quotient (Kingma & Ba 2015, algorithm 1):
//     w -= lr / correction1 * m / (sqrt(v / correction2) + eps),    correction = 1 - beta^k at step k
// Decoupled weight decay shrinks w (Loshchilov & Hutter 2019), the other one adds to g.
// changing: lr, correction1, correction2. factor: what g is multiplied by (see clip_factor), or NULL.
extern "C" __global__ void adam(real *w, const real *g, real *m, real *v, long long size, Adam d,
                                const double *changing, const real *factor) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= size) return;
    const double lr = changing ? changing[0] : d.lr;
    const real step = (real)(lr / (changing ? changing[1] : d.correction1));
    const real unbias = (real)(1 / sqrt(changing ? changing[2] : d.correction2));
    const real beta1 = (real)d.beta1, beta2 = (real)d.beta2;

    real weight = w[i], slope = factor ? g[i] * factor[0] : g[i];
    if (d.decoupled) weight *= (real)(1 - lr * d.weight_decay);
    else slope += (real)d.weight_decay * weight;
    const real mean = beta1 * m[i] + (real)(1 - d.beta1) * slope;
    const real square = beta2 * v[i] + (real)(1 - d.beta2) * (slope * slope);
    m[i] = mean;
    v[i] = square;
    w[i] = weight - step * mean / (sqrt(square) * unbias + (real)d.eps);
}

// average += (1 - decay) (w - average); changing: decay.
extern "C" __global__ void ema(real *average, const real *w, long long size, double decay, const double *changing) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= size) return;
    average[i] += (real)(1 - (changing ? changing[0] : decay)) * (w[i] - average[i]);
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

// parts[block]: the sum of squares of the block's share of g.
extern "C" __global__ void squares(const real *g, double *parts, long long size) {
    const long long first = size * blockIdx.x / gridDim.x, last = size * (blockIdx.x + 1) / gridDim.x;
    double sum = 0;
    for (long long i = first + threadIdx.x; i < last; i += 256) sum += (double)g[i] * g[i];
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// result = norm of g, and the factor that limits it to max_norm. One block.
extern "C" __global__ void clip_factor(const double *parts, int count, double max_norm, real *result) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += 256) sum += parts[i];
    const double norm = sqrt(sum_over_block(sum));
    if (threadIdx.x == 0) {
        result[0] = (real)norm;
        result[1] = norm > max_norm ? (real)(max_norm / (norm + 1e-6)) : 1;
    }
}

extern "C" __global__ void scale(real *g, const real *factor, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < size) g[i] *= factor[0];
}

// Many arrays into one: out[offsets[a] + i] = arrays[a][i] for i < offsets[a + 1] - offsets[a]. Blocks along y: arrays.
struct Arrays { const real *arrays[100]; long long offsets[101]; };

extern "C" __global__ void gather(Arrays from, real *out) {
    const long long start = from.offsets[blockIdx.y], size = from.offsets[blockIdx.y + 1] - start;
    const real *array = from.arrays[blockIdx.y];
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < size; i += gridDim.x * 256ll) out[start + i] = array[i];
}
