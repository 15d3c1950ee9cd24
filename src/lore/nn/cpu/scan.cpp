// The posterior scan of lore/dreamer/scan.py and its gradient, float32, one call for a whole sequence.
//
// With a handful of rows a step's products are too small to be worth a call from Python each. Built in one file
// with kernels.cpp, whose functions it uses. Letters: T time, B batch, D deter, g blocks, o = D / g, h hidden,
// S latents, K classes, Z = S * K.

namespace {

#ifdef __AVX512F__
const int WIDTH = 16, ROWS = 8;
#else
const int WIDTH = 8, ROWS = 4;
#endif
typedef float vec __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4)));

// M rows by V vectors of out = init + x @ w, accumulated in registers.
template <int M, int V>
inline void tile(float* out, long os, const float* init, long is, const float* x, long xs, const float* w,
                 long depth, long n) {
    vec sum[M][V];
    for (int i = 0; i < M; ++i)
        for (int v = 0; v < V; ++v) sum[i][v] = init ? *(const vec*)(init + i * is + v * WIDTH) : vec{};
    for (long k = 0; k < depth; ++k) {
        vec row[V];
        for (int v = 0; v < V; ++v) row[v] = *(const vec*)(w + k * n + v * WIDTH);
        for (int i = 0; i < M; ++i)
            for (int v = 0; v < V; ++v) sum[i][v] += x[i * xs + k] * row[v];
    }
    for (int i = 0; i < M; ++i)
        for (int v = 0; v < V; ++v) *(vec*)(out + i * os + v * WIDTH) = sum[i][v];
}

template <int M>
inline void rows_product(float* out, long os, const float* init, long is, const float* x, long xs,
                         const float* w, long depth, long n) {
    long j = 0;
    for (; j + 2 * WIDTH <= n; j += 2 * WIDTH)
        tile<M, 2>(out + j, os, init ? init + j : nullptr, is, x, xs, w + j, depth, n);
    for (; j + WIDTH <= n; j += WIDTH)
        tile<M, 1>(out + j, os, init ? init + j : nullptr, is, x, xs, w + j, depth, n);
    for (; j < n; ++j)
        for (int i = 0; i < M; ++i) {
            float sum = init ? init[i * is + j] : 0.0f;
            for (long k = 0; k < depth; ++k) sum += x[i * xs + k] * w[k * n + j];
            out[i * os + j] = sum;
        }
}

// out (m, n) = init (m, n; a row stride of 0 repeats one row; null for zero) + x (m, depth) @ w (depth, n).
// out, init and x are rows of the given strides; w is contiguous.
void product(float* out, long os, const float* init, long is, const float* x, long xs, const float* w, long m,
             long depth, long n) {
    long i = 0;
    for (; i + ROWS <= m; i += ROWS)
        rows_product<ROWS>(out + i * os, os, init ? init + i * is : nullptr, is, x + i * xs, xs, w, depth, n);
    for (; i < m; ++i)
        rows_product<1>(out + i * os, os, init ? init + i * is : nullptr, is, x + i * xs, xs, w, depth, n);
}

const float EPS = 1e-4f;  // of the norms, NORM_EPS in fused.py

void scale_rows(float* x, const float* by, long m, long n) {
    for (long i = 0; i < m; ++i)
        for (long j = 0; j < n; ++j) x[i * n + j] *= by[i];
}

}  // namespace

