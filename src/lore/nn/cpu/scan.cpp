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

// What goes in and comes out, in the order of the tuples of the same names in lore/dreamer/scan.py, which say what
// each is. All are float32 and contiguous. scan_float32 takes every *_w as (in, out), scan_back_float32 transposed.
struct Weights {
    const float *deter_w, *deter_b, *deter_scale, *stoch_w, *stoch_b, *stoch_scale, *own_w, *shared_w, *core_scale,
        *gates_w, *gates_b, *post_w, *post_scale, *logits_w, *logits_b;
};

struct Inputs {
    const float *deter, *stoch, *keep, *core_in, *post_in, *uniform;
};

struct Kept {
    float *deter, *stoch, *in_deter_z, *in_deter_r, *in_stoch_z, *in_stoch_r, *shared, *core_z, *core_r, *hidden,
        *gates, *post_z, *post_r, *post, *out, *hot, *probs;
};

struct Into {
    const float *deter, *hot, *probs;
};

struct Back {
    float *logits, *post_z, *gates, *core_z, *in_deter_z, *in_stoch_z, *post_scale, *core_scale, *deter_scale,
        *stoch_scale;
};

const float EPS = 1e-4f;  // of the norms, NORM_EPS in fused.py

void scale_rows(float* x, const float* by, long m, long n) {
    for (long i = 0; i < m; ++i)
        for (long j = 0; j < n; ++j) x[i * n + j] *= by[i];
}

}  // namespace

