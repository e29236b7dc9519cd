// One step of the reverse process, in one pass. All of a step is linear but for clipping:
//
//     o = output, or, guided, the second half of the batch + guidance (first half - second half)
//     x0 = clip(x0_x x + x0_o o, limit)
//     prev = prev_x0 x0 + prev_x x + prev_o o + sigma noise
//
// The coefficients lie on the device, so that a captured step can be replayed with others.

struct Coefficients { double x0_x, x0_o, limit, prev_x0, prev_x, prev_o, sigma, guidance; };

extern "C" __global__ void sampler_step(const real *x, const real *output, const real *noise, const double *numbers,
                                        real *prev, real *x0, long long size, int guided) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= size) return;
    const Coefficients &k = *(const Coefficients *)numbers;
    real o = output[i];
    if (guided) o = output[size + i] + (real)k.guidance * (o - output[size + i]);
    real start = (real)k.x0_x * x[i] + (real)k.x0_o * o;
    if (start > (real)k.limit) start = (real)k.limit;  // NaN stays
    if (start < -(real)k.limit) start = -(real)k.limit;
    x0[i] = start;
    real mean = (real)k.prev_x0 * start + (real)k.prev_x * x[i] + (real)k.prev_o * o;
    if (noise) mean += (real)k.sigma * noise[i];
    prev[i] = mean;
}