extern "C" {
// Inputs and weights as in posterior_scan, each *_w so that its last axis is what it gives; then what the
// gradient needs and the results, written.
void scan_float32(const float* deter0, const float* stoch0, const float* keep, const float* core_in,
                  const float* post_in, const float* uniform, const float* deter_w, const float* deter_b,
                  const float* deter_scale, const float* stoch_w, const float* stoch_b, const float* stoch_scale,
                  const float* own_w, const float* shared_w, const float* core_scale, const float* gates_w,
                  const float* gates_b, const float* post_w, const float* post_scale, const float* logits_w,
                  const float* logits_b, float* deter, float* stoch, float* y0, float* r0, float* y1, float* r1,
                  float* shared, float* z, float* r, float* hidden, float* gates, float* y2, float* r2,
                  float* post, float* out, float* hot, float* probs, uint8_t* index, float* work, long T, long B,
                  long D, long g, long h, long S, long K, float mix) {
    long o = D / g, Z = S * K;
    float *own = work, *sum = own + B * D, *logits = sum + B * D;
    for (long t = 0; t < T; ++t) {
        std::memcpy(deter, t ? out - B * D : deter0, B * D * sizeof(float));
        std::memcpy(stoch, t ? hot - B * Z : stoch0, B * Z * sizeof(float));
        scale_rows(deter, keep, B, D);
        scale_rows(stoch, keep, B, Z);
        product(y0, h, deter_b, 0, deter, D, deter_w, B, D, h);
        product(y1, h, stoch_b, 0, stoch, Z, stoch_w, B, Z, h);
        norm_silu(y0, deter_scale, shared, 2 * h, r0, B, h, EPS);
        norm_silu(y1, stoch_scale, shared + h, 2 * h, r1, B, h, EPS);
        for (long b = 0; b < g; ++b)
            product(own + b * B * o, o, nullptr, 0, deter + b * o, D, own_w + b * o * o, B, o, o);
        product(sum, D, core_in, D, shared, 2 * h, shared_w, B, 2 * h, D);
        core_hidden<float>(sum, nullptr, nullptr, own, core_scale, hidden, T * B * o, z, r, B, g, o, EPS);
        for (long b = 0; b < g; ++b)
            product(gates + b * T * B * 3 * o, 3 * o, nullptr, 0, hidden + b * T * B * o, o,
                    gates_w + b * o * 3 * o, B, o, 3 * o);
        gru<float>(gates, T * B * 3 * o, gates_b, deter, D, out, D, 1, B, g, o);
        product(y2, h, post_in, h, out, D, post_w, B, D, h);
        norm_silu(y2, post_scale, post, h, r2, B, h, EPS);
        product(logits, Z, logits_b, 0, post, h, logits_w, B, h, Z);
        sample<float>(logits, uniform, index, hot, Z, probs, B, S, K, mix);
        keep += B, core_in += B * D, post_in += B * h, uniform += B * S, deter += B * D, stoch += B * Z;
        y0 += B * h, r0 += B, y1 += B * h, r1 += B, shared += 2 * B * h, z += B * D, r += B;
        hidden += B * o, gates += 3 * B * o, y2 += B * h, r2 += B, post += B * h;
        out += B * D, hot += B * Z, probs += B * Z, index += B * S;
    }
}

// Gradients of what scan_float32 was given and kept: of the pre-activations (whole sequences, from which all
// weight gradients follow) and of the norms' scales, which are added to. Weights are the transposes of above.
void scan_back_float32(const float* grad_deter, const float* grad_hot, const float* grad_probs,
                       const float* keep, const float* deter_w, const float* deter_scale, const float* stoch_w,
                       const float* stoch_scale, const float* own_w, const float* shared_w,
                       const float* core_scale, const float* gates_w, const float* post_w,
                       const float* post_scale, const float* logits_w, const float* deter, const float* y0,
                       const float* r0, const float* y1, const float* r1, const float* z, const float* r,
                       const float* gates, const float* y2, const float* r2, const float* probs, float* g_logits,
                       float* g_y2, float* g_gates, float* g_z, float* g_y0, float* g_y1, float* g_post_scale,
                       float* g_core_scale, float* g_deter_scale, float* g_stoch_scale, float* work, long T,
                       long B, long D, long g, long h, long S, long K, float mix) {
    long o = D / g, Z = S * K;
    float *next = work, *out = next + B * D, *hidden = out + B * D, *stoch = hidden + B * D;
    float *shared = stoch + B * Z, *post = shared + 2 * B * h;
    for (long t = T - 1; t >= 0; --t) {
        bool more = t + 1 < T;
        float* glogits = g_logits + t * B * Z;
        sample_back(grad_probs + t * B * Z, grad_hot + t * B * Z, more ? stoch : nullptr, probs + t * B * Z,
                    glogits, B * S, K, mix);
        product(post, h, nullptr, 0, glogits, Z, logits_w, B, Z, h);
        float* gy2 = g_y2 + t * B * h;
        norm_silu_back(post, h, y2 + t * B * h, r2 + t * B, post_scale, gy2, g_post_scale, B, h);
        product(out, D, grad_deter + t * B * D, D, gy2, h, post_w, B, h, D);
        if (more)
            for (long j = 0; j < B * D; ++j) out[j] += next[j];
        float* ggates = g_gates + t * B * 3 * o;
        gru_back(out, gates + t * B * 3 * o, T * B * 3 * o, deter + t * B * D, ggates, next, B, g, o);
        for (long b = 0; b < g; ++b)
            product(hidden + b * o, D, nullptr, 0, ggates + b * T * B * 3 * o, 3 * o, gates_w + b * 3 * o * o, B,
                    3 * o, o);
        float* gz = g_z + t * B * D;
        norm_silu_back(hidden, D, z + t * B * D, r + t * B, core_scale, gz, g_core_scale, B, D);
        for (long b = 0; b < g; ++b)
            product(next + b * o, D, next + b * o, D, gz + b * o, D, own_w + b * o * o, B, o, o);
        product(shared, 2 * h, nullptr, 0, gz, D, shared_w, B, D, 2 * h);
        float *gy0 = g_y0 + t * B * h, *gy1 = g_y1 + t * B * h;
        norm_silu_back(shared, 2 * h, y0 + t * B * h, r0 + t * B, deter_scale, gy0, g_deter_scale, B, h);
        norm_silu_back(shared + h, 2 * h, y1 + t * B * h, r1 + t * B, stoch_scale, gy1, g_stoch_scale, B, h);
        product(next, D, next, D, gy0, h, deter_w, B, h, D);
        product(stoch, Z, nullptr, 0, gy1, h, stoch_w, B, h, Z);
        scale_rows(next, keep + t * B, B, D);
        scale_rows(stoch, keep + t * B, B, Z);
    }
}
}