extern "C" {
// index (T, B, S) takes the classes; work: room for B * (2 D + Z) numbers.
void scan_float32(const Inputs* inputs, const Weights* weights, const Kept* kept, uint8_t* index, float* work, long T,
                  long B, long D, long g, long h, long S, long K, float mix) {
    const Weights& w = *weights;
    auto [deter0, stoch0, keep, core_in, post_in, uniform] = *inputs;
    long o = D / g, Z = S * K;
    float *own = work, *sum = own + B * D, *logits = sum + B * D;
    for (long t = 0; t < T; ++t) {
        float *deter = kept->deter + t * B * D, *stoch = kept->stoch + t * B * Z, *shared = kept->shared + t * 2 * B * h;
        float *in_deter_z = kept->in_deter_z + t * B * h, *in_stoch_z = kept->in_stoch_z + t * B * h;
        float *hidden = kept->hidden + t * B * o, *gates = kept->gates + t * 3 * B * o, *out = kept->out + t * B * D;
        float *post_z = kept->post_z + t * B * h, *post = kept->post + t * B * h, *hot = kept->hot + t * B * Z;
        std::memcpy(deter, t ? out - B * D : deter0, B * D * sizeof(float));
        std::memcpy(stoch, t ? hot - B * Z : stoch0, B * Z * sizeof(float));
        scale_rows(deter, keep + t * B, B, D);
        scale_rows(stoch, keep + t * B, B, Z);
        product(in_deter_z, h, w.deter_b, 0, deter, D, w.deter_w, B, D, h);
        product(in_stoch_z, h, w.stoch_b, 0, stoch, Z, w.stoch_w, B, Z, h);
        norm_silu(in_deter_z, w.deter_scale, shared, 2 * h, kept->in_deter_r + t * B, B, h, EPS);
        norm_silu(in_stoch_z, w.stoch_scale, shared + h, 2 * h, kept->in_stoch_r + t * B, B, h, EPS);
        for (long b = 0; b < g; ++b)
            product(own + b * B * o, o, nullptr, 0, deter + b * o, D, w.own_w + b * o * o, B, o, o);
        product(sum, D, core_in + t * B * D, D, shared, 2 * h, w.shared_w, B, 2 * h, D);
        core_hidden<float>(sum, nullptr, nullptr, own, w.core_scale, hidden, T * B * o, kept->core_z + t * B * D,
                           kept->core_r + t * B, B, g, o, EPS);
        for (long b = 0; b < g; ++b)
            product(gates + b * T * B * 3 * o, 3 * o, nullptr, 0, hidden + b * T * B * o, o,
                    w.gates_w + b * o * 3 * o, B, o, 3 * o);
        gru<float>(gates, T * B * 3 * o, w.gates_b, deter, D, out, D, 1, B, g, o);
        product(post_z, h, post_in + t * B * h, h, out, D, w.post_w, B, D, h);
        norm_silu(post_z, w.post_scale, post, h, kept->post_r + t * B, B, h, EPS);
        product(logits, Z, w.logits_b, 0, post, h, w.logits_w, B, h, Z);
        sample<float>(logits, uniform + t * B * S, index + t * B * S, hot, Z, kept->probs + t * B * Z, B, S, K, mix);
    }
}

// Fills `back`: gradients of the pre-activations (whole sequences, from which all weight gradients follow) and of the
// norms' scales, which are added to. work: room for B * (3 D + Z + 3 h) numbers.
void scan_back_float32(const Into* into, const float* keep, const Weights* weights, const Kept* kept, const Back* back,
                       float* work, long T, long B, long D, long g, long h, long S, long K, float mix) {
    const Weights& w = *weights;
    long o = D / g, Z = S * K;
    float *next = work, *out = next + B * D, *hidden = out + B * D, *stoch = hidden + B * D;
    float *shared = stoch + B * Z, *post = shared + 2 * B * h;
    for (long t = T - 1; t >= 0; --t) {
        bool more = t + 1 < T;
        float *logits = back->logits + t * B * Z, *post_z = back->post_z + t * B * h, *core_z = back->core_z + t * B * D;
        float *gates = back->gates + t * B * 3 * o;
        float *in_deter_z = back->in_deter_z + t * B * h, *in_stoch_z = back->in_stoch_z + t * B * h;
        sample_back(into->probs + t * B * Z, into->hot + t * B * Z, more ? stoch : nullptr, kept->probs + t * B * Z,
                    logits, B * S, K, mix);
        product(post, h, nullptr, 0, logits, Z, w.logits_w, B, Z, h);
        norm_silu_back(post, h, kept->post_z + t * B * h, kept->post_r + t * B, w.post_scale, post_z, back->post_scale,
                       B, h);
        product(out, D, into->deter + t * B * D, D, post_z, h, w.post_w, B, h, D);
        if (more)
            for (long j = 0; j < B * D; ++j) out[j] += next[j];
        gru_back(out, kept->gates + t * B * 3 * o, T * B * 3 * o, kept->deter + t * B * D, gates, next, B, g, o);
        for (long b = 0; b < g; ++b)
            product(hidden + b * o, D, nullptr, 0, gates + b * T * B * 3 * o, 3 * o, w.gates_w + b * 3 * o * o, B,
                    3 * o, o);
        norm_silu_back(hidden, D, kept->core_z + t * B * D, kept->core_r + t * B, w.core_scale, core_z,
                       back->core_scale, B, D);
        for (long b = 0; b < g; ++b)
            product(next + b * o, D, next + b * o, D, core_z + b * o, D, w.own_w + b * o * o, B, o, o);
        product(shared, 2 * h, nullptr, 0, core_z, D, w.shared_w, B, D, 2 * h);
        norm_silu_back(shared, 2 * h, kept->in_deter_z + t * B * h, kept->in_deter_r + t * B, w.deter_scale, in_deter_z,
                       back->deter_scale, B, h);
        norm_silu_back(shared + h, 2 * h, kept->in_stoch_z + t * B * h, kept->in_stoch_r + t * B, w.stoch_scale,
                       in_stoch_z, back->stoch_scale, B, h);
        product(next, D, next, D, in_deter_z, h, w.deter_w, B, h, D);
        product(stoch, Z, nullptr, 0, in_stoch_z, h, w.stoch_w, B, h, Z);
        scale_rows(next, keep + t * B, B, D);
        scale_rows(stoch, keep + t * B, B, Z);
    }
}
}
